"""The model stage: what fits the service's contract, and what is told when it does not."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from shipway import documents
from shipway.artifacts import Digest, Model, ModelFile, ModelLayer, ModelRef
from shipway.config import ModelSettings
from shipway.console import Console
from shipway.errors import ConfigError, ModelDowngrade, ModelMissing, ModelUnfit
from shipway.stages import model
from shipway.stores import manifest, open_catalogue
from shipway.stores.manifest import ModelVersion, Tensor

CONTRACT: dict[str, Any] = {
    "inputs": [{"name": "image", "type": "float32", "shape": [None, 3, 224, 224]}],
    "outputs": [{"name": "logits", "type": "float32", "shape": [None, 1000]}],
    "preprocessing": {"color": ["RGB"], "crop": "number", "exif_transpose": "boolean"},
}
PREPROCESSING = {"color": "RGB", "crop": 224, "exif_transpose": True}


def version(**changes: Any) -> ModelVersion:
    files = (ModelFile(path="model.onnx", digest=Digest.of(b"1"), size_bytes=1),)
    fields: dict[str, Any] = {
        "name": "lite",
        "version": 3,
        "digest": manifest.set_digest(files),
        "files": tuple(manifest.File(path=each.path, digest=each.digest, size_bytes=1) for each in files),
        "inputs": (Tensor(name="image", type="float32", shape=(None, 3, 224, 224)),),
        "outputs": (Tensor(name="logits", type="float32", shape=(None, 1000)),),
        "preprocessing": PREPROCESSING,
        "golden": manifest.Golden(tensors=("one",), exchanges=()),
        "metrics": {},
        "card": None,
        "publisher": "ada",
        "commit": None,
        "created": datetime(2026, 11, 23, tzinfo=UTC),
        "layer": ModelLayer(digest=Digest.of(b"layer"), size_bytes=10_240),
    }
    return ModelVersion(**{**fields, **changes})


def image(*shape: int | None, name: str = "image", kind: str = "float32") -> tuple[Tensor, ...]:
    return (Tensor(name=name, type=kind, shape=shape),)


FITS: dict[str, dict[str, Any]] = {
    "the same": {},
    "an input that takes any size": {"inputs": image(None, 3, None, None)},
    "one output more": {"outputs": (*image(None, 1000, name="logits"), *image(None, 8, name="features"))},
}


@pytest.mark.parametrize("case", FITS)
def test_require_fit_passes_when_the_service_understands_the_model(case: str) -> None:
    model.require_fit(version(**FITS[case]), documents.convert(model.Contract, CONTRACT))


UNFIT: dict[str, tuple[dict[str, Any], list[str]]] = {
    "another size": (
        {"inputs": image(None, 3, 240, 240)},
        ["input image float32 [free, 3, 240, 240]: the service feeds image float32 [free, 3, 224, 224]"],
    ),
    "a fixed batch": (
        {"inputs": image(1, 3, 224, 224)},
        ["input image float32 [1, 3, 224, 224]: the service feeds image float32 [free, 3, 224, 224]"],
    ),
    "another type": (
        {"inputs": image(None, 3, 224, 224, kind="uint8")},
        ["input image uint8 [free, 3, 224, 224]: the service feeds image float32 [free, 3, 224, 224]"],
    ),
    "another rank": (
        {"outputs": image(1000, name="logits")},
        ["output logits float32 [1000]: the service reads logits float32 [free, 1000]"],
    ),
    "fewer classes": (
        {"outputs": image(None, 10, name="logits")},
        ["output logits float32 [free, 10]: the service reads logits float32 [free, 1000]"],
    ),
    "other names": (
        {"inputs": image(None, 3, 224, 224, name="pixels")},
        [
            "input pixels float32 [free, 3, 224, 224]: the service feeds image only",
            "input image: the model has pixels only",
        ],
    ),
    "no output": ({"outputs": ()}, ["output logits: the model has none only"]),
    "another colour": (
        {"preprocessing": {**PREPROCESSING, "color": "BGR"}},
        ["preprocessing color = 'BGR': the service understands 'RGB'"],
    ),
    "a key that is new": (
        {"preprocessing": {**PREPROCESSING, "gamma": 2.2}},
        ["preprocessing gamma = 2.2: the service knows no such key"],
    ),
    "a kind that is wrong": (
        {"preprocessing": {**PREPROCESSING, "crop": True}},
        ["preprocessing crop = True: the service understands any number"],
    ),
    "no preprocessing": (
        {"preprocessing": None},
        [
            "preprocessing color: the model does not say it; the service understands 'RGB'",
            "preprocessing crop: the model does not say it; the service understands any number",
            "preprocessing exif_transpose: the model does not say it; the service understands any boolean",
        ],
    ),
}


@pytest.mark.parametrize("case", UNFIT)
def test_require_fit_tells_every_difference(case: str) -> None:
    changes, told = UNFIT[case]

    with pytest.raises(ModelUnfit) as raised:
        model.require_fit(version(**changes), documents.convert(model.Contract, CONTRACT))

    first, *lines = raised.value.message.splitlines()
    assert first == "the service does not understand lite 3:"
    assert [line.strip() for line in lines] == told


def _store(root: Path, published: ModelVersion) -> None:
    folder = root / "store/lite"
    (folder / "versions").mkdir(parents=True)
    (folder / "versions/3.json").write_bytes(documents.encoded(published))
    (folder / "blobs/sha256").mkdir(parents=True)
    (folder / "blobs/sha256" / Digest.of(b"1").hex).write_bytes(b"1")


SETTINGS = ModelSettings(name="lite", store="store", contract="contract.json")


def resolve(root: Path, *, version: int | None) -> Model:
    catalogue = open_catalogue("store", root=root)
    return model.resolve(SETTINGS, catalogue=catalogue, root=root, version=version, tell=Console())


def test_resolve_pins_the_version_when_it_fits(tmp_path: Path) -> None:
    _store(tmp_path, version())
    (tmp_path / "contract.json").write_text(json.dumps(CONTRACT))

    pinned = resolve(tmp_path, version=3)

    assert pinned == version().model


def test_resolve_refuses_when_the_model_does_not_fit(tmp_path: Path) -> None:
    _store(tmp_path, version(outputs=()))
    (tmp_path / "contract.json").write_text(json.dumps(CONTRACT))

    with pytest.raises(ModelUnfit):
        resolve(tmp_path, version=3)


@pytest.mark.parametrize(
    "text", [None, "{", '{"inputs": []}', '{"inputs": [], "outputs": [], "preprocessing": {"a": "any"}}']
)
def test_resolve_names_the_setting_when_the_contract_cannot_be_used(text: str | None, tmp_path: Path) -> None:
    _store(tmp_path, version())
    if text is not None:
        (tmp_path / "contract.json").write_text(text)

    with pytest.raises(ConfigError, match=r"\[model\] contract: .*contract\.json cannot be used"):
        resolve(tmp_path, version=3)


def test_resolve_says_what_there_is_when_the_alias_is_missing(tmp_path: Path) -> None:
    _store(tmp_path, version())

    with pytest.raises(ModelMissing, match="has no alias 'latest' of lite; its aliases: none"):
        resolve(tmp_path, version=None)


# -- going back -----------------------------------------------------------------------------


def ref(number: int, content: bytes = b"", name: str = "lite") -> ModelRef:
    return ModelRef(name=name, version=number, digest=Digest.of(content or b"%d" % number))


STEPS: dict[str, tuple[ModelRef, list[ModelRef], str | None]] = {
    "the first release": (ref(7), [], None),
    "forward": (ref(8), [ref(7)], None),
    "the same": (ref(7), [ref(7), ref(8)], None),
    "older": (ref(6), [ref(7), ref(6)], "is older than 7, which was released here last"),
    "older than before, but newer than what a person went back to": (ref(6), [ref(5), ref(7)], None),
    "another model": (ref(1, name="heavy"), [ref(7)], None),
    "the number of another model": (ref(7), [ref(7, b"x", name="heavy"), ref(6)], None),
    "a number with other content": (
        ref(7, b"x"),
        [ref(6), ref(7)],
        f"is {Digest.of(b'x').short} now, but was {Digest.of(b'7').short} when it was released here",
    ),
}


@pytest.mark.parametrize("case", STEPS)
def test_downgrade_says_why_a_model_is_a_step_back(case: str) -> None:
    wanted, released, told = STEPS[case]

    assert model.downgrade(wanted, released) == told


def test_require_forward_says_what_to_type() -> None:
    with pytest.raises(ModelDowngrade, match=r"lite 6 would be released, and it is older than 7") as raised:
        model.require_forward(ref(6), [ref(7)])

    assert raised.value.next.endswith("say --allow-downgrade, or name the version: --model 6")
