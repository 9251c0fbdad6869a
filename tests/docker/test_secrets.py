"""Secrets planted all around a build are found nowhere in what it leaves, in the registry or on this machine."""

from __future__ import annotations

import base64
import gzip
import json
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from io import BytesIO
from pathlib import Path

import pytest

from tests.docker import registries
from tests.docker.proxy import SEND, Fault, Proxy, cut_at_once, status
from tests.docker.registries import PASSWORD, USER, Registry
from tests.system import project as projects
from tests.system.project import Project

SECRETS = {
    place: f"hunter2-{place}-correct-horse"
    for place in (
        "variable",
        "dotenv",
        "removed-file",
        "git-config",
        "message",
        "pip",
        "uv",
        "netrc",
        "docker",
        "proxy",
    )
}


@dataclass(kw_only=True)
class Planted:
    """A project with secrets all around it, and all that was ever said of it."""

    project: Project
    registry: Registry
    home: Path
    told: list[str] = field(default_factory=list)

    def invoke(self, *words: str, exits: int = 0, **environ: str) -> None:
        """Run a task, and keep what it says."""
        project = replace(self.project, environ={**self.project.environ, **self._environ(), **environ})
        self.told += project.invoke(*words, exits=exits)

    def _environ(self) -> dict[str, str]:
        return {
            "HOME": str(self.home),
            "DATABASE_PASSWORD": SECRETS["variable"],
            "AWS_SECRET_ACCESS_KEY": SECRETS["variable"],
            "UV_INDEX_PRIVATE_PASSWORD": SECRETS["uv"],
            "FTP_PROXY": f"http://user:{SECRETS['proxy']}@127.0.0.1:9",
            "REGISTRY_USER": USER,
            "REGISTRY_PASSWORD": PASSWORD,
        }

    def found(self) -> list[str]:
        """Return where a secret is, in any of its forms: in the registry, on this machine, in what was said."""
        places = {"what was said": "".join(self.told).encode()}
        for root in (self.registry.storage, self.project.root / ".shipway"):
            places |= {str(path): path.read_bytes() for path in root.rglob("*") if path.is_file()}
        forms = [form for secret in (*SECRETS.values(), PASSWORD) for form in _forms(secret)]
        return [
            place for place, data in places.items() if any(form in each for each in _inside(data) for form in forms)
        ]


def _forms(secret: str) -> list[bytes]:
    """Return a secret as it is, and in base64: as a login, and at each place that it may have in something longer."""
    data, login = secret.encode(), f"{USER}:{secret}".encode()
    shifted = [base64.b64encode(b" " * shift + data)[4:-4] for shift in range(3)]
    return [data, base64.b64encode(login).rstrip(b"="), *shifted]


def _inside(data: bytes) -> Iterator[bytes]:
    """Yield a file's bytes, and all that is packed in them."""
    plain = gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data
    yield plain
    if tarfile.is_tarfile(BytesIO(plain)):
        with tarfile.open(fileobj=BytesIO(plain)) as archive:
            for member in archive:
                file = archive.extractfile(member) if member.isfile() else None
                inner = file.read() if file else b""
                yield f"{member.name} {member.uname} {member.pax_headers}".encode()
                yield gzip.decompress(inner) if inner[:2] == b"\x1f\x8b" else inner


@pytest.fixture
def planted(tmp_path: Path) -> Iterator[Planted]:
    """Give a project with a registry of its own, where nothing else can be found."""
    with registries.registry("debian-password", tmp_path / "registry") as registry:
        for project in projects.adder(tmp_path):
            project.environ["SHIPWAY_PUSH_REPOSITORY"] = f"{registry.address}/secrets/adder"
            _plant(project, tmp_path / "home", registry)
            yield Planted(project=project, registry=registry, home=tmp_path / "home")


def _plant(project: Project, home: Path, registry: Registry) -> None:
    project.write("app/password.txt", SECRETS["removed-file"])
    project.commit("Add a file")
    (project.root / "app/password.txt").unlink()
    project.write("app/note.py", "NOTE = 'planted'\n")
    project.commit(f"Remove it; the password is {SECRETS['message']}")
    project.git("config", "remote.origin.url", f"https://user:{SECRETS['git-config']}@git.example.org/adder.git")
    for name in (".env", "app/.env"):
        project.write(name, f"TOKEN={SECRETS['dotenv']}\n")
    logins = {
        registry.address: {"auth": base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()},
        "registry.example": {"auth": base64.b64encode(f"x:{SECRETS['docker']}".encode()).decode()},
        "other.example": {"username": "x", "password": SECRETS["docker"]},
    }
    for name, text in {
        ".config/pip/pip.conf": f"[global]\nextra-index-url = https://user:{SECRETS['pip']}@pip.example.org/simple\n",
        ".netrc": f"machine example.org login user password {SECRETS['netrc']}\n",
        ".docker/config.json": json.dumps({"auths": logins}),
    }.items():
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        (home / name).write_text(text)


def test_search_finds_a_secret_when_it_was_committed(planted: Planted) -> None:
    planted.project.write("app/note.py", f"NOTE = {SECRETS['variable']!r}\n")
    planted.project.commit("Ship a secret")
    planted.invoke("push")

    assert [place for place in planted.found() if str(planted.registry.storage) in place] != []


@pytest.mark.parametrize("login", ["environment", "docker"])
def test_secrets_are_nowhere_when_an_image_was_built_and_looked_at(planted: Planted, login: str) -> None:
    for words in (
        ["build"],
        ["build", "--json"],
        ["plan"],
        ["config"],
        ["doctor"],
        ["image.show"],
        ["image.show", "--ref", "tested"],
    ):
        planted.invoke(*words, SHIPWAY_PUSH_LOGIN=login)

    assert planted.found() == []


def test_secrets_are_nowhere_when_pushes_fail(planted: Planted) -> None:
    with Proxy(planted.registry.address) as proxy:
        place = {"SHIPWAY_PUSH_REPOSITORY": f"{proxy.address}/secrets/faulty"}
        proxy.script(Fault(on=SEND, act=status(500), times=2), Fault(on="^HEAD .*/blobs", act=status(403), times=9))
        planted.invoke("push", exits=45, **place)
        proxy.script(Fault(act=cut_at_once, times=99))
        planted.invoke("push", exits=44, **place)
    planted.invoke("push", exits=45, REGISTRY_PASSWORD=SECRETS["variable"])

    assert planted.found() == []
