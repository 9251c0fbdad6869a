"""Gzip that compresses nothing: any program reads it, and the same bytes come out however they come in."""

from __future__ import annotations

import gzip

from hypothesis import given
from hypothesis import strategies as st

from shipway.oci.stored import stored


@given(st.lists(st.binary(max_size=200_000), max_size=12))
def test_stored_bytes_come_back_when_any_gzip_reads_them(pieces: list[bytes]) -> None:
    assert gzip.decompress(b"".join(stored(pieces))) == b"".join(pieces)


def test_stored_file_is_the_same_when_the_pieces_are_others() -> None:
    data = bytes(range(256)) * 20_000
    whole = b"".join(stored([data]))

    assert b"".join(stored([data[:1], data[1:70_000], b"", data[70_000:]])) == whole
    assert len(whole) == len(data) + 5 * -(-len(data) // 65_535) + 5 + 18


def test_stored_file_is_known_to_the_byte() -> None:
    assert b"".join(stored([b"hi"])).hex() == "1f8b08000000000000ff0002 00fdff6869 010000ffff ac2a93d802000000".replace(
        " ", ""
    )
