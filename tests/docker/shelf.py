"""A repository of a real registry with the proxy before it, used as one command after another would."""

from __future__ import annotations

import contextlib
import io
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from shipway.artifacts import ImageRef
from shipway.config import PushSettings
from shipway.console import Console
from shipway.oci.compose import Composed
from shipway.oci.patience import Clock
from shipway.oci.registry import Repository, open_repository
from shipway.proc import Proc
from shipway.stages import push as stage
from tests.docker import walk
from tests.docker.proxy import Proxy
from tests.docker.registries import PASSWORD, USER, Registry

QUICK = 20.0  # how many times faster than ours the client's waits pass


@dataclass(kw_only=True)
class Shelf:
    """Where tests push to; each push is a client of its own, that knows nothing of those before."""

    registry: Registry
    proxy: Proxy
    name: str = "shop/small"
    log: list[str] = field(default_factory=list)

    def push(self, made: Composed, *tags: str) -> tuple[ImageRef, stage.Sent]:
        """Push through the proxy, with waits that pass quickly."""
        text = io.StringIO()
        try:
            with self.repository() as images:
                return stage.push(made, images=images, tags=tags, tell=Console(err=text))
        finally:
            self.log = text.getvalue().splitlines()

    @contextlib.contextmanager
    def repository(self) -> Iterator[Repository]:
        """Open the repository through the proxy."""
        address = f"{self.proxy.address}/{self.name}"
        clock = Clock(now=lambda: time.monotonic() * QUICK, sleep=lambda seconds: time.sleep(seconds / QUICK))
        images = open_repository(
            address,
            settings=PushSettings(repository=address),
            root=Path(),
            environ={"REGISTRY_USER": USER, "REGISTRY_PASSWORD": PASSWORD} if self.registry.authorization else {},
            proc=Proc(),
            tell=Console(err=io.StringIO()),
            clock=clock,
        )
        with contextlib.closing(images):
            yield images

    def wrongs(self) -> list[str]:
        """Return what is wrong in the registry itself, once nothing is under way any more."""
        self.proxy.settle()
        registry = self.registry
        return walk.wrongs(registry.address, self.name, storage=registry.storage, authorization=registry.authorization)

    def tags(self) -> dict[str, str]:
        """Return the registry's own tags."""
        return walk.tags(self.registry.address, self.name, authorization=self.registry.authorization)
