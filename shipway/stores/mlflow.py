"""A registry of MLflow as a store: `mlflow+https://HOST/PREFIX`, over its REST API.

Owns where MLflow keeps what a store has:

    <name>/versions/<n>.json           a registered version; its manifest, an artifact that its tag names by hash
    <name>/aliases/<alias>.json        a registered alias, and a tag that says who moved it and why
    <name>/models/<set digest>/<path>  an artifact of the run that was made for these files
    <name>/...                         an artifact of a run of its own

MLflow numbers versions itself, and knows neither create-only nor compare-and-swap for
aliases: docs/stores.md says what that leaves of a store's promises. What mlflow itself
registered is read too; `adopt` makes the manifest that it lacks.
https://mlflow.org/docs/latest/api_reference/rest-api.html
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import math
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self, TypeVar, cast

import httpx

from shipway.artifacts import Digest, Model, ModelFile
from shipway.console import Tell
from shipway.errors import ModelCorrupt, ModelError, ModelMissing, ModelRefused, NotConfigured, StoreRefused
from shipway.proc import Run
from shipway.stores import manifest
from shipway.stores.adopt import MOST_FILES, Adopter, Registered
from shipway.stores.artifacts import Artifact, Artifacts, Proxied
from shipway.stores.manifest import ModelVersion, Move
from shipway.stores.objects import Access, Found, Replaced, Stored
from shipway.stores.patience import Clock, persist
from shipway.stores.rest import Answered, Rest, Variables, is_loopback, open_client

LATEST = "latest"  # which MLflow lets nobody set: it is always the newest version
_API = "/api/2.0/mlflow"
_DIGEST, _MANIFEST, _PUBLISHER = "shipway.digest", "shipway.manifest", "shipway.publisher"  # tags of a version
_MOVED = "shipway.alias."  # and the alias: a tag of the model
_ROLE = "shipway.role"  # a tag of a run: the set digest of the files it holds, or this
_OBJECTS = "objects"
_PAGE, _FEW = 1000, 20
_MOST_PAGES = 1000
_DEEPEST = 10
_SMALL_BYTES = 16 << 20
_NUMBERED = re.compile(r"([1-9][0-9]{0,11})\.json")
_RUNS = re.compile(r"runs:/([0-9a-zA-Z_-]+)/?(.*)")
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


@dataclass(frozen=True, slots=True, kw_only=True)
class _Version:
    """A registered version, as MLflow tells it."""

    number: int
    source: str
    run: str
    tags: Mapping[str, str]
    is_ready: bool
    publisher: str
    created: datetime

    @classmethod
    def of(cls, told: Mapping[str, Any]) -> Self:
        tags = _tags(told)
        return cls(
            number=int(told["version"]),
            source=str(told.get("source", "")),
            run=str(told.get("run_id", "")),
            tags=tags,
            is_ready=told.get("status", "READY") == "READY",
            publisher=tags.get(_PUBLISHER) or str(told.get("user_id") or "mlflow"),
            created=_moment(told.get("creation_timestamp")),
        )

    @property
    def is_ours(self) -> bool:
        return _DIGEST in self.tags

    @property
    def is_whole(self) -> bool:
        return self.is_ready and (_MANIFEST in self.tags or not self.is_ours)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Run:
    """A run of MLflow's, which holds artifacts."""

    id: str
    uri: str
    path: str


@dataclass(slots=True, kw_only=True)
class _Known:
    """What was learnt and does not change: runs by model and role, whole versions, places of files."""

    experiments: dict[str, str] = field(default_factory=dict)
    runs: dict[tuple[str, str], _Run] = field(default_factory=dict)
    versions: dict[tuple[str, int], _Version] = field(default_factory=dict)
    files: dict[tuple[str, str], str] = field(default_factory=dict)
    taken: dict[str, tuple[int, str]] = field(default_factory=dict)  # a number that waits for its manifest


def open_mlflow(
    address: str, access: Access, *, cache: Path, run: Run, tell: Tell, clock: Clock | None = None
) -> Mlflow:
    """Name a registry; nobody is asked yet. Raises `NotConfigured`.

    `cache` keeps the manifests of what mlflow registered, and `run` opens such models.
    """
    base = _base(address)
    client = open_client(base, authority=access.authority)
    rest = Rest(base, client=client, login=Variables(access), clock=clock or Clock())
    adopter = Adopter(cache=cache, run=run, tell=tell)
    return Mlflow(rest, Proxied(rest), address=address.rstrip("/"), adopter=adopter, warn=tell.warn)


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
        rest: Rest,
        artifacts: Artifacts,
        *,
        address: str,
        adopter: Adopter,
        warn: Callable[[str], None],
        has_aliases: bool = True,
    ) -> None:
        """Ask nobody yet; `warn` is told which versions are left out of a list.

        A registry that has no aliases of its own keeps ours in the tags alone.
        """
        self._has_aliases = has_aliases
        self._rest = rest
        self._artifacts = artifacts
        self._address = address
        self._adopter = adopter
        self._warn = warn
        self._known = _Known()
        self._lock = threading.RLock()

    def __str__(self) -> str:
        return self._address

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
            self._known.versions.pop((name, int(match[1])), None)
            self._delete_version(name, int(match[1]))
        elif folder == "aliases":
            alias = rest.removesuffix(".json")
            if self._has_aliases:
                self._ask("DELETE", "registered-models/alias", body={"name": name, "alias": alias})
            else:
                tag = {"name": name, "key": f"{_MOVED}{alias}"}
                self._ask("DELETE", "registered-models/delete-tag", body=tag)
        elif path := self._path(key):
            self._artifacts.delete(path)

    @_sane
    def children(self, folder: str) -> list[str]:
        """See `Store.children`; versions that mlflow itself registered are left out until they were read once."""
        name, part, _rest = _parts(folder)
        if not name:
            return [str(model["name"]) for model in self._pages("GET", "registered-models/search", "registered_models")]
        if part == "versions":
            return [f"{number}.json" for number in self._numbers(name)]
        if part == "aliases":
            aliases = self._aliases(self._model(name) or {})
            latest = [LATEST] if self._newest(name) else []
            return [f"{alias}.json" for alias in [*aliases, *latest]]
        path = self._path(folder)
        registered = ["aliases", "models", "versions"] if not part and self._model(name) else []
        return [*registered, *(child.name for child in self._artifacts.children(path))] if path else registered

    @_sane
    def holders(self, name: str, digest: Digest) -> list[int]:
        """Return which whole versions have this content, as their tags say; mlflow's own are never looked into."""
        return [
            version.number
            for version in self._versions(name)
            if version.is_whole and version.tags.get(_DIGEST) == digest
        ]

    # -- versions ------------------------------------------------------------------------

    def _manifest(self, name: str, number: int) -> Stored | None:
        version = self._version(name, number)
        if version is None or not version.is_whole:
            return None
        place = self._artifacts.place(self._location(name, version))
        if not version.is_ours:
            adopted = self._adopter.manifest(self._registered(name, version, place))
            self._known.files[name, Digest(adopted.digest).hex] = place
            data = manifest.encoded(adopted)
            return Stored(data=data, etag=Digest.of(data))
        digest = _digest(version.tags[_MANIFEST], f"{self}/{name} {number}")
        stored = self._small(_beside(place, digest))
        if stored is None or Digest.of(stored.data) != digest:
            raise ModelCorrupt(f"{self}: version {number} of {name} has another manifest than its tag says: {digest}")
        self._known.files[name, version.tags[_DIGEST].removeprefix("sha256:")] = place
        return stored

    def _registered(self, name: str, version: _Version, place: str) -> Registered:
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
            metrics=lambda: self._metrics(version),
            listing=lambda: dict(itertools.islice(listing(), MOST_FILES + 1)),
            file=lambda path: Artifact(self._artifacts, f"{place}/{path}"),
        )

    def _metrics(self, version: _Version) -> dict[str, float]:
        told = self._ask("GET", "runs/get", query={"run_id": version.run}) if version.run else None
        found = told["run"].get("data", {}).get("metrics", []) if told else []
        return {str(each["key"]): float(each["value"]) for each in found if math.isfinite(float(each["value"]))}

    def _location(self, name: str, version: _Version) -> str:
        """Return where a version's files are; an address may point to another."""
        uri = version.source
        if uri.startswith("models:"):
            asked = {"name": name, "version": str(version.number)}
            uri = str((self._ask("GET", "model-versions/get-download-uri", query=asked) or {}).get("artifact_uri", ""))
        if match := _RUNS.fullmatch(uri):
            run = self._ask("GET", "runs/get", query={"run_id": match[1]})
            if run is None:
                raise ModelMissing(f"{self}: the run {match[1]} of {name} {version.number} is gone")
            uri = f"{run['run']['info']['artifact_uri']}/{match[2]}"
        return uri

    def _numbers(self, name: str) -> list[int]:
        whole = [version for version in self._versions(name) if version.is_whole]
        unread = [
            version.number
            for version in whole
            if not version.is_ours and not self._adopter.knows(f"{self}/{name}/{version.number}", version.created)
        ]
        if unread:
            told = ", ".join(map(str, sorted(unread)[-_FEW:]))
            self._warn(
                f"{name}: mlflow registered {told}, not read here yet: invoke model.show --version NUMBER reads one"
            )
        # one that waits for its manifest is not there yet, but a publisher has to come as far as before it
        before = {taken - 1 for taken, _ in [self._known.taken.get(name, (0, ""))] if taken > 1}
        return sorted({version.number for version in whole if version.number not in unread} | before)

    def _newest(self, name: str) -> _Version | None:
        """Return the newest whole version, asking for few of them where the server sorts."""
        asked: list[_Version] = []
        for version in self._versions(name, page=_FEW, order_by="version_number DESC"):
            if asked and version.number > asked[-1].number:
                return max((each for each in self._versions(name) if each.is_whole), key=_by_number, default=None)
            asked.append(version)
            if version.is_whole and len(asked) % _FEW == 0:
                break
        return max((each for each in asked if each.is_whole), key=_by_number, default=None)

    def _versions(self, name: str, *, page: int = _PAGE, order_by: str | None = None) -> Iterator[_Version]:
        query = {"filter": f"name='{name}'", "max_results": page} | ({"order_by": order_by} if order_by else {})
        for told in self._pages("GET", "model-versions/search", "model_versions", query):
            version = _Version.of(told)
            if version.is_whole:
                self._known.versions[name, version.number] = version
            yield version

    def _version(self, name: str, number: int) -> _Version | None:
        if known := self._known.versions.get((name, number)):
            return known
        told = self._ask("GET", "model-versions/get", query={"name": name, "version": str(number)})
        version = _Version.of(told["model_version"]) if told else None
        if version and version.is_whole:
            self._known.versions[name, number] = version
        return version

    def _number(self, name: str, number: int, data: bytes) -> bool:
        """Register a version whose files are there; `False` when it bears another number than this.

        The registry gives the number. A number that is beyond the one wanted is kept until it
        is wanted, and one that nobody wants is given back. Until its tag names a manifest, no
        reader here takes the version as whole; its files are, for mlflow itself too.
        """
        version = ModelVersion.model_validate_json(data)
        digest = Digest(version.digest).hex
        run = self._run(name, digest)
        if run is None:
            raise ModelMissing(f"{self} has no files of {name} {version.digest}")
        if self._known.taken.get(name, (0, digest))[1] != digest:
            self._give_back(name)
        taken = self._known.taken.get(name, (0, ""))[0]
        if not taken:
            there = self._version(name, number)
            if there and not (there.tags.get(_DIGEST) == version.digest and not there.is_whole):
                return False
            taken = there.number if there else self._register(name, version, run)
        if taken != number:
            self._known.taken[name] = taken, digest
            return False
        self._known.taken.pop(name, None)
        try:
            self._complete(name, number, data, run)
        except BaseException:
            with contextlib.suppress(ModelError):
                there = self._version(name, number)
                if there and not there.is_whole:  # else somebody else of the same content has finished it
                    self._delete_version(name, number)
            raise
        return True

    def _register(self, name: str, version: ModelVersion, run: _Run) -> int:
        """Make the folder one that mlflow can load, note the metrics, and take the next number."""
        self._ensure_model(name)
        sheet = _MLMODEL.format(run=run.id).encode()
        self._artifacts.put(f"{run.path}/model/MLmodel", [sheet], size_bytes=len(sheet))
        if version.metrics:
            now = int(time.time() * 1000)
            metrics = [
                {"key": key, "value": value, "timestamp": now, "step": 0} for key, value in version.metrics.items()
            ]
            self._ask("POST", "runs/log-batch", body={"run_id": run.id, "metrics": metrics})
        body = {
            "name": name,
            "source": f"{run.uri}/model",
            "run_id": run.id,
            "description": f"{version.digest}, published by shipway",
            "tags": [
                {"key": _DIGEST, "value": version.digest},
                {"key": _PUBLISHER, "value": version.publisher},
            ],
        }

        def create(again: bool) -> int:  # noqa: FBT001 - of `persist`
            if again:  # the answer to an earlier try may have been lost
                waiting = [each for each in self._versions(name) if each.run == run.id and not each.is_whole]
                if waiting:
                    return waiting[0].number
            told = self._rest.once("POST", f"{_API}/model-versions/create", body=body)
            if told is None:
                raise StoreRefused(f"{self} has no registered model {name} any more")
            return int(told["model_version"]["version"])

        number = persist(self._rest.clock, create)
        self._ask("POST", "runs/update", body={"run_id": run.id, "status": "FINISHED"})
        return number

    def _complete(self, name: str, number: int, data: bytes, run: _Run) -> None:
        digest = Digest.of(data)
        self._artifacts.put(_beside(f"{run.path}/model", digest), [data], size_bytes=len(data))
        tag = {"name": name, "version": str(number), "key": _MANIFEST, "value": str(digest)}
        self._ask("POST", "model-versions/set-tag", body=tag)

    def _give_back(self, name: str) -> None:
        """Delete a number that was taken, and then not wanted: its content was published meanwhile."""
        taken = self._known.taken.pop(name, None)
        if taken:
            self._delete_version(name, taken[0])

    def _delete_version(self, name: str, number: int) -> None:
        self._ask("DELETE", "model-versions/delete", body={"name": name, "version": str(number)})

    # -- aliases -------------------------------------------------------------------------

    def _alias(self, name: str, alias: str) -> Stored | None:
        if alias == LATEST:
            newest = self._newest(name)
            if newest is None:
                return None
            number, told, who, when = newest.number, "", newest.publisher, newest.created
        else:
            model = self._model(name) or {}
            number = self._aliases(model).get(alias, 0)
            if not number:
                return None
            told = _tags(model).get(f"{_MOVED}{alias}", "")
            who, when = "mlflow", _moment(model.get("last_updated_timestamp"))
        with contextlib.suppress(ModelError):
            move = manifest.parse_move(told.encode(), where=alias)
            if (move.alias, move.version) == (alias, number):
                return _stored_move(move)
        why = "always the newest version" if alias == LATEST else "set by mlflow"
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
        body = {"name": name, "alias": alias, "version": str(move.version)}
        if self._has_aliases and self._ask("POST", "registered-models/alias", body=body) is None:
            raise ModelMissing(f"{self} has no version {move.version} of {name} any more")
        tag = {"name": name, "key": f"{_MOVED}{alias}", "value": data.decode("utf-8")}
        self._ask("POST", "registered-models/set-tag", body=tag)
        return self._aliases(self._model(name) or {}).get(alias) == move.version

    def _aliases(self, model: Mapping[str, Any]) -> dict[str, int]:
        told = {} if self._has_aliases else _told_aliases(model)
        return {**told, **{str(each["alias"]): int(each["version"]) for each in model.get("aliases", [])}}

    def _model(self, name: str) -> Mapping[str, Any] | None:
        told = self._ask("GET", "registered-models/get", query={"name": name})
        return dict(told["registered_model"]) if told else None

    def _ensure_model(self, name: str) -> None:
        if self._model(name) is None:
            self._unless_there("registered-models/create", {"name": name})

    # -- artifacts -----------------------------------------------------------------------

    def _path(self, key: str) -> str | None:
        """Return where a key's artifact is, or would be; `None` while there is no run for it."""
        name, folder, rest = _parts(key)
        if folder == "models":
            digest, _, path = rest.partition("/")
            known = self._known.files.get((name, digest))
            run = None if known else self._run(name, digest)
            return f"{known}/{path}" if known else f"{run.path}/model/{path}" if run else None
        run = self._run(name, _OBJECTS)
        return f"{run.path}/{folder}/{rest}".rstrip("/") if run else None

    def _path_to_write(self, key: str) -> str:
        name, folder, rest = _parts(key)
        self._make_run(name, rest.partition("/")[0] if folder == "models" else _OBJECTS)
        path = self._path(key)
        if path is None:
            raise StoreRefused(f"{self}: the run that was made for {key} is not there")
        return path

    def _write(self, key: str, data: bytes) -> bool:
        path = self._path_to_write(key)
        self._artifacts.put(path, [data], size_bytes=len(data))
        stored = self._small(path)  # somebody else may have written it in the same moment
        return stored is not None and stored.data == data

    def _small(self, path: str) -> Stored | None:
        try:
            data = b"".join(self._artifacts.stream(path, start=0, stop=_SMALL_BYTES))
        except ModelMissing:
            return None
        return Stored(data=data, etag=Digest.of(data))

    def _make_run(self, name: str, role: str) -> None:
        """Make the run for a set of files; of several that were made in one moment, the first one counts."""
        with self._lock:
            if self._run(name, role):
                return
            body = {
                "experiment_id": self._make_experiment(name),
                "run_name": f"{name} {role[:12]}",
                "start_time": int(time.time() * 1000),
                "tags": [{"key": _ROLE, "value": _tagged(name, role)}],
            }
            if self._ask("POST", "runs/create", body=body) is None:
                raise StoreRefused(f"{self}: the experiment of {name} was deleted", advice="restore it in MLflow")

    def _run(self, name: str, role: str) -> _Run | None:
        with self._lock:
            if known := self._known.runs.get((name, role)):
                return known
            experiment = self._experiment(name)
            if experiment is None:
                return None
            body = {
                "experiment_ids": [experiment],
                "filter": f"tags.`{_ROLE}` = '{_tagged(name, role)}'",
                "order_by": ["attributes.start_time ASC"],
                "max_results": 1,
            }
            found = (self._ask("POST", "runs/search", body=body) or {}).get("runs")
            if not found:
                return None
            info = found[0]["info"]
            uri = str(info["artifact_uri"])
            run = _Run(id=str(info["run_id"]), uri=uri, path=self._artifacts.place(uri))
            self._known.runs[name, role] = run
            return run

    def _experiment(self, name: str) -> str | None:
        if known := self._known.experiments.get(name):
            return known
        told = self._ask("GET", "experiments/get-by-name", query={"experiment_name": _experiment(name)})
        if told is None or told["experiment"].get("lifecycle_stage", "active") != "active":
            return None
        return self._known.experiments.setdefault(name, str(told["experiment"]["experiment_id"]))

    def _make_experiment(self, name: str) -> str:
        if self._experiment(name) is None:
            self._unless_there("experiments/create", {"name": _experiment(name)})
        made = self._experiment(name)
        if made is None:
            raise StoreRefused(f"{self}: the experiment {_experiment(name)} was deleted", advice="restore it in MLflow")
        return made

    # -- asking --------------------------------------------------------------------------

    def _ask(self, method: str, path: str, *, query: Mapping[str, Any] | None = None, body: Any = None) -> Any:
        return self._rest.ask(method, f"{_API}/{path}", query=query, body=body)

    def _unless_there(self, path: str, body: Any) -> None:
        try:
            self._ask("POST", path, body=body)
        except Answered as error:
            if error.reason != "RESOURCE_ALREADY_EXISTS":
                raise

    def _pages(
        self, method: str, path: str, what: str, query: Mapping[str, Any] | None = None
    ) -> Iterator[Mapping[str, Any]]:
        token = ""
        for _ in range(_MOST_PAGES):
            asked = {"max_results": _PAGE, **(query or {}), **({"page_token": token} if token else {})}
            told = self._ask(method, path, query=asked)
            if told is None:
                raise StoreRefused(f"{self} has no {path}: no MLflow answers there", advice="mend [model] store")
            yield from told.get(what, [])
            before, token = token, str(told.get("next_page_token", ""))
            if not token or token == before:
                return
        raise StoreRefused(f"{self}: {path} has more than {_MOST_PAGES} pages")


def _parts(key: str) -> tuple[str, str, str]:
    """Return a key's model, its folder, and the rest. Raises `ValueError` for what is no key."""
    parts = key.split("/") if key else []
    if any(part in {"", ".", ".."} or "\0" in part for part in parts):
        message = f"not a key: {key!r}"
        raise ValueError(message)
    name, _, tail = key.partition("/")
    folder, _, rest = tail.partition("/")
    return name, folder, rest


def _experiment(name: str) -> str:
    return f"shipway-{name.replace('.', '-')}"  # Azure takes no other sign


def _tagged(name: str, role: str) -> str:
    return f"{name}/{role}"


def _beside(place: str, digest: Digest) -> str:
    """Return where a manifest is: beside the folder of the files, under its own hash."""
    return f"{place.rpartition('/')[0]}/shipway/{digest.hex}.json"


def _stored_move(move: Move) -> Stored:
    data = manifest.encoded(move)
    return Stored(data=data, etag=Digest.of(data))


def _told_aliases(model: Mapping[str, Any]) -> dict[str, int]:
    """Return the aliases that tags tell of."""
    found = {}
    for key, text in _tags(model).items():
        with contextlib.suppress(ModelError):
            if key.startswith(_MOVED):
                found[key.removeprefix(_MOVED)] = manifest.parse_move(text.encode(), where=key).version
    return found


def _tags(told: Mapping[str, Any]) -> dict[str, str]:
    return {str(tag["key"]): str(tag.get("value", "")) for tag in told.get("tags", [])}


def _moment(milliseconds: Any) -> datetime:
    return datetime.fromtimestamp(int(milliseconds or 0) / 1000, UTC)


def _by_number(version: _Version) -> int:
    return version.number


def _digest(text: str, where: str) -> Digest:
    try:
        return Digest(text)
    except ValueError as error:
        raise ModelCorrupt(f"{where}: the tag {_MANIFEST} is no digest") from error
