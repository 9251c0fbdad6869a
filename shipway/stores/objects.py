"""What a place must be able to do to hold models.

Owns the boundary between the catalogue and a directory, a container or a bucket: plain
objects under `/`-separated keys. Knows nothing of models. Whatever a place does on failure,
an object is there whole or not at all; a place that cannot be reached, read or written
raises `ModelError`. Nobody trusts what `stream` gives: the caller checks length and hash. A
small object is read into memory; one that is larger than it may be is refused.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, Self

from msgspec import Struct

from shipway.config import AzureCredential, ModelSettings
from shipway.errors import ModelCorrupt, ModelError

SMALL_BYTES = 16 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """How a store elsewhere is reached: the keys of `[model]` that bear these names.

    `environ` is where credentials are looked for by their usual names.
    """

    azure_credential: AzureCredential = "cli"
    token_variable: str = "MLFLOW_TRACKING_TOKEN"  # noqa: S105 - a name
    user_variable: str = "MLFLOW_TRACKING_USERNAME"
    password_variable: str = "MLFLOW_TRACKING_PASSWORD"  # noqa: S105 - a name
    profile: str | None = None
    region: str | None = None
    endpoint: str | None = None
    authority: Path | None = None
    cache_gb: float | None = None
    environ: Mapping[str, str] = field(default_factory=dict, repr=False)

    @property
    def cache_bytes(self) -> int | None:
        """How much of fetched models is kept; `None` for all."""
        return None if self.cache_gb is None else int(self.cache_gb * 1e9)

    @classmethod
    def of(cls, settings: ModelSettings, *, root: Path, environ: Mapping[str, str]) -> Self:
        """Take what the settings say; their paths are relative to `root`."""
        return cls(
            azure_credential=settings.azure_credential,
            token_variable=settings.token_variable,
            user_variable=settings.user_variable,
            password_variable=settings.password_variable,
            profile=settings.profile,
            region=settings.region,
            endpoint=settings.endpoint,
            authority=root / settings.authority if settings.authority else None,
            cache_gb=settings.cache_gb,
            environ=environ,
        )


class Stored(Struct, frozen=True, kw_only=True):
    """A small object's bytes, and a tag that changes whenever they do."""

    data: bytes
    etag: str


class Found(Struct, frozen=True, kw_only=True):
    """An object that is there: its size, and a tag that changes whenever its bytes do."""

    size_bytes: int
    etag: str


class Replaced(ModelError):
    """An object is not the one any more whose tag was given."""


class Store(Protocol):
    """A place for objects; `str()` of it is its address, for people. Several threads may use it."""

    def read(self, key: str) -> Stored | None:
        """Return a small object, or `None` when there is none. Raises `ModelCorrupt` for a large one."""

    def create(self, key: str, data: bytes) -> bool:
        """Write a small object that must not exist yet; `False` when it does."""

    def replace(self, key: str, data: bytes, *, etag: str) -> bool:
        """Write a small object if it is still the one that was read; `False` when it is not."""

    def find(self, key: str) -> Found | None:
        """Return what is known of an object without its bytes, or `None` when there is none."""

    def put(self, key: str, pieces: Iterable[bytes], *, size_bytes: int) -> None:
        """Write a large object, replacing what is there; when `pieces` raises, nothing is changed."""

    def stream(self, key: str, *, start: int, stop: int, etag: str | None = None) -> Iterator[bytes]:
        """Yield an object's bytes from `start` to before `stop`, or to its end.

        Raises `ModelMissing` when there is none, and `Replaced` when it has another tag than `etag`.
        """

    def delete(self, key: str) -> None:
        """Remove an object; one that is not there is no error."""

    def children(self, folder: str) -> list[str]:
        """Return the names, objects and folders alike, directly in a folder; `""` is the top."""


def small(pieces: Iterable[bytes], where: str) -> bytes:
    """Return the bytes of a small object as they come, and no more of them than one may have."""
    data = bytearray()
    for piece in pieces:
        data += piece
        require_small(len(data), where)
    return bytes(data)


def require_small(size_bytes: int, where: str) -> None:
    """Raise `ModelCorrupt` for what is too large to be read into memory."""
    if size_bytes > SMALL_BYTES:
        raise ModelCorrupt(
            f"{where} has more than {SMALL_BYTES:,} bytes, which is too much to be what its name says",
            advice="look who wrote it: shipway writes nothing as large there",
        )


class Blob(Struct, frozen=True):
    """One large object of a store."""

    store: Store
    key: str

    def __str__(self) -> str:
        return f"{self.store}/{self.key}"

    def find(self) -> Found | None:
        """See `Store.find`."""
        return self.store.find(self.key)

    def stream(self, *, start: int, stop: int, etag: str | None = None) -> Iterator[bytes]:
        """See `Store.stream`."""
        return self.store.stream(self.key, start=start, stop=stop, etag=etag)
