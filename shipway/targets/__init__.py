"""Where versions run. Owns what every target says; each module here is one target, or a part of one."""

from __future__ import annotations

from dataclasses import dataclass

from shipway.artifacts import Version


@dataclass(frozen=True, slots=True, kw_only=True)
class Live:
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A version that is ready, on an address that users do not know."""

    version: Version
    url: str
