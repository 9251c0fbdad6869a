"""What tests with Docker need of a machine: a daemon, and bases with Python, made without a registry.

Owns `~/.cache/shipway-tests`: the bases, each made once by mmdebstrap (half a minute) and kept
by the fingerprint of how it is made, and the daemon that is started where none answers. Several
test runs may share that daemon; the last one ends it, and with it goes all that they built.
What is missing on this machine is a skip that says how to get it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import signal
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import docker
import pytest
from docker.errors import DockerException, ImageNotFound

from shipway.artifacts import Descriptor, Digest
from shipway.oci.archive import pieces
from shipway.oci.compose import CONFIG, MANIFEST, TAR, canonical
from shipway.oci.images import Images, described
from shipway.oci.staging import locked
from tests.docker.tools import PLACE

SUITES = {"3.11": "bookworm", "3.13": "trixie"}  # the Python of each Debian
_SYSTEM_SOCKET = Path("/var/run/docker.sock")
_PACKAGES = "python3,python-is-python3,python3-pip,ca-certificates,passwd,libstdc++6"
_AUTHORITIES = "/etc/ssl/certs/ca-certificates.crt"
_START_S, _STOP_S = 60.0, 30.0
# Its own: another daemon that runs without a network removes docker0 from under everybody.
_BRIDGE, _BRIDGE_ADDRESS = "shipway0", "172.31.213.1/24"


# -- the daemon --------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Daemon:
    """A Docker daemon that answers, and what a process needs in its environment to find it."""

    client: Any
    environ: dict[str, str]

    def cli(self, *words: str | Path, buildkit: bool = False, stdin: bytes | None = None) -> str:
        """Run the `docker` program and return its stdout; the newest ones lack what 20.10 has built in."""
        program = with_buildkit() if buildkit else "docker"
        environ = {**os.environ, **self.environ, "DOCKER_BUILDKIT": str(int(buildkit))}
        done = subprocess.run([program, *words], env=environ, input=stdin, capture_output=True, check=False)
        assert done.returncode == 0, f"docker {words}\n{done.stdout.decode()}{done.stderr.decode()}"
        return done.stdout.decode()


@contextlib.contextmanager
def daemon() -> Iterator[Daemon]:
    """Give the machine's daemon, or else one of our own."""
    with _system_socket() if _answers(_SYSTEM_SOCKET) else _own_socket() as socket:
        url = f"unix://{socket}"
        client = docker.DockerClient(base_url=url)
        try:
            yield Daemon(client=client, environ={"DOCKER_HOST": url})
        finally:
            client.close()


@cache
def with_buildkit() -> str:
    """Return the first `docker` on the path that builds with BuildKit."""
    for folder in os.get_exec_path():
        if program := shutil.which("docker", path=folder):
            asked = subprocess.run(
                [program, "build", "--help"],
                env={**os.environ, "DOCKER_BUILDKIT": "1"},
                capture_output=True,
                check=False,
            )
            if asked.returncode == 0:
                return program
    pytest.skip("no docker client with BuildKit: apt-get install docker.io, or docker-buildx-plugin")


@contextlib.contextmanager
def _system_socket() -> Iterator[Path]:
    yield _SYSTEM_SOCKET


@contextlib.contextmanager
def _own_socket() -> Iterator[Path]:
    """Give the socket of a daemon that all test runs on this machine share, as long as one of them runs."""
    home, dockerd = PLACE / "docker", shutil.which("dockerd")
    if dockerd is None or os.geteuid() != 0:
        pytest.skip("no Docker daemon answers, and none can be started: as root, apt-get install docker.io")
    home.mkdir(parents=True, exist_ok=True)
    turn, users = home / "turn.lock", home / "users.lock"
    with contextlib.ExitStack() as using:
        with locked(turn):
            using.enter_context(locked(users, shared=True))
            if not _answers(home / "socket"):
                _start(dockerd, home)
        try:
            yield home / "socket"
        finally:
            with locked(turn):
                using.close()
                with contextlib.suppress(BlockingIOError), locked(users, wait=False):
                    _stop(home)


def _start(dockerd: str, home: Path) -> None:
    """Start a daemon that outlives us, since others may be using it when we end."""
    for words in (
        ("link", "add", _BRIDGE, "type", "bridge"),
        ("address", "add", _BRIDGE_ADDRESS, "dev", _BRIDGE),
        ("link", "set", _BRIDGE, "up"),
    ):
        subprocess.run(["ip", *words], capture_output=True, check=False)  # it may be there from the last time
    with (home / "log").open("wb") as log:
        process = subprocess.Popen(
            [
                *(dockerd, "--host", f"unix://{home}/socket", "--pidfile", home / "pid"),
                *("--data-root", home / "data", "--exec-root", home / "run", "--bridge", _BRIDGE),
            ],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    deadline = time.monotonic() + _START_S
    while not _answers(home / "socket"):
        if process.poll() is not None or time.monotonic() > deadline:
            pytest.skip(f"dockerd does not run here (root in a container needs --privileged); see {home}/log")
        time.sleep(0.1)
    process.returncode = 0  # not ours to wait for: it is `_stop` that ends it, perhaps in another process


def _stop(home: Path) -> None:
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        os.kill(int((home / "pid").read_text("ascii")), signal.SIGTERM)
    deadline = time.monotonic() + _STOP_S
    while (home / "pid").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    subprocess.run(["ip", "link", "delete", _BRIDGE], capture_output=True, check=False)
    shutil.rmtree(home / "data", ignore_errors=True)


def _answers(socket: Path) -> bool:
    if not socket.exists():
        return False
    client = docker.DockerClient(base_url=f"unix://{socket}", timeout=10)
    try:
        return bool(client.ping())
    except DockerException:
        return False
    finally:
        client.close()


# -- the bases ---------------------------------------------------------------------------


def base(python: str, images: Images) -> Digest:
    """Store a base with this Python in `images`, and return its digest; it knows its `PYTHON_VERSION`.

    It stands in for `python:3.13-slim-bookworm`: has pip, trusts what this machine trusts, and
    is one layer that is not compressed.
    """
    made = prepared(python)
    tar, config = made / "rootfs.tar", (made / "config.json").read_bytes()
    (diff_id,) = json.loads(config)["rootfs"]["diff_ids"]
    layer = Descriptor(media_type=TAR, digest=Digest(diff_id), size_bytes=tar.stat().st_size)
    images.add(layer, lambda: pieces(tar))
    images.add(described(config, CONFIG), lambda: [config])
    manifest = canonical(
        {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": _entry(described(config, CONFIG)),
            "layers": [_entry(layer)],
        }
    )
    images.put(manifest, MANIFEST)
    return Digest.of(manifest)


def python_image(python: str, client: Any, *packages: str) -> str:
    """Give the daemon the same base, with these packages besides, and return its name: a `PYTHON_IMAGE`."""
    made = prepared(python, *packages)
    name = f"shipway-test/python:{python}-{made.name}"
    try:
        client.images.get(name)
    except ImageNotFound:
        variables = json.loads((made / "config.json").read_bytes())["config"]["Env"]
        repository, _, tag = name.partition(":")
        client.api.import_image(
            src=str(made / "rootfs.tar"), repository=repository, tag=tag, changes=[f"ENV {each}" for each in variables]
        )
    return name


def _entry(blob: Descriptor) -> dict[str, Any]:
    return {"mediaType": blob.media_type, "digest": blob.digest, "size": blob.size_bytes}


@cache
def prepared(python: str, *packages: str) -> Path:
    """Return the folder of a base that has these packages besides, made unless it is there."""
    pip = _pip_configuration()
    made = PLACE / "bases" / _fingerprint(python, pip, packages)
    made.parent.mkdir(parents=True, exist_ok=True)
    with locked(made.parent / "turn.lock"):
        if not made.is_dir():
            with tempfile.TemporaryDirectory(dir=made.parent) as scratch:
                _make(python, pip, Path(scratch), packages)
                fresh = Path(scratch) / "base"
                fresh.rename(made)
    return made


def _fingerprint(python: str, pip: str, packages: Sequence[str]) -> str:
    how = "\0".join([*_command(python, Path(), packages), pip]).encode()
    return hashlib.sha256(how + Path(host_authorities()).read_bytes()).hexdigest()[:12]


def _command(python: str, scratch: Path, packages: Sequence[str]) -> list[str]:
    included = ",".join([_PACKAGES, *packages])
    return [
        *("mmdebstrap", "--quiet", "--mode=root", "--variant=essential", f"--include={included}"),
        *(f"--dpkgopt=path-exclude=/usr/share/{name}/*" for name in ("doc", "man", "locale")),
        f"--customize-hook=upload {host_authorities()} {_AUTHORITIES}",
        f"--customize-hook=upload {scratch}/pip.conf /etc/pip.conf",
        f'--customize-hook=chroot "$1" python3 -V > {scratch}/version',
        *(SUITES[python], f"{scratch}/base/rootfs.tar"),
    ]


def _make(python: str, pip: str, scratch: Path, packages: Sequence[str]) -> None:
    if not (shutil.which("mmdebstrap") and os.geteuid() == 0):
        pytest.skip("no base image can be made: as root, apt-get install mmdebstrap")
    fresh = scratch / "base"
    fresh.mkdir()
    (scratch / "pip.conf").write_text(pip)
    done = subprocess.run(_command(python, scratch, packages), capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"no base image can be made here:\n{done.stderr[-2000:]}")
    version = (scratch / "version").read_text("utf-8").removeprefix("Python ").strip()
    with (fresh / "rootfs.tar").open("rb") as tar:
        diff_id = hashlib.file_digest(tar, "sha256").hexdigest()
    config = {
        "architecture": "amd64",
        "os": "linux",
        "config": {
            "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", f"PYTHON_VERSION={version}"],
            "Cmd": ["python3"],
        },
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{diff_id}"]},
    }
    (fresh / "config.json").write_bytes(canonical(config))


def host_authorities() -> str:
    """Return the file of certificates that this machine's own programs believe."""
    found = os.environ.get("SSL_CERT_FILE") or ssl.get_default_verify_paths().cafile
    if not found:
        pytest.skip("this machine has no file of certificate authorities: apt-get install ca-certificates")
    return found


def _pip_configuration() -> str:
    """Return pip's own configuration with where this machine's pip finds packages."""
    asked = [sys.executable, "-m", "pip", "config", "get", "global.index-url"]
    found = os.environ.get("PIP_INDEX_URL") or subprocess.run(asked, capture_output=True, text=True, check=False).stdout
    return f"[global]\nindex-url = {found.strip()}\n" if found.strip() else "[global]\n"
