"""Cleaning a store: which versions and files nobody needs any more.

A version stays that an alias names, an environment released, somebody is publishing or
promoting, or that is younger than a limit; the newest stays always, and whatever is newer
than `latest`, since their numbers must never be taken again. A file stays that such a version
holds, or that somebody is about to use. What cannot be read stays, and then no file goes at
all. `notices` says why this is safe beside publishers and promoters. A version goes by its
manifest first, so whatever a killed sweep leaves is invisible, and goes with the next one.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from itertools import islice

from msgspec import Struct
from msgspec.structs import replace

from shipway.artifacts import Digest
from shipway.console import Tell
from shipway.errors import ModelError, ModelInUse
from shipway.stores import manifest, notices, places
from shipway.stores.manifest import ModelVersion
from shipway.stores.notices import Notice
from shipway.stores.objects import Store

MOST_FILES = 150_000  # that one notice names: it is read as a small object, of 16 MiB


class Swept(Struct, frozen=True, kw_only=True):
    """What of a model went, or would go: versions with the reason, files, and what they hold."""

    name: str
    going: Mapping[int, str]
    staying: Mapping[int, str]
    files: tuple[Digest, ...]
    freed_bytes: int
    applied: bool


class Rule(Struct, frozen=True, kw_only=True):
    """What stays besides what an alias names: what was released, by number, with where; what is younger."""

    released: Mapping[int, str]
    younger_than: timedelta


class _Seen(Struct, frozen=True, kw_only=True):
    """One look, in the order in which publishers write backwards: so that what is in the making is seen as such."""

    blobs: frozenset[Digest]
    signatures: frozenset[str]
    pending: Mapping[str, Notice]
    manifests: Mapping[int, tuple[Digest, ModelVersion | None]]
    aliases: Mapping[int, tuple[str, ...]]


class _Verdict(Struct, frozen=True, kw_only=True):
    going: Mapping[int, str]
    staying: Mapping[int, str]
    files: frozenset[Digest]
    signatures: frozenset[str]
    notices: frozenset[str]

    @property
    def is_empty(self) -> bool:
        return not (self.going or self.files or self.signatures or self.notices)


def sweep(
    store: Store, name: str, rule: Rule, *, who: str, now: Callable[[], datetime], apply: bool, tell: Tell
) -> Swept:
    """Say what of a model nobody needs, and with `apply` delete it; raises `ModelInUse` beside another sweep."""
    verdict = _judge(_look(store, name), rule, now())
    found = len(verdict.files)
    if apply:
        verdict = replace(verdict, files=frozenset(islice(sorted(verdict.files), MOST_FILES)))
    freed_bytes = _size(store, name, verdict)
    if apply and not (verdict.is_empty and not notices.standing(store, name, "sweeps")):
        notice = notices.written_by(who, now(), files=verdict.files, versions=verdict.going)
        with notices.posted(store, name, "sweeps", notice) as ours:
            _require_alone(store, name, ours, now())
            verdict = _both(verdict, _judge(_look(store, name), rule, now()))
            freed_bytes = _size(store, name, verdict)
            tell.say("model", f"{name}: deleting {len(verdict.going)} versions and {len(verdict.files)} files")
            if found > MOST_FILES:
                tell.warn(f"{name} has {found:,} files that nobody needs: run again to go on")
            for key in _keys(store, name, verdict):
                if now() - notice.when > notices.SWEEP_LIMIT:  # others may soon take this process for dead
                    raise ModelError(f"{name} in {store} is not clean yet", advice="run again to go on")
                store.delete(key)
    return Swept(
        name=name,
        going=verdict.going,
        staying=verdict.staying,
        files=tuple(sorted(verdict.files)),
        freed_bytes=freed_bytes,
        applied=apply,
    )


def _look(store: Store, name: str) -> _Seen:
    blobs = places.digests(store.children(f"{name}/blobs/sha256"))
    signatures = [
        f"{name}/signatures/{number}/{child}"
        for number in store.children(f"{name}/signatures")
        for child in store.children(f"{name}/signatures/{number}")
    ]
    pending = notices.standing(store, name, "pending")
    manifests = {}
    for number in sorted(places.numbers(store.children(f"{name}/versions"))):
        key = places.manifest(name, number)
        if stored := store.read(key):
            version = None
            with contextlib.suppress(ModelError):
                version = manifest.parse(stored.data, name=name, version=number, where=key)
            manifests[number] = Digest.of(stored.data), version
    return _Seen(
        blobs=frozenset(blobs),
        signatures=frozenset(signatures),
        pending=pending,
        manifests=manifests,
        aliases=_aliases(store, name),
    )


def _aliases(store: Store, name: str) -> dict[int, tuple[str, ...]]:
    """Return which aliases name each version; raises `ModelCorrupt` for one that does not say."""
    found: dict[int, tuple[str, ...]] = {}
    for child in sorted(store.children(f"{name}/aliases")):
        key = f"{name}/aliases/{child}"
        if child.endswith(".json") and (stored := store.read(key)):
            number = manifest.parse_move(stored.data, where=f"{store}/{key}").version
            found[number] = (*found.get(number, ()), child.removesuffix(".json"))
    return found


def _judge(seen: _Seen, rule: Rule, now: datetime) -> _Verdict:
    alive = [notice for notice in seen.pending.values() if not notice.is_dead("pending", now)]
    staying, going = {}, {}
    for number, (_, version) in seen.manifests.items():
        if why := next(_reasons(number, version, seen=seen, rule=rule, alive=alive, now=now), None):
            staying[number] = why
        else:
            going[number] = "no alias names it, nothing released it, and it is old"
    versions = [seen.manifests[number][1] for number in staying]
    needed: set[str] = {file.digest for version in versions if version for file in version.files}
    needed.update(*(notice.files for notice in alive))
    vouched = {(number, signed.hex) for number, (signed, _) in seen.manifests.items() if number in staying}
    return _Verdict(
        going=going,
        staying=staying,
        files=frozenset() if None in versions else frozenset(seen.blobs - needed),
        signatures=frozenset(key for key in seen.signatures if not alive and _is_about(key) not in vouched),
        notices=frozenset(key for key, notice in seen.pending.items() if notice not in alive),
    )


def _reasons(
    number: int, version: ModelVersion | None, *, seen: _Seen, rule: Rule, alive: Sequence[Notice], now: datetime
) -> Iterator[str]:
    """Yield why a version stays."""
    if names := seen.aliases.get(number):
        yield f"the alias {' and '.join(names)} names it"
    if where := rule.released.get(number):
        yield where
    if number == max(seen.manifests):
        yield "it is the newest, and its number must not be taken again"
    if number > max((each for each, names in seen.aliases.items() if "latest" in names), default=number):
        yield "it is newer than what latest names, and its number must not be taken again"
    if version is None:
        yield "its manifest cannot be read, so that no file goes either: publish its files again, or delete it"
        return
    files = {str(file.digest) for file in version.files}
    yield from (
        f"{notice} is working with it" for notice in alive if number in notice.versions or files <= notice.files
    )
    if now - version.created < rule.younger_than:
        yield f"it was published at {version.created:%Y-%m-%d %H:%M:%S} UTC"


def _is_about(key: str) -> tuple[int, str]:
    """Return of which number and which manifest a signature is."""
    number, name = key.split("/")[-2:]
    return int(number) if number.isdigit() else 0, name.partition("-")[0]


def _both(first: _Verdict, second: _Verdict) -> _Verdict:
    """Return what may go by both; what one spares stays."""
    return _Verdict(
        going={number: why for number, why in first.going.items() if number in second.going},
        staying=second.staying,
        files=first.files & second.files,
        signatures=first.signatures & second.signatures,
        notices=first.notices & second.notices,
    )


def _keys(store: Store, name: str, verdict: _Verdict) -> Iterator[str]:
    """Yield what is deleted, manifests first: what is left of a version without one is seen by nobody."""
    yield from (places.manifest(name, number) for number in sorted(verdict.going))
    for number in sorted(verdict.going):
        yield from (f"{name}/signatures/{number}/{child}" for child in store.children(f"{name}/signatures/{number}"))
    yield from sorted(verdict.signatures)
    yield from (places.blob(name, digest) for digest in sorted(verdict.files))
    yield from sorted(verdict.notices)


def _require_alone(store: Store, name: str, ours: str, now: datetime) -> None:
    for key, notice in notices.standing(store, name, "sweeps").items():
        if key == ours:
            continue
        if notice.is_dead("sweeps", now):
            store.delete(key)
        else:
            raise ModelInUse(f"{name} in {store} is being cleaned up already, by {notice} ({key})")


def _size(store: Store, name: str, verdict: _Verdict) -> int:
    found = (store.find(places.blob(name, digest)) for digest in verdict.files)
    return sum(each.size_bytes for each in found if each)
