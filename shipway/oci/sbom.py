"""The bill of materials: what is in an image, as CycloneDX.

Lists what others made: packages, model, base. The code's own version and the image's digest
stand in what attaches the bill, not in it: so images that differ in code alone share one bill,
which is stored once. The same inputs give the same bytes on every machine. Only names, versions
and digests go in: no URL, no environment, so no password either. What the base holds is not
listed, and the bill says then that it is incomplete. Pure.
https://cyclonedx.org/docs/1.6/json/
"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from urllib.parse import quote

from shipway.artifacts import Digest, Image, Model
from shipway.oci import compose
from shipway.oci.compose import canonical
from shipway.oci.lockfile import Pin

MEDIA_TYPE = "application/vnd.cyclonedx+json"
_OCI = "org.opencontainers.image."
_MODEL, _PACKAGE = "machine-learning-model", "library"


def make(image: Image, *, pins: Iterable[Pin], model: Model) -> bytes:
    """Return the bill of an image that holds these packages and this model."""
    return _bill(image, [*map(_package, pins), _model_component(model)])


def recombined(image: Image, *, code: Mapping[str, Any], model: Mapping[str, Any]) -> bytes:
    """Return the bill of an image whose packages are those of one bill, and whose model is another's."""
    packages = [each for each in code["components"] if each["type"] == _PACKAGE]
    return _bill(image, [*packages, *(each for each in model["components"] if each["type"] == _MODEL)])


def count(bill: Mapping[str, Any]) -> int:
    """Return how many packages a bill lists."""
    return sum(each["type"] == _PACKAGE for each in bill["components"])


def _bill(image: Image, components: Sequence[Mapping[str, Any]]) -> bytes:
    labels, base = compose.labels(image), compose.base(image)
    on_base = any(layer.part in {"base", "dockerfile"} for layer in image.layers)
    bill = {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {
            "tools": {"components": [{"type": "application", "name": "shipway"}]},
            "component": {"type": "container", "bom-ref": "image", "name": labels[f"{_OCI}title"]},
        },
        "components": [*components, *([_base_component(base)] if base else [])],
        "compositions": [{"aggregate": "incomplete" if on_base else "complete", "assemblies": ["image"]}],
    }
    number = uuid.uuid5(uuid.NAMESPACE_OID, hashlib.sha256(canonical(bill)).hexdigest())
    return canonical({**bill, "serialNumber": number.urn})


def _base_component(base: Digest) -> dict[str, Any]:
    return {"type": "container", "name": "base", "version": base}


def _package(pin: Pin) -> dict[str, Any]:
    """Return a package; which of several files was installed the lock does not say, and neither does this."""
    return {
        "type": _PACKAGE,
        "name": pin.name,
        "version": pin.version,
        "purl": f"pkg:pypi/{pin.name}@{quote(pin.version, safe='')}",
        **({"hashes": _hashes(pin.hashes[0])} if len(pin.hashes) == 1 else {}),
    }


def _model_component(model: Model) -> dict[str, Any]:
    metrics = [{"type": name, "value": f"{value:g}"} for name, value in sorted(model.metrics.items())]
    return {
        "type": _MODEL,
        "name": model.name,
        "version": str(model.version),
        "properties": [{"name": "dev.shipway:set-digest", "value": model.digest}],
        "components": [{"type": "file", "name": file.path, "hashes": _hashes(file.digest.hex)} for file in model.files],
        **({"modelCard": {"quantitativeAnalysis": {"performanceMetrics": metrics}}} if metrics else {}),
    }


def _hashes(sha256: str) -> list[dict[str, str]]:
    return [{"alg": "SHA-256", "content": sha256}]
