"""The HTTP client for one registry: whom it trusts, and which proxies it uses.

Owns certificates, proxies, and what every request says of us. It follows no redirect and
remembers nothing between requests but connections. Knows no registry's protocol. What the
settings or the environment say wrongly raises `ConfigError`.
"""

from __future__ import annotations

import ssl
from http.cookiejar import DefaultCookiePolicy
from pathlib import Path

import httpx

from shipway import __version__
from shipway.errors import ConfigError
from shipway.oci.reference import Reference, is_loopback

HEADERS = {"User-Agent": f"shipway/{__version__}", "Accept": "*/*", "Accept-Encoding": "identity"}


def open_client(reference: Reference, *, authority: Path | None) -> httpx.Client:
    """Return the client for a registry; `authority` vouches for it besides those whom everybody trusts."""
    if is_loopback(reference.host):
        # No proxy leads back to this machine, and reading all the world's certificates takes longer than a push.
        mounts = {"https://": _Https(authority)}
        client = httpx.Client(headers=HEADERS, verify=_nobody(), trust_env=False, mounts=mounts)
    else:
        client = _proxied(_trusted(authority))
    client.cookies.jar.set_policy(DefaultCookiePolicy(allowed_domains=[]))
    return client


def _proxied(trusted: ssl.SSLContext) -> httpx.Client:
    try:
        return httpx.Client(headers=HEADERS, verify=trusted)
    except (ValueError, ImportError, httpx.InvalidURL) as error:
        raise ConfigError(
            f"the proxy that the environment names cannot be used: {error}",
            advice="correct HTTPS_PROXY, or except the registry from it with NO_PROXY",
        ) from error


def _nobody() -> ssl.SSLContext:
    return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)


def _trusted(authority: Path | None) -> ssl.SSLContext:
    context = httpx.create_ssl_context()
    try:
        if authority:
            context.load_verify_locations(cafile=authority)
    except OSError as error:
        raise ConfigError(f"[push] authority: {authority} is no file of certificates in PEM ({error})") from error
    return context


class _Https(httpx.BaseTransport):
    """Where a registry on this machine leads to: its token service, its store. Made with the first request."""

    def __init__(self, authority: Path | None) -> None:
        self._authority = authority
        self._made: httpx.HTTPTransport | None = None

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        if self._made is None:
            self._made = httpx.HTTPTransport(verify=_trusted(self._authority))
        return self._made.handle_request(request)

    def close(self) -> None:
        if self._made:
            self._made.close()
