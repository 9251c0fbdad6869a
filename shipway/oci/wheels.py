"""The dependencies' layers, made from hash-locked wheels by uv.

Owns what of an installed wheel may go into an image: the files that its RECORD names, with
everything that differs from machine to machine left out. Installs only when somebody needs
the bytes, into a folder that is gone with the object or swept after it. Every failure is a
`DependenciesFailed` with uv's last lines, passwords removed.
"""

from __future__ import annotations

import contextlib
import csv
import hashlib
import io
import platform
import re
import stat
import sys
import threading
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from functools import partial
from importlib.metadata import version as installed_version
from pathlib import Path, PurePosixPath

from msgspec import Struct

from shipway.artifacts import Digest, Layer
from shipway.config import ImageSettings
from shipway.errors import DependenciesFailed, ImageError, ToolMissing
from shipway.oci.archive import pieces
from shipway.oci.compose import Ready, Source, ignore
from shipway.oci.layers import FAST, Known, fingerprint, pack
from shipway.oci.staging import staging, writing
from shipway.proc import Run
from shipway.tarball import Entry, stream

# A wheel of its own layer is sent alone when it is bumped. Below this size a layer costs more, in
# requests and mounts, than sending it again with its neighbours: the service's small wheels are 8 MB in all.
_OWN_LAYER_BYTES = 2_000_000
_MOST_OWN_LAYERS = 40
_INSTALL_TIMEOUT_S = 1800.0
_SITE = "srv/site-packages"
_PROCESSORS = {"x86_64": "amd64", "aarch64": "arm64"}
# Named even for the host: the host's own glibc must not decide which wheel is taken.
_UV_PLATFORMS = {
    "linux/amd64": "x86_64-unknown-linux-gnu",
    "linux/arm64": "aarch64-unknown-linux-gnu",
    "darwin/amd64": "x86_64-apple-darwin",
    "darwin/arm64": "aarch64-apple-darwin",
}
_INSTALLER_FILES = {"RECORD", "INSTALLER", "REQUESTED", "direct_url.json", "uv_cache.json", "uv_build.json"}


class Target(Struct, frozen=True, kw_only=True):
    """The Python and the platform that wheels are chosen for, such as `3.13` and `linux/amd64`."""

    python: str
    platform: str

    @classmethod
    def of(cls, settings: ImageSettings) -> Target:
        """Return what the settings mean; `host` is this machine."""
        python = f"{sys.version_info.major}.{sys.version_info.minor}"
        processor = _PROCESSORS.get(platform.machine().lower(), platform.machine())
        return cls(
            python=python if settings.python == "host" else settings.python,
            platform=f"{sys.platform}/{processor}" if settings.platform == "host" else settings.platform,
        )


class Dependencies:
    """The layers of a hash-locked requirements file, installed only when they must be."""

    def __init__(self, lock: bytes, target: Target, *, scratch: Path, known: Known, proc: Run) -> None:
        """Take the lock's bytes; install below `scratch`. `key` stands for all that decides what comes out."""
        if target.platform not in _UV_PLATFORMS:
            raise ImageError(f"{target.platform} is not a platform that wheels are made for here")
        self._lock = lock
        self._target = target
        self._scratch = scratch
        self._known = known
        self._proc = proc
        self._installing = threading.Lock()
        self._outcome: Future[Mapping[str, tuple[Entry, ...]]] = Future()
        self._packed: dict[str, Path] = {}
        tools = (installed_version("uv"), installed_version("deflate"))
        self.key = fingerprint("dependencies", Digest.of(lock), target.python, target.platform, *tools)

    def layers(self, ready: Ready = ignore) -> tuple[Layer, ...]:
        """Return the layers, big wheels one by one and the small ones together; each is given to `ready` when it is.

        Raises `DependenciesFailed` when uv cannot install the lock.
        """
        layers = self._known.load(self.key)
        if layers is None:
            layers = tuple(self._pack(title, ready) for title in self._installed)
            self._known.save(self.key, layers)
        else:
            for layer in layers:
                ready(layer, self.source(layer))
        return layers

    def _pack(self, title: str, ready: Ready) -> Layer:
        """Make a layer's bytes, and keep them beside what is installed: to make them anew would take as long."""
        path = self._folder / f"{len(self._packed)}.tar.gz"
        entries = self._installed[title]
        size_bytes = sum(entry.size_bytes for entry in entries)
        with writing(self._scratch, size_bytes, ImageError), path.open("wb") as file:
            layer = pack("dependencies", title, stream(entries), FAST, file.write)
        self._packed[title] = path
        ready(layer, self.source(layer))
        return layer

    def source(self, layer: Layer) -> Source:
        """Return how to come by one layer's bytes; what is installed and packed stays while somebody has it."""

        def made() -> Iterator[bytes]:
            if packed := self._packed.get(layer.title):
                yield from pieces(packed)
                return
            hashed = hashlib.sha256()
            for piece in FAST(stream(self._installed.get(layer.title, ()))):
                hashed.update(piece)
                yield piece
            if hashed.hexdigest() != layer.descriptor.digest.hex:
                self._known.forget(self.key)
                message = f"the wheels of layer {layer.title!r} are not those of the last time"
                raise DependenciesFailed(message, advice="run again: the layers are then made anew")

        return made

    @property
    def _installed(self) -> Mapping[str, tuple[Entry, ...]]:
        """Return what is installed once, or why it could not be, however many threads ask."""
        with self._installing:
            if not self._outcome.done():
                try:
                    self._outcome.set_result(self._install())
                except BaseException as error:  # noqa: BLE001 - handed over
                    self._outcome.set_exception(error)
        return self._outcome.result()

    def _install(self) -> Mapping[str, tuple[Entry, ...]]:
        """Install; the folder lives as long as this object."""
        with writing(self._scratch, len(self._lock), ImageError), contextlib.ExitStack() as stack:
            folder = stack.enter_context(staging(self._scratch))
            lock, site = folder / "requirements.txt", folder / "site-packages"
            lock.write_bytes(self._lock)
            site.mkdir()
            done = self._proc.run(_install_command(_uv(), lock, site, self._target), timeout_s=_INSTALL_TIMEOUT_S)
            if done.code != 0:
                message = f"uv ended with {done.code}: the locked dependencies cannot be installed for Python "
                message += f"{self._target.python} on {self._target.platform}"
                raise DependenciesFailed(message, tail=without_secrets(done.tail))
            wheels = [_Wheel(record.parent) for record in sorted(site.glob("*.dist-info/RECORD"))]
            _refuse_doubt(wheels, site)
            self._folder = folder
            weakref.finalize(self, stack.pop_all().close)
        return _grouped(wheels)


def _uv() -> str:
    from uv import find_uv_bin  # noqa: PLC0415 - not needed when the layers are known

    try:
        return find_uv_bin()
    except FileNotFoundError as error:
        raise ToolMissing(program="uv") from error


def _install_command(uv: str, lock: Path, into: Path, target: Target) -> list[str]:
    return [
        *(uv, "pip", "install", "--quiet", "--target", str(into), "--requirements", str(lock)),
        *("--require-hashes", "--only-binary", ":all:", "--no-deps", "--no-compile-bytecode"),
        *("--link-mode", "hardlink"),  # they are read once and deleted: copies would cost a second of disk
        *("--python", sys.executable, "--python-version", target.python),
        *("--python-platform", _UV_PLATFORMS[target.platform]),
    ]


def without_secrets(text: str) -> str:
    """Return what uv said without the passwords in its URLs."""
    return re.sub(r"//[^/@\s]+@", "//***@", text)


class _Wheel:
    """One installed wheel: the files its RECORD names that are the same on every machine.

    Left out are who installed it and from where (a URL may hold a password), and `bin/`:
    its scripts begin with this interpreter's path, and `python -m` starts the same programs.
    """

    def __init__(self, folder: Path) -> None:
        self.title = " ".join(folder.name.removesuffix(".dist-info").rsplit("-", 1))
        self._site = folder.parent
        self._record = f"{folder.name}/RECORD"
        rows = csv.reader((folder / "RECORD").read_text("utf-8").splitlines())
        paths = {PurePosixPath(row[0]): row for row in sorted(rows) if row}
        self.rows = {
            str(path): row for path, row in paths.items() if _same_everywhere(path) and (self._site / path).is_file()
        }
        self.size_bytes = sum((self._site / path).stat().st_size for path in self.rows)

    def entries(self) -> Iterator[Entry]:
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([*self.rows.values(), [self._record, "", ""]])
        record = text.getvalue().encode()
        yield Entry(path=f"{_SITE}/{self._record}", size_bytes=len(record), read=lambda: [record])
        for path in self.rows:
            file = self._site / path
            facts = file.stat()
            executable = bool(facts.st_mode & stat.S_IXUSR)
            read = partial(pieces, file)
            yield Entry(path=f"{_SITE}/{path}", size_bytes=facts.st_size, read=read, executable=executable)


def _same_everywhere(path: PurePosixPath) -> bool:
    if path.is_absolute() or ".." in path.parts:
        raise DependenciesFailed(f"a wheel wants to write {path}, outside of its folder")
    told_by_installer = path.parent.suffix == ".dist-info" and path.name in _INSTALLER_FILES
    return path.parts[0] != "bin" and not told_by_installer


def _refuse_doubt(wheels: Iterable[_Wheel], site: Path) -> None:
    """Refuse a file that two wheels hold, since it is chance which one stays, and one that none names."""
    owners: dict[str, _Wheel] = {}
    for wheel in wheels:
        for path, row in wheel.rows.items():
            first = owners.setdefault(path, wheel)
            if first.rows[path][1] != row[1]:
                raise DependenciesFailed(f"{first.title} and {wheel.title} both hold {path}, and not the same one")
    for file in (file for file in site.rglob("*") if file.is_file() and file.name != ".lock"):
        name = file.relative_to(site).as_posix()
        if name not in owners and _same_everywhere(PurePosixPath(name)):
            raise DependenciesFailed(f"{name} was installed, but no wheel names it in its RECORD")


def _grouped(wheels: Sequence[_Wheel]) -> dict[str, tuple[Entry, ...]]:
    """Return each layer's entries by its title: big wheels alone, the rest together."""
    by_size = sorted(wheels, key=lambda wheel: (-wheel.size_bytes, wheel.title))
    alone = {wheel.title for wheel in by_size[:_MOST_OWN_LAYERS] if wheel.size_bytes >= _OWN_LAYER_BYTES}
    groups = {wheel.title: tuple(wheel.entries()) for wheel in wheels if wheel.title in alone}
    if rest := {entry.path: entry for wheel in wheels if wheel.title not in alone for entry in wheel.entries()}:
        groups[f"{len(wheels) - len(alone)} small packages"] = tuple(rest.values())
    return groups
