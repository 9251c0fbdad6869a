"""Challenges and tokens: who is asked for what, how often, and where no credential goes."""

from __future__ import annotations

import base64
import ssl
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any
from urllib.parse import parse_qsl

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shipway.errors import LoginMissing, RegistryRefused, RegistryUnreachable
from shipway.oci.address import Url
from shipway.oci.credentials import AzureCredential, Credential, Secret
from shipway.oci.login import Challenge, Login, parse_challenges
from tests.httpx_client import FakeClient

REGISTRY = "https://registry.example"
REALM = "https://registry.example/token"
PUSH, BASE = "repository:team/thing:pull,push", "repository:bases/python:pull"
ALICE = Credential(source="a test", user="alice", secret=Secret("s3cret"), advice="log in again")
IDENTITY = Credential(source="a test", kind="identity", secret=Secret("idt-s3cret"), advice="log in again")
BEARER = Credential(source="a test", kind="bearer", secret=Secret("bt-s3cret"), advice="log in again")
BASIC = "Basic " + base64.b64encode(b"alice:s3cret").decode()

Reply = Callable[[httpx.Request], httpx.Response]


@dataclass
class Service:
    """A token service by script: gives token-1, token-2, … unless `reply` says otherwise; keeps what it was asked."""

    reply: Reply | None = None
    expires_in: float | None = 300
    asked: list[httpx.Request] = field(default_factory=list)

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.asked.append(request)
        if self.reply:
            return self.reply(request)
        life = {} if self.expires_in is None else {"expires_in": self.expires_in}
        return httpx.Response(200, json={"token": f"token-{len(self.asked)}", **life})

    @property
    def queries(self) -> list[list[tuple[str, str]]]:
        return [request.url.params.multi_items() for request in self.asked]

    @property
    def forms(self) -> list[tuple[str, list[tuple[str, str]]]]:
        return [(str(request.url), parse_qsl(request.content.decode())) for request in self.asked]


@dataclass
class Clock:
    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


@contextmanager
def _login(
    service: Reply, credential: Credential | AzureCredential | None = ALICE, *, registry: str = REGISTRY, **more: Any
) -> Iterator[Login]:
    client = FakeClient(httpx.MockTransport(service))
    yield Login(Url.parse(registry), client=client, find=lambda: credential, **more)


def _bearer(realm: str = REALM, service: str = "the registry") -> list[str]:
    return [f'Bearer realm="{realm}",service="{service}",scope="{PUSH}"']


# -- challenges ---------------------------------------------------------------------------


def _challenge(scheme: str, **params: str) -> Challenge:
    return Challenge(scheme=scheme, params=params)


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        (['Basic realm="x"'], [_challenge("basic", realm="x")]),
        (
            [f'Bearer realm="{REALM}?a=b",service="r",scope="repository:a:pull,push"'],
            [_challenge("bearer", realm=f"{REALM}?a=b", service="r", scope="repository:a:pull,push")],
        ),
        (
            ['Negotiate abc==, Basic realm="a, Bearer realm=\\"b\\"", Bearer realm=https://h/p , service = s'],
            [
                _challenge("negotiate"),
                _challenge("basic", realm='a, Bearer realm="b"'),
                _challenge("bearer", realm="https://h/p", service="s"),
            ],
        ),
        (["Negotiate", 'bEaReR rEalm="a",realm="b"'], [_challenge("negotiate"), _challenge("bearer", realm="a")]),
        (['Bearer  realm="x",,  service="y",'], [_challenge("bearer", realm="x", service="y")]),
        (["Basic", "", "="], [_challenge("basic")]),
        (['Bearer realm="unterminated'], [_challenge("bearer")]),
    ],
)
def test_challenges_are_told_apart_when_headers_hold_several(headers: list[str], expected: list[Challenge]) -> None:
    assert parse_challenges(headers) == tuple(expected)


@given(st.text(max_size=80))
def test_challenges_are_parsed_to_the_end_when_the_header_is_any_text(header: str) -> None:
    assert all(challenge.scheme for challenge in parse_challenges([header]))


# -- passwords ----------------------------------------------------------------------------


def test_nothing_is_sent_when_the_registry_has_not_asked() -> None:
    with _login(Service(), None) as login:
        assert (login.header([PUSH]), login.source) == (None, "no credential")


def test_password_is_sent_when_the_registry_wants_one() -> None:
    service = Service()
    with _login(service) as login:
        assert login.answer(['Basic realm="x"'], [PUSH], refused=None) == BASIC
        assert (login.header([BASE]), login.source) == (BASIC, "alice, from a test")
    assert service.asked == []


def test_error_says_whose_password_when_it_is_refused() -> None:
    with _login(Service()) as login, pytest.raises(RegistryRefused) as caught:
        login.answer(['Basic realm="x"'], [PUSH], refused=login.answer(['Basic realm="x"'], [PUSH], refused=None))

    assert caught.value.message == "registry.example: the login is not good enough (alice, from a test)"
    assert caught.value.next == "log in again"


def test_error_says_what_to_type_when_a_password_is_wanted_and_there_is_none() -> None:
    with _login(Service(), None) as login, pytest.raises(LoginMissing) as caught:
        login.answer(["Basic"], [PUSH], refused=None)

    assert caught.value.message == "registry.example asks for a user and a password; there is no credential"
    assert caught.value.next.startswith("docker login registry.example")


@pytest.mark.parametrize(("headers", "kinds"), [(['Digest realm="x"', "NTLM"], "digest, ntlm"), ([], "without saying")])
def test_error_names_the_kind_when_the_registry_wants_what_nobody_knows(headers: list[str], kinds: str) -> None:
    with _login(Service()) as login, pytest.raises(RegistryRefused, match=kinds):
        login.answer(headers, [PUSH], refused=None)


def test_credential_is_looked_for_once_when_the_registry_asks_often() -> None:
    looked: list[int] = []
    client = FakeClient(httpx.MockTransport(Service()))
    login = Login(Url.parse(REGISTRY), client=client, find=lambda: looked.append(1))
    assert looked == []
    for scope in (PUSH, BASE):
        login.answer(_bearer(), [scope], refused=None)

    assert looked == [1]


# -- tokens -------------------------------------------------------------------------------


def test_token_is_asked_for_with_the_push_first_when_a_mount_needs_two_scopes() -> None:
    service = Service()
    with _login(service) as login:
        header = login.answer(_bearer(f"{REALM}?tenant=t"), [PUSH, BASE], refused=None)

    assert header == "Bearer token-1"
    assert service.queries == [[("tenant", "t"), ("service", "the registry"), ("scope", PUSH), ("scope", BASE)]]
    assert [request.headers["authorization"] for request in service.asked] == [BASIC]


def test_token_is_asked_for_without_a_login_when_there_is_none() -> None:
    service = Service()
    with _login(service, None) as login:
        login.answer(_bearer("https://tokens.example/t"), [BASE], refused=None)  # anybody may ask anybody

    assert [(str(request.url.host), "authorization" in request.headers) for request in service.asked] == [
        ("tokens.example", False)
    ]


@pytest.mark.parametrize("name", ["token", "access_token"])
def test_token_is_understood_when_it_has_either_name(name: str) -> None:
    with _login(lambda _: httpx.Response(200, json={name: "t", "expires_in": 9})) as login:
        assert login.answer(_bearer(), [PUSH], refused=None) == "Bearer t"


def test_identity_token_is_sent_in_a_form_when_that_is_the_credential() -> None:
    service = Service(reply=lambda _: httpx.Response(200, json={"access_token": "t"}))
    with _login(service, IDENTITY) as login:
        assert login.answer(_bearer(), [PUSH, BASE], refused=None) == "Bearer t"

    assert service.forms == [
        (
            REALM,
            [
                ("service", "the registry"),
                ("grant_type", "refresh_token"),
                ("client_id", "shipway"),
                ("scope", f"{PUSH} {BASE}"),
                ("refresh_token", "idt-s3cret"),
            ],
        )
    ]


def test_registry_token_is_sent_as_it_is_when_that_is_the_credential() -> None:
    service = Service()
    with _login(service, BEARER) as login:
        assert login.answer(_bearer(), [PUSH], refused=None) == "Bearer bt-s3cret"
        with pytest.raises(RegistryRefused, match="not good enough"):
            login.answer(_bearer(), [PUSH], refused="Bearer bt-s3cret")
    assert service.asked == []


def test_token_is_asked_for_at_once_when_other_scopes_are_wanted_later() -> None:
    service = Service()
    with _login(service) as login:
        login.answer(_bearer(), [PUSH], refused=None)
        headers = [login.header(scopes) for scopes in ([BASE], [PUSH], [BASE, PUSH], [PUSH, BASE])]

    assert headers == ["Bearer token-2", "Bearer token-1", "Bearer token-3", "Bearer token-3"]


@pytest.mark.parametrize(
    ("expires_in", "good_s", "over_s"),
    [
        (300, 269, 271),
        (20, 14, 16),
        (None, 44, 46),
        (-1, 44, 46),
        ("x", 44, 46),
        (10**400, 86_369, 86_371),
    ],
)
def test_token_is_renewed_before_it_ends_when_time_passes(expires_in: Any, good_s: float, over_s: float) -> None:
    clock = Clock()
    with _login(Service(expires_in=expires_in), clock=clock) as login:
        login.answer(_bearer(), [PUSH], refused=None)
        clock.now += good_s
        assert login.header([PUSH]) == "Bearer token-1"
        clock.now += over_s - good_s
        assert login.header([PUSH]) == "Bearer token-2"


@pytest.mark.parametrize(
    ("issued_at", "good"),
    [
        ("2026-11-23T09:00:00.123456789Z", False),
        ("2026-11-23T10:59:59Z", True),
        ("2026-11-23T12:00:00Z", True),  # a clock that is wrong
        ("yesterday", True),
        (7, True),
    ],
)
def test_age_counts_by_the_services_own_clock_when_an_old_token_is_given(issued_at: Any, good: bool) -> None:  # noqa: FBT001 - a case
    service = Service(
        reply=lambda _: httpx.Response(
            200,
            json={"token": f"t{len(service.asked)}", "expires_in": 3600, "issued_at": issued_at},
            headers={"Date": "Mon, 23 Nov 2026 11:00:00 GMT"},
        )
    )
    clock = Clock()
    with _login(service, clock=clock) as login:
        login.answer(_bearer(), [PUSH], refused=None)
        clock.now += 60
        assert login.header([PUSH]) == ("Bearer t1" if good else "Bearer t2")


def test_token_is_taken_when_the_service_names_no_possible_time() -> None:
    document = {"token": "t", "expires_in": 300, "issued_at": "2026-11-23T09:00:00Z"}
    headers = {"Date": "Mon, 23 Nov 2026 11:00:00 +99999999999999"}
    with _login(lambda _: httpx.Response(200, json=document, headers=headers)) as login:
        assert login.answer(_bearer(), [PUSH], refused=None) == "Bearer t"


def test_token_is_asked_for_again_when_the_registry_refuses_it() -> None:
    with _login(Service()) as login:
        first = login.answer(_bearer(), [PUSH], refused=None)
        second = login.answer(_bearer(), [PUSH], refused=first)

    assert (first, second) == ("Bearer token-1", "Bearer token-2")


def test_error_is_clear_when_the_same_token_comes_again() -> None:
    with _login(lambda _: httpx.Response(200, json={"token": "t"})) as login:
        first = login.answer(_bearer(), [PUSH], refused=None)
        with pytest.raises(RegistryRefused, match="not good enough"):
            login.answer(_bearer(), [PUSH], refused=first)


def test_one_token_is_asked_for_when_many_threads_were_refused_the_same() -> None:
    service = Service()
    got: list[str | None] = []
    with _login(service) as login:
        old = login.answer(_bearer(), [PUSH], refused=None)
        threads = [
            threading.Thread(target=lambda: got.append(login.answer(_bearer(), [PUSH], refused=old))) for _ in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    assert (got, len(service.asked)) == (["Bearer token-2"] * 8, 2)


def test_one_token_is_asked_for_when_many_threads_want_one_at_once() -> None:
    inside = threading.Event()

    def slow(_: httpx.Request) -> httpx.Response:
        inside.wait(0.1)
        return httpx.Response(200, json={"token": "t", "expires_in": 300})

    service = Service(reply=slow)
    got: list[str | None] = []
    with _login(service) as login:
        threads = [
            threading.Thread(target=lambda: got.append(login.answer(_bearer(), [PUSH], refused=None))) for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    assert (got, len(service.asked)) == (["Bearer t"] * 4, 1)


# -- what the token service says -----------------------------------------------------------


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        (httpx.Response(401, json={"errors": [{"message": "token expired"}]}), "401 token expired"),
        (httpx.Response(403, json={"details": "no right"}), "403 no right"),
        (httpx.Response(400, json={"error": "invalid_grant", "error_description": "old"}), "400 old"),
        (httpx.Response(404, text="<html>"), "404"),
        (httpx.Response(401, json={"errors": ["odd"]}), "401"),
    ],
)
def test_error_says_whose_login_and_why_when_the_service_refuses(reply: httpx.Response, said: str) -> None:
    with _login(lambda _: reply) as login, pytest.raises(RegistryRefused) as caught:
        login.answer(_bearer(), [PUSH], refused=None)

    assert caught.value.message == f"the token service registry.example refused alice, from a test: {said}"
    assert caught.value.next == "log in again"


@pytest.mark.parametrize(
    "body", [b"", b"{}", b"[]", b"\xff", b'{"token": ""}', b'{"token": "a\\r\\nHost: x"}', b'{"token": 7}', b"[" * 9999]
)
def test_error_is_clear_when_the_answer_holds_no_token(body: bytes) -> None:
    with _login(lambda _: httpx.Response(200, content=body)) as login, pytest.raises(RegistryRefused) as caught:
        login.answer(_bearer(), [PUSH], refused=None)

    assert caught.value.message == "the token service registry.example answered without a token"


@pytest.mark.parametrize("failure", [429, 500, 502, 503, 504, httpx.ConnectError("refused"), httpx.ReadError("reset")])
def test_service_is_asked_again_when_it_is_busy(failure: int | Exception) -> None:
    def reply(_: httpx.Request) -> httpx.Response:
        if len(service.asked) > 1:
            return httpx.Response(200, json={"token": "t"})
        if isinstance(failure, Exception):
            raise failure
        return httpx.Response(failure, headers={"Retry-After": "0"})

    service = Service(reply=reply)
    with _login(service) as login:
        assert login.answer(_bearer(), [PUSH], refused=None) == "Bearer t"
    assert len(service.asked) == 2


@pytest.mark.parametrize(
    ("failure", "said"),
    [
        (httpx.Response(503), "answered 503"),
        (httpx.Response(429, headers={"Retry-After": "3600"}), "answered 429"),
        (httpx.ConnectError("no route to host"), "cannot be reached: no route to host"),
    ],
)
def test_error_comes_in_time_when_the_service_stays_away(failure: httpx.Response | Exception, said: str) -> None:
    def reply(_: httpx.Request) -> httpx.Response:
        if isinstance(failure, Exception):
            raise failure
        return failure

    with _login(reply, deadline_s=0.4) as login, pytest.raises(RegistryUnreachable) as caught:
        login.answer(_bearer(), [PUSH], refused=None)
    assert caught.value.message == f"the token service registry.example {said}"


def test_error_comes_in_time_when_the_service_says_nothing() -> None:
    over = threading.Event()

    def hang(_: httpx.Request) -> httpx.Response:
        over.wait(10)
        return httpx.Response(200, json={"token": "late"})

    with _login(hang, deadline_s=0.2) as login, pytest.raises(RegistryUnreachable, match=r"no answer within 0\.2 s"):
        login.answer(_bearer(), [PUSH], refused=None)
    over.set()


def test_error_names_the_setting_when_the_services_certificate_is_not_trusted() -> None:
    def refuse(_: httpx.Request) -> httpx.Response:
        cause = ssl.SSLCertVerificationError()
        cause.verify_message = "self-signed certificate"
        raise httpx.ConnectError("as httpcore says it") from cause

    with _login(refuse) as login, pytest.raises(RegistryUnreachable) as caught:
        login.answer(_bearer(), [PUSH], refused=None)
    assert caught.value.next == "name the certificate authority's PEM file in [push] authority"


# -- where no credential goes --------------------------------------------------------------


def _refused(realm: str, credential: Credential | None = ALICE, **more: Any) -> tuple[RegistryRefused, int]:
    """Return the error, and how often anybody was asked anything."""
    service = Service()
    with _login(service, credential, **more) as login, pytest.raises(RegistryRefused) as caught:
        login.answer(_bearer(realm), [PUSH], refused=None)
    assert "s3cret" not in str(caught.value)
    return caught.value, len(service.asked)


@pytest.mark.parametrize("credential", [ALICE, IDENTITY, BEARER])
@pytest.mark.parametrize("realm", ["https://evil.example/token", "https://registry.example.evil.example/token"])
def test_credential_stays_when_the_realm_is_on_another_host(credential: Credential, realm: str) -> None:
    error, asked = _refused(realm, credential)

    host = httpx.URL(realm).host
    assert asked == 0
    assert f"asks to log in at {host}, another host: {credential} was not sent there" in error.message
    assert error.next == f'if that is its token service, set [push] token_services = ["{host}"]'


@pytest.mark.parametrize("named", [["tokens.example"], ["other.example", "Tokens.Example"], ["tokens.example:8443"]])
def test_credential_goes_to_another_host_when_the_settings_name_it(named: Sequence[str]) -> None:
    service = Service()
    realm = "https://tokens.example:8443/t" if "8443" in named[0] else "https://tokens.example/t"
    with _login(service, token_services=named) as login:
        assert login.answer(_bearer(realm), [PUSH], refused=None) == "Bearer token-1"
    assert [request.headers["authorization"] for request in service.asked] == [BASIC]


def test_credential_stays_when_the_settings_name_another_port() -> None:
    error, asked = _refused("https://tokens.example:9/t", token_services=["tokens.example:8443"])

    assert (asked, "tokens.example:9" in error.message) == (0, True)


@pytest.mark.parametrize("credential", [ALICE, None])
@pytest.mark.parametrize(
    ("registry", "realm"),
    [
        (REGISTRY, "http://registry.example/token"),
        (REGISTRY, "http://127.0.0.1:5001/token"),
        (REGISTRY, "ftp://registry.example/token"),
        (REGISTRY, "/token"),
        (REGISTRY, ""),
        (REGISTRY, "https://registry.example:port/token"),
        (REGISTRY, "https://alice:s3cret@registry.example/token"),
        ("http://127.0.0.1:5000", "http://registry.example/token"),
        ("http://localhost:5000", "http://127.0.0.1.evil.example/token"),
    ],
)
def test_nobody_is_asked_when_the_realm_is_no_https_address(
    registry: str, realm: str, credential: Credential | None
) -> None:
    error, asked = _refused(realm, credential, registry=registry)

    assert asked == 0
    assert "is no https address: nothing was sent" in error.message


@pytest.mark.parametrize("registry", ["http://127.0.0.1:5000", "http://localhost:5000", "http://[::1]:5000"])
def test_token_is_asked_for_over_http_when_both_are_on_this_machine(registry: str) -> None:
    service = Service()
    realm = str(httpx.URL(registry).copy_with(port=5001, path="/token"))
    with _login(service, registry=registry) as login:
        assert login.answer(_bearer(realm), [PUSH], refused=None) == "Bearer token-1"


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("credential", [ALICE, IDENTITY, None])
def test_redirect_is_not_followed_when_the_token_service_sends_one(credential: Credential | None, status: int) -> None:
    service = Service(reply=lambda _: httpx.Response(status, headers={"Location": "https://evil.example/"}))
    with _login(service, credential) as login, pytest.raises(RegistryRefused, match="on to another address"):
        login.answer(_bearer(), [PUSH], refused=None)

    assert [request.url.host for request in service.asked] == ["registry.example"]


def _answered(status: int, _: httpx.Request) -> httpx.Response:
    return httpx.Response(status)


def test_no_secret_shows_when_everything_fails(caplog: pytest.LogCaptureFixture) -> None:
    shown: list[str] = []
    for credential in (ALICE, IDENTITY):
        for status in (200, 302, 401, 503):
            service = Service(reply=partial(_answered, status))
            with _login(service, credential, deadline_s=0.2) as login:
                with pytest.raises((RegistryRefused, RegistryUnreachable)) as caught:
                    login.answer(_bearer(), [PUSH], refused=None)
                shown += [str(caught.value), repr(caught.value), login.source]

    assert len(shown) == 24
    assert "s3cret" not in " ".join(shown) + caplog.text
    assert BASIC not in " ".join(shown) + caplog.text


# -- Azure --------------------------------------------------------------------------------


@dataclass
class Azure:
    """An Azure registry's token service by script."""

    refresh_tokens: list[str] = field(default_factory=list)
    asked: list[tuple[str, list[tuple[str, str]]]] = field(default_factory=list)
    entra_asked: int = 0

    def credential(self) -> AzureCredential:
        return AzureCredential(source="Azure's test", entra=self._entra, advice="az login, then invoke doctor")

    def _entra(self) -> Secret:
        self.entra_asked += 1
        return Secret(f"entra-s3cret-{self.entra_asked}")

    def __call__(self, request: httpx.Request) -> httpx.Response:
        form = parse_qsl(request.content.decode())
        self.asked.append((f"{request.method} {request.url.path}", form))
        if request.url.path == "/oauth2/exchange":
            self.refresh_tokens = [f"refresh-{self.entra_asked}"]
            return httpx.Response(200, json={"refresh_token": self.refresh_tokens[0]})
        if dict(form)["refresh_token"] not in self.refresh_tokens:
            return httpx.Response(401, json={"errors": [{"message": "expired"}]})
        return httpx.Response(200, json={"access_token": f"access-{len(self.asked)}"})


AZURE_REALM = _bearer("https://registry.example/oauth2/token", "registry.example")


def test_azure_exchanges_its_token_when_the_registry_asks() -> None:
    azure = Azure()
    with _login(azure, azure.credential()) as login:
        assert login.answer(AZURE_REALM, [PUSH, BASE], refused=None) == "Bearer access-2"
        assert login.source == "Azure's test"

    service = ("service", "registry.example")
    assert azure.asked == [
        ("POST /oauth2/exchange", [service, ("grant_type", "access_token"), ("access_token", "entra-s3cret-1")]),
        (
            "POST /oauth2/token",
            [
                service,
                ("grant_type", "refresh_token"),
                ("scope", PUSH),
                ("scope", BASE),
                ("refresh_token", "refresh-1"),
            ],
        ),
    ]


def test_azure_uses_its_refresh_token_again_when_the_access_token_ends() -> None:
    azure, clock = Azure(), Clock()
    with _login(azure, azure.credential(), clock=clock) as login:
        login.answer(AZURE_REALM, [PUSH], refused=None)
        clock.now += 50  # of the 60 s of a token that does not say
        login.header([PUSH])
        login.answer(AZURE_REALM, [PUSH], refused="Bearer access-3")

    assert [path for path, _ in azure.asked] == ["POST /oauth2/exchange", *["POST /oauth2/token"] * 3]
    assert azure.entra_asked == 1


def test_azure_begins_anew_when_the_refresh_token_has_ended_too() -> None:
    azure = Azure()
    with _login(azure, azure.credential()) as login:
        first = login.answer(AZURE_REALM, [PUSH], refused=None)
        azure.refresh_tokens = []
        assert login.answer(AZURE_REALM, [PUSH], refused=first) == "Bearer access-5"

    assert azure.entra_asked == 2


def test_error_comes_in_time_and_names_the_credential_when_entra_does_not_answer() -> None:
    over = threading.Event()

    def hang() -> Secret:
        over.wait(10)
        return Secret("late")

    azure = AzureCredential(source="Azure's AzureCliCredential", entra=hang, advice="az login, then invoke doctor")
    with _login(Service(), azure, deadline_s=0.2) as login, pytest.raises(LoginMissing) as caught:
        login.answer(AZURE_REALM, [PUSH], refused=None)
    over.set()

    assert caught.value.message == "Azure's AzureCliCredential gave no token within 0.2 s"
    assert caught.value.next == "az login, then invoke doctor"


def test_error_is_the_credentials_own_when_entra_refuses() -> None:
    def refuse() -> Secret:
        raise LoginMissing("Azure's AzureCliCredential gave no token")

    azure = AzureCredential(source="Azure's AzureCliCredential", entra=refuse, advice="az login")
    with _login(Service(), azure) as login, pytest.raises(LoginMissing, match="gave no token"):
        login.answer(AZURE_REALM, [PUSH], refused=None)


def test_azures_credential_stays_when_the_realm_is_on_another_host() -> None:
    azure = Azure()
    with _login(azure, azure.credential()) as login, pytest.raises(RegistryRefused, match="another host"):
        login.answer(_bearer("https://evil.example/oauth2/token"), [PUSH], refused=None)

    assert (azure.asked, azure.entra_asked) == ([], 0)
