"""A real model, from the committed store, and the service around it. Needs nothing of shipway."""

from __future__ import annotations

import os
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient

from app import create_app
from app.settings import Settings

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The newest model's folder; MODEL_DIR in the environment tests another one."""
    if "MODEL_DIR" in os.environ:
        return Path(os.environ["MODEL_DIR"])
    folder = tmp_path_factory.mktemp("model")
    (store,) = (ROOT / "model" / "store").iterdir()
    runpy.run_path(str(ROOT / "model" / "assemble.py"))["assemble"](store.parent, store.name, "latest", folder)
    return folder


@pytest.fixture(scope="session")
def make_app(model_dir: Path) -> Callable[..., Flask]:
    def make(**settings: Any) -> Flask:
        values = {"model_dir": model_dir, "model_name": "classifier", "model_version": 3, "build": "a-build"}
        return create_app(Settings(**(values | settings)))

    return make


@pytest.fixture(scope="session")
def app(make_app: Callable[..., Flask]) -> Flask:
    return make_app()


@pytest.fixture
def client(app: Flask) -> FlaskClient:
    return app.test_client()
