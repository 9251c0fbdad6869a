"""Requests in pieces: whole is told at the right byte, wherever the pieces are cut."""

from __future__ import annotations

import pytest
from gunicorn.config import Config
from gunicorn.http.errors import LimitRequestHeaders, ParseException

from app.incoming import MAX_HEAD_BYTES, Incoming
from app.problems import Problem

GET = b"GET /x HTTP/1.1\r\nHost: h\r\n\r\n"
POST = b"POST /x HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\nhello"
CHUNKED = (
    b"POST /x HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n"
    b"3\r\nhel\r\n2;note=1\r\nlo\r\n0\r\nX-Sum: t\r\n\r\n"
)


def _incoming(max_body_bytes: int = 1000) -> Incoming:
    return Incoming(Config(), ("127.0.0.1", 1), max_body_bytes=max_body_bytes)


@pytest.mark.parametrize("step", [1, 2, 3, 7, 1000])
@pytest.mark.parametrize(("request_", "body"), [(GET, b""), (POST, b"hello"), (CHUNKED, b"hello")])
def test_incoming_is_whole_at_its_last_byte_and_keeps_what_follows(request_: bytes, body: bytes, step: int) -> None:
    incoming = _incoming()
    pieces = [request_[at : at + step] for at in range(0, len(request_), step)]
    pieces[-1] += b"GET /next"

    whole = [incoming.feed(piece) for piece in pieces]

    assert whole == [False] * (len(pieces) - 1) + [True]
    assert (incoming.request.path, incoming.request.body.read(), incoming.rest()) == ("/x", body, b"GET /next")


def test_incoming_refuses_before_the_body_is_sent_when_it_will_be_too_long() -> None:
    head = b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 1001\r\n\r\n"

    with pytest.raises(Problem, match="longer than the 1,000 bytes"):
        _incoming().feed(head)


def test_incoming_refuses_while_the_body_is_sent_when_its_chunks_get_too_long() -> None:
    incoming = _incoming()
    incoming.feed(b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n")
    incoming.feed(b"300\r\n" + bytes(0x300) + b"\r\n")

    with pytest.raises(Problem, match="longer than the 1,000 bytes"):
        incoming.feed(b"300\r\n" + bytes(0x300) + b"\r\n")


@pytest.mark.parametrize(
    "piece", [b"a" * (MAX_HEAD_BYTES + 1), b"GET / HTTP/1.1\r\nA: " + b"a" * MAX_HEAD_BYTES + b"\r\n\r\n"]
)
def test_incoming_refuses_when_the_head_is_too_long(piece: bytes) -> None:
    with pytest.raises(LimitRequestHeaders):
        _incoming().feed(piece)


@pytest.mark.parametrize(
    "head",
    [
        b"nonsense\r\n\r\n",
        b"\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET / HTTP/1.1\r\nbad header\r\n\r\n",
        b"POST / HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
        b"POST / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"POST / HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"POST / HTTP/1.1\r\nTransfer-Encoding: gzip\r\n\r\n",
    ],
)
def test_incoming_refuses_when_the_head_is_wrong_or_ambiguous(head: bytes) -> None:
    with pytest.raises(ParseException):
        _incoming().feed(head)


@pytest.mark.parametrize("size", [b"-5", b"0x5", b"+5", b"", b"5 5", b"g", b"5" * 9])
def test_incoming_ends_and_the_parser_refuses_when_a_chunk_size_is_wrong(size: bytes) -> None:
    incoming = _incoming()
    incoming.feed(b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n")

    whole = incoming.feed(size + b"\r\nhello\r\n0\r\n\r\n")

    assert whole
    with pytest.raises((ParseException, OSError)):
        incoming.request.body.read()


CHUNKED_HEAD = b"POST /x HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n"
CRUMB, CHUNK, LARGE = (b"%x\r\n%s\r\n" % (size, b"a" * size) for size in (1, 64, 65_535))
END = b"0\r\n\r\n"


@pytest.mark.parametrize("step", [1, 7, 65_536])
def test_incoming_refuses_when_a_body_comes_in_too_many_small_chunks(step: int) -> None:
    incoming = _incoming(max_body_bytes=1_000_000)
    sent = CHUNKED_HEAD + CRUMB * 100_000

    with pytest.raises(Problem, match="the body comes in too many small chunks") as caught:
        _ = [incoming.feed(sent[at : at + step]) for at in range(0, len(sent), step)]

    assert caught.value.status == 400
    assert incoming.size <= max(step, len(CHUNKED_HEAD + CRUMB * 1001))


@pytest.mark.parametrize("chunks", [CRUMB * 1000, CHUNK * 1500, CRUMB * 900 + LARGE + CRUMB * 100])
@pytest.mark.parametrize("step", [1000, 65_536])
def test_incoming_takes_small_chunks_when_they_are_few_or_not_as_small(chunks: bytes, step: int) -> None:
    incoming = _incoming(max_body_bytes=1_000_000)
    sent = CHUNKED_HEAD + chunks + END

    whole = [incoming.feed(sent[at : at + step]) for at in range(0, len(sent), step)]

    assert whole == [False] * (len(whole) - 1) + [True]
    assert set(incoming.request.body.read()) == {ord("a")}


def test_incoming_counts_chunks_anew_for_each_request() -> None:
    first, second = _incoming(max_body_bytes=1_000_000), _incoming(max_body_bytes=1_000_000)
    request_ = CHUNKED_HEAD + CRUMB * 900 + END

    assert first.feed(request_ * 2)
    assert first.request.body.read() == b"a" * 900
    assert second.feed(first.rest())
    assert second.request.body.read() == b"a" * 900


def test_incoming_hands_small_pieces_to_the_parser_which_copies_them_for_each_chunk() -> None:
    incoming = _incoming(max_body_bytes=1_000_000)

    incoming.feed(CHUNKED_HEAD + b"10000\r\n" + bytes(0x10000))

    assert max(map(len, iter(incoming.chunk, b""))) == 4096
