"""What a hash-locked requirements file pins for one Python and one platform.

Owns the reading of such a file: continued lines, comments, hashes, markers. Gives names,
versions and hashes only: a lock may hold index URLs with passwords in them. Fails with
`ImageError` for a line that pins nothing, which uv would have refused too. Writes nothing but
its cache.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from msgspec import Struct

from shipway import documents
from shipway.artifacts import Digest
from shipway.errors import ImageError
from shipway.oci.compose import canonical
from shipway.oci.layers import fingerprint
from shipway.oci.staging import write_whole
from shipway.oci.wheels import Target, without_secrets

if TYPE_CHECKING:
    from packaging.markers import Marker

# ruff: noqa: PLC0415 - packaging takes longer to import than a lock to read, and most pushes have the last one's lock

_HASH = re.compile(r"\s--hash[=\s]\s*sha256:([0-9a-f]{64})")
_COMMENT = re.compile(r"(^|\s)#.*$", re.MULTILINE)
_MACHINES = {"linux/amd64": "x86_64", "linux/arm64": "aarch64", "darwin/amd64": "x86_64", "darwin/arm64": "arm64"}


class Pin(Struct, frozen=True, kw_only=True):
    """One package; `hashes` are those of all its files, in hexadecimal SHA-256."""

    name: str
    version: str
    hashes: tuple[str, ...]


def pinned(lock: bytes, target: Target) -> tuple[Pin, ...]:
    """Return the packages that are installed for this target, sorted by name."""
    return tuple(sorted(_pins(lock, _environment(target)), key=lambda pin: pin.name))


def remembered(lock: bytes, target: Target, cache: Path) -> tuple[Pin, ...]:
    """Return what `pinned` does, read only once on this machine: `cache` may be deleted at any time."""
    path = cache / "pins" / fingerprint("pins", Digest.of(lock), target.python, target.platform)
    try:
        return tuple(_read(**pin) for pin in json.loads(path.read_bytes()))
    except (OSError, ValueError, TypeError):
        pins = pinned(lock, target)
    write_whole(path, canonical([documents.plain(pin) for pin in pins]), ImageError)
    return pins


def _read(*, name: str, version: str, hashes: list[str]) -> Pin:
    return Pin(name=name, version=version, hashes=tuple(hashes))


def _pins(lock: bytes, environment: dict[str, str]) -> Iterator[Pin]:
    lines = lock.decode("utf-8", "replace").replace("\\\n", " ")
    for line in _COMMENT.sub("", lines).splitlines():
        text = line.partition(" --")[0].strip()
        if text and not text.startswith("-"):
            try:
                name, version, marker = _parsed(text)
            except ValueError as error:  # what packaging raises are its children
                message = f"the locked dependencies have a line that pins no package: {without_secrets(text)}"
                raise ImageError(message, advice="lock them again: uv pip compile --generate-hashes") from error
            if marker is None or marker.evaluate(environment):
                yield Pin(name=name, version=version, hashes=tuple(_HASH.findall(line)))


def _parsed(text: str) -> tuple[str, str, Marker | None]:
    """Return the name, the version and the marker of `name==version`, or of a wheel's path or URL."""
    from packaging.markers import Marker
    from packaging.requirements import InvalidRequirement, Requirement
    from packaging.utils import canonicalize_name

    try:
        requirement = Requirement(text)
    except InvalidRequirement:
        path, _, marker = text.partition(" ;")
        return *_wheel(path), Marker(marker.strip()) if marker else None
    if requirement.url is not None:
        return *_wheel(requirement.url), requirement.marker
    (pin,) = requirement.specifier
    if pin.operator not in {"==", "==="}:
        raise ValueError(pin)
    return canonicalize_name(requirement.name), pin.version, requirement.marker


def _wheel(address: str) -> tuple[str, str]:
    from packaging.utils import parse_wheel_filename

    name, version, _, _ = parse_wheel_filename(PurePosixPath(unquote(urlsplit(address.strip()).path)).name)
    return name, str(version)


def _environment(target: Target) -> dict[str, str]:
    """Return what markers are compared with: what uv takes for the same target."""
    system, machine = target.platform.split("/")[0], _MACHINES[target.platform]
    return {
        "implementation_name": "cpython",
        "implementation_version": f"{target.python}.0",
        "os_name": "posix",
        "platform_machine": machine,
        "platform_python_implementation": "CPython",
        "platform_release": "",
        "platform_system": system.capitalize(),
        "platform_version": "",
        "python_full_version": f"{target.python}.0",
        "python_version": target.python,
        "sys_platform": system,
        "extra": "",
    }
