"""Gzip files: any program reads them, and the same bytes come out however they come in."""

from __future__ import annotations

import gzip
import random
from collections.abc import Callable, Iterable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shipway.gzipped import compressed, stored, stored_bytes

MIB = 1 << 20
WAYS: list[Callable[[Iterable[bytes]], Iterator[bytes]]] = [stored, lambda pieces: compressed(pieces, 1)]


@pytest.mark.parametrize("way", WAYS)
@given(pieces=st.lists(st.binary(max_size=200_000), max_size=12))
def test_bytes_come_back_when_any_gzip_reads_them(
    way: Callable[[Iterable[bytes]], Iterator[bytes]], pieces: list[bytes]
) -> None:
    assert gzip.decompress(b"".join(way(pieces))) == b"".join(pieces)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("size_bytes", [0, 1, 65_535, 65_536, MIB - 1, MIB, MIB + 1, 5 * MIB])
def test_file_is_the_same_when_the_pieces_are_others(
    way: Callable[[Iterable[bytes]], Iterator[bytes]], size_bytes: int
) -> None:
    data = random.Random(1).randbytes(size_bytes)  # noqa: S311 - no secret
    whole = b"".join(way([data]))

    assert b"".join(way([data[:1], data[1:70_000], b"", data[70_000:]])) == whole
    assert gzip.decompress(whole) == data


@pytest.mark.parametrize("size_bytes", [0, 1, 65_534, 65_535, 65_536, 131_070, 3_000_000])
def test_length_is_known_before_anything_is_stored(size_bytes: int) -> None:
    assert stored_bytes(size_bytes) == sum(map(len, stored([bytes(size_bytes)])))


def test_stored_file_is_known_to_the_byte() -> None:
    assert b"".join(stored([b"hi"])).hex() == "1f8b08000000000000ff0002 00fdff6869 010000ffff ac2a93d802000000".replace(
        " ", ""
    )


def test_compressed_file_is_known_to_the_byte() -> None:
    """What is fixed is the pinned libdeflate: another release of it may give other bytes, and so other layers."""
    members = list(compressed([b"a" * (MIB + 1)], 1))

    assert [len(gzip.decompress(member)) for member in members] == [MIB, 1]
    assert members[1].hex() == "1f8b08000000000004ff010100feff6143beb7e801000000"


def test_no_more_is_read_than_is_compressed_at_once() -> None:
    taken = 0

    def pieces() -> Iterator[bytes]:
        nonlocal taken
        for _ in range(100):
            taken += 1
            yield bytes(MIB)

    next(compressed(pieces(), 1))

    assert taken < 10
