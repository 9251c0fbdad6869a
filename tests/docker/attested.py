"""A repository of a real registry as other people's programs see it too."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from shipway.config import PushSettings
from shipway.console import Console
from shipway.oci.registry import Repository, open_repository
from shipway.proc import Proc
from tests.docker import tools
from tests.docker.registries import Registry

KINDS = ("debian-open", "v3-open", "debian-token", "v3-token")


@dataclass(frozen=True, kw_only=True)
class Place:
    """A repository, our own client of it, and how others get there."""

    kind: str
    registry: Registry
    images: Repository

    @property
    def name(self) -> str:
        """The repository, `HOST/NAME`."""
        return self.images.repository

    def oras(self, *words: str) -> Any:
        """Return what oras prints as JSON."""
        how = ["--ca-file", str(self.registry.authority)] if self.registry.authority else ["--plain-http"]
        return json.loads(self._run([str(tools.oras()), *words, *how]))

    def crane(self, *words: str) -> bytes:
        """Return what crane prints."""
        return self._run([str(tools.crane()), *words])

    def _run(self, argv: list[str]) -> bytes:
        done = subprocess.run(
            argv, env={**os.environ, **self.registry.environ}, capture_output=True, timeout=60, check=False
        )
        assert done.returncode == 0, done.stderr.decode()
        return done.stdout


@contextlib.contextmanager
def opened(running: Callable[[str], Registry], request: pytest.FixtureRequest) -> Iterator[Place]:
    """Give an empty repository of the registry that the test is parametrized with."""
    registry = running(request.param)
    name = f"{registry.address}/shop/{hashlib.sha256(request.node.nodeid.encode()).hexdigest()[:12]}"
    with pytest.MonkeyPatch.context() as patch:
        for variable, value in registry.environ.items():
            patch.setenv(variable, value)
        images = open_repository(
            name,
            settings=PushSettings(repository=name, authority=str(registry.authority) if registry.authority else None),
            root=Path(),
            environ={**os.environ, **registry.environ},
            proc=Proc(),
            tell=Console(err=io.StringIO()),
        )
        with contextlib.closing(images):
            yield Place(kind=request.param, registry=registry, images=images)
