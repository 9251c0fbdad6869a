"""A client whose other side is a function: requests and answers in httpx's words, which have all that a fake needs."""

from __future__ import annotations

from collections.abc import Iterator
from email.message import Message

import httpx

from shipway.oci.client import NoAnswer, Request, Response


class FakeClient:
    """`shipway.oci.client.Client` without a network: every request goes to one httpx transport."""

    def __init__(self, transport: httpx.BaseTransport) -> None:
        self._transport = transport

    def send(self, request: Request) -> Response:
        asked = httpx.Request(
            request.method,
            str(request.url),
            headers=dict(request.lines),
            stream=None if request.pieces is None else _Body(request.pieces),
            extensions={"timeout": {"read": request.timeout_s, "connect": request.connect_s}},
        )
        try:
            answer = self._transport.handle_request(asked)
        except httpx.TransportError as error:
            raise _failure(error) from error
        headers = Message()
        for name, text in answer.headers.multi_items():
            headers[name] = text
        return Response(answer.status_code, headers, request.url, _pieces(answer), answer.close)

    def abandon(self) -> None:
        """There is nothing to cut."""

    def close(self) -> None:
        self._transport.close()


class _Body(httpx.SyncByteStream):
    def __init__(self, pieces: object) -> None:
        self._pieces = pieces

    def __iter__(self) -> Iterator[bytes]:
        yield from self._pieces  # type: ignore[misc]


def _pieces(answer: httpx.Response) -> Iterator[bytes]:
    assert isinstance(answer.stream, httpx.SyncByteStream)
    try:
        yield from answer.stream
    except httpx.TransportError as error:
        raise _failure(error) from error


def _failure(error: httpx.TransportError) -> NoAnswer:
    return NoAnswer(type(error).__name__, str(error))
