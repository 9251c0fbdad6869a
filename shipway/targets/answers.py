"""Ask a running service, one new connection a question.

Owns what counts as an answer: a service that cannot be reached, or says something else,
gives `None`, never an exception.
"""

from __future__ import annotations

import http.client
import json
from urllib.parse import urlsplit

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
    if status != http.client.OK:
        return None
    try:
        answer = json.loads(body)
    except ValueError:
        return None
    found = answer.get(service.build_field) if isinstance(answer, dict) else None
    return found if isinstance(found, str) else None


def _get(url: str, path: str) -> tuple[int | None, bytes]:
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=_TIMEOUT_S)
    try:
        connection.request("GET", path, headers={"Connection": "close"})
        answer = connection.getresponse()
        return answer.status, answer.read(_LIMIT_BYTES)
    except (OSError, http.client.HTTPException):
        return None, b""
    finally:
        connection.close()
