"""Real stores for tests, each a process of its own on a free port of loopback: Azurite, and two S3 servers.

Azurite is installed once, at a pinned version, into `~/.cache/shipway-tests`. It takes Entra's
tokens over https alone, so it has a certificate of a test's own authority, and the tokens come
from a stand-in for the identity service of a machine in Azure, which azure-identity asks as it
would there. Azurite looks at a token's issuer, audience and times, and not at its signature.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import jwt
import pytest

from shipway.oci.staging import locked
from shipway.stores.objects import Access
from tests.docker.authority import Authority, Issued
from tests.docker.tools import PLACE
from tests.system.project import free_port

ACCOUNT, CONTAINER, REGION = "shipway", "models", "eu-central-1"
ACCESS_KEY, SECRET_KEY = "a-tests-own", "no secret at all"
_AZURITE = "3.37.0"
_KEY = "c2hpcHdheSB0ZXN0cyB0aGVtc2VsdmVzLCBubyBzZWNyZXQgYXQgYWxs"  # of the account, for what a test does itself
_START_S, _INSTALL_S = 60.0, 300
_AUDIENCE = "https://storage.azure.com"


@dataclass(kw_only=True)
class IdentityService:
    """A stand-in for a machine's identity service; a test may change what it does while it runs.

    `life_s` is how long its tokens are good; `status` what it answers; `wait_s` how long it takes.
    """

    life_s: float = 3600
    audience: str = _AUDIENCE
    status: int = 200
    wait_s: float = 0
    asked: int = 0
    url: str = ""
    ended: threading.Event = field(default_factory=threading.Event)

    @property
    def environ(self) -> dict[str, str]:
        """What `managed_identity` finds in a process's environment."""
        return {"IDENTITY_ENDPOINT": self.url, "IDENTITY_HEADER": "a test's own"}

    def reset(self) -> None:
        """Do again what it should."""
        self.life_s, self.audience, self.status, self.wait_s, self.asked = 3600, _AUDIENCE, 200, 0, 0

    def token(self, life_s: float) -> str:
        """Return a token as Azurite takes them."""
        now = int(time.time())
        claims = {
            "iss": f"https://sts.windows.net/{uuid.UUID(int=1)}/",
            "aud": self.audience,
            "sub": "a test's own",
            "iat": now - 60,
            "nbf": now - 60,
            "exp": now + int(life_s),
        }
        return jwt.encode(claims, "no one looks at the signature, but it must be there", algorithm="HS256")


@dataclass(frozen=True, slots=True, kw_only=True)
class Azurite:
    """A blob service that answers at `endpoint`, and takes the tokens of `identity`."""

    endpoint: str
    port: int
    authority: Path
    issued: Issued
    identity: IdentityService

    def access(self, *, endpoint: str | None = None) -> Access:
        """Return how shipway reaches it, there or through something in front."""
        return Access(
            azure_credential="managed_identity",
            endpoint=endpoint or self.endpoint,
            authority=self.authority,
            environ=self.identity.environ,
        )

    def settings(self) -> Mapping[str, str]:
        """Return the same for a process that runs `invoke`."""
        return {
            "SHIPWAY_MODEL_AZURE_CREDENTIAL": "managed_identity",
            "SHIPWAY_MODEL_ENDPOINT": self.endpoint,
            "SHIPWAY_MODEL_AUTHORITY": str(self.authority),
            **self.identity.environ,
        }


@contextlib.contextmanager
def azurite(folder: Path) -> Iterator[Azurite]:
    """Start Azurite with one container, all in memory."""
    program = installed_azurite()
    authority = Authority(folder / "tls")
    issued = authority.issue("127.0.0.1", "localhost")
    port = free_port()
    argv = [str(program), "--blobPort", str(port), "--inMemoryPersistence", "--silent"]
    argv += ["--skipApiVersionCheck", "--disableTelemetry", "--oauth", "basic"]
    argv += ["--cert", str(issued.certificate), "--key", str(issued.key)]
    environ = {**os.environ, "AZURITE_ACCOUNTS": f"{ACCOUNT}:{_KEY}"}
    with (folder / "log").open("wb") as log, identity_service() as identity:
        process = subprocess.Popen(argv, stdout=log, stderr=log, env=environ, cwd=folder)
        try:
            _wait(process, folder / "log", rb"successfully listen")
            made = Azurite(
                endpoint=f"https://127.0.0.1:{port}/{ACCOUNT}",
                port=port,
                authority=authority.pem,
                issued=issued,
                identity=identity,
            )
            _make_container(made)
            yield made
        finally:
            process.terminate()
            process.wait()


@dataclass(frozen=True, slots=True, kw_only=True)
class S3Server:
    """A server with one bucket, which takes any key."""

    endpoint: str
    port: int

    @property
    def environ(self) -> dict[str, str]:
        """What AWS's usual chain finds in a process's environment."""
        return {
            "AWS_ACCESS_KEY_ID": ACCESS_KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def access(self, *, endpoint: str | None = None) -> Access:
        """Return how shipway reaches it, there or through something in front."""
        return Access(endpoint=endpoint or self.endpoint, region=REGION)

    def settings(self) -> Mapping[str, str]:
        """Return the same for a process that runs `invoke`."""
        return {
            "SHIPWAY_MODEL_ENDPOINT": self.endpoint,
            "SHIPWAY_MODEL_REGION": REGION,
            **self.environ,
        }


# moto looks at `If-Match` and then writes, in as many threads as there are connections; S3 does that as one.
_MOTO = """
import sys, threading
from moto import server
from moto.s3.responses import S3Response

one = threading.RLock()

def alone(name):
    plain = getattr(S3Response, name)
    def held(*args, **kwargs):
        with one:
            return plain(*args, **kwargs)
    setattr(S3Response, name, held)

for name in ("put_object", "_key_response_delete", "_key_response_post"):
    alone(name)
server.main(sys.argv[1:])
"""


@contextlib.contextmanager
def s3_server(folder: Path) -> Iterator[S3Server]:
    """Start moto's S3 server with one bucket, all in memory."""
    port = free_port()
    argv = [sys.executable, "-c", _MOTO, "-H", "127.0.0.1", "-p", str(port)]
    with _serving_s3(argv, folder, port, rb"Running on", {"PYTHONWARNINGS": "ignore"}) as running:
        yield running


@contextlib.contextmanager
def s3_gateway(program: Path, folder: Path) -> Iterator[S3Server]:
    """Start Versity's S3 server with one bucket, in files below `folder`."""
    port = free_port()
    kept = {name: folder / name for name in ("objects", "facts")}
    for each in kept.values():
        each.mkdir()
    argv: list[str | Path] = [program, "--port", f"127.0.0.1:{port}", "--region", REGION, "--keep-alive"]
    argv += ["posix", "--sidecar", kept["facts"], kept["objects"]]
    login = {"ROOT_ACCESS_KEY_ID": ACCESS_KEY, "ROOT_SECRET_ACCESS_KEY": SECRET_KEY}
    with _serving_s3(argv, folder, port, rb"initialized|listening|http://", login) as running:
        yield running


@contextlib.contextmanager
def _serving_s3(
    argv: Sequence[str | Path], folder: Path, port: int, ready: bytes, environ: Mapping[str, str]
) -> Iterator[S3Server]:
    """Run a server until the `with` block ends, and make the bucket."""
    import boto3  # noqa: PLC0415 - heavy

    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(argv, stdout=log, stderr=log, env={**os.environ, **environ})
        try:
            _wait(process, folder / "log", ready)
            made = S3Server(endpoint=f"http://127.0.0.1:{port}", port=port)
            session = boto3.Session(ACCESS_KEY, SECRET_KEY, region_name=REGION)
            client = session.client("s3", endpoint_url=made.endpoint)
            client.create_bucket(Bucket=CONTAINER, CreateBucketConfiguration={"LocationConstraint": REGION})
            client.close()
            yield made
        finally:
            process.terminate()
            process.wait()


@contextlib.contextmanager
def identity_service() -> Iterator[IdentityService]:
    """Start the stand-in for a machine's identity service, by App Service's protocol."""
    service = IdentityService()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            service.asked += 1
            service.ended.wait(service.wait_s)
            body = b"{}"
            if service.status == 200:
                token = service.token(service.life_s)
                expires = int(time.time() + service.life_s)
                body = json.dumps({"access_token": token, "expires_on": str(expires), "token_type": "Bearer"}).encode()
            self.send_response(service.status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_args: object) -> None:
            """Keep quiet: pytest shows what matters."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    service.url = f"http://127.0.0.1:{server.server_port}/msi/token"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield service
    finally:
        service.ended.set()
        server.shutdown()
        server.server_close()
        thread.join()


def client(azurite: Azurite) -> Any:
    """Return Azure's own client for the container, with the account's key: for what a test does itself."""
    from azure.storage.blob import ContainerClient  # noqa: PLC0415 - heavy

    return ContainerClient(
        azurite.endpoint,
        CONTAINER,
        credential={"account_name": ACCOUNT, "account_key": _KEY},
        connection_verify=str(azurite.authority),
    )


def connection(endpoint: str) -> str:
    """Return the connection string with the account's key, for clients that take nothing else."""
    return f"DefaultEndpointsProtocol=https;AccountName={ACCOUNT};AccountKey={_KEY};BlobEndpoint={endpoint}"


def _make_container(azurite: Azurite) -> None:
    with client(azurite) as container:
        container.create_container()


def installed_azurite() -> Path:
    """Return the program, installed where it is not there yet."""
    place = PLACE / f"azurite-{_AZURITE}"
    program = place / "node_modules" / ".bin" / "azurite-blob"
    PLACE.mkdir(parents=True, exist_ok=True)
    with locked(PLACE / "azurite.lock"):
        if not program.exists():
            npm = shutil.which("npm")
            if not npm:
                pytest.skip(f"there is no npm to install Azurite: install Node 20, or npm install azurite@{_AZURITE}")
            with tempfile.TemporaryDirectory(dir=PLACE) as scratch:  # one that is killed leaves half of a program
                argv = [npm, "install", "--silent", "--no-fund", "--no-audit", "--prefix", f"{scratch}/new"]
                wanted = f"azurite@{_AZURITE}"
                done = subprocess.run([*argv, wanted], capture_output=True, timeout=_INSTALL_S, check=False)
                if done.returncode != 0:
                    pytest.skip(f"npm install {wanted} failed: {done.stderr.decode()[-300:]}")
                shutil.rmtree(place, ignore_errors=True)
                Path(scratch, "new").rename(place)
    return program


def _wait(process: subprocess.Popen[bytes], log: Path, line: bytes) -> None:
    until = time.monotonic() + _START_S
    while time.monotonic() < until and process.poll() is None:
        if re.search(line, log.read_bytes()):
            return
        time.sleep(0.05)
    message = f"it did not start (exit code {process.poll()}):\n{log.read_text('utf-8')[-2000:]}"
    raise AssertionError(message)
