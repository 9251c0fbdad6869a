"""A model folder that is not what was promised never becomes a service."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from app.scoring import Classifier, ModelUnfit, set_digest

MAX_PIXELS = 1_000_000


@pytest.fixture
def folder(model_dir: Path, tmp_path: Path) -> Path:
    """A copy of the model's folder that a test may spoil."""
    return Path(shutil.copytree(model_dir, tmp_path / "model", copy_function=_link))


def _link(source: str, target: str) -> None:
    shutil.copyfile(source, target) if source.endswith((".json", ".txt")) else os.link(source, target)


def _say(folder: Path, **values: object) -> None:
    path = folder / "preprocessing.json"
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | values), "utf-8")


def _fewer_labels(folder: Path) -> None:
    (folder / "labels.txt").write_text("one\ntwo\n", "utf-8")


def _truncated(folder: Path) -> None:
    model = (folder / "model.onnx").read_bytes()
    (folder / "model.onnx").unlink()
    (folder / "model.onnx").write_bytes(model[: len(model) // 2])


def _other_answers(folder: Path) -> None:
    path = min((folder / "golden/tensors").glob("*.npz"))
    with np.load(path) as case:
        arrays = {name: case[name] + 1 if name.startswith("output/") else case[name] for name in case}
    path.unlink()
    np.savez(path, **arrays)


SPOILED: dict[str, tuple[Callable[[Path], None], str]] = {
    "no model": (lambda folder: (folder / "model.onnx").unlink(), "model.onnx"),
    "truncated model": (_truncated, "model.onnx"),
    "no labels": (lambda folder: (folder / "labels.txt").unlink(), "labels.txt"),
    "fewer labels": (_fewer_labels, "not 2 labels"),
    "no preprocessing": (lambda folder: (folder / "preprocessing.json").unlink(), "preprocessing.json"),
    "unknown resampling": (lambda folder: _say(folder, resample="nearest"), "resample"),
    "unknown key": (lambda folder: _say(folder, sharpen=True), "sharpen"),
    "another crop": (lambda folder: _say(folder, crop=192), "inputs"),
    "another input": (lambda folder: _say(folder, input="pixels"), "inputs"),
    "another output": (lambda folder: _say(folder, output="scores"), "outputs"),
    "no golden case": (lambda folder: shutil.rmtree(folder / "golden/tensors"), "no golden case"),
    "other golden answers": (_other_answers, "golden answer"),
}


@pytest.mark.parametrize("case", SPOILED)
def test_classifier_refuses_and_names_the_part_when_the_folder_has(case: str, folder: Path) -> None:
    spoil, named = SPOILED[case]
    spoil(folder)

    with pytest.raises(ModelUnfit, match=named):
        Classifier(folder, digest=None, max_pixels=MAX_PIXELS)


def test_classifier_refuses_when_the_folder_is_not_the_one_promised(folder: Path) -> None:
    promised = set_digest(folder)
    (folder / "labels.txt").write_bytes((folder / "labels.txt").read_bytes() + b"\n")

    with pytest.raises(ModelUnfit, match=f"not {promised}"):
        Classifier(folder, digest=promised, max_pixels=MAX_PIXELS)


def test_set_digest_is_that_of_sha256sum_over_sorted_paths(tmp_path: Path) -> None:
    (tmp_path / "b").write_bytes(b"")
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "z").write_bytes(b"x")

    digest = set_digest(tmp_path)

    # (cd DIR && find . -type f -printf '%P\n' | LC_ALL=C sort | xargs sha256sum) | sha256sum
    assert digest == "sha256:cd884531060f5e24d7365397076dd818425b9ad77b06107856f5d32b1a2dcd4f"
