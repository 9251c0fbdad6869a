"""Errors as RFC 9457 problem details: one shape, whoever refuses.

Owns the JSON shape, the exception `Problem` and the request id. Knows nothing of Flask or of
sockets: the application raises `Problem`, the worker writes `document()` itself when a
request never reaches the application. Details come from us, never from a traceback.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

from app.schemas import Fault, ProblemDetails

MEDIA_TYPE = "application/problem+json"
_SANE_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")


class Problem(Exception):
    """A request that cannot be answered, with the places in it that are wrong."""

    def __init__(
        self, status: int, detail: str, *, errors: Sequence[Fault] = (), headers: Mapping[str, str] | None = None
    ) -> None:
        """Say the status, why, where; `headers` go into the answer beside the usual ones."""
        super().__init__(detail)
        self.status = HTTPStatus(status)
        self.detail = detail
        self.errors = tuple(errors)
        self.headers = dict(headers or {})


def overloaded(detail: str) -> Problem:
    """Return the 503 of a service that will take the same request later."""
    return Problem(503, detail, headers={"Retry-After": "1"})


def our_mistake() -> Problem:
    """Return the 500 that tells nothing but where to look."""
    return Problem(500, "the service made a mistake; its log has this request's id")


def document(problem: Problem, request_id: str) -> bytes:
    """Return the problem as JSON; `instance` is the request id, which is in the log too."""
    return (
        ProblemDetails(
            title=problem.status.phrase,
            status=problem.status,
            detail=problem.detail,
            instance=request_id,
            errors=list(problem.errors),
        )
        .model_dump_json()
        .encode()
    )


def request_id(given: Any) -> str:
    """Return the client's own id if it is a sane one, else a new one."""
    return given if isinstance(given, str) and _SANE_ID.fullmatch(given) else uuid.uuid4().hex
