"""The bill of materials: valid CycloneDX, the same bytes everywhere, and nothing secret."""

from __future__ import annotations

import json

from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from shipway.artifacts import Digest
from shipway.oci import lockfile, sbom
from shipway.oci.wheels import Target
from tests.attested import BASE, LOCK, composed, model

PINS = lockfile.pinned(LOCK, Target(python="3.11", platform="linux/amd64"))


def _valid(bill: bytes) -> bool:
    errors = JsonStrictValidator(SchemaVersion.V1_6).validate_str(bill.decode())
    assert errors is None, str(errors)[:500]
    return True


def test_bill_lists_packages_model_and_base_when_there_is_one() -> None:
    image = composed(base=BASE).image

    bill = sbom.make(image, pins=PINS, model=model())

    assert _valid(bill)
    document = json.loads(bill)
    assert [(each["type"], each["name"], each["version"]) for each in document["components"]] == [
        ("library", "flask", "3.1.3"),
        ("library", "numpy", "2.4.6"),
        ("library", "torch", "2.9.0+cpu"),
        ("machine-learning-model", "net", "1"),
        ("container", "base", Digest.of(b"the base's manifest")),
    ]
    assert document["compositions"] == [{"aggregate": "incomplete", "assemblies": ["image"]}]
    assert document["metadata"]["component"] == {"type": "container", "bom-ref": "image", "name": "shop"}
    assert sbom.count(document) == 3


def test_package_has_a_hash_only_when_the_lock_has_no_other_for_it() -> None:
    document = json.loads(sbom.make(composed().image, pins=PINS, model=model()))

    packages = {each["name"]: each for each in document["components"] if each["type"] == "library"}
    assert {name: "hashes" in each for name, each in packages.items()} == {"flask": False, "numpy": True, "torch": True}
    assert packages["torch"]["purl"] == "pkg:pypi/torch@2.9.0%2Bcpu"


def test_model_is_listed_with_its_files_and_figures_when_it_was_published_with_some() -> None:
    document = json.loads(sbom.make(composed().image, pins=PINS, model=model()))

    (found,) = (each for each in document["components"] if each["type"] == "machine-learning-model")
    assert found == {
        "type": "machine-learning-model",
        "name": "net",
        "version": "1",
        "properties": [{"name": "dev.shipway:set-digest", "value": model().digest}],
        "components": [
            {
                "type": "file",
                "name": "model.onnx",
                "hashes": [{"alg": "SHA-256", "content": model().files[0].digest.hex}],
            }
        ],
        "modelCard": {"quantitativeAnalysis": {"performanceMetrics": [{"type": "accuracy", "value": "0.75"}]}},
    }
    assert document["compositions"][0]["aggregate"] == "complete"


def test_bill_is_the_same_bytes_when_only_the_code_differs() -> None:
    first = sbom.make(composed().image, pins=PINS, model=model())
    other = sbom.make(composed("2").image, pins=PINS[1:], model=model())

    assert first == sbom.make(composed("2").image, pins=PINS, model=model())
    numbers = {json.loads(bill)["serialNumber"] for bill in (first, other)}
    assert len(numbers) == 2


def test_recombined_bill_has_the_packages_of_one_image_and_the_model_of_the_other() -> None:
    code = json.loads(sbom.make(composed("2").image, pins=PINS, model=model()))
    weights = json.loads(sbom.make(composed(weights="22").image, pins=(), model=model("22")))
    mixed = composed("2", weights="22").image

    assert sbom.recombined(mixed, code=code, model=weights) == sbom.make(mixed, pins=PINS, model=model("22"))


def test_bill_holds_no_secret_when_the_lock_holds_passwords() -> None:
    assert b"hunter" not in sbom.make(composed().image, pins=PINS, model=model())
