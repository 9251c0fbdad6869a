"""What an MLflow server knows: registered models, their versions and aliases, and runs.

Owns the API's words, its pages, and what may be asked twice. Knows nothing of stores, nor of
the bytes of files. What is not there is `None`; what the server refuses raises `StoreRefused`.
https://mlflow.org/docs/latest/api_reference/rest-api.html
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any, Self

from msgspec import Struct

from shipway.errors import ModelMissing, StoreRefused
from shipway.stores.patience import persist
from shipway.stores.rest import Answered, Rest

DIGEST, MANIFEST, PUBLISHER = "shipway.digest", "shipway.manifest", "shipway.publisher"  # tags of a version
_ROLE = "shipway.role"  # a tag of a run: the model, and what it holds of it
_API = "/api/2.0/mlflow"
_PAGE, _FEW = 1000, 20
_MOST_PAGES = 1000
_RUNS = re.compile(r"runs:/([0-9a-zA-Z_-]+)/?(.*)")


class Version(Struct, frozen=True, kw_only=True):
    """A registered version; `is_ours` if shipway began it, `is_whole` if whoever began it has finished."""

    number: int
    source: str
    run: str
    tags: Mapping[str, str]
    is_ready: bool
    publisher: str
    created: datetime

    @classmethod
    def of(cls, told: Mapping[str, Any]) -> Self:
        """Read what the server tells."""
        tags = _tags(told)
        return cls(
            number=int(told["version"]),
            source=str(told.get("source", "")),
            run=str(told.get("run_id", "")),
            tags=tags,
            is_ready=told.get("status", "READY") == "READY",
            publisher=tags.get(PUBLISHER) or str(told.get("user_id") or "mlflow"),
            created=_moment(told.get("creation_timestamp")),
        )

    @property
    def is_ours(self) -> bool:
        """Whether it has, or will have, a manifest."""
        return DIGEST in self.tags

    @property
    def is_whole(self) -> bool:
        """Whether it may be read."""
        return self.is_ready and (MANIFEST in self.tags or not self.is_ours)


class RegisteredModel(Struct, frozen=True, kw_only=True):
    """A model's aliases and tags."""

    aliases: Mapping[str, int]
    tags: Mapping[str, str]
    updated: datetime


class Run(Struct, frozen=True, kw_only=True):
    """A run, which holds artifacts at `uri`."""

    id: str
    uri: str


class _Known(Struct, kw_only=True):
    """What was learnt and does not change."""

    experiments: dict[str, str] = {}
    runs: dict[tuple[str, str], Run] = {}
    versions: dict[tuple[str, int], Version] = {}


class Registry:
    """One server's registry; `str()` of it is its address, for people."""

    def __init__(self, rest: Rest, *, address: str) -> None:
        """Ask nobody yet."""
        self._rest = rest
        self._address = address
        self._known = _Known()

    def __str__(self) -> str:
        return self._address

    # -- models and aliases --------------------------------------------------------------

    def names(self) -> list[str]:
        """Return the models' names."""
        return [str(model["name"]) for model in self._pages("registered-models/search", "registered_models", {})]

    def model(self, name: str) -> RegisteredModel | None:
        """Return a model."""
        told = self._ask("GET", "registered-models/get", query={"name": name})
        if told is None:
            return None
        model = told["registered_model"]
        return RegisteredModel(
            aliases={str(each["alias"]): int(each["version"]) for each in model.get("aliases", [])},
            tags=_tags(model),
            updated=_moment(model.get("last_updated_timestamp")),
        )

    def make_model(self, name: str) -> None:
        """Register a model that is not there yet."""
        if self.model(name) is None:
            self._unless_there("registered-models/create", {"name": name})

    def set_alias(self, name: str, alias: str, number: int) -> None:
        """Point an alias to a version. Raises `ModelMissing` when that is gone."""
        body = {"name": name, "alias": alias, "version": str(number)}
        if self._ask("POST", "registered-models/alias", body=body) is None:
            raise ModelMissing(f"{self} has no version {number} of {name} any more")

    def delete_alias(self, name: str, alias: str) -> None:
        """Delete an alias; one that is not there is no error."""
        self._ask("DELETE", "registered-models/alias", body={"name": name, "alias": alias})

    def tag_model(self, name: str, key: str, value: str) -> None:
        """Set a model's tag."""
        self._ask("POST", "registered-models/set-tag", body={"name": name, "key": key, "value": value})

    def delete_model_tag(self, name: str, key: str) -> None:
        """Delete a model's tag; one that is not there is no error."""
        self._ask("DELETE", "registered-models/delete-tag", body={"name": name, "key": key})

    # -- versions ------------------------------------------------------------------------

    def versions(self, name: str, *, page: int = _PAGE, order_by: str = "") -> Iterator[Version]:
        """Yield a model's versions, in whatever order the server tells them."""
        asked = {"filter": f"name='{name}'", "max_results": page, **({"order_by": order_by} if order_by else {})}
        for told in self._pages("model-versions/search", "model_versions", asked):
            yield self._learnt(name, Version.of(told))

    def newest(self, name: str) -> Version | None:
        """Return the newest whole version, asking for few of them where the server sorts."""
        asked: list[Version] = []
        for version in self.versions(name, page=_FEW, order_by="version_number DESC"):
            if asked and version.number > asked[-1].number:
                return _newest(self.versions(name))
            asked.append(version)
            if version.is_whole and len(asked) % _FEW == 0:
                break
        return _newest(asked)

    def version(self, name: str, number: int) -> Version | None:
        """Return a version."""
        if known := self._known.versions.get((name, number)):
            return known
        told = self._ask("GET", "model-versions/get", query={"name": name, "version": str(number)})
        return self._learnt(name, Version.of(told["model_version"])) if told else None

    def register(self, name: str, run: Run, folder: str, *, tags: Mapping[str, str], description: str) -> int:
        """Make a folder of a run the next version; return its number, which is never given twice."""
        body = {
            "name": name,
            "source": f"{run.uri}/{folder}",
            "run_id": run.id,
            "description": description,
            "tags": [{"key": key, "value": value} for key, value in tags.items()],
        }

        def create(again: bool) -> int:  # noqa: FBT001 - of `persist`
            if again:  # the answer to an earlier try may have been lost
                waiting = [each for each in self.versions(name) if each.run == run.id and not each.is_whole]
                if waiting:
                    return waiting[0].number
            told = self._rest.once("POST", f"{_API}/model-versions/create", body=body)
            if told is None:
                raise StoreRefused(f"{self} has no registered model {name} any more")
            return int(told["model_version"]["version"])

        return persist(self._rest.clock, create)

    def tag_version(self, name: str, number: int, key: str, value: str) -> None:
        """Set a version's tag."""
        body = {"name": name, "version": str(number), "key": key, "value": value}
        self._ask("POST", "model-versions/set-tag", body=body)

    def delete_version(self, name: str, number: int) -> None:
        """Delete a version; one that is not there is no error."""
        self._known.versions.pop((name, number), None)
        self._ask("DELETE", "model-versions/delete", body={"name": name, "version": str(number)})

    def location(self, name: str, version: Version) -> str:
        """Return the address of a version's files, where it is said by way of something else too."""
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

    # -- runs ----------------------------------------------------------------------------

    def run(self, name: str, role: str) -> Run | None:
        """Return the run that holds something of a model; of several that were made in one moment, the first."""
        if known := self._known.runs.get((name, role)):
            return known
        experiment = self._experiment(name)
        if experiment is None:
            return None
        body = {
            "experiment_ids": [experiment],
            "filter": f"tags.`{_ROLE}` = '{name}/{role}'",
            "order_by": ["attributes.start_time ASC"],
            "max_results": 1,
        }
        found = (self._ask("POST", "runs/search", body=body) or {}).get("runs")
        if not found:
            return None
        info = found[0]["info"]
        return self._known.runs.setdefault((name, role), Run(id=str(info["run_id"]), uri=str(info["artifact_uri"])))

    def make_run(self, name: str, role: str) -> Run:
        """Return that run, made where it is not there yet."""
        if found := self.run(name, role):
            return found
        body = {
            "experiment_id": self._make_experiment(name),
            "run_name": f"{name} {role[:12]}",
            "start_time": _now(),
            "tags": [{"key": _ROLE, "value": f"{name}/{role}"}],
        }
        self._ask("POST", "runs/create", body=body)
        made = self.run(name, role)
        if made is None:
            raise StoreRefused(f"{self}: the run that was made for {name} is not there")
        return made

    def metrics(self, version: Version) -> dict[str, float]:
        """Return the metrics of the run that made a version."""
        told = self._ask("GET", "runs/get", query={"run_id": version.run}) if version.run else None
        found = told["run"].get("data", {}).get("metrics", []) if told else []
        return {str(each["key"]): float(each["value"]) for each in found if math.isfinite(float(each["value"]))}

    def finish(self, run: Run, metrics: Mapping[str, float]) -> None:
        """Note a run's metrics, and that it has come to its end."""
        if metrics:
            noted = [{"key": key, "value": value, "timestamp": _now(), "step": 0} for key, value in metrics.items()]
            self._ask("POST", "runs/log-batch", body={"run_id": run.id, "metrics": noted})
        self._ask("POST", "runs/update", body={"run_id": run.id, "status": "FINISHED"})

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

    def _learnt(self, name: str, version: Version) -> Version:
        if version.is_whole:
            self._known.versions[name, version.number] = version
        return version

    def _ask(self, method: str, path: str, *, query: Mapping[str, Any] | None = None, body: Any = None) -> Any:
        return self._rest.ask(method, f"{_API}/{path}", query=query, body=body)

    def _unless_there(self, path: str, body: Any) -> None:
        try:
            self._ask("POST", path, body=body)
        except Answered as error:
            if error.reason != "RESOURCE_ALREADY_EXISTS":
                raise

    def _pages(self, path: str, what: str, query: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
        token = ""
        for _ in range(_MOST_PAGES):
            asked = {"max_results": _PAGE, **query, **({"page_token": token} if token else {})}
            told = self._ask("GET", path, query=asked)
            if told is None:
                raise StoreRefused(f"{self} has no {path}: no MLflow answers there", advice="mend [model] store")
            yield from told.get(what, [])
            before, token = token, str(told.get("next_page_token", ""))
            if not token or token == before:
                return
        raise StoreRefused(f"{self}: {path} has more than {_MOST_PAGES} pages")


def _experiment(name: str) -> str:
    return f"shipway-{name.replace('.', '-')}"  # Azure takes no other sign


def _newest(versions: Iterator[Version] | list[Version]) -> Version | None:
    return max((each for each in versions if each.is_whole), key=lambda each: each.number, default=None)


def _tags(told: Mapping[str, Any]) -> dict[str, str]:
    return {str(tag["key"]): str(tag.get("value", "")) for tag in told.get("tags", [])}


def _moment(milliseconds: Any) -> datetime:
    return datetime.fromtimestamp(int(milliseconds or 0) / 1000, UTC)


def _now() -> int:
    return int(time.time() * 1000)
