"""Exchanges: the golden cases that travel with a model, as requests and the answers they must get.

Owns their form (`golden/exchanges/*.json` in a model's folder), what counts as the right
answer, and playing them against a URL. Knows nothing of models, services or thresholds. A
file that is not an exchange is refused by its name and key before anything is sent; a
service that answers wrongly, late or not at all is told as differences, never raised.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterable, Iterator, Mapping
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

from msgspec import Struct

from shipway import documents
from shipway.documents import UNSET, Form, Malformed, Meta, UnsetType, field
from shipway.errors import ModelRefused

FOLDER = "golden/exchanges"
_ANSWER_BYTES = 16 * 2**20  # more than any golden answer; a broken service may send without end


class Exchange(Struct, frozen=True, kw_only=True):
    """One request and what must come back.

    `expected` is None where only the status matters, else a tuple holding the JSON document
    of which the answer must have every field given. Numbers may be `tolerance` apart.
    """

    name: str
    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes
    status: int
    expected: tuple[Any] | None
    tolerance: float


def load(model: Path) -> tuple[Exchange, ...]:
    """Return the exchanges in a model's folder, by name; none where it has no `golden/exchanges`.

    Raises `ModelRefused` naming file and key for whatever is not of the form, and for a
    body file that is missing or outside the model's folder.
    """
    return tuple(_read(file, model) for file in sorted((model / FOLDER).glob("*.json")))


def differences(exchange: Exchange, status: int, body: bytes) -> tuple[str, ...]:
    """Return how an answer departs from the expected one: case, JSON path, expected and got."""
    if status != exchange.status:
        begin = body[:200].decode("utf-8", "replace")
        return (f"{exchange.name}: status: expected {exchange.status}, got {status} {_shown(begin)}",)
    if exchange.expected is None:
        return ()
    try:
        got = json.loads(body)
    except (ValueError, RecursionError):
        return (f"{exchange.name}: expected JSON, got {_shown(body[:200].decode('utf-8', 'replace'))}",)
    found = _compare("$", exchange.expected[0], got, exchange.tolerance)
    return tuple(f"{exchange.name}: {each}" for each in found)


def play(url: str, exchanges: Iterable[Exchange], timeout_s: float) -> tuple[str, ...]:
    """Send every exchange to the service at `url`, one after the other, and return all differences."""
    return tuple(difference for exchange in exchanges for difference in _play_one(url, exchange, timeout_s))


class _Request(Form, frozen=True, kw_only=True):
    method: Annotated[str, Meta(pattern=r"^[A-Z]+\Z")] = "GET"
    path: Annotated[str, Meta(pattern=r"^/[\x21-\x7e]*\Z")]
    headers: Mapping[
        Annotated[str, Meta(pattern=r"^[A-Za-z0-9-]+\Z")], Annotated[str, Meta(pattern=r"^[\x20-\x7e]*\Z")]
    ] = {}
    text: str | UnsetType | None = field(default=UNSET, name="body")
    document: Any = field(default=UNSET, name="json")
    file: str | UnsetType | None = field(default=UNSET, name="body_file")

    def __post_init__(self) -> None:
        if sum(each is not UNSET for each in (self.text, self.document, self.file)) > 1:
            message = "body, json and body_file exclude one another"
            raise ValueError(message)


class _Response(Form, frozen=True, kw_only=True):
    status: Annotated[int, Meta(ge=100, le=599)] = 200
    document: Any = field(default=UNSET, name="json")
    tolerance: Annotated[float, Meta(ge=0, le=sys.float_info.max)] = 0.0


class _Case(Form, frozen=True, kw_only=True):
    request: _Request
    response: _Response


def _read(file: Path, model: Path) -> Exchange:
    where = f"{FOLDER}/{file.name}"
    try:
        case = documents.convert(_Case, json.loads(file.read_bytes()))
    except Malformed as error:
        raise ModelRefused(f"{where}: {error}") from error
    except (ValueError, RecursionError) as error:
        raise ModelRefused(f"{where}: not JSON: {error}") from error
    request, response = case.request, case.response
    return Exchange(
        name=file.stem,
        method=request.method,
        path=request.path,
        headers=_headers(request),
        body=_body(request, file, model, where),
        status=response.status,
        expected=None if response.document is UNSET else (response.document,),
        tolerance=response.tolerance,
    )


def _headers(request: _Request) -> dict[str, str]:
    if request.document is not UNSET and "content-type" not in map(str.lower, request.headers):
        return {"Content-Type": "application/json", **request.headers}
    return dict(request.headers)


def _body(request: _Request, file: Path, model: Path, where: str) -> bytes:
    if request.document is not UNSET:
        return json.dumps(request.document).encode()
    if not isinstance(request.file, str):
        return (request.text or "").encode()
    try:
        path = (file.parent / request.file).resolve()
        if path.is_relative_to(model.resolve()):
            return path.read_bytes()
        raise ModelRefused(f"{where}: request.body_file: {request.file!r} is outside the model's folder")
    except (OSError, ValueError) as error:
        raise ModelRefused(f"{where}: request.body_file: {request.file!r} cannot be read: {error}") from error


def _compare(where: str, expected: Any, got: Any, tolerance: float) -> Iterator[str]:
    """Yield each place where `got` lacks something of `expected`, or has something else."""
    if isinstance(expected, dict) and isinstance(got, dict):
        for key, value in expected.items():
            if key in got:
                yield from _compare(f"{where}.{key}", value, got[key], tolerance)
            else:
                yield f"{where}.{key}: expected {_shown(value)}, got nothing"
    elif isinstance(expected, list) and isinstance(got, list):
        for index, value in enumerate(expected):
            if index < len(got):
                yield from _compare(f"{where}[{index}]", value, got[index], tolerance)
            else:
                yield f"{where}[{index}]: expected {_shown(value)}, got nothing"
    elif not _same(expected, got, tolerance):
        yield f"{where}: expected {_shown(expected)}, got {_shown(got)}"


def _same(expected: Any, got: Any, tolerance: float) -> bool:
    if not (_is_number(expected) and _is_number(got)):
        return type(expected) is type(got) and bool(expected == got)
    if expected == got:
        return True
    try:
        return abs(expected - got) <= tolerance or (math.isnan(expected) and math.isnan(got))
    except OverflowError:  # an integer beyond every float
        return False


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 120 else text[:119] + "…"  # noqa: PLR2004 - a line on a terminal


def _play_one(url: str, exchange: Exchange, timeout_s: float) -> tuple[str, ...]:
    base = urlsplit(url)
    kind = HTTPSConnection if base.scheme == "https" else HTTPConnection
    connection = kind(base.netloc.rpartition("@")[2], timeout=timeout_s)
    try:
        connection.request(
            exchange.method, base.path.rstrip("/") + exchange.path, exchange.body, dict(exchange.headers)
        )
        response = connection.getresponse()
        return differences(exchange, response.status, response.read(_ANSWER_BYTES))
    except (OSError, HTTPException) as error:
        return (f"{exchange.name}: no answer from {url}: {str(error).strip() or type(error).__name__}",)
    finally:
        connection.close()
