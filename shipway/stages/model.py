"""The `model` stage: an alias becomes a version, pinned for the whole release.

Owns the comparison of a version with the service's contract, so that a model that does not
fit is refused before an image exists. Knows nothing of images, nor of how a store is kept.
Fetches golden cases alone: the weights go from the store straight into the image's layer.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from shipway import documents
from shipway.artifacts import Model, ModelRef
from shipway.config import ModelSettings
from shipway.console import Tell, size
from shipway.documents import Form, Meta
from shipway.errors import ConfigError, ModelDowngrade, ModelUnfit
from shipway.stores import Catalogue
from shipway.stores.manifest import ModelVersion, Tensor

Kind = Literal["number", "string", "boolean"]
_KINDS: Mapping[Kind, tuple[type, ...]] = {"number": (int, float), "string": (str,), "boolean": (bool,)}


class Contract(Form, frozen=True, kw_only=True):
    """What a service understands: `[model] contract` in release.toml.

    `preprocessing` has, for each key that the service understands, the values it knows, or
    `number`, `string` or `boolean` for any value of that kind.
    """

    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    preprocessing: Mapping[str, Annotated[tuple[Any, ...], Meta(min_length=1)] | Kind] = {}


def resolve(settings: ModelSettings, *, catalogue: Catalogue, root: Path, version: int | None, tell: Tell) -> Model:
    """Pin a version: the given one, or what the alias in release.toml names now.

    Raises `ModelMissing`, `ModelCorrupt` or `ModelRefused` when there is no whole version,
    `ModelUntrusted` when no trusted key signed it, and `ModelUnfit`, with every difference,
    when the service does not understand it.
    """
    published = catalogue.show(settings.name, settings.alias if version is None else version)
    if settings.contract is not None:
        require_fit(published, read_contract(root / settings.contract))
    model = catalogue.pin(published)
    tell.say("model", f"{model.name} {model.version} ({model.digest.short}, {size(model.size_bytes)})")
    return model


def require_forward(wanted: ModelRef, released: Iterable[ModelRef]) -> None:
    """Raise `ModelDowngrade` for what nobody named, and goes back; see `downgrade`."""
    if why := downgrade(wanted, released):
        raise ModelDowngrade(
            f"{wanted.name} {wanted.version} would be released, and it {why}",
            advice="look at invoke model.history; where it is meant, say --allow-downgrade, "
            f"or name the version: --model {wanted.version}",
        )


def downgrade(wanted: ModelRef, released: Iterable[ModelRef]) -> str | None:
    """Return why a model is a step back from those that were released, the newest first.

    Whoever can write the store can move an alias, or put an old one back, but signs no
    version: so an alias is believed as long as it goes forward, and a number for as long as
    it is what it was.
    """
    before = [model for model in released if model.name == wanted.name]
    if before and wanted.version < before[0].version:
        return f"is older than {before[0].version}, which was released here last"
    for model in before:
        if model.version == wanted.version and model.digest != wanted.digest:
            return f"is {wanted.digest.short} now, but was {model.digest.short} when it was released here"
    return None


def require_fit(published: ModelVersion, contract: Contract) -> None:
    """Raise `ModelUnfit`, with every difference, for a model that the service does not understand."""
    if told := differences(published, contract):
        listed = "\n".join(f"  {difference}" for difference in told)
        raise ModelUnfit(f"the service does not understand {published.name} {published.version}:\n{listed}")


def differences(published: ModelVersion, contract: Contract) -> list[str]:
    """Return in what a model is not what the service understands."""
    return [
        *_in_differences(published.inputs, contract.inputs),
        *_out_differences(published.outputs, contract.outputs),
        *_preprocessing_differences(published.preprocessing or {}, contract.preprocessing),
    ]


def read_contract(path: Path) -> Contract:
    """Read what a service understands; raises `ConfigError`."""
    try:
        return documents.convert(Contract, documents.decoded(path.read_bytes()))
    except (OSError, ValueError) as error:
        raise ConfigError(f"[model] contract: {path} cannot be used: {error}") from error


def _in_differences(given: tuple[Tensor, ...], understood: tuple[Tensor, ...]) -> Iterator[str]:
    """The service feeds exactly the inputs it knows; a dimension that it varies must be free."""
    by_name = {tensor.name: tensor for tensor in understood}
    for tensor in given:
        if tensor.name not in by_name:
            yield f"input {_told(tensor)}: the service feeds {_names(understood)} only"
        elif not _fits(by_name[tensor.name], tensor):
            yield f"input {_told(tensor)}: the service feeds {_told(by_name[tensor.name])}"
    for name in by_name:
        if name not in {tensor.name for tensor in given}:
            yield f"input {name}: the model has {_names(given)} only"


def _out_differences(given: tuple[Tensor, ...], understood: tuple[Tensor, ...]) -> Iterator[str]:
    """The service reads the outputs it knows; the model may have more."""
    by_name = {tensor.name: tensor for tensor in given}
    for tensor in understood:
        if tensor.name not in by_name:
            yield f"output {tensor.name}: the model has {_names(given)} only"
        elif not _fits(by_name[tensor.name], tensor):
            yield f"output {_told(by_name[tensor.name])}: the service reads {_told(tensor)}"


def _fits(given: Tensor, taken: Tensor) -> bool:
    """What is given fits what takes it: the same type and rank; a fixed dimension takes no other size."""
    return (
        given.type == taken.type
        and len(given.shape) == len(taken.shape)
        and all(want is None or size == want for size, want in zip(given.shape, taken.shape, strict=True))
    )


def _preprocessing_differences(
    given: Mapping[str, Any], understood: Mapping[str, tuple[Any, ...] | Kind]
) -> Iterator[str]:
    """Neither side may hold a key that the other does not know: it would be ignored silently."""
    for key, value in given.items():
        if key not in understood:
            yield f"preprocessing {key} = {value!r}: the service knows no such key"
        elif not _is_understood(value, understood[key]):
            yield f"preprocessing {key} = {value!r}: the service understands {_values(understood[key])}"
    for key, known in understood.items():
        if key not in given:
            yield f"preprocessing {key}: the model does not say it; the service understands {_values(known)}"


def _is_understood(value: Any, known: tuple[Any, ...] | Kind) -> bool:
    if isinstance(known, tuple):
        return any(type(value) is type(each) and value == each for each in known)
    return isinstance(value, _KINDS[known]) and (known == "boolean" or not isinstance(value, bool))


def _values(known: tuple[Any, ...] | Kind) -> str:
    return " or ".join(map(repr, known)) if isinstance(known, tuple) else f"any {known}"


def _names(tensors: tuple[Tensor, ...]) -> str:
    return ", ".join(tensor.name for tensor in tensors) or "none"


def _told(tensor: Tensor) -> str:
    dimensions = ", ".join("free" if dimension is None else str(dimension) for dimension in tensor.shape)
    return f"{tensor.name} {tensor.type} [{dimensions}]"
