"""Ask a running service, one new connection a question.

Owns what counts as an answer: a service that cannot be reached, or says something else,
gives `None`, never an exception. TLS is verified as any client of this machine would.
"""

from __future__ import annotations

import http.client
import socket
from urllib.parse import urlsplit

from shipway import documents
from shipway.config import ServiceSettings

_TIMEOUT_S = 5.0
_LIMIT_BYTES = 1 << 20


def ready(url: str, service: ServiceSettings) -> bool:
    """Say whether the service says that it is ready."""
    status, _ = _get(url, service.ready_path)
    return status == http.client.OK


def build(url: str, service: ServiceSettings) -> str | None:
    """Return the build id that answers now."""
    status, body = _get(url, service.version_path)
    return told(body, service) if status == http.client.OK else None


def told(body: bytes, service: ServiceSettings) -> str | None:
    """Return the build id in an answer's body."""
    try:
        answer = documents.decoded(body)
    except ValueError:
        return None
    found = answer.get(service.build_field) if isinstance(answer, dict) else None
    return found if isinstance(found, str) else None


def unresolved(url: str) -> str | None:
    """Say why the name in a URL leads nowhere yet, or `None` when it does."""
    host = urlsplit(url).hostname or ""
    try:
        socket.getaddrinfo(host, None)
    except OSError as error:
        return f"{host} does not resolve yet ({error.strerror or error})"
    return None


def _get(url: str, path: str) -> tuple[int | None, bytes]:
    parts = urlsplit(url)
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    connection = kind(parts.hostname or "", parts.port, timeout=_TIMEOUT_S)
    try:
        connection.request("GET", path, headers={"Connection": "close"})
        answer = connection.getresponse()
        return answer.status, answer.read(_LIMIT_BYTES)
    except (OSError, http.client.HTTPException):
        return None, b""
    finally:
        connection.close()
