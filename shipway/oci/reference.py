"""The name of an image in a registry, parsed once: `HOST[:PORT]/PATH[:TAG][@sha256:…]`.

Owns the grammar, and which hosts may be spoken to without TLS. Knows no HTTP. A text that is
no such name raises `ConfigError`, which says what belongs there.
https://github.com/opencontainers/distribution-spec/blob/v1.1.0/spec.md#pulling-manifests
"""

from __future__ import annotations

import ipaddress
import re

from msgspec import Struct

from shipway.artifacts import Digest
from shipway.errors import ConfigError

_LABEL = r"[a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?"
_WORD = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_REFERENCE = re.compile(
    rf"(?P<host>(?:{_LABEL}(?:\.{_LABEL})*|\[[0-9a-fA-F:]+\])(?::[0-9]{{1,5}})?)"
    rf"/(?P<path>{_WORD}(?:/{_WORD})*)"
    r"(?::(?P<tag>[a-zA-Z0-9_][a-zA-Z0-9_.-]{0,127}))?"
    r"(?:@(?P<digest>sha256:[0-9a-f]{64}))?"
)
_LONGEST_PATH = 255


class Reference(Struct, frozen=True, kw_only=True):
    """A repository of a registry, and which of its images is meant, if one is. `str()` is the name again."""

    host: str
    path: str
    tag: str | None = None
    digest: Digest | None = None

    @classmethod
    def parse(cls, text: str) -> Reference:
        """Return what `text` names; raises `ConfigError`."""
        found = _REFERENCE.fullmatch(text)
        if not found or not _is_host(found["host"]) or len(found["path"]) > _LONGEST_PATH:
            raise ConfigError(
                f"{text[:100]!r} is no image of a registry: HOST[:PORT]/NAME[:TAG][@sha256:…] is expected, "
                "the name in lower case",
                advice=_advice(text),
            )
        digest = Digest(found["digest"]) if found["digest"] else None
        return cls(host=found["host"].lower(), path=found["path"], tag=found["tag"], digest=digest)

    @property
    def repository(self) -> str:
        """`HOST[:PORT]/PATH`."""
        return f"{self.host}/{self.path}"

    @property
    def registry_url(self) -> str:
        """Where the registry answers: plain http on this machine only."""
        return f"{'http' if is_loopback(self.host) else 'https'}://{self.host}"

    def __str__(self) -> str:
        tag = f":{self.tag}" if self.tag else ""
        return self.repository + tag + (f"@{self.digest}" if self.digest else "")


def is_loopback(host: str) -> bool:
    """Tell whether `HOST[:PORT]` is this machine, by its name alone: no name is looked up."""
    name = host.rpartition("]")[0].lstrip("[") or host.partition(":")[0]
    if name == "localhost":
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def _is_host(host: str) -> bool:
    """Tell a host from the first part of a name, such as `library` in `library/python`, as Docker does."""
    return host == "localhost" or "." in host or ":" in host


def _advice(text: str) -> str:
    if "/" not in text or not _is_host(text.partition("/")[0]):
        return "begin with the registry's host, such as registry.example/team/service: short names mean no host here"
    return ""
