"""The command line's own words: what stands where no name can stand, and folders that cannot be made."""

from __future__ import annotations

import io
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from invoke import Context
from invoke.exceptions import Exit

from shipway import tasks
from shipway.console import Console
from shipway.stores import open_catalogue
from tests import model_folder
from tests.unit.test_catalogue import Child

RELEASE = '[project]\nname = "adder"\n[model]\nname = "adds"\nstore = "store"\n[service]\ncommand = ["serve"]\n'


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout with one published model, as the current folder."""
    folder = model_folder.make(tmp_path / "model")
    catalogue = open_catalogue("store", root=tmp_path, run=Child())
    catalogue.publish(folder, name="adds", publisher="ada", tell=Console(err=io.StringIO()))
    (tmp_path / "release.toml").write_text(RELEASE)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def fails(task: Callable[..., object], **given: Any) -> int:
    with pytest.raises(Exit) as ended:
        task(Context(), **given)
    return int(ended.value.code)


@pytest.mark.parametrize("flag", ["--help", "-h", "--jsn"])
def test_flag_is_no_name_where_a_task_wants_one(project: Path, flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(project.iterdir())

    code = fails(tasks.keygen, file=flag)

    assert (code, sorted(project.iterdir())) == (2, before)
    assert f"{flag} stands where FILE belongs" in capsys.readouterr().err


def test_key_is_not_made_where_no_file_can_be(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert fails(tasks.keygen, file=f"{project}/model/card.md/there/key") == 3
    assert "card.md/there/key: Not a directory" in capsys.readouterr().err


@pytest.mark.parametrize("port", ["0", "-1", "65536", "http"])
def test_port_is_one_that_can_be_listened_on(
    project: Path,  # noqa: ARG001 - where it runs
    port: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert fails(tasks.run, port=port) == 2
    assert f"--port {port}: takes a whole number from 1 to 65535" in capsys.readouterr().err


def test_pull_makes_a_folder_that_is_as_it_was_published(project: Path) -> None:
    tasks.pull(Context(), into="new/folder")

    published, pulled = (
        {each.relative_to(there): each.read_bytes() for each in there.rglob("*") if each.is_file()}
        for there in (project / "model", project / "new/folder")
    )
    assert pulled == published


@pytest.mark.parametrize(("into", "told"), [("model/card.md/x", "Not a directory"), ("x" * 300, "File name too long")])
def test_pull_says_why_its_folder_cannot_be_made(
    project: Path, into: str, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fails(tasks.pull, into=into) == 3
    assert told in capsys.readouterr().err
    assert project.exists()


def test_pull_leaves_nothing_when_the_disk_is_full(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(_source: Path, target: Path) -> None:
        if target.name == "model.onnx":
            raise OSError(28, "No space left on device", str(target))
        target.touch()

    monkeypatch.setattr(shutil, "copyfile", full)  # a disk that is full takes a superuser

    assert fails(tasks.pull, into="new") == 3
    assert "new/model.onnx: No space left on device" in capsys.readouterr().err
    assert not (project / "new").exists()
