"""The data scientists' page: every command on it, run as it stands and in its order, in an empty folder."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from shipway import documents
from shipway.config import ModelSettings, load
from shipway.tasks import namespace
from tests.system.project import plain

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/models.md").read_text("utf-8")
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(language: str) -> list[str]:
    return [text for kind, text in BLOCK.findall(PAGE) if kind == language]


class Reader:
    """Somebody who types what the page says."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "project"
        self.root.mkdir()
        (folder / "home").mkdir()
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        self.environ = {**plain(os.environ), "HOME": str(folder / "home"), "PATH": path}
        (self.root / "release.toml").write_text(blocks("toml")[0])
        shutil.copy(ROOT / "tasks.py", self.root)

    def type(self, text: str) -> str:
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", text],
            cwd=self.root,
            env=self.environ,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, f"{text}\n{done.stdout}{done.stderr}"
        return done.stdout

    def facts(self, words: str) -> Any:
        return json.loads(self.type(f"invoke {words} --json"))


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> tuple[Reader, dict[str, str]]:
    """The reader, once all was typed; and what came of each block, by its first line."""
    reader = Reader(tmp_path_factory.mktemp("page"))
    return reader, {text.splitlines()[0]: reader.type(text) for text in blocks("sh")}


def test_the_page_ends_where_it_says(said: tuple[Reader, dict[str, str]]) -> None:
    reader, _ = said

    aliases = {alias: row["version"] for row in reader.facts("model.list") for alias in row["aliases"]}
    moves = [(move["alias"], move["version"]) for move in reader.facts("model.history")]

    assert aliases == {"latest": 2, "staging": 2, "production": 2, "canary": 1}
    assert moves == [("latest", 1), ("latest", 2), ("staging", 2), ("production", 1), ("production", 2), ("canary", 1)]
    assert reader.facts("model.gc")["going"] == []


def test_the_page_keeps_the_private_key_private(said: tuple[Reader, dict[str, str]]) -> None:
    reader, told = said
    key = Path(reader.environ["HOME"], ".config/shipway/ada.key")

    assert key.stat().st_mode & 0o777 == 0o600
    assert not any(key.read_text().splitlines()[1] in text for text in told.values())
    public = told["invoke model.keygen ~/.config/shipway/ada.key"].strip()
    assert reader.facts("model.show")["signers"] == [public]


def test_the_page_compares_what_really_differs(said: tuple[Reader, dict[str, str]]) -> None:
    reader, told = said

    compared = reader.facts("model.diff 1 2")

    assert compared["metrics"] == {"accuracy": {"before": 0.75, "after": 0.81}, "f1": {"before": None, "after": 0.8}}
    assert sorted(compared["files"]) == [
        "card.md",
        "golden/exchanges/two-flowers.json",
        "golden/tensors/two-flowers.npz",
        "model.onnx",
    ]
    assert [answer["case"] for answer in compared["answers"]] == ["two-flowers (before)", "two-flowers (after)"]
    assert all(answer["largest"] > answer["mean"] > 0 and answer["rows"] == 2 for answer in compared["answers"])
    assert told["invoke model.verify"].count("iris version 2 is whole") == 2


def test_the_page_copies_whole_versions(said: tuple[Reader, dict[str, str]]) -> None:
    reader, _ = said

    assert reader.facts("model.verify --store ../archive --version production --run")["golden_cases_run"] == 1
    assert [row["version"] for row in reader.facts("model.list --store ../archive")] == [2, 1]


def test_the_page_works_from_python(said: tuple[Reader, dict[str, str]]) -> None:
    _, told = said

    first, *_ = told["cat > notebook.py <<'END'"].splitlines()

    assert first == "1 False {'latest': 2, 'production': 2, 'staging': 2}"


def test_the_page_has_every_task_of_models() -> None:
    tasks = set(namespace().collections["model"].task_names)

    assert {word for text in blocks("sh") for word in re.findall(r"invoke model\.(\w+)", text)} == tasks


def test_the_page_has_settings_that_exist(tmp_path: Path) -> None:
    example = tomllib.loads(blocks("toml")[1])
    (tmp_path / "release.toml").write_text("\n".join(blocks("toml")))

    model = load(tmp_path, environment="production", environ={}).settings.model

    assert set(example["env"]["production"]["model"]) <= set(documents.keys(ModelSettings))
    assert model.trusted_keys[1] == "keys/bob.pub"
