"""What one asks of a version before one trusts it: is it whole, and how does it differ from another?

Owns `verify` and `compare`, for whatever holds models. Everything is fetched and hashed before
it is opened, and opened in the limited child process alone. Changes nothing in the store.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from msgspec import Struct

from shipway.artifacts import Model
from shipway.console import Tell, size
from shipway.errors import ModelCorrupt, ModelError, ModelRefused
from shipway.proc import Proc, Run
from shipway.stores import golden, manifest, safety
from shipway.stores.catalogue import Catalogue
from shipway.stores.golden import Answer
from shipway.stores.manifest import ModelVersion, Tensor
from shipway.stores.signing import PublicKey
from shipway.tarball import Entry

_NOTHING_HELD = Path("/nonexistent")  # a cache that has no file: every byte comes from the store


class Verified(Struct, frozen=True, kw_only=True):
    """A version that is whole: whose signatures hold, and how many golden cases were run (`None`: not run)."""

    version: ModelVersion
    signers: tuple[PublicKey, ...]
    cases: int | None


class Compared(Struct, frozen=True, kw_only=True):
    """What differs between two versions. Each mapping has a pair for each name: before and after, `None` for none."""

    before: ModelVersion
    after: ModelVersion
    metrics: Mapping[str, tuple[float | None, float | None]]
    files: Mapping[str, tuple[str | None, str | None]]
    contract: Mapping[str, tuple[Any, Any]]
    answers: tuple[Answer, ...]


def verify(
    catalogue: Catalogue, name: str, which: int | str, *, cache: Path, tell: Tell, run: Run | None = None
) -> Verified:
    """Hash every file of a version as the store sends it; with `run`, ask its golden cases too.

    Raises `ModelUntrusted` where keys are trusted and none signed it, `ModelCorrupt` that
    names every file that is not what was promised, and with `run` `ModelRefused` and
    `GoldenFailed`.
    """
    version = catalogue.show(name, which)
    model = version.model
    tell.say("model", f"{model.name} {model.version}: {len(model.files)} files, {size(model.size_bytes)} to hash")
    if wrong := list(_wrong(catalogue, model)):
        listed = "\n".join(f"  {each}" for each in wrong)
        raise ModelCorrupt(f"version {model.version} of {model.name} in {catalogue} is damaged:\n{listed}")
    if run:
        _ask(catalogue.pull(model, cache=cache, tell=tell), version, run)
    cases = len(version.golden.tensors) if run else None
    return Verified(version=version, signers=catalogue.signers(name, version.version), cases=cases)


def _wrong(catalogue: Catalogue, model: Model) -> Iterator[str]:
    """Say what is not as promised: one pass over the bytes when all is well, and each file's own fault if not."""
    try:
        made = manifest.described(catalogue.layer_bytes(model, cache=_NOTHING_HELD))
    except ModelError as error:
        entries = catalogue.objects(model, cache=_NOTHING_HELD)
        yield from [told for entry in entries if (told := _fault(entry))] or [error.message]
        return
    if (made.digest, made.size_bytes) != (model.layer.digest, model.layer.size_bytes):
        yield f"its files make the layer {made.digest}, and the manifest promises {model.layer.digest}"
    if model.layer.gzip not in {made.gzip, None}:
        yield f"its files make the layer {made.gzip}, and the manifest promises {model.layer.gzip}"


def _fault(entry: Entry) -> str | None:
    try:
        for _ in entry.read():
            pass
    except ModelError as error:
        return error.message
    return None


def _ask(folder: Path, version: ModelVersion, run: Run) -> None:
    """Look at the files as publishing does, run the model, and see that the manifest tells the truth of it."""
    safety.inspect(folder)
    signature = golden.ask(folder, run=run)
    if (signature.inputs, signature.outputs) != (version.inputs, version.outputs):
        raise ModelRefused(
            f"version {version.version} of {version.name} has other inputs or outputs than its manifest says",
            advice="publish its files again",
        )


def compare(
    catalogue: Catalogue,
    name: str,
    before: int | str,
    after: int | str,
    *,
    cache: Path,
    tell: Tell,
    run: Run | None = None,
) -> Compared:
    """Compare two versions: what their manifests say, and how both answer the golden cases of both."""
    one, two = (catalogue.show(name, which) for which in (before, after))
    folders = [catalogue.pull(version.model, cache=cache, tell=tell) for version in (one, two)]
    for folder in folders:
        safety.inspect(folder)
    return Compared(
        before=one,
        after=two,
        metrics=_changed(one.metrics, two.metrics),
        files=_changed(*({file.path: file.digest for file in version.files} for version in (one, two))),
        contract=_changed(_contract(one), _contract(two)),
        answers=golden.compare(*folders, run=run or Proc()),
    )


def _changed(one: Mapping[str, Any], two: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    names = dict.fromkeys([*one, *two])
    return {name: (one.get(name), two.get(name)) for name in names if one.get(name) != two.get(name)}


def _contract(version: ModelVersion) -> dict[str, Any]:
    """Return what the service must understand, a line for each part."""
    tensors = [("input", each) for each in version.inputs] + [("output", each) for each in version.outputs]
    return {
        **{f"{way} {tensor.name}": _shape(tensor) for way, tensor in tensors},
        **{f"preprocessing {key}": value for key, value in (version.preprocessing or {}).items()},
    }


def _shape(tensor: Tensor) -> str:
    dimensions = ", ".join("free" if each is None else str(each) for each in tensor.shape)
    return f"{tensor.type} [{dimensions}]"
