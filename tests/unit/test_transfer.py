"""Ranges: in place, gone on with, in order, and never too late."""

from __future__ import annotations

import hashlib
import random
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from shipway.errors import ModelCorrupt, ModelError
from shipway.stores import transfer
from shipway.stores.objects import Blob, Found
from shipway.stores.transfer import RANGE_BYTES, Part, Unasked
from tests.memory_store import MemoryStore

CONTENT = random.Random(5).randbytes(2 * RANGE_BYTES + 12_345)  # noqa: S311 - the same bytes each time


class Cutting:
    """A source that fails once at an offset, and writes down what it was asked for."""

    def __init__(self, cut_at: int = -1) -> None:
        self.cut_at = cut_at
        self.asked: list[tuple[int, int]] = []

    def find(self) -> Found | None:
        return Found(size_bytes=len(CONTENT), etag="1")

    def stream(self, *, start: int, stop: int, etag: str | None = None) -> Iterator[bytes]:
        assert etag in {None, "1"}
        self.asked.append((start, stop))
        for at in range(start, stop, 1 << 20):
            if at <= self.cut_at < at + (1 << 20):
                yield CONTENT[at : self.cut_at]
                message = "cut"
                raise ModelError(message)
            yield CONTENT[at : min(stop, at + (1 << 20))]


def test_fill_fetches_what_is_missing_alone_when_it_was_cut(tmp_path: Path) -> None:
    cut_at = RANGE_BYTES + 3_000_000
    with (tmp_path / "part").open("w+b") as file:
        with pytest.raises(ModelError, match="cut"):
            transfer.fill(Part(file, len(CONTENT)), Cutting(cut_at), etag="1", advance=lambda _count: None)
        moved: list[int] = []
        again = Cutting()
        part = Part(file, len(CONTENT))
        kept = part.held_bytes

        digest = transfer.fill(part, again, etag="1", advance=moved.append)
        part.finish()

    assert digest == hashlib.sha256(CONTENT).hexdigest()
    assert (tmp_path / "part").read_bytes() == CONTENT
    assert kept + sum(moved) == len(CONTENT)
    assert (cut_at, 2 * RANGE_BYTES) in again.asked


def test_part_begins_anew_when_the_file_has_another_form(tmp_path: Path) -> None:
    (tmp_path / "part").write_bytes(b"half of it, by an older version")
    with (tmp_path / "part").open("r+b") as file:
        part = Part(file, len(CONTENT))

        assert part.held_bytes == 0


def test_part_takes_nothing_when_it_is_too_much_or_too_late(tmp_path: Path) -> None:
    with (tmp_path / "part").open("w+b") as file:
        part = Part(file, 10)
        with pytest.raises(Unasked):
            part.append(0, b"12345678901")
        part.append(0, b"12345")
        part.close()
        with pytest.raises(Unasked):
            part.append(0, b"67890")

        assert (part.held_bytes, b"".join(part.read(0))) == (5, b"12345" + bytes(5))


def test_fill_says_what_did_not_come_when_the_store_ends_early(tmp_path: Path) -> None:
    store = MemoryStore()
    store.objects["blob"] = b"half"
    with (
        (tmp_path / "part").open("w+b") as file,
        pytest.raises(ModelCorrupt, match="bytes 0 to 8: the last 4 did not come"),
    ):
        transfer.fill(Part(file, 8), Blob(store, "blob"), etag=None, advance=lambda _count: None)


def test_ahead_gives_the_bytes_in_order() -> None:
    source = Cutting()

    assert b"".join(transfer.ahead(source, len(CONTENT))) == CONTENT
    assert len(source.asked) == -(-len(CONTENT) // (1 << 20))


@pytest.mark.parametrize("size_bytes", [1000, 3 << 20])
def test_ahead_takes_no_more_than_it_asked_for(size_bytes: int) -> None:
    class Endless(Cutting):
        taken_bytes = 0

        def __str__(self) -> str:
            return "memory/blob"

        def stream(self, *, start: int, stop: int, etag: str | None = None) -> Iterator[bytes]:
            self.asked.append((start, stop))
            assert etag in {None, "1"}
            for _ in range(64):
                self.taken_bytes += 1 << 19
                yield bytes(1 << 19)

    source = Endless()

    with pytest.raises(Unasked, match=r"^memory/blob: more came than was asked for\n"):
        list(transfer.ahead(source, size_bytes))

    assert source.taken_bytes <= len(source.asked) * 3 << 19


def test_in_order_begins_no_more_than_is_allowed_ahead() -> None:
    begun: list[int] = []
    arriving = transfer.in_order(range(100), begun.append, threads=4, ahead=6)

    next(arriving)

    assert len(begun) <= 6


def test_in_order_begins_nothing_when_a_task_has_failed() -> None:
    begun, go_on = [], threading.Event()

    def work(task: int) -> None:
        begun.append(task)
        if task == 0:
            message = "no"
            raise ValueError(message)
        go_on.wait(5)

    with pytest.raises(ValueError, match="no"):
        list(transfer.in_order(range(100), work, threads=2, ahead=100))
    go_on.set()

    assert len(begun) <= 3


def test_send_does_all_blocks_in_order() -> None:
    sent = transfer.send([b"abcdefgh", b"ij"], 10, 4, lambda number, block: (number, block), threads=2)

    assert sent == [(1, b"abcd"), (2, b"efgh"), (3, b"ij")]


@pytest.mark.parametrize("said", [9, 11])
def test_send_refuses_when_another_number_of_bytes_comes_than_was_said(said: int) -> None:
    with pytest.raises(ModelError, match=f"10 of {said} bytes came to be stored"):
        transfer.send([b"abcdefghij"], said, 4, lambda number, _block: number, threads=2)


def test_send_holds_no_more_blocks_than_are_under_way() -> None:
    threads, turn = 6, threading.Lock()
    held: list[int] = [0]

    def pieces() -> Iterator[bytes]:
        for _ in range(100):
            with turn:
                held.append(held[-1] + 1)
            yield b"1234"

    def work(_number: int, _block: bytes) -> None:
        time.sleep(0.005)  # all would be made meanwhile
        with turn:
            held.append(held[-1] - 1)

    transfer.send(pieces(), 400, 4, work, threads=threads)

    assert max(held) <= threads + 1  # and the one that waits for its turn


def test_blocks_are_of_one_size_but_for_the_last() -> None:
    pieces = [b"abc", b"", b"defgh", b"ij"]

    assert list(transfer.blocks(pieces, 4)) == [b"abcd", b"efgh", b"ij"]
