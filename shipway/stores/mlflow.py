"""A registry of MLflow as a store: `mlflow+https://HOST/PREFIX`.

Owns where MLflow keeps what a store has:

    <name>/versions/<n>.json           a registered version; its manifest, an artifact that its tag names by hash
    <name>/aliases/<alias>.json        a registered alias, and a tag that says who moved it and why
    <name>/models/<set digest>/<path>  an artifact of the run that was made for these files
    <name>/...                         an artifact of a run of its own

MLflow numbers versions itself, and knows neither create-only nor compare-and-swap for
aliases: docs/stores.md says what that leaves of a store's promises. What mlflow itself
registered is read too; `adopt` makes the manifest that it lacks.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import re
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar, cast

import httpx

from shipway import documents, proc
from shipway.artifacts import Digest, Model, ModelFile
from shipway.console import Tell
from shipway.errors import ModelCorrupt, ModelError, ModelMissing, ModelRefused, NotConfigured, StoreRefused
from shipway.stores import manifest
from shipway.stores.adopt import MOST_FILES, Adopter, Registered
from shipway.stores.artifacts import Artifact, Artifacts, Proxied
from shipway.stores.manifest import ModelVersion, Move
from shipway.stores.objects import SMALL_BYTES, Access, Found, Replaced, Stored, small
from shipway.stores.patience import Clock
from shipway.stores.registry import DIGEST, MANIFEST, PUBLISHER, RegisteredModel, Registry, Run, Version
from shipway.stores.rest import Rest, Variables, is_loopback, open_client

LATEST = "latest"  # which MLflow lets nobody set: it is always the newest version
_MOVED = "shipway.alias."  # and the alias: a tag of the model
_OBJECTS = "objects"  # what the run of all else holds
_DEEPEST = 10
_TOLD = 20
_NUMBERED = re.compile(r"([1-9][0-9]{0,11})\.json")
_Method = TypeVar("_Method", bound=Callable[..., Any])
_MLMODEL = """\
artifact_path: model
flavors:
  onnx:
    code: null
    data: model.onnx
    providers:
    - CPUExecutionProvider
  python_function:
    data: model.onnx
    loader_module: mlflow.onnx
run_id: {run}
"""


def open_mlflow(
    address: str, access: Access, *, cache: Path, run: proc.Run, tell: Tell, clock: Clock | None = None
) -> Mlflow:
    """Name a registry; nobody is asked yet. Raises `NotConfigured`.

    `cache` keeps the manifests of what mlflow registered, and `run` opens such models.
    """
    base = _base(address)
    client = open_client(base, authority=access.authority)
    rest = Rest(base, client=client, login=Variables(access), clock=clock or Clock())
    adopter = Adopter(cache=cache, run=run, tell=tell)
    return Mlflow(Registry(rest, address=address.rstrip("/")), Proxied(rest), adopter=adopter, warn=tell.warn)


def _base(address: str) -> httpx.URL:
    try:
        base = httpx.URL(address.removeprefix("mlflow+"))
    except httpx.InvalidURL:
        base = httpx.URL("")
    if base.scheme not in {"https", "http"} or not base.host or base.userinfo or base.query or base.fragment:
        raise NotConfigured(
            f"[model] store = {address.partition('@')[2] or address!r} is no registry of MLflow",
            advice="write mlflow+https://HOST/PREFIX; a login stands in the variables that [model] names",
        )
    if base.scheme == "http" and not is_loopback(base.host):
        raise NotConfigured(
            f"[model] store = {address!r} is not https, and {base.host} is not this machine",
            advice="write mlflow+https://HOST/PREFIX: a login and a model travel over https alone",
        )
    return base


def _sane(method: _Method) -> _Method:
    """Turn what comes of a server's nonsense into an error that says so; a key that is none stays a `ValueError`."""

    @functools.wraps(method)
    def checked(self: Mlflow, key: str, *given: Any, **named: Any) -> Any:
        _parts(key)
        try:
            return method(self, key, *given, **named)
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise StoreRefused(f"{self} does not answer as MLflow does ({type(error).__name__}: {key})") from error

    return cast("_Method", checked)


def key_of(model: Model, file: ModelFile) -> str:
    """Return the key of a model's file here: by its name, so that mlflow itself can load the folder."""
    return f"{model.name}/models/{model.digest.hex}/{file.path}"


class Mlflow:
    """A `Store` in a registry of MLflow, whose files have the keys of `key_of`."""

    def __init__(
        self,
        registry: Registry,
        artifacts: Artifacts,
        *,
        adopter: Adopter,
        warn: Callable[[str], None],
        has_aliases: bool = True,
    ) -> None:
        """Ask nobody yet; `warn` is told which versions are left out of a list.

        A registry that has no aliases of its own keeps ours in the tags alone.
        """
        self._has_aliases = has_aliases
        self._registry = registry
        self._artifacts = artifacts
        self._adopter = adopter
        self._warn = warn
        self._lock = threading.Lock()
        self._files: dict[tuple[str, str], str] = {}  # where a set of files is, once its version was read
        self._taken: dict[str, tuple[int, str]] = {}  # a number that waits for its manifest, and the set of files

    def __str__(self) -> str:
        return str(self._registry)

    # -- a store -------------------------------------------------------------------------

    @_sane
    def read(self, key: str) -> Stored | None:
        """See `Store.read`."""
        name, folder, rest = _parts(key)
        if folder == "versions" and (match := _NUMBERED.fullmatch(rest)):
            return self._manifest(name, int(match[1]))
        if folder == "aliases":
            self._give_back(name)
            return self._alias(name, rest.removesuffix(".json"))
        path = self._path(key)
        return self._small(path) if path else None

    @_sane
    def create(self, key: str, data: bytes) -> bool:
        """See `Store.create`; of two who write one key in the same moment, both may be told that it is theirs."""
        name, folder, rest = _parts(key)
        if folder == "versions" and (match := _NUMBERED.fullmatch(rest)):
            return self._number(name, int(match[1]), data)
        if folder == "aliases":
            return self._point(name, rest.removesuffix(".json"), data, etag=None)
        if self.read(key) is not None:
            return False
        return self._write(key, data)

    @_sane
    def replace(self, key: str, data: bytes, *, etag: str) -> bool:
        """See `Store.replace`; looked at before and after, since MLflow does not compare."""
        name, folder, rest = _parts(key)
        if folder == "aliases":
            return self._point(name, rest.removesuffix(".json"), data, etag=etag)
        stored = self.read(key)
        return stored is not None and stored.etag == etag and self._write(key, data)

    @_sane
    def find(self, key: str) -> Found | None:
        """See `Store.find`."""
        path = self._path(key)
        return self._artifacts.find(path) if path else None

    def put(self, key: str, pieces: Iterable[bytes], *, size_bytes: int) -> None:
        """See `Store.put`; a file that was cut is there in part, and no manifest names it."""
        self._artifacts.put(self._path_to_write(key), pieces, size_bytes=size_bytes)

    def stream(self, key: str, *, start: int, stop: int, etag: str | None = None) -> Iterator[bytes]:
        """See `Store.stream`."""
        path = self._path(key)
        if path is None:
            raise ModelMissing(f"there is no {self}/{key}")
        try:
            yield from self._artifacts.stream(path, start=start, stop=stop, etag=etag)
        except (ModelMissing, Replaced) as error:
            raise type(error)(f"{self}/{key}: {error.message}") from error

    @_sane
    def delete(self, key: str) -> None:
        """See `Store.delete`."""
        name, folder, rest = _parts(key)
        if folder == "versions" and (match := _NUMBERED.fullmatch(rest)):
            self._registry.delete_version(name, int(match[1]))
        elif folder == "aliases":
            alias = rest.removesuffix(".json")
            if self._has_aliases:
                self._registry.delete_alias(name, alias)
            self._registry.delete_model_tag(name, f"{_MOVED}{alias}")
        elif path := self._path(key):
            self._artifacts.delete(path)

    @_sane
    def children(self, folder: str) -> list[str]:
        """See `Store.children`; versions that mlflow itself registered are left out until they were read once."""
        name, part, _rest = _parts(folder)
        if not name:
            return self._registry.names()
        if part == "versions":
            return [f"{number}.json" for number in self._numbers(name)]
        if part == "aliases":
            aliases = self._aliases(self._registry.model(name))
            latest = [LATEST] if self._registry.newest(name) else []
            return [f"{alias}.json" for alias in [*aliases, *latest]]
        path = self._path(folder)
        registered = ["aliases", "models", "versions"] if not part and self._registry.model(name) else []
        return [*registered, *(child.name for child in self._artifacts.children(path))] if path else registered

    @_sane
    def holders(self, name: str, digest: Digest) -> list[int]:
        """Return which whole versions have this content, as their tags say; mlflow's own are never looked into."""
        return [
            version.number
            for version in self._registry.versions(name)
            if version.is_whole and version.tags.get(DIGEST) == digest
        ]

    # -- versions ------------------------------------------------------------------------

    def _manifest(self, name: str, number: int) -> Stored | None:
        version = self._registry.version(name, number)
        if version is None or not version.is_whole:
            return None
        place = self._artifacts.place(self._registry.location(name, version))
        if not version.is_ours:
            adopted = self._adopter.manifest(self._registered(name, version, place))
            self._files[name, adopted.digest.hex] = place
            data = documents.encoded(adopted)
            return Stored(data=data, etag=Digest.of(data))
        digest = _digest(version.tags[MANIFEST], f"{self}/{name} {number}")
        stored = self._small(_beside(place, digest))
        if stored is None or Digest.of(stored.data) != digest:
            raise ModelCorrupt(f"{self}: version {number} of {name} has another manifest than its tag says: {digest}")
        self._files[name, version.tags[DIGEST].removeprefix("sha256:")] = place
        return stored

    def _registered(self, name: str, version: Version, place: str) -> Registered:
        """Return what `adopt` needs to make a manifest."""

        def listing(folder: str = "", depth: int = 0) -> Iterator[tuple[str, int | None]]:
            if depth > _DEEPEST:
                raise ModelRefused(f"{self}/{name}/{version.number} has folders in more than {_DEEPEST} folders")
            for child in self._artifacts.children(f"{place}/{folder}".rstrip("/")):
                if not child.is_folder:
                    yield f"{folder}{child.name}", child.size_bytes
                else:
                    yield from listing(f"{folder}{child.name}/", depth + 1)

        return Registered(
            where=f"{self}/{name}/{version.number}",
            source=place,
            name=name,
            number=version.number,
            publisher=version.publisher,
            created=version.created,
            metrics=lambda: self._registry.metrics(version),
            listing=lambda: dict(itertools.islice(listing(), MOST_FILES + 1)),
            file=lambda path: Artifact(self._artifacts, f"{place}/{path}"),
        )

    def _numbers(self, name: str) -> list[int]:
        whole = [version for version in self._registry.versions(name) if version.is_whole]
        unread = [
            version.number
            for version in whole
            if not version.is_ours and not self._adopter.knows(f"{self}/{name}/{version.number}", version.created)
        ]
        if unread:
            told = ", ".join(map(str, sorted(unread)[-_TOLD:]))
            self._warn(
                f"{name}: mlflow registered {told}, not read here yet: invoke model.show --version NUMBER reads one"
            )
        # one that waits for its manifest is not there yet, but a publisher has to come as far as before it
        before = {taken - 1 for taken, _ in [self._taken.get(name, (0, ""))] if taken > 1}
        return sorted({version.number for version in whole if version.number not in unread} | before)

    def _number(self, name: str, number: int, data: bytes) -> bool:
        """Register a version whose files are there; `False` when it bears another number than this.

        The registry gives the number. A number that is beyond the one wanted is kept until it
        is wanted, and one that nobody wants is given back. Until its tag names a manifest, no
        reader here takes the version as whole; its files are, for mlflow itself too.
        """
        version = documents.parse(ModelVersion, data)
        digest = version.digest.hex
        run = self._registry.run(name, digest)
        if run is None:
            raise ModelMissing(f"{self} has no files of {name} {version.digest}")
        if self._taken.get(name, (0, digest))[1] != digest:
            self._give_back(name)
        taken = self._taken.get(name, (0, ""))[0]
        if not taken:
            there = self._registry.version(name, number)
            if there and not _is_left(there, version, run):
                return False
            taken = there.number if there else self._register(name, version, run)
        if taken != number:
            self._taken[name] = taken, digest
            return False
        self._taken.pop(name, None)
        try:
            self._complete(name, number, data, run)
        except BaseException:
            with contextlib.suppress(ModelError):
                there = self._registry.version(name, number)
                if there and not there.is_whole:  # else somebody else of the same content has finished it
                    self._registry.delete_version(name, number)
            raise
        return True

    def _register(self, name: str, version: ModelVersion, run: Run) -> int:
        """Make the folder one that mlflow can load, and take the next number."""
        self._registry.make_model(name)
        sheet = _MLMODEL.format(run=run.id).encode()
        self._artifacts.put(f"{self._folder(run)}/MLmodel", [sheet], size_bytes=len(sheet))
        self._registry.finish(run, version.metrics)
        tags = {DIGEST: version.digest, PUBLISHER: version.publisher}
        about = f"{version.digest}, published by shipway"
        return self._registry.register(name, run, "model", tags=tags, description=about)

    def _complete(self, name: str, number: int, data: bytes, run: Run) -> None:
        digest = Digest.of(data)
        self._artifacts.put(_beside(self._folder(run), digest), [data], size_bytes=len(data))
        self._registry.tag_version(name, number, MANIFEST, digest)

    def _give_back(self, name: str) -> None:
        """Delete a number that was taken, and then not wanted: its content was published meanwhile."""
        taken = self._taken.pop(name, None)
        if taken:
            self._registry.delete_version(name, taken[0])

    # -- aliases -------------------------------------------------------------------------

    def _alias(self, name: str, alias: str) -> Stored | None:
        if alias == LATEST:
            newest = self._registry.newest(name)
            if newest is None:
                return None
            number, told, who, when = newest.number, "", newest.publisher, newest.created
        else:
            model = self._registry.model(name)
            number = self._aliases(model).get(alias, 0)
            if model is None or not number:
                return None
            told, who, when = model.tags.get(f"{_MOVED}{alias}", ""), "mlflow", model.updated
        with contextlib.suppress(ModelError):
            move = manifest.parse_move(told.encode(), where=alias)
            if (move.alias, move.version) == (alias, number):
                return _stored_move(move)
        why = "published" if alias == LATEST else "set by mlflow"
        return _stored_move(Move(alias=alias, previous=None, version=number, who=who, when=when, why=why))

    def _point(self, name: str, alias: str, data: bytes, *, etag: str | None) -> bool:
        move = manifest.parse_move(data, where=f"{self}/{name}/aliases/{alias}.json")
        if alias == LATEST:
            raise StoreRefused(
                f"{self}: {LATEST} is always the newest version in MLflow, and cannot be moved",
                advice="promote another alias, and name it in [model] alias",
            )
        current = self._alias(name, alias)
        if (current.etag if current else None) != etag:
            return False
        if self._has_aliases:
            self._registry.set_alias(name, alias, move.version)
        self._registry.tag_model(name, f"{_MOVED}{alias}", data.decode("utf-8"))
        return self._aliases(self._registry.model(name)).get(alias) == move.version

    def _aliases(self, model: RegisteredModel | None) -> dict[str, int]:
        if model is None:
            return {}
        return {**({} if self._has_aliases else _told_aliases(model)), **model.aliases}

    # -- artifacts -----------------------------------------------------------------------

    def _path(self, key: str) -> str | None:
        """Return where a key's artifact is, or would be; `None` while there is no run for it."""
        name, folder, rest = _parts(key)
        if folder == "models":
            digest, _, path = rest.partition("/")
            if known := self._files.get((name, digest)):
                return f"{known}/{path}"
            run = self._run(name, digest)
            return f"{self._folder(run)}/{path}" if run else None
        run = self._run(name, _OBJECTS)
        return f"{self._artifacts.place(run.uri)}/{folder}/{rest}".rstrip("/") if run else None

    def _path_to_write(self, key: str) -> str:
        name, folder, rest = _parts(key)
        with self._lock:
            self._registry.make_run(name, rest.partition("/")[0] if folder == "models" else _OBJECTS)
        return str(self._path(key))

    def _run(self, name: str, role: str) -> Run | None:
        with self._lock:
            return self._registry.run(name, role)

    def _folder(self, run: Run) -> str:
        return f"{self._artifacts.place(run.uri)}/model"

    def _write(self, key: str, data: bytes) -> bool:
        path = self._path_to_write(key)
        self._artifacts.put(path, [data], size_bytes=len(data))
        stored = self._small(path)  # somebody else may have written it in the same moment
        return stored is not None and stored.data == data

    def _small(self, path: str) -> Stored | None:
        try:
            data = small(self._artifacts.stream(path, start=0, stop=SMALL_BYTES + 1), f"{self}: {path}")
        except ModelMissing:
            return None
        return Stored(data=data, etag=Digest.of(data))


def _parts(key: str) -> tuple[str, str, str]:
    """Return a key's model, its folder, and the rest. Raises `ValueError` for what is no key."""
    parts = key.split("/") if key else []
    if any(part in {"", ".", ".."} or "\0" in part for part in parts):
        message = f"not a key: {key!r}"
        raise ValueError(message)
    name, _, tail = key.partition("/")
    folder, _, rest = tail.partition("/")
    return name, folder, rest


def _beside(place: str, digest: Digest) -> str:
    """Return where a manifest is: beside the folder of the files, under its own hash."""
    return f"{place.rpartition('/')[0]}/shipway/{digest.hex}.json"


def _stored_move(move: Move) -> Stored:
    data = documents.encoded(move)
    return Stored(data=data, etag=Digest.of(data))


def _is_left(there: Version, version: ModelVersion, run: Run) -> bool:
    """Tell whether a version is what a publisher of the same files has left unfinished."""
    return not there.is_whole and there.tags.get(DIGEST) == version.digest and there.run == run.id


def _told_aliases(model: RegisteredModel) -> dict[str, int]:
    """Return the aliases that tags tell of."""
    found = {}
    for key, text in model.tags.items():
        with contextlib.suppress(ModelError):
            if key.startswith(_MOVED):
                found[key.removeprefix(_MOVED)] = manifest.parse_move(text.encode(), where=key).version
    return found


def _digest(text: str, where: str) -> Digest:
    try:
        return Digest(text)
    except ValueError as error:
        raise ModelCorrupt(f"{where}: the tag {MANIFEST} is no digest") from error
