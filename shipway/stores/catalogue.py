"""The catalogue of models: publish, list, resolve, promote, pull, copy, sweep.

Owns the layout of a store (docs/design.md) and the order of writes that makes it safe:

    <name>/blobs/sha256/<hex>     files, under their own hash
    <name>/signatures/<n>/<manifest>-<key>.json   who vouches for it: before the manifest, create-only
    <name>/versions/<n>.json      manifest: written last, create-only
    <name>/aliases/<alias>.json   moved by compare-and-swap
    <name>/log/<alias>-<turn>.json   who moved the alias, when, why: create-only, before the next one moves it
    <name>/pending/, sweeps/      who is about to need, or to delete, what: see `notices`

A signature bears the hash of the manifest that it is about, so it can be there first: no
reader meets a version that is yet to be signed. Knows nothing of where the store is. A reader
never sees half a version; a publisher that is killed anywhere leaves nothing that another run
of the same command does not finish.
"""

from __future__ import annotations

import contextlib
import heapq
import math
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec import Struct
from msgspec.structs import replace

from shipway import documents
from shipway.artifacts import Digest, Model, ModelFile, ModelRef
from shipway.config import Name
from shipway.console import Tell, size
from shipway.documents import Malformed
from shipway.errors import (
    AliasMoved,
    ModelCorrupt,
    ModelError,
    ModelMissing,
    ModelRefused,
    StoreRefused,
)
from shipway.proc import Run
from shipway.stores import durable, manifest, notices, places, transfer
from shipway.stores.cache import Cache
from shipway.stores.manifest import ModelVersion, Move
from shipway.stores.objects import SMALL_BYTES, Blob, Store, Stored
from shipway.stores.signing import Keys, PublicKey
from shipway.stores.vouchers import Vouchers
from shipway.tarball import Entry

if TYPE_CHECKING:
    from shipway.stores.sweep import Rule, Swept

LATEST = "latest"
_PUBLISHED = "published"
_NO_CACHE = Path("/nonexistent")  # every byte comes from the store
_NEIGHBOURS = 64  # publishers at once


class Published(Struct, frozen=True, kw_only=True):
    """What publishing came to: the version, and whether it is new."""

    version: ModelVersion
    created: bool


class Copied(Struct, frozen=True, kw_only=True):
    """What copying came to: the versions that are there now, those among them that are new, and the aliases' moves."""

    name: str
    versions: tuple[int, ...]
    created: tuple[int, ...]
    sent_bytes: int
    moves: tuple[Move, ...]


class Catalogue:
    """The models in one store."""

    def __init__(
        self,
        store: Store,
        *,
        run: Run,
        keys: Keys | None = None,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        key_of: Callable[[Model, ModelFile], str] | None = None,
        holders: Callable[[str, Digest], Iterable[int]] | None = None,
        swaps: bool = True,
        cache_bytes: int | None = None,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        """Work on a store; `run` starts the process that opens untrusted models.

        `key_of` says where a store wants a model's file, if not under its hash, and `holders`
        which versions may have some content, if it knows; a store that cannot compare and swap
        has no `swaps`. `cache_bytes` limits what is kept of fetched models.
        """
        self._store = store
        self._key_of = key_of or _by_hash
        self._plain = key_of is None
        self._holders = holders
        self._swaps = swaps
        self._cache_bytes = cache_bytes
        self._run = run
        self._vouchers = Vouchers(store, keys or Keys())
        self._now = now
        self._pause = pause

    def __str__(self) -> str:
        return str(self._store)

    # -- publishing ----------------------------------------------------------------------

    def publish(
        self,
        folder: Path,
        *,
        name: str,
        publisher: str,
        tell: Tell,
        commit: str | None = None,
        metrics: Mapping[str, float] | None = None,
        aliases: Sequence[str] = (),
        accept: Callable[[ModelVersion], None] = lambda _: None,
    ) -> Published:
        """Make a folder the next version, once its golden cases are answered right, and `accept` raises nothing.

        Moves `latest` forward to it, and each of `aliases`. Content that is published already
        is not published again. Raises `ModelRefused` and `GoldenFailed`, and `ModelUntrusted`
        where it would be signed by nobody whose word counts here.
        """
        from shipway import exchanges  # noqa: PLC0415 - for this one method, as what else opens models
        from shipway.stores import drafting, golden, safety  # noqa: PLC0415 - as above

        self._vouchers.require_signer()
        name, aliases = _name(name), [_alias(alias) for alias in aliases]
        if unfit := [key for key, value in (metrics or {}).items() if not math.isfinite(value)]:
            raise ModelError(f"the metric {unfit[0]} is no finite number")
        files = safety.inspect(folder)
        exchanges.load(folder)
        tell.say(
            "model",
            f"{folder}: {len(files)} files, {size(sum(file.size_bytes for file in files))}; running its golden cases",
        )
        signature = golden.ask(folder, run=self._run)
        drafted = drafting.draft(
            folder,
            files,
            signature,
            name=name,
            metrics=metrics or {},
            publisher=publisher,
            commit=commit,
            created=self._now(),
        )
        accept(drafted)
        with self._announced(name, publisher, files=[file.digest for file in files]):
            is_new = self._put_blobs(folder, drafted.model, tell)
            published = self._number(drafted, is_new=is_new)
            for alias in (LATEST, *aliases):
                why = _PUBLISHED if published.created else "published again"
                self._point(alias, published.version, who=publisher, why=why)
        return published

    def _put_blobs(self, folder: Path, model: Model, tell: Tell) -> bool:
        """Bring every file into the store, and mend those that are damaged; say whether any was missing."""
        from shipway.stores import drafting  # noqa: PLC0415 - as above

        missing = False
        for file in model.files:
            key = self._key_of(model, file)
            missing |= self._store.find(key) is None
            if self._is_whole(key, file):
                continue
            with tell.progress("model", file.path, file.size_bytes) as advance:
                pieces = _counted(drafting.read_unchanged(folder, file), advance)
                self._store.put(key, pieces, size_bytes=file.size_bytes)
        return missing

    def _is_whole(self, key: str, file: ModelFile) -> bool:
        found = self._store.find(key)
        if found is None or found.size_bytes != file.size_bytes:
            return False
        return manifest.measured(transfer.ahead(Blob(self._store, key), file.size_bytes)) == (
            file.digest,
            file.size_bytes,
        )

    def _number(self, draft: ModelVersion, *, is_new: bool) -> Published:
        """Take the next free number, unless this content has one.

        When a file was missing from the store, no earlier version can have had the content,
        so that only the versions that appear meanwhile are read.
        """
        name = draft.name
        newest = self._some_version(name)
        holders = self._holders or (lambda _name, _digest: range(newest, 0, -1))
        for number in [] if is_new else holders(name, draft.digest):
            if known := self._known_already(draft, number):
                return Published(version=known, created=False)
        tries = 0
        while True:
            tries, newest = tries + 1, newest + 1
            version = replace(draft, version=newest)
            data = documents.encoded(version)
            if len(data) > SMALL_BYTES:  # nobody could read it
                raise ModelRefused(f"the manifest of {name} would have {len(data):,} bytes, more than {SMALL_BYTES:,}")
            signature = self._vouchers.sign(data, version)
            if self._store.create(places.manifest(name, newest), data):
                return Published(version=version, created=True)
            if signature:  # somebody else has the number: nothing shall vouch for what is not there
                self._store.delete(signature)
            if known := self._known_already(draft, newest):
                return Published(version=known, created=False)
            if tries == _NEIGHBOURS:  # they are no publishers of this moment: `latest` was left far behind
                newest = max(self._numbers(name), default=newest)

    def _some_version(self, name: str) -> int:
        """Return the newest number, or one a little older, without listing thousands of versions.

        A number that was swept must never be taken again. Where a publisher moved `latest` to what
        it had just made, none was swept above it (see `sweep`); where a person moved it, who knows.
        """
        current = self._alias(name, LATEST)
        if current and current[1].why == _PUBLISHED and current[1].version > (current[1].previous or 0):
            return current[1].version
        return max(self._numbers(name), default=0)

    def _known_already(self, draft: ModelVersion, number: int) -> ModelVersion | None:
        """Return a version if it has this content, signed too; one that cannot be read has other content."""
        try:
            data, known = self._read_version(draft.name, number)
        except ModelError:
            return None
        if known.digest != draft.digest:
            return None
        self._vouchers.sign_known(data, known, draft)
        return known

    def _point(self, alias: str, version: ModelVersion, *, who: str, why: str) -> None:
        """Move an alias to a version that was just published; `latest` never moves back."""
        while True:
            current = self._alias(version.name, alias)
            at = current[1].version if current else 0
            if at == version.version or (alias == LATEST and at > version.version):
                return
            if self._move(version.name, alias, current, version.version, who=who, why=why):
                return

    # -- reading -------------------------------------------------------------------------

    def names(self) -> tuple[str, ...]:
        """Return the names of the models in the store."""
        return tuple(sorted(name for name in self._store.children("") if _is_name(name)))

    def versions(self, name: str, *, most: int | None = None) -> tuple[ModelVersion, ...]:
        """Return the versions, the newest (the highest number) first, whoever signed them: for looking at."""
        found = []
        for number in sorted(self._numbers(_name(name)), reverse=True)[:most]:
            with contextlib.suppress(ModelMissing):  # swept in this moment
                found.append(self._read_version(name, number)[1])
        return tuple(found)

    def aliases(self, name: str) -> dict[str, int]:
        """Return each alias and the version it names."""
        children = self._store.children(f"{_name(name)}/aliases")
        names = sorted(child.removesuffix(".json") for child in children if child.endswith(".json"))
        found = {alias: self._alias(name, alias) for alias in names if _is_name(alias)}
        return {alias: current[1].version for alias, current in found.items() if current}

    def show(self, name: str, which: int | str) -> ModelVersion:
        """Return a version by number or alias: its manifest, checked against itself and its signature.

        Raises `ModelMissing`, `ModelRefused` or `ModelCorrupt` for a manifest that lies, and
        `ModelUntrusted` where keys are trusted and none of them signed it as it is.
        """
        return self._trusted(name, which)[1]

    def signers(self, name: str, which: int | str) -> tuple[PublicKey, ...]:
        """Return whose signatures of a version hold, trusted or not."""
        return self._vouchers.signers(*self._read_version(name, self._pinned(_name(name), which)))

    def _trusted(self, name: str, which: int | str) -> tuple[bytes, ModelVersion]:
        data, version = self._read_version(name, self._pinned(_name(name), which))
        self._vouchers.require_trust(data, version)
        return data, version

    def _read_version(self, name: str, number: int) -> tuple[bytes, ModelVersion]:
        """Return a manifest's bytes and what they say, whoever signed them."""
        stored = self._store.read(places.manifest(name, number))
        if stored is None:
            raise ModelMissing(f"{self} has no version {number} of {name}{self._known(name)}")
        where = f"{self}/{places.manifest(name, number)}"
        return stored.data, manifest.parse(stored.data, name=name, version=number, where=where)

    def resolve(self, name: str, which: int | str) -> Model:
        """Pin a version by number or alias; its files are there, in the right sizes."""
        return self.pin(self.show(name, which))

    def pin(self, version: ModelVersion) -> Model:
        """Return the value that a release takes of a version that was shown; raises `ModelCorrupt` for lost files."""
        for file in version.model.files:
            key = self._key_of(version.model, file)
            found = self._store.find(key)
            if found is None or found.size_bytes != file.size_bytes:
                state = "is missing" if found is None else f"has {found.size_bytes:,} bytes"
                raise ModelCorrupt(
                    f"version {version.version} of {version.name} in {self} names {file.path} "
                    f"({file.size_bytes:,} bytes), which {state}: {key}"
                )
        return version.model

    def pull(
        self, model: Model, *, cache: Path, tell: Tell, only: Callable[[ModelFile], bool] = lambda _: True
    ) -> Path:
        """Return a folder with exactly these files, all verified; fetch what the cache lacks."""
        held, files = Cache(cache, limit_bytes=self._cache_bytes), [file for file in model.files if only(file)]
        blobs = {}
        with tell.progress("model", f"{model.name} {model.version}", sum(file.size_bytes for file in files)) as advance:
            for file in files:
                blobs[file] = held.fetch(file, Blob(self._store, self._key_of(model, file)), advance)
        return held.folder(blobs)

    def golden_exchanges(self, ref: ModelRef, *, cache: Path, tell: Tell) -> Path:
        """Return a model folder that holds the golden exchanges and what they send, but no weights.

        Raises `ModelCorrupt` when the version is not the one that was pinned by its digest. Who
        signed it was asked when it was pinned: a key that was retired since bars no way back.
        """
        model = self._read_version(ref.name, ref.version)[1].model
        if model.digest != ref.digest:
            raise ModelCorrupt(
                f"version {ref.version} of {ref.name} in {self} is {model.digest}, but what runs holds {ref.digest}",
                advice="look whether [model] store is the one that this image was built from",
            )

        def is_wanted(file: ModelFile) -> bool:
            return file.path.startswith("golden/") and not file.path.startswith("golden/tensors/")

        return self.pull(model, cache=cache, tell=tell, only=is_wanted)

    def layer_bytes(self, model: Model, *, cache: Path) -> Iterator[bytes]:
        """Yield the model's image layer; raises `ModelCorrupt` at the end of a file that is not the promised one."""
        return manifest.layer(model.files, model.digest, partial(self._read, model, cache=cache))

    def objects(self, model: Model, *, cache: Path) -> Iterator[Entry]:
        """Yield the objects that a store of this version alone would hold; their bytes raise as `layer_bytes` does.

        Raises all that `show` raises, and `ModelCorrupt` when the manifest is not the one any more that was pinned.
        """
        data, version = self._trusted(model.name, model.version)
        key = places.manifest(model.name, model.version)
        if version.model != model:
            raise ModelCorrupt(f"{self}/{key} is not the manifest any more that was pinned with {model.digest}")
        yield Entry(path=key, size_bytes=len(data), read=lambda: [data])
        for file in {file.digest: file for file in model.files}.values():
            read = partial(self._read, model, file, cache=cache)
            yield Entry(path=_by_hash(model, file), size_bytes=file.size_bytes, read=read)

    def _read(self, model: Model, file: ModelFile, *, cache: Path) -> Iterable[bytes]:
        from shipway.stores.drafting import promised  # noqa: PLC0415 - only where a layer is sent

        found = Cache(cache).find(file)
        wrong = ModelCorrupt(f"{file.path} in {self}: the bytes that came are not those of {file.digest}")
        if found:
            return durable.read(found)
        return promised(transfer.ahead(Blob(self._store, self._key_of(model, file)), file.size_bytes), file, wrong)

    # -- aliases -------------------------------------------------------------------------

    def promote(
        self, name: str, version: int, alias: str, *, who: str, why: str, expected: int | None = None
    ) -> Move | None:
        """Move an alias to a version; `None` when it is there already.

        Raises `AliasMoved` when somebody else is first, or when it does not name `expected`,
        and `StoreRefused` for `expected` where the store cannot promise it.
        """
        name, alias = _name(name), _alias(alias)
        if expected is not None and not self._swaps:
            raise StoreRefused(
                f"{self} cannot move an alias only if it names {expected}: it does not compare before it moves one",
                advice="look with invoke model.list, then promote without --expected; docs/stores.md says why",
            )
        with self._announced(name, who, versions=[version]):
            self.show(name, version)
            current = self._alias(name, alias)
            if expected is not None and (current is None or current[1].version != expected):
                raise _moved(alias, current, f"not version {expected}")
            if current and current[1].version == version:
                return None
            move = self._move(name, alias, current, version, who=who, why=why)
        if move is None:
            raise _moved(alias, self._alias(name, alias), "moved in this moment")
        return move

    def history(self, name: str) -> tuple[Move, ...]:
        """Return every move of an alias, oldest first."""
        folder = f"{_name(name)}/log"
        keys = [f"{folder}/{child}" for child in self._store.children(folder) if child.endswith(".json")]
        stored = transfer.in_order(keys, self._store.read, threads=transfer.THREADS, ahead=len(keys) + 1)
        moves = [manifest.parse_move(entry.data, where=key) for key, entry in zip(keys, stored, strict=True) if entry]
        current = (self._alias(name, alias) for alias in self.aliases(name))
        # the last promoter may not have come to its second write yet, or never
        moves += [found[1] for found in current if found and found[1] not in moves]
        return _ordered(moves)

    def _move(
        self, name: str, alias: str, current: tuple[Stored, Move] | None, version: int, *, who: str, why: str
    ) -> Move | None:
        """Move an alias, if it is still where `current` says; the log has every move but the last before that."""
        before = current[1] if current else None
        if current and before and before.turn:
            self._log(name, before, current[0].data)  # whoever made that move may have been killed after it
        move = Move(
            alias=alias,
            turn=(before.turn or 0) + 1 if before else 1,
            previous=before.version if before else None,
            version=version,
            who=who,
            when=self._now(),
            why=why,
        )
        key, data = places.alias(name, alias), documents.encoded(move)
        moved = self._store.replace(key, data, etag=current[0].etag) if current else self._store.create(key, data)
        if not moved:
            return None
        self._log(name, move, data)
        return move

    def _log(self, name: str, move: Move, data: bytes) -> None:
        """Write a move down, if it is not there yet; where an alias keeps no turns, under the next free one."""
        turn = move.turn or 1
        while not self._store.create(key := f"{name}/log/{move.alias}-{turn}.json", data):
            if move.turn:
                return  # one turn is one move: somebody wrote this one down
            stored = self._store.read(key)
            if stored and stored.data == data:
                return
            turn += 1

    def _alias(self, name: str, alias: str) -> tuple[Stored, Move] | None:
        key = places.alias(name, alias)
        stored = self._store.read(key)
        return (stored, manifest.parse_move(stored.data, where=f"{self}/{key}")) if stored else None

    def _announced(
        self, name: str, who: str, *, files: Collection[Digest] = (), versions: Collection[int] = ()
    ) -> contextlib.AbstractContextManager[None]:
        """Say what is needed, so that no sweep deletes it meanwhile; one that keeps files elsewhere is not swept."""
        if not self._plain:
            return contextlib.nullcontext()
        notice = notices.written_by(who, self._now(), files=files, versions=versions)
        return notices.announced(self._store, name, notice, now=self._now, pause=self._pause)

    # -- copying -------------------------------------------------------------------------

    def copy_from(
        self,
        source: Catalogue,
        name: str,
        *,
        who: str,
        tell: Tell,
        versions: Sequence[int | str] = (),
        aliases: Sequence[str] = (),
    ) -> Copied:
        """Bring versions (none given: all) from another store or a registry, with their numbers and signatures.

        What is here and whole is not sent again, so that a copy that was cut is gone on with.
        Moves `aliases` here to what they name there. Raises `ModelRefused` where a number is
        taken by something else, and all that `resolve` raises for the source.
        """
        self._require_objects()
        named = {alias: source.show(name, _alias(alias)).version for alias in aliases}
        wanted = [source.show(name, which).version for which in versions] or (
            [] if aliases else source._numbers(_name(name))
        )
        numbers = tuple(sorted({*wanted, *named.values()}))
        sent = [self._receive(source, name, number, who=who, tell=tell) for number in numbers]
        moves = [self._follow(source, name, alias, number, who=who) for alias, number in named.items()]
        return Copied(
            name=name,
            versions=numbers,
            created=tuple(number for number, (_, created) in zip(numbers, sent, strict=True) if created),
            sent_bytes=sum(size_bytes for size_bytes, _ in sent),
            moves=tuple(move for move in moves if move),
        )

    def _receive(self, source: Catalogue, name: str, number: int, *, who: str, tell: Tell) -> tuple[int, bool]:
        """Copy one version in publishing's order; return how many bytes were sent, and whether it is new here."""
        data, version = source._trusted(name, number)
        model, sent_bytes, key = version.model, 0, places.manifest(name, number)
        with self._announced(name, who, files=[file.digest for file in model.files], versions=[number]):
            if self._store.find(key) and self._data(key) != data:
                raise _taken(self, source, version)
            for file in model.files:
                if self._is_whole(places.blob(name, file.digest), file):
                    continue
                with tell.progress("model", f"{name} {number}: {file.path}", file.size_bytes) as advance:
                    pieces = _counted(source._read(model, file, cache=_NO_CACHE), advance)
                    self._store.put(places.blob(name, file.digest), pieces, size_bytes=file.size_bytes)
                sent_bytes += file.size_bytes
            self._vouchers.copy(source._vouchers, data, version)
            self._vouchers.require_trust(data, version)
            created = self._store.create(key, data)
            if not created and self._data(key) != data:
                raise _taken(self, source, version)
        tell.say("model", f"{name} {number} is in {self}: {size(sent_bytes)} sent")
        return sent_bytes, created

    def _follow(self, source: Catalogue, name: str, alias: str, number: int, *, who: str) -> Move | None:
        """Move an alias to where it is in the source; whoever moves it meanwhile is last."""
        while (current := self._alias(name, alias)) is None or current[1].version != number:
            if move := self._move(name, alias, current, number, who=who, why=f"copied from {source}"):
                return move
        return None

    def _data(self, key: str) -> bytes:
        if (stored := self._store.read(key)) is None:
            raise ModelMissing(f"{self} has no {key} any more")
        return stored.data

    def _require_objects(self) -> None:
        if not self._plain:
            raise StoreRefused(
                f"{self} is a registry, and holds models in a way of its own",
                advice="invoke model.pull takes a version out of it, invoke model.publish puts one in",
            )

    # -- cleaning ------------------------------------------------------------------------

    def sweep(self, name: str, rule: Rule, *, who: str, apply: bool, tell: Tell) -> Swept:
        """Say which versions and files of a model nobody needs, and with `apply` delete them; see `sweep`."""
        self._require_objects()
        from shipway.stores import sweep  # noqa: PLC0415 - for this one method

        return sweep.sweep(self._store, _name(name), rule, who=who, now=self._now, apply=apply, tell=tell)

    # -- small things ----------------------------------------------------------------------

    def _pinned(self, name: str, which: int | str) -> int:
        if isinstance(which, int):
            return which
        current = self._alias(name, _alias(which))
        if current is None:
            known = ", ".join(self.aliases(name)) or "none"
            raise ModelMissing(f"{self} has no alias {which!r} of {name}; its aliases: {known}")
        return current[1].version

    def _numbers(self, name: str, folder: str = "versions") -> list[int]:
        return places.numbers(self._store.children(f"{name}/{folder}"))

    def _known(self, name: str) -> str:
        numbers = self._numbers(name)
        if numbers:
            return f"; it has {min(numbers)} to {max(numbers)}"
        return f"; it has {', '.join(self.names()) or 'no model at all'}"


def _counted(pieces: Iterable[bytes], advance: Callable[[int], None]) -> Iterator[bytes]:
    for piece in pieces:
        yield piece
        advance(len(piece))


def _ordered(moves: Iterable[Move]) -> tuple[Move, ...]:
    """Return moves by their time, and those of one alias by their turn: several machines' clocks may disagree."""
    by_alias: dict[str, list[Move]] = {}
    for move in moves:
        by_alias.setdefault(move.alias, []).append(move)
    for each in by_alias.values():
        each.sort(key=lambda move: (move.turn or 0, move.when))
    return tuple(heapq.merge(*by_alias.values(), key=lambda move: move.when))


def _moved(alias: str, current: tuple[Stored, Move] | None, how: str) -> AliasMoved:
    if current is None:
        return AliasMoved(f"the alias {alias} does not exist, so it is {how}")
    move = current[1]
    return AliasMoved(
        f"the alias {alias} is {how}: it names version {move.version}, "
        f"moved by {move.who} at {move.when:%Y-%m-%d %H:%M:%S} UTC ({move.why})"
    )


def _taken(target: Catalogue, source: Catalogue, version: ModelVersion) -> ModelRefused:
    return ModelRefused(
        f"{target} has another version {version.version} of {version.name} than {source}",
        advice="copy into a store, or a prefix, of its own: a version keeps its number, which is signed along",
    )


def _by_hash(model: Model, file: ModelFile) -> str:
    return places.blob(model.name, file.digest)


def _name(text: str) -> str:
    if not _is_name(text):
        raise ModelError(f"{text!r} is no model's name: lower-case letters, digits, and single . _ - between them")
    return text


def _alias(text: str) -> str:
    if not _is_name(text) or text.isdigit():
        raise ModelError(f"{text!r} is no alias: lower-case letters, digits, and single . _ - between them, no number")
    return text


def _is_name(text: str) -> bool:
    try:
        documents.convert(Name, text)
    except Malformed:
        return False
    return True
