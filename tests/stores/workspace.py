"""A stand-in for a workspace of Azure ML, in front of a real MLflow server.

It takes what Azure takes: MLflow's API below the workspace's path, over https, with a token of
Entra ID for Azure's management, which it looks into. The real server answers; addresses of
files are told as Azure tells them, and aliases are unknown. Files are the artifact service's:
it lends signed addresses on another host, the stand-in for Blob storage, which takes no token.
"""

from __future__ import annotations

import contextlib
import json
import re
import secrets
import threading
import time
import urllib.parse
from collections.abc import Iterator
from dataclasses import dataclass, field
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import jwt

from shipway.stores.objects import Access
from tests.docker.authority import Authority, Issued
from tests.stores.parts import IdentityService, identity_service
from tests.stores.tracking import Tracking

SCOPE = "/subscriptions/s-1/resourceGroups/group/providers/Microsoft.MachineLearningServices/workspaces/space"
_AUDIENCE = "https://management.azure.com"
_HERE = re.compile(r"mlflow-artifacts:/(\d+)/(\w+)/artifacts")
_THERE = re.compile(r"azureml://[^\"]*?/experiments/(\d+)/runs/(\w+)/artifacts")


@dataclass(kw_only=True)
class Workspace:
    """A workspace that answers at `host`; `blobs` is where its files are, by the path they were lent at."""

    host: str
    authority: Path
    identity: IdentityService
    tracking: Tracking
    signature: str = field(default_factory=secrets.token_hex)
    blob_host: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    seen: list[tuple[str, str, bool]] = field(default_factory=list)  # host, path, whether a token came

    @property
    def address(self) -> str:
        """What `[model] store` calls it."""
        return f"azureml://{self.host}/mlflow/v1.0{SCOPE}"

    def access(self) -> Access:
        """Return how shipway reaches it."""
        return Access(
            azure_credential="managed_identity", authority=self.authority, environ=dict(self.identity.environ)
        )


@contextlib.contextmanager
def workspace(folder: Path, tracking: Tracking) -> Iterator[Workspace]:
    """Start both hosts of a workspace in front of a server."""
    authority = Authority(folder / "tls")
    issued = authority.issue("127.0.0.1", "localhost")
    with identity_service() as identity, _server(_Api, issued) as api, _server(_Blobs, issued) as blobs:
        identity.audience = _AUDIENCE
        made = Workspace(
            host=f"127.0.0.1:{api.server_port}", authority=authority.pem, identity=identity, tracking=tracking
        )
        made.blob_host = f"localhost:{blobs.server_port}"
        api.workspace = blobs.workspace = made
        yield made


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    workspace: Workspace


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Server

    def log_message(self, *_args: object) -> None:
        """Keep quiet: pytest shows what matters."""

    @property
    def place(self) -> tuple[str, dict[str, str]]:
        """The path, and the query."""
        parsed = urllib.parse.urlsplit(self.path)
        return urllib.parse.unquote(parsed.path), dict(urllib.parse.parse_qsl(parsed.query))

    def body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def note(self) -> None:
        token = "Authorization" in self.headers
        self.server.workspace.seen.append((self.headers.get("Host", ""), self.place[0], token))


class _Api(_Handler):
    def do(self) -> None:
        self.note()
        body, (path, query) = self.body(), self.place
        if not self.is_allowed():
            self.answer(HTTPStatus.UNAUTHORIZED, b'{"error": {"code": "UserError", "message": "no token"}}')
        elif path.startswith(f"/mlflow/v2.0{SCOPE}/api/2.0/mlflow/") and not path.endswith("/alias"):
            self.forward(self.path.removeprefix(f"/mlflow/v2.0{SCOPE}"), body)
        elif path.startswith(f"/artifact/v2.0{SCOPE}/artifacts/"):
            self.files(path.removeprefix(f"/artifact/v2.0{SCOPE}/artifacts/"), query, body)
        else:
            self.answer(HTTPStatus.NOT_FOUND)

    do_GET = do_POST = do_PUT = do_DELETE = do  # noqa: N815 - the names are the library's

    def is_allowed(self) -> bool:
        kind, _, token = self.headers.get("Authorization", "").partition(" ")
        with contextlib.suppress(jwt.PyJWTError):
            claims = jwt.decode(token, options={"verify_signature": False, "verify_aud": False})
            return kind == "Bearer" and str(claims["aud"]) == _AUDIENCE and float(claims["exp"]) > time.time()
        return False

    def forward(self, path: str, body: bytes) -> None:
        """Ask the real server, in its own words for files."""
        workspace = self.server.workspace
        sent = _THERE.sub(r"mlflow-artifacts:/\1/\2/artifacts", body.decode())
        headers = {"Content-Type": "application/json"} if body else {}
        answered = workspace.tracking.client.request(
            self.command, workspace.tracking.url + path, content=sent.encode(), headers=headers
        )
        there = rf"azureml://{workspace.host}/mlflow/v2.0{SCOPE}/experiments/\1/runs/\2/artifacts"
        self.answer(answered.status_code, _HERE.sub(there, answered.text).encode(), Content_Type="application/json")

    def files(self, rest: str, query: dict[str, str], body: bytes) -> None:
        """Do the artifact service's part."""
        workspace, (origin, container, *what) = self.server.workspace, rest.split("/")
        prefix = f"{origin}/{container}/"
        name = prefix + query.get("path", "")
        if what == ["batch", "metadata"]:
            names = [each["path"] for each in json.loads(body)["paths"]]
            if any(prefix + each in workspace.files for each in names):
                self.answer(HTTPStatus.CONFLICT)
                return
            workspace.files.update({prefix + each: b"" for each in names})
            lent = {each: {"contentUri": self.lend(prefix + each), "path": each} for each in names}
            told: object = {"artifacts": {}, "artifactContentInformation": lent, "errors": {}}
        elif what in (["contentinfo"], ["write"]):
            if name not in workspace.files:
                self.answer(HTTPStatus.NOT_FOUND)
                return
            told = {"contentUri": self.lend(name), "path": query["path"]}
        elif what == ["metadata"] and self.command == "DELETE":
            workspace.files.pop(name, None)
            told = {}
        else:
            names = sorted(each.removeprefix(prefix) for each in workspace.files if each.startswith(prefix))
            page = int(query.get("continuationToken", 0))
            more = {"continuationToken": str(page + 2)} if page + 2 < len(names) else {}
            told = {"value": [{"path": each} for each in names[page : page + 2]], **more}
        self.answer(HTTPStatus.OK, json.dumps(told).encode(), Content_Type="application/json")

    def lend(self, name: str) -> str:
        workspace = self.server.workspace
        return f"https://{workspace.blob_host}/{urllib.parse.quote(name)}?sv=1&sig={workspace.signature}"


class _Blobs(_Handler):
    def do(self) -> None:
        self.note()
        body, (path, query), workspace = self.body(), self.place, self.server.workspace
        name = path.removeprefix("/")
        if query.get("sig") != workspace.signature or "Authorization" in self.headers or name not in workspace.files:
            self.answer(HTTPStatus.FORBIDDEN)
        elif self.command == "PUT":
            workspace.files[name] = body
            self.answer(HTTPStatus.CREATED if self.headers.get("x-ms-blob-type") == "BlockBlob" else 400)
        else:
            data = workspace.files[name]
            match = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers["Range"])
            assert match is not None
            start, stop = int(match[1]), min(int(match[2]) + 1, len(data))
            span = {"Content_Range": f"bytes {start}-{stop - 1}/{len(data)}", "ETag": f'"{hash(data):x}"'}
            if start < len(data):
                self.answer(HTTPStatus.PARTIAL_CONTENT, data[start:stop], **span)
            else:
                self.answer(HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE, Content_Range=f"bytes */{len(data)}")

    do_GET = do_PUT = do  # noqa: N815 - the names are the library's


@contextlib.contextmanager
def _server(handler: type[_Handler], issued: Issued) -> Iterator[_Server]:
    server = _Server(("127.0.0.1", 0), handler)
    server.socket = issued.server_context().wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
