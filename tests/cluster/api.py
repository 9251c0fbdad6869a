"""The API server, asked over HTTP: what the cluster's own parts need of it, and no more."""

from __future__ import annotations

import contextlib
import http.client
import json
import ssl
from pathlib import Path
from typing import Any

from tests.docker.authority import Issued

MERGE = "application/merge-patch+json"
_ANSWER_S = 5.0


class Refused(Exception):
    """The API server answered, and not with what was asked for."""

    def __init__(self, status: int, body: str) -> None:
        super().__init__(f"{status} {body[:300]}")
        self.status = status


class Api:
    """Asks as one user; a connection a request. Raises `OSError` where nobody answers."""

    def __init__(self, address: str, *, authority: Path, issued: Issued) -> None:
        self._address = address
        self._context = ssl.create_default_context(cafile=str(authority))
        self._context.load_cert_chain(issued.certificate, issued.key)

    def get(self, path: str) -> Any:
        return self._ask("GET", path)

    def post(self, path: str, value: Any) -> Any:
        return self._ask("POST", path, value, "application/json")

    def patch(self, path: str, value: Any) -> Any:
        return self._ask("PATCH", path, value, MERGE)

    def ready(self) -> bool:
        """Tell whether it serves."""
        try:
            self._ask("GET", "/readyz")
        except (OSError, Refused, http.client.HTTPException):
            return False
        return True

    def _ask(self, method: str, path: str, value: Any = None, kind: str = "") -> Any:
        connection = http.client.HTTPSConnection(self._address, 6443, timeout=_ANSWER_S, context=self._context)
        with contextlib.closing(connection):
            body = None if value is None else json.dumps(value)
            connection.request(method, path, body, {"Content-Type": kind} if kind else {})
            answer = connection.getresponse()
            data = answer.read()
        if answer.status >= http.client.MULTIPLE_CHOICES:
            raise Refused(answer.status, data.decode("utf-8", "replace"))
        return json.loads(data) if data.startswith(b"{") else data.decode()
