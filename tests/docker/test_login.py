"""Logins at real registries: who gets in, what is said to who does not, and where no credential goes."""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from shipway.errors import LoginMissing, RegistryRefused, RegistryUnreachable
from shipway.oci.compose import TAR
from shipway.oci.images import described
from tests.docker import client, registries
from tests.docker.authority import Authority
from tests.docker.registries import NAME, PASSWORD, PROGRAMS, USER, Registry
from tests.docker.tokens import ENTRA_TOKEN, SERVICE, Signer, TokenServer, serving
from tests.docker.tunnel import tunnel

SMALL = b"hello"
LONG = os.urandom(3 << 20)
LIFE_S, SLOW_S = 2, 4.0  # a token's life, and how long the long blob takes
PUSH, BASE = "repository:team/thing:push,pull", "repository:team/base:pull"

NOBODY = {"DOCKER_CONFIG": "/nonexistent"}
VARIABLES = {**NOBODY, "REGISTRY_USER": USER, "REGISTRY_PASSWORD": PASSWORD}


@dataclass(frozen=True, kw_only=True)
class Guarded:
    """A registry without TLS that sends everybody to a token service; `environ` has no credential yet."""

    registry: Registry
    tokens: TokenServer
    folder: Path

    @property
    def asked(self) -> list[tuple[str, ...]]:
        """What the token service was asked for, in order."""
        return [(asked.method, asked.path, *asked.scopes) for asked in self.tokens.asked]

    def push(self, data: bytes = SMALL, source: Callable[[], Iterator[bytes]] | None = None, **how: Any) -> int:
        """Push a blob with a client that knows nothing yet."""
        with client.opened(self.registry, "team/thing", **how) as images:
            return images.add(described(data, TAR), source or (lambda: iter([data])))

    def docker(self, document: object) -> dict[str, str]:
        """Write a Docker configuration, and return the variable that names it."""
        (self.folder / "config.json").write_text(json.dumps(document), "utf-8")
        return {"DOCKER_CONFIG": str(self.folder)}

    def program(self, name: str, script: str) -> dict[str, str]:
        """Put a program on a PATH, and return that."""
        (self.folder / "bin").mkdir()
        path = self.folder / "bin" / name
        path.write_text(f"#!/bin/sh\n{script}\n", "utf-8")
        path.chmod(0o755)
        return {"PATH": f"{path.parent}:{os.environ['PATH']}"}


@pytest.fixture(params=PROGRAMS)
def program(request: pytest.FixtureRequest) -> Path:
    return PROGRAMS[request.param]()


@contextlib.contextmanager
def _guarded(program: Path, folder: Path, realm: str) -> Iterator[Guarded]:
    tokens = TokenServer(signer=Signer(folder / "signer"))
    place = folder / "registry"
    with (
        serving(tokens),
        registries.running(program, place, auth=registries.token_auth(tokens, tokens.url + realm)) as port,
    ):
        registry = Registry(
            address=f"127.0.0.1:{port}", storage=place / "storage", log=place / "log", environ=NOBODY, tokens=tokens
        )
        yield Guarded(registry=registry, tokens=tokens, folder=folder)


@pytest.fixture
def bearer(program: Path, tmp_path: Path) -> Iterator[Guarded]:
    with _guarded(program, tmp_path, "/token") as guarded:
        yield guarded


@pytest.fixture
def azure(program: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Guarded]:
    """Give a registry with Azure's token service, on a machine where somebody has said `az login`."""
    answer = {"accessToken": ENTRA_TOKEN, "expiresOn": "2099-01-01 00:00:00.000000", "expires_on": 4_070_908_800}
    with _guarded(program, tmp_path, "/oauth2/token") as guarded:
        said = guarded.folder / "az.json"
        said.write_text(json.dumps(answer), "utf-8")
        for variable, value in guarded.program("az", f'echo "$@" >> "{tmp_path}/az.log"; cat "{said}"').items():
            monkeypatch.setenv(variable, value)
        yield guarded


def _slowly(pause_s: float = SLOW_S) -> Iterator[bytes]:
    """Yield the long blob's bytes evenly over the time."""
    pieces = [LONG[start : start + (1 << 18)] for start in range(0, len(LONG), 1 << 18)]
    for piece in pieces:
        threading.Event().wait(pause_s / len(pieces))
        yield piece


# -- a user and a password -----------------------------------------------------------------


@pytest.fixture(params=["debian-password", "v3-password", "debian-token", "v3-token"])
def locked(running: Callable[[str], Registry], request: pytest.FixtureRequest) -> Registry:
    return running(request.param)


def _push(registry: Registry, **how: Any) -> None:
    with client.opened(registry, "team/thing", **how) as images:
        data = os.urandom(16)  # the registries are shared, and what is there is not sent
        images.add(described(data, TAR), lambda: [data])


@pytest.mark.parametrize("login", ["auto", "environment"])
def test_variables_let_in_when_they_hold_the_password(locked: Registry, login: str) -> None:
    _push(locked, environ=VARIABLES, login=login)


def test_helper_on_the_path_lets_in_when_docker_names_it(bearer: Guarded) -> None:
    secret = json.dumps({"ServerURL": bearer.registry.address, "Username": USER, "Secret": PASSWORD})
    environ = bearer.program("docker-credential-mine", f"test $(cat) = {bearer.registry.address} && echo '{secret}'")
    environ |= bearer.docker({"credsStore": "mine"})

    with client.opened(bearer.registry, "team/thing", environ=environ) as images:
        said = images.examined()

    assert said.endswith("team/thing takes images, with alice, from Docker's configuration, helper mine")


def test_identity_token_lets_in_when_docker_has_one(bearer: Guarded) -> None:
    environ = bearer.docker({"auths": {bearer.registry.address: {"identitytoken": bearer.tokens.identity_token}}})

    assert bearer.push(environ=environ) == len(SMALL)
    assert bearer.asked == [("POST", "/token", PUSH)]


def test_error_names_the_login_when_the_password_is_wrong(locked: Registry) -> None:
    wrong = VARIABLES | {"REGISTRY_PASSWORD": "open barley"}

    with pytest.raises(RegistryRefused) as caught:
        _push(locked, environ=wrong)

    assert caught.value.code == 45
    assert "alice, from the variables REGISTRY_USER and REGISTRY_PASSWORD" in caught.value.message
    assert caught.value.next.startswith("set REGISTRY_USER and REGISTRY_PASSWORD")
    assert "barley" not in str(caught.value)


def test_error_says_what_to_type_when_there_is_no_credential(locked: Registry) -> None:
    with pytest.raises((LoginMissing, RegistryRefused)) as caught:
        _push(locked, environ=NOBODY)

    assert "no credential" in caught.value.message
    assert caught.value.next.startswith(f"docker login {locked.address}")


def test_examination_says_no_when_the_login_may_only_read(bearer: Guarded) -> None:
    environ = NOBODY | {"REGISTRY_USER": "bob", "REGISTRY_PASSWORD": "look only"}

    with (
        client.opened(bearer.registry, "team/thing", environ=environ) as images,
        pytest.raises(RegistryRefused, match=r"POST .* \(bob, from the variables"),
    ):
        images.examined()


def test_everybody_may_read_when_the_token_service_says_so(bearer: Guarded) -> None:
    bearer.push(environ=VARIABLES)

    with client.opened(bearer.registry, "team/thing", login="anonymous") as images:
        assert b"".join(images.pieces(described(SMALL, TAR))) == SMALL
    assert [asked.authorization is None for asked in bearer.tokens.asked] == [False, True]


# -- tokens that end ------------------------------------------------------------------------


def test_push_scope_comes_first_when_a_layer_is_mounted(bearer: Guarded) -> None:
    with client.opened(bearer.registry, "team/base", environ=VARIABLES) as base:
        base.add(described(SMALL, TAR), lambda: [SMALL])
    bearer.tokens.asked.clear()

    with client.opened(bearer.registry, "team/thing", environ=VARIABLES) as images:
        assert images.add(described(SMALL, TAR), lambda: pytest.fail("mounted"), origins=["team/base"]) == 0

    assert bearer.asked == [("GET", "/token", PUSH), ("GET", "/token", PUSH, BASE)]


@pytest.mark.parametrize("says_s", [LIFE_S, 3600, None], ids=["tells", "lies", "silent"])
def test_upload_arrives_when_its_token_ends_on_the_way(bearer: Guarded, says_s: float | None) -> None:
    bearer.tokens.life_s, bearer.tokens.says_s = LIFE_S, says_s

    assert bearer.push(LONG, _slowly, environ=VARIABLES) == len(LONG)

    assert len(bearer.asked) >= 2
    assert set(bearer.asked) == {("GET", "/token", PUSH)}


def test_one_token_serves_when_several_blobs_move_at_once(bearer: Guarded) -> None:
    blobs = [os.urandom(1 << 16) for _ in range(8)]
    with client.opened(bearer.registry, "team/thing", environ=VARIABLES) as images:
        threads = [
            threading.Thread(target=images.add, args=(described(data, TAR), partial(list, [data]))) for data in blobs
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert all(images.has(described(data, TAR)) for data in blobs)

    assert bearer.asked == [("GET", "/token", PUSH), ("GET", "/token", "repository:team/thing:pull")]


def test_push_goes_on_when_the_token_service_was_busy(bearer: Guarded) -> None:
    bearer.tokens.failures = [503, 500]

    assert bearer.push(environ=VARIABLES) == len(SMALL)
    assert [asked.status for asked in bearer.tokens.asked] == [503, 500, 200]


# -- Azure --------------------------------------------------------------------------------


def test_azure_lets_in_when_the_upload_outlives_its_token(azure: Guarded) -> None:
    azure.tokens.life_s = LIFE_S

    assert azure.push(LONG, _slowly, login="azure") == len(LONG)

    exchange, *tokens = azure.tokens.asked
    assert exchange.path == "/oauth2/exchange"
    assert exchange.form == {"grant_type": "access_token", "service": SERVICE, "access_token": ENTRA_TOKEN}
    assert len(tokens) >= 2
    assert {(asked.path, asked.scopes, asked.form["grant_type"], asked.status) for asked in tokens} == {
        ("/oauth2/token", (PUSH,), "refresh_token", 200)
    }
    assert ENTRA_TOKEN not in [value for asked in tokens for value in asked.form.values()]
    assert (azure.folder / "az.log").read_text("utf-8").split().count("get-access-token") == 1


def test_azure_is_asked_anew_when_the_refresh_token_ends_in_an_upload(azure: Guarded) -> None:
    azure.tokens.life_s = LIFE_S

    def forgetful() -> Iterator[bytes]:
        for number, piece in enumerate(_slowly()):
            if number == 6:
                azure.tokens.forget()
            yield piece

    assert azure.push(LONG, forgetful, login="azure") == len(LONG)
    assert [asked.path for asked in azure.tokens.asked].count("/oauth2/exchange") == 2


def test_azure_takes_two_scopes_when_a_layer_is_mounted(azure: Guarded) -> None:
    with client.opened(azure.registry, "team/base", login="azure") as base:
        base.add(described(SMALL, TAR), lambda: [SMALL])

    with client.opened(azure.registry, "team/thing", login="azure") as images:
        assert images.add(described(SMALL, TAR), lambda: pytest.fail("mounted"), origins=["team/base"]) == 0
        assert images.examined().endswith("team/thing takes images, with Azure's AzureCliCredential")

    assert ("POST", "/oauth2/token", PUSH, BASE) in azure.asked


def test_error_says_what_to_type_when_az_is_not_logged_in(azure: Guarded) -> None:
    (azure.folder / "bin" / "az").write_text("#!/bin/sh\necho \"Please run 'az login'\" >&2\nexit 1\n", "utf-8")

    with pytest.raises(LoginMissing) as caught:
        azure.push(login="azure")

    assert caught.value.code == 3
    assert caught.value.message == "Azure's AzureCliCredential gave no token"
    assert caught.value.tail.startswith("Please run 'az login'")
    assert azure.asked == []


def test_error_comes_in_ten_seconds_when_az_hangs(azure: Guarded) -> None:
    (azure.folder / "bin" / "az").write_text("#!/bin/sh\nexec sleep 30\n", "utf-8")
    began = time.monotonic()

    with pytest.raises(LoginMissing, match="Azure's AzureCliCredential gave no token"):
        azure.push(login="azure")

    assert time.monotonic() - began < 12


def test_error_is_azures_own_when_the_registry_refuses_the_exchange(azure: Guarded) -> None:
    azure.tokens.entra_token = "another tenant's"  # noqa: S105 - made up

    with pytest.raises(RegistryRefused, match="refused Azure's AzureCliCredential: 401 AADSTS") as caught:
        azure.push(login="azure")

    assert ENTRA_TOKEN not in str(caught.value)


# -- where no credential goes --------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Elsewhere:
    """A registry with TLS, whose realm can be anywhere, and a token service on another host that listens."""

    start: Callable[[str], contextlib.AbstractContextManager[Registry]]
    own: TokenServer
    other: TokenServer


@pytest.fixture
def elsewhere(program: Path, tmp_path: Path) -> Iterator[Elsewhere]:
    authority, signer = Authority(tmp_path / "tls"), Signer(tmp_path / "signer")
    own, other = TokenServer(signer=signer), TokenServer(signer=signer)
    mine = authority.issue(NAME)

    @contextlib.contextmanager
    def start(realm: str) -> Iterator[Registry]:
        place = tmp_path / "registry"
        with registries.running(program, place, auth=registries.token_auth(own, realm), tls=mine) as port:
            yield Registry(
                address=f"{NAME}:{port}",
                storage=place / "storage",
                log=place / "log",
                environ={**VARIABLES, "HTTPS_PROXY": proxy},
                authority=authority.pem,
            )

    with (
        tunnel() as proxy,
        serving(own, host=NAME, tls=mine.server_context()),
        serving(other, host="elsewhere.test", tls=authority.issue("elsewhere.test").server_context()),
    ):
        yield Elsewhere(start=start, own=own, other=other)


def test_credential_stays_when_the_realm_is_on_another_host(elsewhere: Elsewhere) -> None:
    with elsewhere.start(f"{elsewhere.other.url}/token") as registry, pytest.raises(RegistryRefused) as caught:
        _push(registry)

    host = elsewhere.other.url.removeprefix("https://")
    assert f"asks to log in at {host}, another host: alice" in caught.value.message
    assert caught.value.next == f'if that is its token service, set [push] token_services = ["{host}"]'
    assert elsewhere.other.asked == []


def test_credential_goes_to_another_host_when_the_settings_name_it(elsewhere: Elsewhere) -> None:
    with elsewhere.start(f"{elsewhere.other.url}/token") as registry:
        _push(registry, token_services=["elsewhere.test"])

    assert [asked.status for asked in elsewhere.other.asked] == [200]


def test_nobody_is_asked_when_the_realm_is_http(elsewhere: Elsewhere, tmp_path: Path) -> None:
    plain = TokenServer(signer=Signer(tmp_path / "other-signer"))
    with (
        serving(plain),
        elsewhere.start(f"{plain.url}/token") as registry,
        pytest.raises(RegistryRefused, match="no https address: nothing was sent"),
    ):
        _push(registry)

    assert plain.asked == []


def test_redirect_is_not_followed_when_the_token_service_sends_one(elsewhere: Elsewhere) -> None:
    elsewhere.own.redirect_to = f"{elsewhere.other.url}/token"
    with elsewhere.start(f"{elsewhere.own.url}/token") as registry, pytest.raises(RegistryRefused, match="sends alice"):
        _push(registry)

    assert (len(elsewhere.own.asked), elsewhere.other.asked) == (1, [])


# -- certificates ---------------------------------------------------------------------------


@pytest.mark.parametrize("wrong", [False, True], ids=["none", "another"])
def test_error_names_the_setting_when_the_authority_is_wrong(elsewhere: Elsewhere, tmp_path: Path, wrong: bool) -> None:  # noqa: FBT001 - a case
    authority = str(Authority(tmp_path / "another").pem) if wrong else None
    with elsewhere.start(f"{elsewhere.own.url}/token") as registry, pytest.raises(RegistryUnreachable) as caught:
        _push(registry, authority=authority)

    assert "certificate is not trusted" in caught.value.message
    assert caught.value.next == "name the certificate authority's PEM file in [push] authority"
    assert elsewhere.own.asked == []
