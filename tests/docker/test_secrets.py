"""What is secret on the machine that releases is in nothing that leaves it, nor in what it writes down."""

from __future__ import annotations

import gzip
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.docker.registries import PASSWORD, Registry
from tests.system import project as projects
from tests.system.project import Project

SECRETS = {name: f"planted-{name}-8c1f2e" for name in ("variable", "dotenv", "history", "gitconfig", "pip", "netrc")}


@pytest.fixture
def registry(running: Callable[[str], Registry]) -> Registry:
    return running("debian-password")


@pytest.fixture
def adder(tmp_path: Path, registry: Registry) -> Iterator[Project]:
    """Give a project on a machine that is full of secrets."""
    for project in projects.adder(tmp_path):
        project.write("app/key.txt", SECRETS["history"])
        project.commit("A mistake")
        project.git("rm", "--quiet", "app/key.txt")
        project.commit("Mend it")
        project.git("config", "remote.origin.url", f"https://user:{SECRETS['gitconfig']}@git.example/adder")
        project.write(".env", f"TOKEN={SECRETS['dotenv']}\n")
        project.write("app/.env", f"TOKEN={SECRETS['dotenv']}\n")
        (tmp_path / "pip.conf").write_text(f"[global]\nextra-index-url = https://user:{SECRETS['pip']}@pip.example/\n")
        (tmp_path / ".netrc").write_text(f"machine 127.0.0.1 login user password {SECRETS['netrc']}\n")
        project.environ.update(
            registry.environ,
            SHIPWAY_PUSH_REPOSITORY=f"{registry.address}/secrets/adder",
            API_TOKEN=SECRETS["variable"],
            PIP_CONFIG_FILE=str(tmp_path / "pip.conf"),
            NETRC=str(tmp_path / ".netrc"),
        )
        yield project


def test_no_secret_is_found_in_what_was_pushed_told_or_written_down(adder: Project, registry: Registry) -> None:
    told = [*adder.invoke("doctor"), *adder.invoke("release"), *adder.invoke("image.show", "tested", "--json")]
    told += [*adder.invoke("history", "--json"), *adder.invoke("config", "--json")]

    places = {
        "what was told": "".join(told).encode(),
        **{f"the registry: {path}": path.read_bytes() for path in _files(registry.storage)},
        **{f"the checkout: {path}": path.read_bytes() for path in _files(adder.root / ".shipway")},
    }
    assert len(places) > 50, "there was something to look through"
    found = [
        (name, where)
        for where, data in places.items()
        for name, secret in {**SECRETS, "password": PASSWORD}.items()
        for text in (data, _unpacked(data))
        if secret.encode() in text
    ]
    assert found == []


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())


def _unpacked(data: bytes) -> bytes:
    return gzip.decompress(data) if data[:2] == b"\x1f\x8b" else b""
