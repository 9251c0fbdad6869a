"""The local target's files: every set of workers that was started, and which was settled last.

Owns names, numbers and formats; a set's folder holds all that is needed to start it again,
its home and its log. Knows nothing of what runs. Files that cannot be read are as if they
were not there.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import socket
from collections.abc import Collection
from pathlib import Path
from typing import Literal

from msgspec import Struct

from shipway import documents
from shipway.artifacts import Version
from shipway.config import ServiceSettings
from shipway.ledger import write
from shipway.targets import launch

Kind = Literal["candidate", "public"]

_KEPT = 20


class Workers(Struct, frozen=True, kw_only=True):
    """A set of workers. `folder` is its own, `root` that of its version, `config` its image's configuration."""

    folder: Path
    version: Version
    root: Path
    config: bytes
    url: str

    @property
    def name(self) -> str:
        """Its name for the daemon, which sorts by age."""
        return self.folder.name

    @property
    def public(self) -> bool:
        """Whether it shares the public socket."""
        return is_public(self.name)

    @property
    def service(self) -> ServiceSettings:
        """How it is asked, and how long it may take."""
        return launch.service(self.config)

    @property
    def start(self) -> Path:
        """What `entry.py` reads."""
        return self.folder / "start.json"

    @property
    def log(self) -> Path:
        """What it says."""
        return self.folder / "log"


class Settled(Struct, frozen=True, kw_only=True):
    """The version that was settled last, when, and its workers."""

    version: Version
    workers: Workers
    since: float


class Shelf:
    """All sets of one target."""

    def __init__(self, folder: Path) -> None:
        """Keep the sets' folders in `folder`/sets, and what is settled beside them."""
        self.folder = folder / "sets"
        self._settled = folder / "settled.json"

    def make(self, kind: Kind, version: Version, *, root: Path, config: bytes, url: str) -> Workers:
        """Give a new set its name and folder."""
        number = max((int(folder.name[:5]) for folder in self._folders()), default=0) + 1
        folder = self.folder / f"{number:05}-{kind}-{version.digest.short}"
        workers = Workers(folder=folder, version=version, root=root.resolve(), config=config, url=url)
        (folder / "home").mkdir(parents=True)
        facts = {"version": documents.plain(version), "root": str(workers.root), "config": config.decode(), "url": url}
        write(folder / "set.json", json.dumps(facts, indent=1))
        return workers

    def write_start(self, workers: Workers, *, python: str, port: int, listen: tuple[str, ...]) -> None:
        """Write down how it is started; its extra ports are chosen here."""
        names = tuple(workers.service.ports)
        start = launch.start(
            workers.config,
            root=workers.root,
            python=python,
            ports={"PORT": port} | dict(zip(names, free_ports(len(names)), strict=True)),
            listen=listen if workers.public else (),
            home=workers.folder / "home",
            mark=str(workers.start),
        )
        write(workers.start, documents.text(start))

    def all(self) -> tuple[Workers, ...]:
        """Return the sets that are remembered, oldest first."""
        return tuple(workers for folder in self._folders() if (workers := _read(folder)))

    def get(self, name: str) -> Workers | None:
        """Return one set."""
        return _read(self.folder / name)

    def settled(self) -> Settled | None:
        """Return what was settled last."""
        try:
            facts = documents.decoded(self._settled.read_bytes())
            workers = self.get(facts["set"])
            version = Version.of(facts["version"])
            return Settled(version=version, workers=workers, since=float(facts["since"])) if workers else None
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def settle(self, workers: Workers, version: Version, *, since: float) -> None:
        """Write down that this version is the one to serve; from here on, going back is a rollout of its own."""
        facts = {"set": workers.name, "version": documents.plain(version), "since": since}
        write(self._settled, json.dumps(facts, indent=1))

    def unsettle(self) -> None:
        """Write down that nothing is to be served."""
        self._settled.unlink(missing_ok=True)

    def prune(self, keep: Collection[str]) -> None:
        """Forget old sets, with their logs, besides those named."""
        for folder in self._folders()[:-_KEPT]:
            if folder.name not in keep:
                shutil.rmtree(folder, ignore_errors=True)

    def _folders(self) -> list[Path]:
        return sorted(self.folder.glob("[0-9][0-9][0-9][0-9][0-9]-*"))


def is_public(name: str) -> bool:
    """Say of what kind a set of this name is."""
    return "-public-" in name


def free_ports(count: int) -> list[int]:
    """Return ports of the loopback that are free now."""
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]


def _read(folder: Path) -> Workers | None:
    try:
        facts = documents.decoded((folder / "set.json").read_bytes())
        return Workers(
            folder=folder,
            version=Version.of(facts["version"]),
            root=Path(facts["root"]),
            config=facts["config"].encode(),
            url=facts["url"],
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
