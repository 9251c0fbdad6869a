"""The login at one registry: its challenges answered, by a password or by a bearer token.

Owns which token service is believed, and the tokens: by their scopes, renewed before they
expire. Knows neither where credentials come from nor what is asked with them. A credential
leaves for the registry's own host, or for a token service that the settings name, over
https alone (http on loopback). On failure: an error that says whose login failed, and what
to type.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Mapping, Sequence

from msgspec import Struct

from shipway.entra import DEADLINE_S
from shipway.errors import LoginMissing, RegistryRefused
from shipway.oci.address import Url
from shipway.oci.credentials import AzureCredential, Credential, Secret
from shipway.oci.reference import is_loopback
from shipway.oci.tokens import TokenService, basic
from shipway.oci.transport import Sender, shown

_MARGIN_S = 30.0  # so long before its end a token is renewed, or in the last quarter of a short life

_WORD = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_PARAM = re.compile(rf'({_WORD})\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s,"=]+))\s*(?=,|$)')
_SCHEME = re.compile(rf"({_WORD})(?:\s+[A-Za-z0-9._~+/-]+=*\s*(?=,|$)|\s+(?={_WORD}\s*=)|\s*(?=,|$))")


class Challenge(Struct, frozen=True, kw_only=True):
    """One way in that a 401 offers: `basic`, `bearer`, …, and its parameters by lower-case name."""

    scheme: str
    params: Mapping[str, str]


class _Held(Struct, frozen=True, kw_only=True):
    secret: Secret
    renew_at: float

    @property
    def header(self) -> str:
        return _bearer(self.secret)


class Login:
    """One registry's login; safe to use from several threads, which share its tokens.

    `find` is asked once, after the first challenge. `client` is the one that talks to the
    registry: its certificates, its proxies. Raises `LoginMissing`, `RegistryRefused` and
    `RegistryUnreachable`.
    """

    def __init__(
        self,
        registry: Url,
        *,
        client: Sender,
        find: Callable[[], Credential | AzureCredential | None],
        token_services: Sequence[str] = (),
        deadline_s: float = DEADLINE_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Take the registry's address; ask nobody yet."""
        self._registry = registry
        self._client = client
        self._find = find
        self._token_services = token_services
        self._deadline_s = deadline_s
        self._clock = clock
        self._lock = threading.Lock()  # held while a token is asked for: who needs one too waits for that answer
        self._looked = False
        self._credential: Credential | AzureCredential | None = None
        self._basic: str | None = None
        self._service: TokenService | None = None
        self._held: dict[frozenset[str], _Held] = {}

    @property
    def source(self) -> str:
        """Which credential is used, in words."""
        return str(self._credential or "no credential")

    def header(self, scopes: Sequence[str]) -> str | None:
        """Return the `Authorization` for these scopes; `None` until the registry has asked for one.

        A scope is `repository:NAME:pull,push`. What is to be changed comes first, as some
        token services look at the first alone.
        """
        with self._lock:
            return self._authorization(scopes)

    def answer(self, challenges: Sequence[str], scopes: Sequence[str], *, refused: str | None) -> str | None:
        """Return the `Authorization` to ask again with, after a 401.

        `challenges` are the `WWW-Authenticate` that the registry itself sent, never those of
        a host that it redirected to. `refused` is the `Authorization` that it did not take.
        """
        with self._lock:
            held = self._held.get(frozenset(scopes))
            if held and held.header != refused:
                return held.header  # another thread was quicker
            self._held.pop(frozenset(scopes), None)
            self._meet(parse_challenges(challenges))
            answer = self._authorization(scopes)
            if answer == refused:
                raise self.refusal("the login is not good enough")
            return answer

    def refusal(self, what: str) -> RegistryRefused:
        """Build the error for a refusal that stays: what was refused, to whom, and what to do."""
        return RegistryRefused(f"{self._host}: {what} ({self.source})", advice=self._advice)

    def _meet(self, challenges: Sequence[Challenge]) -> None:
        """Learn what the registry asks for; look for a credential the first time."""
        if not self._looked:
            self._credential = self._find()
            self._looked = True
        offered = {challenge.scheme: challenge for challenge in reversed(challenges)}
        if bearer := offered.get("bearer"):
            self._service = self._believed(bearer)
        elif "basic" in offered:
            self._basic = self._password()
        else:
            kinds = ", ".join(sorted(offered)) or "without saying which"
            raise RegistryRefused(f"{self._host} asks for a login of a kind that shipway does not know: {kinds}")

    def _password(self) -> str:
        if isinstance(self._credential, Credential) and self._credential.kind == "password":
            return basic(self._credential)
        raise LoginMissing(f"{self._host} asks for a user and a password; there is {self.source}", advice=self._advice)

    def _believed(self, challenge: Challenge) -> TokenService:
        """Return the token service, unless it is one that must not be asked, or not with our credential."""
        realm = _address(challenge.params.get("realm", ""))
        netloc = realm.netloc
        local = is_loopback(self._host) and is_loopback(netloc)
        if realm.scheme != "https" and not (realm.scheme == "http" and local):
            raise RegistryRefused(
                f"{self._host} names {shown(realm)} as its token service, which is no https address: nothing was sent",
                advice="whoever runs the registry has to mend its token realm",
            )
        named = {realm.host, netloc} & {service.lower() for service in self._token_services}
        if self._credential and realm.host != self._registry.host and not named:
            raise RegistryRefused(
                f"{self._host} asks to log in at {netloc}, another host: {self.source} was not sent there",
                advice=f'if that is its token service, set [push] token_services = ["{netloc}"]',
            )
        if self._service and self._service.realm == realm:
            return self._service
        name = challenge.params.get("service", "")
        return TokenService(realm, name, client=self._client, deadline_s=self._deadline_s)

    def _authorization(self, scopes: Sequence[str]) -> str | None:
        if self._service is None:
            return self._basic
        if isinstance(self._credential, Credential) and self._credential.kind == "bearer":
            return _bearer(self._credential.secret)
        key = frozenset(scopes)
        held = self._held.get(key)
        if held is None or self._clock() >= held.renew_at:
            asked_at = self._clock()
            token = self._service.token(self._credential, scopes)
            renew_at = asked_at + token.life_s - min(_MARGIN_S, token.life_s / 4)
            held = self._held[key] = _Held(secret=token.secret, renew_at=renew_at)
        return held.header

    @property
    def _host(self) -> str:
        return self._registry.netloc

    @property
    def _advice(self) -> str:
        if self._credential:
            return self._credential.advice
        return f"docker login {self._host}, or set the variables that [push] names; then invoke doctor"


def parse_challenges(headers: Sequence[str]) -> tuple[Challenge, ...]:
    """Return the challenges of `WWW-Authenticate` (RFC 7235), several in one header too, up to what is no challenge."""
    return tuple(challenge for header in headers for challenge in _parsed(header))


def _parsed(header: str) -> list[Challenge]:
    found: list[tuple[str, dict[str, str]]] = []
    at = 0
    while at < len(header):
        if header[at] in " \t,":
            at += 1
        elif found and (param := _PARAM.match(header, at)):
            name, quoted, plain = param.groups()
            value = plain if quoted is None else re.sub(r"\\(.)", r"\1", quoted)
            found[-1][1].setdefault(name.lower(), value)
            at = param.end()
        elif scheme := _SCHEME.match(header, at):
            found.append((scheme[1].lower(), {}))
            at = scheme.end()
        else:
            break
    return [Challenge(scheme=scheme, params=params) for scheme, params in found]


def _address(text: str) -> Url:
    """Return the realm as an address; one that is none has no scheme, and one with a login in it is none."""
    nowhere = Url(scheme="", host="", port=None, target="/")
    try:
        realm = Url.parse(text)
    except ValueError:
        return nowhere
    return nowhere if realm.has_login or not realm.host else realm


def _bearer(secret: Secret) -> str:
    return f"Bearer {secret.reveal()}"
