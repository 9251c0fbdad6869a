"""The same model makes the same image, wherever it lives: a folder, Azure, S3, MLflow."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from shipway.console import Console
from shipway.stores import Access, open_catalogue
from tests.stores.parts import ACCOUNT, CONTAINER, Azurite, S3Server
from tests.stores.tracking import Tracking
from tests.system.project import Project, adder


@pytest.fixture
def project(tmp_path: Path) -> Iterator[Project]:
    yield from adder(tmp_path)


def test_release_makes_the_same_image_when_the_model_lives_elsewhere(
    project: Project, azurite: Azurite, s3: S3Server, tracking: Tracking, prefix: str
) -> None:
    model = project.root.parent / "model"
    here = _released(project, {})
    places: dict[str, tuple[Access, Mapping[str, str]]] = {
        f"az://{ACCOUNT}/{CONTAINER}/{prefix}": (azurite.access(), azurite.settings()),
        f"s3://{CONTAINER}/{prefix}": (s3.access(), s3.settings()),
        tracking.address: (Access(), {}),
    }
    shutil.rmtree(project.root.parent / "store")

    found = {}
    for address, (access, settings) in places.items():
        published = open_catalogue(address, access=access).publish(model, name="adds", publisher="test", tell=Console())
        assert published.version.version == 1
        found[address] = _released(project, {"SHIPWAY_MODEL_STORE": address, **settings})

    assert found == dict.fromkeys(places, here)


def _released(project: Project, settings: Mapping[str, str]) -> tuple[str, str]:
    """Release with nothing left of an earlier one; return the image's and the model's digest."""
    shutil.rmtree(project.root / ".shipway", ignore_errors=True)
    project.environ.clear()
    project.environ.update(settings)
    project.invoke("release")
    status = project.facts("status")
    assert status["healthy"]
    project.invoke("stop", "--wait")
    return status["digest"], status["model"]["digest"]
