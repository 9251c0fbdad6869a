"""Where what lies in a store: the names of its objects, and back from names to what they say."""

from __future__ import annotations

import re
from collections.abc import Iterable

from shipway.artifacts import Digest

_NUMBERED = re.compile(r"([1-9][0-9]{0,11})\.json")
_BLOB = re.compile(r"[0-9a-f]{64}")


def blob(name: str, digest: Digest) -> str:
    """A file, under its own hash."""
    return f"{name}/blobs/sha256/{digest.hex}"


def manifest(name: str, number: int) -> str:
    """A version's manifest."""
    return f"{name}/versions/{number}.json"


def signature(name: str, number: int, signed: Digest, key: str) -> str:
    """The signature that a key (its hexadecimal id) made of a manifest (its digest)."""
    return f"{name}/signatures/{number}/{signed.hex}-{key}.json"


def alias(name: str, text: str) -> str:
    """An alias."""
    return f"{name}/aliases/{text}.json"


def numbers(children: Iterable[str]) -> list[int]:
    """Return the numbers among the names of numbered objects."""
    return [int(match[1]) for match in map(_NUMBERED.fullmatch, children) if match]


def digests(children: Iterable[str]) -> list[Digest]:
    """Return the digests among the names of files."""
    return [Digest(f"sha256:{child}") for child in children if _BLOB.fullmatch(child)]
