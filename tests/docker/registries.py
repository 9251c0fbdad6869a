"""Real registries for tests, each a process of its own on a free port of loopback.

Two programs (Debian's docker-registry, which is distribution 2.8, and distribution v3), each
open, with a password, or with TLS and a token service. What a client needs to use one is in
its `Registry`. The registry's own log goes into the message when it does not start.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import re
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.docker import tools
from tests.docker.authority import Authority, Issued
from tests.docker.tokens import ISSUER, SERVICE, Signer, TokenServer, serving
from tests.docker.tunnel import tunnel

PROGRAMS: dict[str, Callable[[], Path]] = {"debian": tools.debian_registry, "v3": tools.distribution}
KINDS = tuple(f"{program}-{login}" for program in PROGRAMS for login in ("open", "password", "token"))
NAME = "registry.test"  # of those with TLS; see tunnel.py
USER, PASSWORD = "alice", "open sesame"
HTPASSWD = f"{USER}:$2b$04$abcdefghijklmnopqrstuu/LVz6MZlItEy42I2juLihZ66HnQx/cy\n"  # of that password
_START_S = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Registry:
    """A registry that answers.

    `environ` is what a client's process needs besides its own environment: the credential in
    a Docker configuration, the way to a name that ends in `.test`, and whom to trust there.
    """

    address: str
    storage: Path
    log: Path
    environ: Mapping[str, str] = field(default_factory=dict)
    authorization: str = ""
    authority: Path | None = None
    tokens: TokenServer | None = None


@contextlib.contextmanager
def registry(kind: str, folder: Path) -> Iterator[Registry]:
    """Start one of `KINDS`, with all that it needs, below this folder."""
    program, _, login = kind.partition("-")
    folder.mkdir(parents=True, exist_ok=True)
    path = PROGRAMS[program]()
    with {"open": _open, "password": _password, "token": _token}[login](path, folder) as started:
        yield started


@contextlib.contextmanager
def _open(program: Path, folder: Path) -> Iterator[Registry]:
    with running(program, folder) as port:
        yield Registry(address=f"127.0.0.1:{port}", storage=folder / "storage", log=folder / "log")


@contextlib.contextmanager
def _password(program: Path, folder: Path) -> Iterator[Registry]:
    passwords = folder / "htpasswd"
    passwords.write_text(HTPASSWD, "ascii")
    with running(program, folder, auth={"htpasswd": {"realm": "a test's own", "path": str(passwords)}}) as port:
        address = f"127.0.0.1:{port}"
        yield Registry(
            address=address,
            storage=folder / "storage",
            log=folder / "log",
            environ=known(folder, address),
            authorization=f"Basic {base64.b64encode(f'{USER}:{PASSWORD}'.encode()).decode()}",
        )


@contextlib.contextmanager
def _token(program: Path, folder: Path) -> Iterator[Registry]:
    """Start a registry with TLS, and its token service under the same name."""
    authority = Authority(folder / "tls")
    issued = authority.issue(NAME)
    tokens = TokenServer(signer=Signer(folder / "signer"))
    with (
        tunnel() as proxy,
        serving(tokens, host=NAME, tls=issued.server_context()),
        running(program, folder, auth=token_auth(tokens, f"{tokens.url}/token"), tls=issued) as port,
    ):
        address = f"{NAME}:{port}"
        yield Registry(
            address=address,
            storage=folder / "storage",
            log=folder / "log",
            environ={**known(folder, address), "HTTPS_PROXY": proxy, "SSL_CERT_FILE": str(authority.pem)},
            authority=authority.pem,
            tokens=tokens,
        )


def token_auth(tokens: TokenServer, realm: str) -> dict[str, Any]:
    """Return the part of a registry's configuration that sends its users to this realm."""
    bundle = str(tokens.signer.bundle)
    return {"token": {"realm": realm, "service": SERVICE, "issuer": ISSUER, "rootcertbundle": bundle}}


def configured(
    storage: Path, *, address: str, auth: Mapping[str, Any] | None = None, tls: Issued | None = None
) -> dict[str, Any]:
    """Return the configuration of a registry that listens there."""
    http: dict[str, Any] = {"addr": address}
    if tls:
        http["tls"] = {"certificate": str(tls.certificate), "key": str(tls.key)}
    configuration: dict[str, Any] = {
        "version": 0.1,
        "log": {"level": "info"},
        "storage": {
            "filesystem": {"rootdirectory": str(storage)},
            "delete": {"enabled": True},
            "maintenance": {"uploadpurging": {"enabled": False}},
        },
        "http": http,
    }
    return configuration | ({"auth": auth} if auth else {})


@contextlib.contextmanager
def running(
    program: Path, folder: Path, *, auth: Mapping[str, Any] | None = None, tls: Issued | None = None
) -> Iterator[int]:
    """Run a registry on a free port, and give that; it keeps what it stores in `folder/storage`."""
    folder.mkdir(parents=True, exist_ok=True)
    configuration = configured(folder / "storage", address="127.0.0.1:0", auth=auth, tls=tls)
    file, log = folder / "registry.yml", folder / "log"
    file.write_text(json.dumps(configuration), "utf-8")  # JSON is YAML
    environ = {name: value for name, value in os.environ.items() if not name.startswith("REGISTRY_")} | {
        "OTEL_TRACES_EXPORTER": "none"  # v3 looks for a collector otherwise
    }
    with log.open("wb") as output:
        process = subprocess.Popen([program, "serve", file], stdout=output, stderr=output, env=environ)
        try:
            yield _port(process, log)
        finally:
            process.terminate()
            process.wait()


def _port(process: subprocess.Popen[bytes], log: Path) -> int:
    """Wait until the registry says where it listens: from then on it takes connections."""
    until = time.monotonic() + _START_S
    while time.monotonic() < until and process.poll() is None:
        if found := re.search(rb"listening on 127\.0\.0\.1:(\d+)", log.read_bytes()):
            return int(found[1])
        time.sleep(0.02)
    message = f"the registry did not start (exit code {process.poll()}):\n{log.read_text('utf-8')[-2000:]}"
    raise AssertionError(message)


def known(folder: Path, address: str) -> dict[str, str]:
    """Return what makes the credential known to whoever reads Docker's configuration, skopeo too."""
    configuration = folder / "docker"
    configuration.mkdir()
    packed = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode("ascii")
    (configuration / "config.json").write_text(json.dumps({"auths": {address: {"auth": packed}}}), "utf-8")
    return {"DOCKER_CONFIG": str(configuration), "REGISTRY_AUTH_FILE": str(configuration / "config.json")}
