"""A token service for real registries: distribution's protocol, and Azure's as Microsoft documents it.

Its tokens are real: signed, with the certificate in the header, which distribution 2.8 and v3
both take. It writes down everything that it was asked, so that a test can say what was asked,
in which order, and what was sent to whom. Protocols:
https://distribution.github.io/distribution/spec/auth/ and https://azure.github.io/acr/AAD-OAuth.html
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import json
import ssl
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import jwt
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from tests.docker.authority import Authority

ISSUER = "a test's own token service"
SERVICE = "a test's own registry"
ENTRA_TOKEN = "entra-" + "x" * 1200  # about as long as a real one
_LEEWAY_S = 60  # both registries take a token for so long after its end


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """One request: what it wanted, and whom it said that it comes from."""

    method: str
    path: str
    scopes: tuple[str, ...]
    form: Mapping[str, str]
    authorization: str | None
    status: int


class Signer:
    """Makes tokens; `bundle` is what a registry needs to believe them."""

    def __init__(self, folder: Path) -> None:
        authority = Authority(folder)
        issued = authority.issue("token-signer.test")
        certificate = x509.load_pem_x509_certificate(issued.certificate.read_bytes())
        der = certificate.public_bytes(serialization.Encoding.DER)
        self._chain = [base64.b64encode(der).decode("ascii")]
        self._key = issued.key.read_bytes()
        self.bundle = authority.pem

    def token(self, subject: str, access: Sequence[Mapping[str, Any]], *, life_s: float) -> str:
        """Return a token that a registry takes for so long, in whole seconds."""
        now = int(time.time())
        claims = {
            "iss": ISSUER,
            "aud": SERVICE,
            "sub": subject,
            "jti": uuid.uuid4().hex,
            "iat": now,
            "nbf": now - _LEEWAY_S,
            "exp": now + int(life_s) - _LEEWAY_S,
            "access": list(access),
        }
        return jwt.encode(claims, self._key, algorithm="ES256", headers={"x5c": self._chain})


@dataclass(kw_only=True)
class TokenServer:
    """What it knows, what it does, and what it was asked; a test may change it while it runs.

    `life_s` is how long a token is good, `says_s` how long it says so (`None`: not at all).
    `users` may do everything; `readers` and nobody in particular may pull. `failures` are
    statuses that are given instead of the next answers.
    """

    signer: Signer
    users: dict[str, str] = field(default_factory=lambda: {"alice": "open sesame"})
    readers: dict[str, str] = field(default_factory=lambda: {"bob": "look only"})
    life_s: float = 300
    says_s: float | None = 300
    identity_token: str = "identity-of-alice"  # noqa: S105 - made up
    entra_token: str = ENTRA_TOKEN
    failures: list[int] = field(default_factory=list)
    redirect_to: str | None = None
    asked: list[Asked] = field(default_factory=list)
    url: str = ""
    _refresh: set[str] = field(default_factory=set)

    def forget(self) -> None:
        """Let all of Azure's refresh tokens end."""
        self._refresh.clear()

    # -- the answers -----------------------------------------------------------------------

    def answer(self, method: str, path: str, fields: Mapping[str, list[str]], authorization: str | None) -> _Reply:
        """Answer one request."""
        if self.failures:
            return _Reply(self.failures.pop(0), {"errors": [{"code": "UNAVAILABLE", "message": "not now"}]})
        if self.redirect_to:
            return _Reply(HTTPStatus.TEMPORARY_REDIRECT, {}, location=self.redirect_to)
        first = {name: values[0] for name, values in fields.items()}
        scopes = fields.get("scope", [])
        answers: dict[tuple[str, str], Callable[[], _Reply]] = {
            ("GET", "/token"): lambda: self._by_password(scopes, authorization),
            ("POST", "/token"): lambda: self._by_identity(" ".join(scopes).split(), first),
            ("POST", "/oauth2/exchange"): lambda: self._exchange(first),
            ("POST", "/oauth2/token"): lambda: self._azure_token(scopes, first),
        }
        return answers.get((method, path), lambda: _Reply(HTTPStatus.NOT_FOUND, {}))()

    def _by_password(self, scopes: Sequence[str], authorization: str | None) -> _Reply:
        if authorization is None:
            return self._grant("", scopes, "token", may={"pull"})
        user, password = _basic(authorization)
        if self.users.get(user) == password:
            return self._grant(user, scopes, "token", may={"pull", "push", "delete"})
        if self.readers.get(user) == password:
            return self._grant(user, scopes, "token", may={"pull"})
        return _unauthorized("incorrect username or password")

    def _by_identity(self, scopes: Sequence[str], form: Mapping[str, str]) -> _Reply:
        if form.get("grant_type") != "refresh_token" or not form.get("client_id") or form.get("service") != SERVICE:
            return _Reply(HTTPStatus.BAD_REQUEST, {"error": "invalid_request"})
        if form.get("refresh_token") != self.identity_token:
            return _unauthorized("unknown refresh token")
        return self._grant("alice", scopes, "access_token", may={"pull", "push", "delete"})

    def _exchange(self, form: Mapping[str, str]) -> _Reply:
        if form.get("grant_type") != "access_token" or form.get("service") != SERVICE:
            return _Reply(HTTPStatus.BAD_REQUEST, {"errors": [{"code": "BAD_REQUEST", "message": "grant_type"}]})
        if form.get("access_token") != self.entra_token:
            return _unauthorized("AADSTS: the token is not for this registry")
        refresh = f"refresh-{uuid.uuid4().hex}"
        self._refresh.add(refresh)
        return _Reply(HTTPStatus.OK, {"refresh_token": refresh})

    def _azure_token(self, scopes: Sequence[str], form: Mapping[str, str]) -> _Reply:
        if form.get("grant_type") != "refresh_token" or form.get("service") != SERVICE:
            return _Reply(HTTPStatus.BAD_REQUEST, {"errors": [{"code": "BAD_REQUEST", "message": "grant_type"}]})
        if form.get("refresh_token") not in self._refresh:
            return _unauthorized("the refresh token has expired")
        reply = self._grant("someone", scopes, "access_token", may={"pull", "push", "delete"})
        return _Reply(reply.status, {"access_token": reply.document["access_token"]})  # it says no more than that

    def _grant(self, user: str, scopes: Sequence[str], name: str, *, may: set[str]) -> _Reply:
        access = []
        for scope in scopes:
            kind, repository, actions = scope.split(":")
            access.append({"type": kind, "name": repository, "actions": sorted(may & set(actions.split(",")))})
        document: dict[str, Any] = {name: self.signer.token(user, access, life_s=self.life_s)}
        if self.says_s is not None:
            document["expires_in"] = self.says_s
        return _Reply(HTTPStatus.OK, document)


@contextlib.contextmanager
def serving(
    server: TokenServer, *, host: str = "127.0.0.1", tls: ssl.SSLContext | None = None
) -> Iterator[TokenServer]:
    """Let it answer under this name, on a free port of loopback."""
    listener = _Listener(("127.0.0.1", 0), _handler(server))
    if tls:
        listener.socket = tls.wrap_socket(listener.socket, server_side=True, do_handshake_on_connect=False)
    server.url = f"{'https' if tls else 'http'}://{host}:{listener.server_port}"
    thread = threading.Thread(target=listener.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        listener.shutdown()
        listener.server_close()
        thread.join()


class _Listener(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """Keep quiet: a client that does not trust us hangs up, and that is meant."""


@dataclass(frozen=True, slots=True)
class _Reply:
    status: int
    document: Mapping[str, Any]
    location: str | None = None


def _unauthorized(message: str) -> _Reply:
    return _Reply(HTTPStatus.UNAUTHORIZED, {"errors": [{"code": "UNAUTHORIZED", "message": message}]})


def _basic(authorization: str) -> tuple[str, str]:
    kind, _, packed = authorization.partition(" ")
    with contextlib.suppress(binascii.Error, UnicodeDecodeError):
        user, _, password = base64.b64decode(packed).decode("utf-8").partition(":")
        return (user, password) if kind == "Basic" else ("", "")
    return "", ""


def _handler(server: TokenServer) -> Callable[..., BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._reply(parse_qs(urlsplit(self.path).query))

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0))).decode("utf-8")
            self._reply(parse_qs(body))

        def _reply(self, fields: Mapping[str, list[str]]) -> None:
            path, authorization = urlsplit(self.path).path, self.headers.get("Authorization")
            reply = server.answer(self.command, path, fields, authorization)
            server.asked.append(
                Asked(
                    method=self.command,
                    path=path,
                    scopes=tuple(fields.get("scope", [])),
                    form={name: values[0] for name, values in fields.items()} if self.command == "POST" else {},
                    authorization=authorization,
                    status=reply.status,
                )
            )
            body = json.dumps(reply.document).encode()
            self.send_response(reply.status)
            if reply.location:
                self.send_header("Location", reply.location)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_args: object) -> None:
            """Keep quiet: `asked` has it."""

    return Handler
