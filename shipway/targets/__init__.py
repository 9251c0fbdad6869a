"""Where versions run. Owns what every target says; each module here is one target, or a part of one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

from msgspec import Struct

from shipway.artifacts import Digest, Image, Version


class Live(Struct, frozen=True, kw_only=True):
    """What a target serves to users.

    `version` is the last one that was settled, and `since` when that was, in seconds since
    1970. `builds` are the build ids that users can meet now. `healthy` is true when that is
    `version` alone, it is supervised, and it just answered on `url`.
    """

    version: Version
    url: str
    since: float
    builds: tuple[str, ...]
    healthy: bool


class Candidate(Struct, frozen=True, kw_only=True):
    """A version that is ready, on an address that users do not know."""

    version: Version
    url: str


class Target(Protocol):
    """A place where versions run. One caller at a time, under the environment's lock.

    Every function may be called in any state, also in that which a killed release left.
    """

    @property
    def url(self) -> str:
        """The public address, or an empty text while nobody knows it."""

    @property
    def manner(self) -> str:
        """What besides the image decides how a version runs here, such as manifests: another one is another try."""

    def current(self) -> Live | None:
        """Return what users are served, as it really is; `None` when nothing was settled since the last stop."""

    def is_as_wanted(self, live: Live) -> bool:
        """Say whether what is live is served where, and in the way that, the settings say now."""

    def digests(self) -> frozenset[Digest]:
        """Return the versions that are in use, or that one goes back to without the images' own place."""

    def image(self, digest: Digest) -> tuple[bytes, bytes] | None:
        """Return the manifest and the configuration of an image that served here, where the target keeps them."""

    def looks(self) -> Mapping[str, Callable[[], str]]:
        """Return what `invoke doctor` looks at here: each raises a `ShipwayError`, or says what was seen."""

    def explain(self) -> str:
        """Return why what was started last does not run as it should, line by line; nothing where it does."""

    def hindrance(self) -> str:
        """Return what came between us and the candidate while it was measured, and is not its fault; else nothing."""

    def logs(self) -> str:
        """Say where the logs are."""

    # -- what a release does, in this order --------------------------------------------------

    def start(self, version: Version, image: Image, *, as_before: bool) -> Candidate:
        """Start a version where users cannot reach it; return when it is ready and says its build id.

        What a killed release left is removed first. With `as_before` it is started as it was
        when it served here, where that is known, whatever the checkout says now. Raises
        `CandidateFailed` with its last words, at once when it is hopeless; `WrongBuild`; and
        `ConfigError` when the settings do not fit what is there. An undo takes away what is left
        of it then: whoever lost the lock meanwhile must not, for it may be another's.
        """

    def promote(self, candidate: Candidate) -> None:
        """Let the candidate's version serve users; return once it answered them.

        Raises `CandidateFailed` when the candidate did not live until now, and `PromotionFailed`.
        """

    def met(self, version: Version, before: Version | None) -> tuple[Version, ...]:
        """Return the versions that users may meet once `version` is promoted, and not settled yet."""

    def settle(self) -> None:
        """Write down that what was promoted last is the one to serve; return when it alone answers.

        Raises `PromotionFailed` when something else answers afterwards.
        """

    def undo(self, previous: Version | None) -> None:
        """Whatever the state: serve `previous` alone; with `None`, serve nothing.

        Raises `UndoFailed` when that cannot be proven afterwards.
        """

    def discard_candidate(self) -> None:
        """Remove every candidate; none is no error."""

    def stop(self) -> None:
        """End everything, gracefully; nothing counts as live then."""
