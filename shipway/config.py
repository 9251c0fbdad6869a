"""Settings: one file, validated whole before anything runs.

`release.toml` has a table for each stage; `[env.NAME.TABLE]` overrides it for one
environment, and `SHIPWAY_<TABLE>_<KEY>` in the process environment overrides both. Every
mistake is told at once, with its key path and the nearest valid key. Each value remembers
where it came from. `docs/settings.md` is generated from this module.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from shipway.errors import ConfigError

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

FILE = "release.toml"
PREFIX = "SHIPWAY_"
RESERVED = frozenset({"SHIPWAY_ENV", "SHIPWAY_BUILD"})

Name = Annotated[str, Field(pattern=r"^[a-z0-9]+([._-][a-z0-9]+)*$", max_length=100)]
Seconds = Annotated[float, Field(gt=0, le=86_400)]
Ratio = Annotated[float, Field(ge=0, le=1)]
Port = Annotated[int, Field(ge=0, le=65_535)]
UrlPath = Annotated[str, Field(pattern=r"^/\S*$")]
AzureCredential = Literal["cli", "managed_identity", "workload_identity", "environment", "certificate"]
Label = Annotated[str, Field(pattern=r"^[a-z0-9]([a-z0-9-]*[a-z0-9])?$", max_length=40)]
Url = Annotated[str, Field(pattern=r"^https?://[^\s/]+$")]
Command = Annotated[tuple[str, ...], Field(min_length=1)]


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=False, defer_build=True)


class ProjectSettings(_Table):
    """`[project]`: what this is."""

    name: Name = Field(description="The service's name; also the image's.")
    environment: Name = Field("local", description="The environment when `--env` is not given.")


class SuiteSettings(_Table):
    """`[test]`: the test suite that a release must pass."""

    command: Command = Field(
        ("pytest", "tests/app"), description="The suite, run with the image's own locked dependencies."
    )
    requirements: str | None = Field(None, description="Hash-locked requirements of the suite itself.")
    timeout_s: Seconds = Field(1800, description="The suite is ended, and has failed, after this long.")


class ModelSettings(_Table):
    """`[model]`: which model goes into the image."""

    name: Name = Field(description="The model's name in its store.")
    store: str = Field(
        description="Where models are published: a folder, `az://ACCOUNT/CONTAINER/PREFIX`, `s3://BUCKET/PREFIX`, "
        "`mlflow+https://HOST/PREFIX`, or the tracking address of an Azure ML workspace, `azureml://…`."
    )
    alias: Name = Field("latest", description="The alias that a release follows.")
    contract: str | None = Field(None, description="A JSON file of the service: the inputs and outputs it understands.")
    trusted_keys: tuple[str, ...] = Field(
        (),
        description="Public keys, `ed25519:…` or files that hold one: versions that none of them signed are refused. "
        "Empty: no signature is asked for.",
    )
    signing_key: str | None = Field(
        None, description="The file with the private key that publishing signs with; `invoke model.keygen` makes one."
    )
    signing_key_variable: str = Field(
        "MODEL_SIGNING_KEY", description="The variable that holds that private key (PEM) where no file does."
    )
    azure_credential: AzureCredential = Field(
        "cli", description="The one Azure credential that the store is read with."
    )
    token_variable: str = Field("MLFLOW_TRACKING_TOKEN", description="The variable that holds MLflow's token.")
    user_variable: str = Field("MLFLOW_TRACKING_USERNAME", description="The variable that holds MLflow's user.")
    password_variable: str = Field("MLFLOW_TRACKING_PASSWORD", description="The variable that holds its password.")
    profile: str | None = Field(None, description="The profile in AWS's files; unset is AWS's usual chain.")
    region: str | None = Field(None, description="The bucket's region; unset is what AWS's variables and files say.")
    endpoint: Annotated[str, Field(pattern=r"^https?://[^\s@?#]+$")] | None = Field(
        None, description="The store's address, where it is not the provider's own: another cloud, or a server of ours."
    )
    authority: str | None = Field(
        None, description="A PEM file: the certificate authority of a store that no public one vouches for."
    )
    cache_gb: Annotated[float, Field(gt=0)] = Field(
        20, description="How much fetched models may take on this disk, besides those that are in use."
    )


class ImageSettings(_Table):
    """`[image]`: what the image is made of."""

    builder: Literal["layers", "docker"] = Field(
        "layers", description="`layers` composes the image without Docker; `docker` builds the whole Dockerfile."
    )
    base: str = Field(
        "scratch",
        description="What the layers stand on: `scratch`; an image by digest, `HOST/NAME@sha256:…`; "
        "`layout:FOLDER@sha256:…`, one on disk; or `Dockerfile`, whose stage `base` is built by Docker "
        "when the registry has not got it.",
    )
    build_args: Mapping[str, str] = Field({}, description="Build arguments for the Dockerfile; no secrets.")
    python: Annotated[str, Field(pattern=r"^(host|3\.\d+)$")] = Field(
        "host", description="The image's Python, such as `3.13`; `host` is this machine's."
    )
    platform: Annotated[str, Field(pattern=r"^(host|linux/amd64|linux/arm64)$")] = Field(
        "host", description="The image's platform; `host` is this machine's."
    )
    compression: Literal["none", "stored"] = Field(
        "none",
        description="How the layers of dependencies and model are sent: `none` as plain tar; `stored` as gzip that "
        "compresses nothing, for programs that take every layer for gzip. The app's layer is always compressed.",
    )
    requirements: str = Field("app/requirements.txt", description="Hash-locked requirements of the service.")
    include: tuple[str, ...] = Field(("app",), description="Committed folders that make the app layer.")
    user: str = Field(
        "65532:65532", description="The user and group the service runs as; never 0.", pattern=r"^[1-9]\d*:[1-9]\d*$"
    )
    environment: Mapping[str, str] = Field({}, description="More environment variables for the service; no secrets.")


class ServiceSettings(_Table):
    """`[service]`: what the service owes shipway."""

    command: Command = Field(description="Starts the service from `/srv`; it listens on `$PORT` and stops on SIGTERM.")
    port: Port = Field(8080, description="`$PORT` in a container.")
    ports: Mapping[str, Port] = Field(
        {}, description="More port variables, by name; on one host each version gets its own."
    )
    ready_path: UrlPath = Field("/readyz", description="Answers 200 when ready for users.")
    version_path: UrlPath = Field("/version", description="Answers JSON that holds the build id (`$SHIPWAY_BUILD`).")
    build_field: str = Field("build", description="The build id's field in that JSON.")
    start_timeout_s: Seconds = Field(90, description="How long a version may take until it is ready.")
    drain_timeout_s: Seconds = Field(30, description="How long an old version may take to finish its requests.")


class PushSettings(_Table):
    """`[push]`: where images go."""

    repository: str = Field(
        "layout",
        description="`layout`: the OCI image layout in `.shipway/images`; or a repository of a registry, `HOST/NAME`.",
    )
    login: Literal["auto", "anonymous", "environment", "docker", "azure"] = Field(
        "auto",
        description="Where the registry's credential comes from: the two variables below, Docker's configuration and "
        "its credential helpers, or Azure. `auto` takes the variables where they are set, else Docker's, else none.",
    )
    user_variable: str = Field("REGISTRY_USER", description="The variable that holds the user's name.")
    password_variable: str = Field("REGISTRY_PASSWORD", description="The variable that holds the password or token.")
    azure_credential: AzureCredential = Field(
        "cli", description='The one Azure credential that `login = "azure"` uses.'
    )
    token_services: tuple[str, ...] = Field(
        (),
        description="Hosts besides the registry's own that its credential may be sent to, "
        "such as `gitlab.example` for `registry.gitlab.example`.",
    )
    authority: str | None = Field(
        None, description="A PEM file: the certificate authority of a registry that no public one vouches for."
    )
    keep: Annotated[int, Field(ge=2)] = Field(
        10, description="Images kept besides those that run: so many that served, and so many that were pushed last."
    )


class RolloutSettings(_Table):
    """`[rollout]`: where versions run."""

    target: Literal["local", "kubernetes", "swarm"] = Field("local", description="What runs them.")
    host: str = Field("127.0.0.1", description="The public address on this machine (target `local`).")
    port: Port = Field(8080, description="The public port on this machine (target `local`).")
    listen: Command = Field(
        ("--bind", "fd://{fd}"),
        description="Arguments that make the service accept on the shared socket `{fd}` (target `local`).",
    )
    lock_s: Seconds = Field(30, description="A lock that is not renewed for this long may be taken over.")
    proofs: Annotated[int, Field(ge=1)] = Field(8, description="How often in a row the right build must answer.")
    context: str | None = Field(
        None, description="The context of kubectl's configuration; never the current one (target `kubernetes`)."
    )
    server: str | None = Field(
        None, description="The API server's address that this context must have (target `kubernetes`)."
    )
    namespace: Label | None = Field(None, description="The namespace of everything (target `kubernetes`).")
    overlay: str = Field("k8s/base", description="The kustomize folder that is applied (target `kubernetes`).")
    deployment: Label | None = Field(
        None, description="The Deployment in it that runs the service; unset is `project.name` (target `kubernetes`)."
    )
    container: str | None = Field(
        None, description="The container in it that gets the image; unset is its first (target `kubernetes`)."
    )
    pull_from: str | None = Field(
        None, description="The repository as nodes know it; unset is `[push] repository` (target `kubernetes`)."
    )
    url: Url | None = Field(
        None, description="The public address; unset is the load balancer's own (target `kubernetes`)."
    )
    address_timeout_s: Seconds = Field(
        300, description="How long a new address or name may take until it answers (target `kubernetes`)."
    )


class LoadCheckSettings(_Table):
    """`[loadcheck]`: the load, and the figures that a version must meet."""

    locustfile: str = Field("loadtests/locustfile.py", description="The Locust users.")
    requirements: str = Field(
        "loadtests/requirements.txt",
        description="Hash-locked requirements of a load generator in the cluster: Locust, and what the users import.",
    )
    users: Annotated[int, Field(ge=1, le=10_000)] = Field(4, description="Simulated users at once.")
    rate: Annotated[float, Field(gt=0)] | None = Field(
        None, description="Requests per second in all; unset is as fast as answers come."
    )
    seconds: Seconds = Field(10, description="How long the candidate is measured.")
    public_seconds: Seconds = Field(5, description="How long the public address is measured after promotion.")
    warmup_seconds: Annotated[float, Field(ge=0)] = Field(2, description="Load before the measurement, not counted.")
    max_failure_ratio: Ratio = Field(0.0, description="Failed requests, as a share of all.")
    max_p95_ms: Annotated[float, Field(gt=0)] = Field(1000, description="The slowest acceptable 95th percentile.")
    max_p95_growth: Annotated[float, Field(gt=1)] | None = Field(
        2.0, description="The 95th percentile may be this many times the last release's."
    )
    min_rate: Annotated[float, Field(ge=0)] = Field(0, description="The lowest acceptable requests per second.")
    min_requests: Annotated[int, Field(ge=1)] = Field(50, description="With fewer, the check is inconclusive.")


class Settings(_Table):
    """All settings of one environment."""

    project: ProjectSettings
    test: SuiteSettings = SuiteSettings()
    model: ModelSettings
    image: ImageSettings = ImageSettings()
    service: ServiceSettings
    push: PushSettings = PushSettings()
    rollout: RolloutSettings = RolloutSettings()
    loadcheck: LoadCheckSettings = LoadCheckSettings()


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """One environment's settings, and where each value came from (by key path)."""

    environment: str
    settings: Settings
    sources: Mapping[str, str]

    def rows(self) -> Iterator[tuple[str, Any, str]]:
        """Yield (key path, value, source) for every setting in force."""
        for table, values in self.settings.model_dump(mode="json").items():
            for key, value in values.items():
                path = f"{table}.{key}"
                yield path, value, self.sources.get(path, "default")

    def with_store(self, store: str) -> Loaded:
        """Return the same settings with another model store."""
        model = self.settings.model.model_copy(update={"store": store})
        return replace(self, settings=self.settings.model_copy(update={"model": model}))


def load(
    root: Path,
    *,
    environment: str | None,
    environ: Mapping[str, str],
    flags: Mapping[str, Mapping[str, str]] | None = None,
) -> Loaded:
    """Read and validate the settings of one environment (default: `project.environment`).

    `flags` are values given on the command line, by table and key; they go before all.
    Raises `ConfigError` that tells every mistake at once.
    """
    document = _read(root / FILE)
    environments = document.pop("env", {})
    chosen = environment or environ.get("SHIPWAY_ENV") or _default_environment(document)
    mistakes: list[str] = []
    if not isinstance(environments, dict) or not all(isinstance(table, dict) for table in environments.values()):
        raise ConfigError(f"{FILE}: [env.NAME.TABLE] must be tables")
    if chosen not in {"local", *environments}:
        known = ", ".join(sorted({"local", *environments}))
        raise ConfigError(
            f"there is no environment {chosen!r}; known are {known}", advice=f"add [env.{chosen}.rollout] to {FILE}"
        )
    layers = (
        (FILE, document),
        (f"{FILE} [env.{chosen}]", environments.get(chosen, {})),
        ("environment", _from_variables(environ, mistakes)),
        ("command line", flags or {}),
    )
    merged: dict[str, Any] = {}
    sources: dict[str, str] = {}
    for source, tables in layers:
        _overlay(merged, sources, tables, source)
    for name, tables in environments.items():
        mistakes += _unknown_keys(tables, f"env.{name}.")
    try:
        settings = Settings.model_validate(merged)
    except ValidationError as error:
        mistakes += [_told(mistake, sources) for mistake in error.errors(include_url=False)]
    if mistakes:
        listed = "\n".join(f"  {line}" for line in mistakes)
        raise ConfigError(f"the settings of {chosen!r} have {_count(len(mistakes))}:\n{listed}")
    return Loaded(environment=chosen, settings=settings, sources=sources)


def environments(root: Path) -> tuple[str, ...]:
    """Return the names of all environments; raises `ConfigError`."""
    tables = _read(root / FILE).get("env", {})
    return tuple(sorted({"local", *(tables if isinstance(tables, dict) else {})}))


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(
            f"there is no {FILE} in {path.parent}", advice="run inside the project; README.md shows the smallest file"
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error


def _default_environment(document: Mapping[str, Any]) -> str:
    project = document.get("project")
    name = project.get("environment", "local") if isinstance(project, dict) else "local"
    return name if isinstance(name, str) else "local"


def _from_variables(environ: Mapping[str, str], mistakes: list[str]) -> dict[str, dict[str, Any]]:
    """Return what `SHIPWAY_<TABLE>_<KEY>` variables set: text, or TOML where it is quoted, a list or a table."""
    known = {f"{PREFIX}{path.replace('.', '_').upper()}": path for path in _paths()}
    tables: dict[str, dict[str, Any]] = {}
    for variable, text in environ.items():
        if not variable.startswith(PREFIX) or variable in RESERVED:
            continue
        if variable not in known:
            mistakes.append(f"{variable}: no such variable{_nearest(variable, known)}")
            continue
        table, _, key = known[variable].partition(".")
        tables.setdefault(table, {})[key] = _toml_value(text)
    return tables


def _toml_value(text: str) -> Any:
    if not text.startswith(("[", "{", '"', "'")):
        return text  # `3.13` may be a Python's version; where it is a number, pydantic makes it one
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _overlay(merged: dict[str, Any], sources: dict[str, str], tables: Mapping[str, Any], source: str) -> None:
    for table, values in tables.items():
        if not isinstance(values, dict):
            merged[table] = values
            sources[table] = source
            continue
        into = merged.setdefault(table, {})
        if not isinstance(into, dict):
            continue
        into.update(values)
        sources.update({f"{table}.{key}": source for key in values})


def _paths() -> list[str]:
    """Return every key path that exists, such as `rollout.port`."""
    return [
        f"{table}.{key}"
        for table, field in Settings.model_fields.items()
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)
        for key in field.annotation.model_fields
    ]


def _unknown_keys(tables: Mapping[str, Any], prefix: str) -> Iterator[str]:
    """Tell the unknown keys of an environment that is not the chosen one, too."""
    known = _paths()
    for table, values in tables.items():
        if table not in Settings.model_fields:
            yield f"{prefix}{table}: no such table{_nearest(table, Settings.model_fields)}"
        elif isinstance(values, dict):
            for key in values:
                if f"{table}.{key}" not in known:
                    yield f"{prefix}{table}.{key}: no such key{_nearest(f'{table}.{key}', known)}"


def _told(mistake: ErrorDetails, sources: Mapping[str, str]) -> str:
    path = ".".join(str(part) for part in mistake["loc"])
    source = next((f" (from {sources[name]})" for name in (path, path.rpartition(".")[0]) if name in sources), "")
    if mistake["type"] == "extra_forbidden":
        known = _paths() if "." in path else list(Settings.model_fields)
        return f"{path}: no such {'key' if '.' in path else 'table'}{_nearest(path, known)}"
    if mistake["type"] == "missing":
        return f"{path}: is missing"
    given = repr(mistake["input"])
    return f"{path} = {given[:60]}: {mistake['msg'][:1].lower()}{mistake['msg'][1:]}{source}"


def _nearest(word: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(word, list(known), n=1)
    return f"; did you mean {near[0]}?" if near else ""


def _count(number: int) -> str:
    return "a mistake" if number == 1 else f"{number} mistakes"
