"""Where the credential for a registry is found: variables, Docker's configuration, Azure.

Owns the order in which they are looked at, and the secret's way from there: as a `Secret`,
which shows in no message. Knows nothing of what a credential is used for. On failure:
`LoginMissing`, which names the file, the helper program or the Azure credential, and what
to type. Whatever answers from outside has ten seconds.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Final, Literal

from msgspec import Struct

from shipway import entra
from shipway.config import PushSettings
from shipway.entra import DEADLINE_S, TokenSource
from shipway.errors import LoginMissing, ToolFailed, ToolMissing
from shipway.proc import Run

_AZURE_SCOPE = "https://containerregistry.azure.net/.default"
_HEADER = re.compile(r"[!-~]+")
_TEXT = re.compile(r"[^\ud800-\udfff]*")  # a variable, or JSON, may hold what is no Unicode


class Secret:
    """A text that nobody sees by accident: neither `str` nor `repr` shows it."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        """Hide the text."""
        self._text: Final = text

    def reveal(self) -> str:
        """Return the text, to be sent and nothing else."""
        return self._text

    def __repr__(self) -> str:
        return "Secret(…)"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and other._text == self._text

    def __hash__(self) -> int:
        return hash(self._text)


class Credential(Struct, frozen=True, kw_only=True):
    """What proves who we are to one registry; `source` says in words where it was found.

    An `identity` token buys tokens from the token service, as a password does; a `bearer`
    token is sent to the registry as it is.
    """

    source: str
    kind: Literal["password", "identity", "bearer"] = "password"
    user: str = ""
    secret: Secret
    advice: str

    def __post_init__(self) -> None:
        """Refuse what no request can hold: whoever tried to send it would quote it."""
        sendable = _HEADER if self.kind == "bearer" else _TEXT
        if not (sendable.fullmatch(self.secret.reveal()) and _TEXT.fullmatch(self.user)):
            raise LoginMissing(f"{self.source}: what is there holds characters that no login has", advice=self.advice)

    def __str__(self) -> str:
        return f"{self.user}, from {self.source}" if self.user else self.source


class AzureCredential(Struct, frozen=True, kw_only=True):
    """Azure's word for who we are; `entra` asks for a token of Entra ID and may take its time."""

    source: str
    entra: Callable[[], Secret]
    advice: str

    def __str__(self) -> str:
        return self.source


def find_credential(
    host: str,
    *,
    settings: PushSettings,
    environ: Mapping[str, str],
    proc: Run,
    azure: Callable[[str], TokenSource] | None = None,
) -> Credential | AzureCredential | None:
    """Return the credential for `HOST[:PORT]`, or `None` for none.

    For another host than that of `settings.repository`, Docker's configuration alone is
    looked at: the settings speak of the repository. `azure` makes the object of a
    credential's name; azure-identity by default. Raises `LoginMissing`.
    """
    if host != settings.repository.partition("/")[0]:
        return _from_docker(host, environ, proc)
    match settings.login:
        case "anonymous":
            return None
        case "azure":
            return _from_azure(settings, environ, azure)
        case "environment":
            found = _from_variables(settings, environ)
            where = f"{settings.user_variable} and {settings.password_variable} are not both set"
        case "docker":
            found = _from_docker(host, environ, proc)
            where = f"there is nothing for {host} in {' or '.join(map(str, _docker_files(environ)))}"
        case "auto":
            return _from_variables(settings, environ) or _from_docker(host, environ, proc)
    if found is None:
        raise LoginMissing(f"[push] login = {settings.login!r}, and {where}", advice=_advice(settings, host))
    return found


def _from_variables(settings: PushSettings, environ: Mapping[str, str]) -> Credential | None:
    user, password = environ.get(settings.user_variable), environ.get(settings.password_variable)
    if not user or not password:
        return None
    names = f"{settings.user_variable} and {settings.password_variable}"
    return Credential(
        source=f"the variables {names}",
        user=user,
        secret=Secret(password),
        advice=f"set {names} to a login that may do this, then invoke doctor",
    )


def _from_azure(
    settings: PushSettings, environ: Mapping[str, str], make: Callable[[str], TokenSource] | None
) -> AzureCredential:
    found = entra.identity(
        settings.azure_credential, role="AcrPush", setting='[push] login = "azure"', environ=environ, make=make
    )
    return AzureCredential(
        source=str(found), entra=lambda: Secret(found.token(_AZURE_SCOPE).token), advice=found.advice
    )


def _from_docker(host: str, environ: Mapping[str, str], proc: Run) -> Credential | None:
    for path in _docker_files(environ):
        document = _read(path)
        helper = _table(document, "credHelpers", path).get(host) or document.get("credsStore")
        if helper and (found := _from_helper(str(helper), host, path, environ, proc)):
            return found
        for key, entry in _table(document, "auths", path).items():
            if _means(key, host) and (found := _from_entry(entry, host, path)):
                return found
    return None


def _docker_files(environ: Mapping[str, str]) -> list[Path]:
    """Return where Docker and Podman keep what their `login` was told."""
    home = Path(environ.get("HOME") or Path.home())
    files = [Path(environ.get("DOCKER_CONFIG") or home / ".docker") / "config.json"]
    if runtime := environ.get("XDG_RUNTIME_DIR"):
        files.append(Path(runtime) / "containers" / "auth.json")
    return files


def _read(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise _unreadable(path, type(error).__name__) from None  # the error itself would quote the file
    if not isinstance(document, dict):
        raise _unreadable(path, "no JSON object")
    return document


def _table(document: Mapping[str, Any], key: str, path: Path) -> Mapping[str, Any]:
    table = document.get(key) or {}
    if not isinstance(table, dict):
        raise _unreadable(path, f"{key} is no JSON object")
    return table


def _unreadable(path: Path, why: str) -> LoginMissing:
    return LoginMissing(f"{path} cannot be read ({why})", advice="mend or delete it, then docker login again")


def _means(key: str, host: str) -> bool:
    """Tell whether a key of `auths` is this host's: `host`, `https://host` and `https://host/v1/` are in use."""
    name, _, path = key.removeprefix("https://").removeprefix("http://").partition("/")
    return name == host and path.strip("/") in {"", "v1", "v2"}


def _from_entry(entry: Any, host: str, path: Path) -> Credential | None:
    """Return what an entry of `auths` holds; an empty one says only that a helper knows."""
    if not isinstance(entry, dict):
        raise _unreadable(path, f"the entry of {host} is no JSON object")
    made = partial(Credential, source=f"Docker's configuration, {path}", advice=_docker_login(host))
    user, password = str(entry.get("username", "")), str(entry.get("password", ""))
    if packed := entry.get("auth"):
        try:
            user, _, password = base64.b64decode(str(packed), validate=True).decode("utf-8").partition(":")
        except ValueError:
            raise _unreadable(path, f"the auth of {host} is not base64") from None
    if token := entry.get("registrytoken"):
        return made(kind="bearer", secret=Secret(str(token)))
    if token := entry.get("identitytoken"):
        return made(kind="identity", secret=Secret(str(token)))
    return made(user=user, secret=Secret(password)) if user and password else None


def _from_helper(helper: str, host: str, path: Path, environ: Mapping[str, str], proc: Run) -> Credential | None:
    """Ask a credential helper: https://github.com/docker/docker-credential-helpers has the protocol.

    What it prints is a message where its exit code is not 0, and the secret where it is.
    """
    program = f"docker-credential-{helper}"
    failed = f"{program}, which {path} names, gave no credential for {host}"
    try:
        said = proc.run([program, "get"], stdin=host.encode(), env=environ, timeout_s=DEADLINE_S)
    except ToolMissing as error:
        raise LoginMissing(f"{failed}: there is no such program", advice=f"install {program}") from error
    except ToolFailed as error:
        raise LoginMissing(failed, tail=error.tail, advice=_docker_login(host)) from error
    if said.code != 0:
        message = said.stdout.decode("utf-8", "replace").strip()
        if "credentials not found" in message:
            return None
        raise LoginMissing(failed, tail=message[:200] or said.tail, advice=_docker_login(host))
    try:
        answer = json.loads(said.stdout)
        user, secret = str(answer["Username"]), Secret(str(answer["Secret"]))
    except (ValueError, TypeError, KeyError, RecursionError):
        raise LoginMissing(f"{failed}: what it said is no credential", advice=_docker_login(host)) from None
    made = partial(Credential, source=f"Docker's configuration, helper {helper}", advice=_docker_login(host))
    return made(kind="identity", secret=secret) if user == "<token>" else made(user=user, secret=secret)


def _advice(settings: PushSettings, host: str) -> str:
    if settings.login == "docker":
        return _docker_login(host)
    return f"set {settings.user_variable} and {settings.password_variable}, then invoke doctor"


def _docker_login(host: str) -> str:
    return f"docker login {host}, then invoke doctor"
