"""The address of a request: taken as it came, resolved, never rebuilt.

A registry's `Location` may hold a signature over its own spelling, so the path and the query
stay as they are; only what no request line may hold is escaped. A text that is no address
raises `ValueError`. https://www.rfc-editor.org/rfc/rfc3986
"""

from __future__ import annotations

import re
import string
from urllib.parse import quote, urlencode, urljoin, urlsplit

from msgspec import Struct
from msgspec.structs import replace

_PLAIN = string.punctuation  # with letters and digits all that may stand in a request line
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_HOST = re.compile(r"[a-z0-9._-]+|[0-9a-f:.]+")
_PORTS = {"http": 80, "https": 443}


class Url(Struct, frozen=True, kw_only=True):
    """An address; `target` is what a request asks for: path and query."""

    scheme: str
    host: str
    port: int | None
    target: str
    has_login: bool = False

    @classmethod
    def parse(cls, text: str) -> Url:
        """Return what `text` says; raises `ValueError`. A relative one has neither scheme nor host."""
        if _CONTROL.search(text):
            message = "a control character in an address"
            raise ValueError(message)
        parts = urlsplit(text)
        host, port = parts.hostname or "", parts.port
        if host and not _HOST.fullmatch(host):
            message = f"{host[:100]!r} is no host"
            raise ValueError(message)
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        return cls(
            scheme=parts.scheme,
            host=host,
            port=None if port == _PORTS.get(parts.scheme) else port,
            target=quote(target, safe=_PLAIN),
            has_login="@" in parts.netloc,
        )

    @property
    def netloc(self) -> str:
        """`HOST[:PORT]`, without the port that goes without saying."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port is None else f"{host}:{self.port}"

    @property
    def origin(self) -> tuple[str, str, int]:
        """Who answers: two addresses with the same origin are one server."""
        return self.scheme, self.host, self.port or _PORTS.get(self.scheme, 0)

    @property
    def path(self) -> str:
        """The address without its query, which may be a secret."""
        return self.target.partition("?")[0]

    def join(self, location: str) -> Url:
        """Return where `location` leads from here; raises `ValueError`."""
        if _CONTROL.search(location):
            message = "a control character in an address"
            raise ValueError(message)
        return Url.parse(urljoin(str(self), location))

    def asking(self, *query: tuple[str, str]) -> Url:
        """Return this with more of a query."""
        if not query:
            return self
        return replace(self, target=f"{self.target}{'&' if '?' in self.target else '?'}{urlencode(query)}")

    def __str__(self) -> str:
        return f"{self.scheme}://{self.netloc}{self.target}"
