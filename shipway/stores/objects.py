"""What a place must be able to do to hold models.

Owns the boundary between the catalogue and a directory, a container or a bucket: plain
objects under `/`-separated keys. Knows nothing of models. Whatever a place does on failure,
an object is there whole or not at all; a place that cannot be reached, read or written
raises `ModelError`. Nobody trusts what `stream` gives: the caller checks length and hash.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """A small object's bytes, and a tag that changes whenever they do."""

    data: bytes
    etag: str


class Store(Protocol):
    """A place for objects; `str()` of it is its address, for people."""

    def read(self, key: str) -> Stored | None:
        """Return a small object, or `None` when there is none."""

    def create(self, key: str, data: bytes) -> bool:
        """Write a small object that must not exist yet; `False` when it does."""

    def replace(self, key: str, data: bytes, *, etag: str) -> bool:
        """Write a small object if it is still the one that was read; `False` when it is not."""

    def size(self, key: str) -> int | None:
        """Return an object's size in bytes, or `None` when there is none."""

    def put(self, key: str, pieces: Iterable[bytes], *, size_bytes: int) -> None:
        """Write a large object, replacing what is there; when `pieces` raises, nothing is changed."""

    def stream(self, key: str, *, start: int = 0) -> Iterator[bytes]:
        """Yield an object's bytes from `start` on; raises `ModelMissing` when there is none."""

    def delete(self, key: str) -> None:
        """Remove an object; one that is not there is no error."""

    def children(self, folder: str) -> list[str]:
        """Return the names, objects and folders alike, directly in a folder; `""` is the top."""
