"""Settings: one file, validated whole before anything runs.

`release.toml` has a table for each stage; `[env.NAME.TABLE]` overrides it for one
environment, and `SHIPWAY_<TABLE>_<KEY>` in the process environment overrides both. Every
mistake is told at once, with its key path and the nearest valid key. Each value remembers
where it came from. `docs/settings.md` is generated from this module.
"""

# Annotations are no texts here (PEP 563): to make types of texts takes longer than to read the settings.
import difflib
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

from msgspec import Struct
from msgspec.structs import replace

from shipway import documents
from shipway.documents import Form, Malformed, Meta, Mistake
from shipway.errors import ConfigError

FILE = "release.toml"
PREFIX = "SHIPWAY_"
RESERVED = frozenset({"SHIPWAY_ENV", "SHIPWAY_BUILD"})

Name = Annotated[str, Meta(pattern=r"^[a-z0-9]+([._-][a-z0-9]+)*\Z", max_length=100)]
Seconds = Annotated[float, Meta(gt=0, le=86_400)]
Ratio = Annotated[float, Meta(ge=0, le=1)]
Positive = Annotated[float, Meta(gt=0)]
Port = Annotated[int, Meta(ge=0, le=65_535)]
UrlPath = Annotated[str, Meta(pattern=r"^/\S*\Z")]
AzureCredential = Literal["cli", "managed_identity", "workload_identity", "environment", "certificate"]
_CREDENTIALS = " or ".join(", ".join(f"`{name}`" for name in get_args(AzureCredential)).rsplit(", ", 1))
Label = Annotated[str, Meta(pattern=r"^[a-z0-9]([a-z0-9-]*[a-z0-9])?\Z", max_length=40)]
Url = Annotated[str, Meta(pattern=r"^https?://[^\s/]+\Z")]
Command = Annotated[tuple[str, ...], Meta(min_length=1)]


class ProjectSettings(Form, frozen=True, kw_only=True):
    """`[project]`: what this is."""

    name: Annotated[Name, Meta(description="The service's name; also the image's.")]
    environment: Annotated[Name, Meta(description="The environment when `--env` is not given.")] = "local"


class SuiteSettings(Form, frozen=True, kw_only=True):
    """`[test]`: the test suite that a release must pass."""

    command: Annotated[Command, Meta(description="The suite, run with the image's own locked dependencies.")] = (
        "pytest",
        "tests/app",
    )
    requirements: Annotated[str | None, Meta(description="Hash-locked requirements of the suite itself.")] = None
    timeout_s: Annotated[Seconds, Meta(description="The suite is ended, and has failed, after this long.")] = 1800.0


class ModelSettings(Form, frozen=True, kw_only=True):
    """`[model]`: which model goes into the image."""

    name: Annotated[Name, Meta(description="The model's name in its store.")]
    store: Annotated[
        str,
        Meta(
            description="Where models are published: a folder, `az://ACCOUNT/CONTAINER/PREFIX`, `s3://BUCKET/PREFIX`, "
            "`mlflow+https://HOST/PREFIX`, or the tracking address of an Azure ML workspace, `azureml://…`."
        ),
    ]
    alias: Annotated[Name, Meta(description="The alias that a release follows.")] = "latest"
    contract: Annotated[
        str | None, Meta(description="A JSON file of the service: the inputs and outputs it understands.")
    ] = None
    trusted_keys: Annotated[
        tuple[str, ...],
        Meta(
            description="Public keys, `ed25519:…` or files that hold one: versions that none of them signed are "
            "refused. Empty: no signature is asked for."
        ),
    ] = ()
    signing_key: Annotated[
        str | None,
        Meta(description="The file with the private key that publishing signs with; `invoke model.keygen` makes one."),
    ] = None
    signing_key_variable: Annotated[
        str, Meta(description="The variable that holds that private key (PEM) where no file does.")
    ] = "MODEL_SIGNING_KEY"
    azure_credential: Annotated[
        AzureCredential, Meta(description=f"The one Azure credential that the store is read with: {_CREDENTIALS}.")
    ] = "cli"
    token_variable: Annotated[str, Meta(description="The variable that holds MLflow's token.")] = (
        "MLFLOW_TRACKING_TOKEN"  # noqa: S105 - its name
    )
    user_variable: Annotated[str, Meta(description="The variable that holds MLflow's user.")] = (
        "MLFLOW_TRACKING_USERNAME"
    )
    password_variable: Annotated[str, Meta(description="The variable that holds its password.")] = (
        "MLFLOW_TRACKING_PASSWORD"  # noqa: S105 - its name
    )
    profile: Annotated[str | None, Meta(description="The profile in AWS's files; unset is AWS's usual chain.")] = None
    region: Annotated[
        str | None, Meta(description="The bucket's region; unset is what AWS's variables and files say.")
    ] = None
    endpoint: Annotated[
        Annotated[str, Meta(pattern=r"^https?://[^\s@?#]+\Z")] | None,
        Meta(
            description="The store's address, where it is not the provider's own: another cloud, or a server of ours."
        ),
    ] = None
    authority: Annotated[
        str | None, Meta(description="A PEM file: the certificate authority of a store that no public one vouches for.")
    ] = None
    cache_gb: Annotated[
        Positive,
        Meta(description="How much fetched models may take on this disk, besides those that are in use."),
    ] = 20.0


class ImageSettings(Form, frozen=True, kw_only=True):
    """`[image]`: what the image is made of."""

    builder: Annotated[
        Literal["layers", "docker"],
        Meta(description="`layers` composes the image without Docker; `docker` builds the whole Dockerfile."),
    ] = "layers"
    base: Annotated[
        str,
        Meta(
            description="What the layers stand on: `scratch`; an image by digest, `HOST/NAME@sha256:…`; "
            "`layout:FOLDER@sha256:…`, one on disk; or `Dockerfile`, whose stage `base` is built by Docker "
            "when the registry has not got it."
        ),
    ] = "scratch"
    build_args: Annotated[Mapping[str, str], Meta(description="Build arguments for the Dockerfile; no secrets.")] = {}
    python: Annotated[
        str,
        Meta(pattern=r"^(host|3\.\d+)\Z", description="The image's Python, such as `3.13`; `host` is this machine's."),
    ] = "host"
    platform: Annotated[
        str,
        Meta(
            pattern=r"^(host|linux/amd64|linux/arm64)\Z", description="The image's platform; `host` is this machine's."
        ),
    ] = "host"
    requirements: Annotated[str, Meta(description="Hash-locked requirements of the service.")] = "app/requirements.txt"
    include: Annotated[tuple[str, ...], Meta(description="Committed folders that make the app layer.")] = ("app",)
    user: Annotated[
        str, Meta(description="The user and group the service runs as; never 0.", pattern=r"^[1-9]\d*:[1-9]\d*\Z")
    ] = "65532:65532"
    environment: Annotated[
        Mapping[str, str], Meta(description="More environment variables for the service; no secrets.")
    ] = {}


class ServiceSettings(Form, frozen=True, kw_only=True):
    """`[service]`: what the service owes shipway."""

    command: Annotated[
        Command, Meta(description="Starts the service from `/srv`; it listens on `$PORT` and stops on SIGTERM.")
    ]
    port: Annotated[Port, Meta(description="`$PORT` in a container.")] = 8080
    ports: Annotated[
        Mapping[str, Port], Meta(description="More port variables, by name; on one host each version gets its own.")
    ] = {}
    ready_path: Annotated[UrlPath, Meta(description="Answers 200 when ready for users.")] = "/readyz"
    version_path: Annotated[UrlPath, Meta(description="Answers JSON that holds the build id (`$SHIPWAY_BUILD`).")] = (
        "/version"
    )
    build_field: Annotated[str, Meta(description="The build id's field in that JSON.")] = "build"
    start_timeout_s: Annotated[Seconds, Meta(description="How long a version may take until it is ready.")] = 90.0
    drain_timeout_s: Annotated[
        Seconds, Meta(description="How long an old version may take to finish its requests.")
    ] = 30.0


class PushSettings(Form, frozen=True, kw_only=True):
    """`[push]`: where images go."""

    repository: Annotated[
        str,
        Meta(
            description="`layout`: the OCI image layout in `.shipway/images`; "
            "or a repository of a registry, `HOST/NAME`."
        ),
    ] = "layout"
    login: Annotated[
        Literal["auto", "anonymous", "environment", "docker", "azure"],
        Meta(
            description="Where the registry's credential comes from: `environment` (the two variables below), `docker` "
            "(its configuration and credential helpers), `azure`, `anonymous` (none), or `auto`: the variables where "
            "they are set, else Docker's, else none."
        ),
    ] = "auto"
    user_variable: Annotated[str, Meta(description="The variable that holds the user's name.")] = "REGISTRY_USER"
    password_variable: Annotated[str, Meta(description="The variable that holds the password or token.")] = (
        "REGISTRY_PASSWORD"  # noqa: S105 - its name
    )
    azure_credential: Annotated[
        AzureCredential, Meta(description=f'The one Azure credential that `login = "azure"` uses: {_CREDENTIALS}.')
    ] = "cli"
    token_services: Annotated[
        tuple[str, ...],
        Meta(
            description="Hosts besides the registry's own that its credential may be sent to, "
            "such as `gitlab.example` for `registry.gitlab.example`."
        ),
    ] = ()
    authority: Annotated[
        str | None,
        Meta(description="A PEM file: the certificate authority of a registry that no public one vouches for."),
    ] = None
    keep: Annotated[
        int,
        Meta(
            ge=2,
            description="Images kept besides those that run: so many that served, and so many that were pushed last.",
        ),
    ] = 10


class RolloutSettings(Form, frozen=True, kw_only=True):
    """`[rollout]`: where versions run."""

    target: Annotated[
        Literal["local", "kubernetes", "swarm"], Meta(description="What runs them: `local` or `kubernetes`.")
    ] = "local"
    host: Annotated[str, Meta(description="The public address on this machine (target `local`).")] = "127.0.0.1"
    port: Annotated[Port, Meta(description="The public port on this machine (target `local`).")] = 8080
    listen: Annotated[
        Command,
        Meta(description="Arguments that make the service accept on the shared socket `{fd}` (target `local`)."),
    ] = ("--bind", "fd://{fd}")
    lock_s: Annotated[Seconds, Meta(description="A lock that is not renewed for this long may be taken over.")] = 30.0
    proofs: Annotated[int, Meta(ge=1, description="How often in a row the right build must answer.")] = 8
    context: Annotated[
        str | None,
        Meta(description="The context of kubectl's configuration; never the current one (target `kubernetes`)."),
    ] = None
    server: Annotated[
        str | None, Meta(description="The API server's address that this context must have (target `kubernetes`).")
    ] = None
    namespace: Annotated[Label | None, Meta(description="The namespace of everything (target `kubernetes`).")] = None
    overlay: Annotated[str, Meta(description="The kustomize folder that is applied (target `kubernetes`).")] = (
        "k8s/base"
    )
    deployment: Annotated[
        Label | None,
        Meta(description="The Deployment in it that runs the service; unset is `project.name` (target `kubernetes`)."),
    ] = None
    container: Annotated[
        str | None,
        Meta(description="The container in it that gets the image; unset is its first (target `kubernetes`)."),
    ] = None
    pull_from: Annotated[
        str | None,
        Meta(description="The repository as nodes know it; unset is `[push] repository` (target `kubernetes`)."),
    ] = None
    url: Annotated[
        Url | None, Meta(description="The public address; unset is the load balancer's own (target `kubernetes`).")
    ] = None
    address_timeout_s: Annotated[
        Seconds, Meta(description="How long a new address or name may take until it answers (target `kubernetes`).")
    ] = 300.0


class LoadCheckSettings(Form, frozen=True, kw_only=True):
    """`[loadcheck]`: the load, and the figures that a version must meet."""

    locustfile: Annotated[str, Meta(description="The Locust users.")] = "loadtests/locustfile.py"
    requirements: Annotated[
        str,
        Meta(
            description="Hash-locked requirements of a load generator in the cluster: Locust, "
            "and what the users import."
        ),
    ] = "loadtests/requirements.txt"
    users: Annotated[int, Meta(ge=1, le=10_000, description="Simulated users at once.")] = 4
    rate: Annotated[
        Positive | None,
        Meta(description="Requests per second in all; unset is as fast as answers come."),
    ] = None
    seconds: Annotated[Seconds, Meta(description="How long the candidate is measured.")] = 10.0
    public_seconds: Annotated[Seconds, Meta(description="How long the public address is measured after promotion.")] = (
        5.0
    )
    warmup_seconds: Annotated[float, Meta(ge=0, description="Load before the measurement, not counted.")] = 2.0
    max_failure_ratio: Annotated[Ratio, Meta(description="Failed requests, as a share of all.")] = 0.0
    max_p95_ms: Annotated[float, Meta(gt=0, description="The slowest acceptable 95th percentile.")] = 1000.0
    max_p95_growth: Annotated[
        Annotated[float, Meta(gt=1)] | None,
        Meta(description="The 95th percentile may be this many times the last release's."),
    ] = 2.0
    min_rate: Annotated[float, Meta(ge=0, description="The lowest acceptable requests per second.")] = 0.0
    min_requests: Annotated[int, Meta(ge=1, description="With fewer, the check is inconclusive.")] = 50


class Settings(Form, frozen=True, kw_only=True):
    """All settings of one environment."""

    project: ProjectSettings
    test: SuiteSettings = SuiteSettings()
    model: ModelSettings
    image: ImageSettings = ImageSettings()
    service: ServiceSettings
    push: PushSettings = PushSettings()
    rollout: RolloutSettings = RolloutSettings()
    loadcheck: LoadCheckSettings = LoadCheckSettings()


class Loaded(Struct, frozen=True, kw_only=True):
    """One environment's settings, and where each value came from (by key path)."""

    environment: str
    settings: Settings
    sources: Mapping[str, str]

    def rows(self) -> Iterator[tuple[str, Any, str]]:
        """Yield (key path, value, source) for every setting in force."""
        for table, values in documents.plain(self.settings).items():
            for key, value in values.items():
                path = f"{table}.{key}"
                yield path, value, self.sources.get(path, "default")

    def with_store(self, store: str) -> Self:
        """Return the same settings with another model store."""
        model = replace(self.settings.model, store=store)
        return replace(self, settings=replace(self.settings, model=model))


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
        settings = documents.convert(Settings, merged, texts=True)
    except Malformed as error:
        mistakes += [_told(mistake, sources) for mistake in error.mistakes]
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
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError, OSError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error


def _default_environment(document: Mapping[str, Any]) -> str:
    project = document.get("project")
    name = project.get("environment", "local") if isinstance(project, dict) else "local"
    return name if isinstance(name, str) else "local"


def _from_variables(environ: Mapping[str, str], mistakes: list[str]) -> dict[str, dict[str, Any]]:
    """Return what `SHIPWAY_<TABLE>_<KEY>` variables set: text, or TOML where it is quoted, a list or a table."""
    ours = [variable for variable in environ if variable.startswith(PREFIX) and variable not in RESERVED]
    known = {f"{PREFIX}{path.replace('.', '_').upper()}": path for path in _paths()} if ours else {}
    tables: dict[str, dict[str, Any]] = {}
    for variable in ours:
        if variable not in known:
            mistakes.append(f"{variable}: no such variable{_nearest(variable, known)}")
            continue
        table, _, key = known[variable].partition(".")
        tables.setdefault(table, {})[key] = _toml_value(environ[variable])
    return tables


def _toml_value(text: str) -> Any:
    if not text.startswith(("[", "{", '"', "'")):
        return text  # `3.13` may be a Python's version; where it is a number, it becomes one
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except (tomllib.TOMLDecodeError, RecursionError):
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
        f"{table}.{key}" for table, field in documents.fields(Settings).items() for key in documents.keys(field.type)
    ]


def _unknown_keys(tables: Mapping[str, Any], prefix: str) -> Iterator[str]:
    """Tell the unknown keys of an environment that is not the chosen one, too."""
    known = documents.fields(Settings)
    for table, values in tables.items():
        if table not in known:
            yield f"{prefix}{table}: no such table{_nearest(table, known)}"
        elif isinstance(values, dict):
            for key in values:
                if key not in documents.keys(known[table].type):
                    yield f"{prefix}{table}.{key}: no such key{_nearest(f'{table}.{key}', _paths())}"


def _told(mistake: Mistake, sources: Mapping[str, str]) -> str:
    path = mistake.path
    if mistake.is_unknown and "." not in path:
        return f"{path}: no such table{_nearest(path, documents.keys(Settings))}"
    if mistake.is_unknown:
        return f"{mistake}{_nearest(path, _paths())}"
    if mistake.is_missing:
        return str(mistake)
    source = next((f" (from {sources[name]})" for name in (path, path.rpartition(".")[0]) if name in sources), "")
    return f"{path} = {repr(mistake.given)[:60]}: {mistake.what}{source}"


def _nearest(word: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(word, list(known), n=1)
    return f"; did you mean {near[0]}?" if near else ""


def _count(number: int) -> str:
    return "a mistake" if number == 1 else f"{number} mistakes"
