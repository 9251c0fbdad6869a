"""The names of images whose suite passed, and which of them is the newest.

The newest is that of the newest commit, in the order of the branch that is checked out, and
not the one that was pushed last: a build that took long, or was run again, does not make an
old commit new. So each such image has a name that says its commit and the commit's time;
`tested` names the one that was pushed last. Asks for as few names as it can: on a night when
nothing is new, for one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from msgspec import Struct

from shipway.artifacts import Commit, Digest, Snapshot
from shipway.errors import ImageMissing
from shipway.oci.images import Images

LAST = "tested"
_NAME = re.compile(r"tested-(?P<time>\d{1,12})-(?P<id>[0-9a-f]{40,64})")
_ASKED_ONE_BY_ONE = 10  # commits; beyond that, listing all names is cheaper


class Newest(Struct, frozen=True, kw_only=True):
    """The newest tested image: its commit, where that is known, and how it came to be chosen.

    `behind` counts the commits of the branch that are newer; `None` where nobody can tell.
    """

    digest: Digest
    commit: Commit | None
    behind: int | None


def names(images: Images, snapshot: Snapshot) -> tuple[str, ...]:
    """Return the names of an image whose suite passed on this snapshot.

    Where others build too, what was changed and not committed is in no order with their
    commits, so that it gets no commit's name.
    """
    if snapshot.dirty and images.shared:
        return (LAST,)
    return LAST, _name(Commit(id=snapshot.commit, time_s=snapshot.time_s))


def is_one(name: str) -> bool:
    """Tell whether a name says of which commit a tested image is; it protects nothing."""
    return _NAME.fullmatch(name) is not None


def newest(images: Images, commits: Sequence[Commit], *, whole: bool) -> Newest:
    """Return the tested image of the first of `commits`, newest first, that has one.

    Where the history is not `whole` and what there is of it has none, the commits' times
    decide. Raises `ImageMissing`.
    """
    for behind, commit in enumerate(commits[:_ASKED_ONE_BY_ONE]):
        if digest := images.tagged(_name(commit)):
            return Newest(digest=digest, commit=commit, behind=behind)
    named = _named(images)
    for behind, commit in enumerate(commits):
        if commit.id in named and (digest := images.tagged(_name(named[commit.id]))):
            return Newest(digest=digest, commit=commit, behind=behind)
    if not named and (digest := images.tagged(LAST)):
        return Newest(digest=digest, commit=None, behind=None)
    if named and not whole:
        for commit in sorted(named.values(), key=lambda commit: (-commit.time_s, commit.id)):
            if digest := images.tagged(_name(commit)):
                return Newest(digest=digest, commit=commit, behind=None)
    others = f"; {len(named)} of commits that the checked-out branch has not got" if named else ""
    raise ImageMissing(
        f"{images.repository} has no image that was built from a passing suite{others}",
        advice="invoke build makes one" + (", or check out the branch that is released" if named else ""),
    )


def _named(images: Images) -> Mapping[str, Commit]:
    found = (_NAME.fullmatch(name) for name in images.names())
    return {match["id"]: Commit(id=match["id"], time_s=int(match["time"])) for match in found if match}


def _name(commit: Commit) -> str:
    return f"{LAST}-{commit.time_s}-{commit.id}"
