"""One environment of one checkout: everything that reaches outside, put together once.

Owns the choice of the real parts (git, the images, the store, the target, its ledger and
lock) and where their state lies under `.shipway/`. Does nothing itself.
"""

from __future__ import annotations

import contextlib
import getpass
import os
import socket
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec.structs import replace

from shipway.artifacts import Digest, Image, Snapshot, Version
from shipway.checkout import Checkout
from shipway.config import FILE, ImageSettings, Loaded, Settings, environments, load
from shipway.console import Console
from shipway.errors import CheckoutError, ConfigError, NotConfigured, ToolMissing
from shipway.ledger import FileRecords, FileSlot, Ledger, Lock, Slot
from shipway.oci import compose
from shipway.oci.images import Images, read_image
from shipway.oci.layout import Layout
from shipway.oci.wheels import Target
from shipway.proc import Proc
from shipway.stores import Access, Catalogue, Keys, is_elsewhere, open_catalogue

if TYPE_CHECKING:
    from shipway.oci.registry import Repository
    from shipway.targets import Target as Place
    from shipway.targets.generators import Generators
    from shipway.targets.kubectl import Kubectl

# ruff: noqa: PLC0415 - an environment has one kind of target, and many commands need none


@dataclass(frozen=True, kw_only=True)
class Site:
    """The parts that a task works with; each property makes one anew, and that costs nothing.

    The snapshot alone is taken once, so that one command tests, builds and tells of one tree.
    """

    root: Path
    loaded: Loaded
    environ: Mapping[str, str]
    proc: Proc
    tell: Console
    began_s: float = field(default_factory=time.time)
    _opened: list[Repository] = field(default_factory=list, compare=False, repr=False)

    @classmethod
    def open(
        cls,
        folder: Path,
        *,
        environment: str | None,
        environ: Mapping[str, str],
        flags: Mapping[str, Mapping[str, str]] | None = None,
    ) -> Site:
        """Find the project that `folder` is in, and read one environment's settings."""
        root = next((place for place in (folder, *folder.parents) if (place / FILE).exists()), folder)
        loaded = load(root, environment=environment, environ=environ, flags=flags)
        return cls(root=root, loaded=loaded, environ=environ, proc=Proc(), tell=Console())

    @property
    def settings(self) -> Settings:
        """The environment's settings."""
        return self.loaded.settings

    @property
    def environment(self) -> str:
        """The environment's name."""
        return self.loaded.environment

    @property
    def state(self) -> Path:
        """The folder of all state of this checkout; git ignores it."""
        return self.root / ".shipway"

    @property
    def who(self) -> str:
        """Who runs this command, for the records."""
        try:
            user = getpass.getuser()
        except (KeyError, OSError):  # a container may run as a user that nobody has named
            user = str(os.getuid())
        return f"{user}@{socket.gethostname()}"

    @property
    def checkout(self) -> Checkout:
        """The code: what git holds."""
        return Checkout(self.root, self.proc, self.environ)

    @cached_property
    def snapshot(self) -> Snapshot:
        """What would be released. The sample store has versions of its own, so it is taken as committed."""
        return self.checkout.snapshot(exclude=self._stores)

    @property
    def commit(self) -> str | None:
        """The commit that is checked out, for a record; `None` outside a checkout."""
        with contextlib.suppress(CheckoutError, ToolMissing):
            return self.snapshot.commit
        return None

    @property
    def cache(self) -> Path:
        """What can be made again, and may be deleted at any time."""
        return self.state / "cache"

    @property
    def in_ci(self) -> bool:
        """Whether this is a CI run, which refuses what nobody could make again."""
        return self.environ.get("CI", "").lower() in {"1", "true", "yes"}

    @property
    def catalogue(self) -> Catalogue:
        """The models that data scientists publish."""
        return self.open_catalogue()

    def open_catalogue(self, *, signs: bool = False) -> Catalogue:
        """Return the models; one that `signs` has read the private key."""
        settings = self.settings.model
        keys = Keys.of(settings, root=self.root, environ=self.environ, signs=signs)
        access = Access.of(settings, root=self.root, environ=self.environ)
        return open_catalogue(settings.store, root=self.root, access=access, run=self.proc, keys=keys, tell=self.tell)

    @property
    def layout(self) -> Layout:
        """The images on this machine: all of them, or, beside a registry, those that ran here."""
        return Layout(self.state / "images")

    @cached_property
    def images(self) -> Images:
        """The images of this environment: a repository of a registry, or the layout."""
        if self.settings.push.repository == "layout":
            return self.layout
        return self.open_images(self.settings.push.repository)

    def open_images(self, name: str) -> Images:
        """Return a repository of a registry, `HOST/NAME`; the base may live in another than the images."""
        from shipway.oci.registry import open_repository  # brings an HTTP client, which a layout needs not

        repository = open_repository(
            name,
            settings=self.settings.push,
            root=self.root,
            environ=self.environ,
            proc=self.proc,
            tell=self.tell,
        )
        self._opened.append(repository)
        return repository

    def close(self) -> None:
        """Close the connections to registries that were opened here."""
        while self._opened:
            self._opened.pop().close()

    @property
    def ledger(self) -> Ledger:
        """The records of what was tried in this environment."""
        if self._runs_here:
            return Ledger(FileRecords(self._home / "history"))
        from shipway.targets.shared import ConfigMapRecords

        return Ledger(ConfigMapRecords(self._kubectl, name=self._deployment))

    @property
    def lock(self) -> Lock:
        """Who may change this environment now."""
        if self._runs_here:
            return self._lock(FileSlot(self._home / "lock"))
        from shipway.targets.shared import LeaseSlot

        return self._lock(LeaseSlot(self._kubectl, name=f"{self._deployment}-release"))

    @cached_property
    def target(self) -> Place:
        """Where versions run. Raises `NotConfigured` for a target that this installation lacks."""
        settings = self.settings.rollout
        if self._runs_here:
            from shipway.targets.local import Local

            return Local(
                self._home / "target",
                settings=settings,
                tell=self.tell,
                python=Path(sys.executable),
                folder_of=self.unpacked,
            )
        from shipway.targets.kubernetes import Kubernetes

        return Kubernetes(
            self._kubectl,
            name=self._deployment,
            folder=str(self.root / settings.overlay),
            repository=self.settings.push.repository,
            platform=Target.of(self.settings.image).platform,
            settings=settings,
            service=self.settings.service,
            tell=self.tell,
        )

    @property
    def generators(self) -> Generators:
        """Load generators beside the service; raises `NotConfigured` where it does not run in a cluster."""
        if self._runs_here:
            raise NotConfigured(
                f"environment {self.environment!r} runs on this machine, and has no cluster for load generators",
                advice="leave --in-cluster out, or name an environment whose [rollout] target is kubernetes",
            )
        from shipway.targets.generators import Generators

        return Generators(self._kubectl, service=self._deployment, tell=self.tell)

    @property
    def loadtest_lock(self) -> Lock:
        """Who may put load on the service from inside the cluster now: two at once would measure one another."""
        from shipway.targets.shared import LeaseSlot

        return self._lock(LeaseSlot(self._kubectl, name=f"{self._deployment}-loadtest"))

    def _lock(self, slot: Slot) -> Lock:
        lease_s = self.settings.rollout.lock_s
        return Lock(slot, lease_s=lease_s, doubt_s=lease_s / 2)

    @property
    def _runs_here(self) -> bool:
        settings = self.settings.rollout
        if settings.target == "swarm":
            raise NotConfigured(
                f"the target {settings.target!r} of environment {self.environment!r} is not configured",
                advice="this version runs on the targets local and kubernetes: set [rollout] target",
            )
        return settings.target == "local"

    @property
    def _deployment(self) -> str:
        return self.settings.rollout.deployment or self.settings.project.name

    @cached_property
    def _kubectl(self) -> Kubectl:
        settings = self.settings.rollout
        if not (settings.context and settings.namespace):
            raise NotConfigured(
                f"[rollout] of environment {self.environment!r} does not say which cluster: context and namespace",
                advice="docs/kubernetes.md shows what release.toml needs",
            )
        from shipway.targets.kubectl import Cluster, Kubectl

        cluster = Cluster(context=settings.context, namespace=settings.namespace, server=settings.server)
        return Kubectl(cluster, run=self.proc, tell=self.tell)

    def require_runnable(self) -> None:
        """Raise `NotConfigured` or `ConfigError` unless the target can run what would be built."""
        if self._runs_here:
            self.require_runnable_here()
        else:
            _ = self._kubectl
            self._require_runnable_by_nodes()

    def require_runnable_here(self) -> None:
        """Raise `ConfigError` unless the image is made for this machine's Python."""
        image, here = Target.of(self.settings.image), Target.of(ImageSettings())
        if image != here:
            raise ConfigError(
                f"the target local runs this machine's Python {here.python} on {here.platform}; "
                f"[image] asks for Python {image.python} on {image.platform}",
                advice="invoke build and invoke push work; to run it here, leave [image] python and platform out",
            )

    def _require_runnable_by_nodes(self) -> None:
        image, where = self.settings.image, f"[env.{self.environment}"
        if self.settings.push.repository == "layout":
            raise ConfigError(
                "nodes pull images from a registry, and [push] repository is the layout on this machine",
                advice=f"name one: {where}.push] repository",
            )
        if image.builder == "layers" and image.base == "scratch":
            raise ConfigError(
                "an image for a cluster needs a base with Python, and [image] base is scratch",
                advice=f"name one by digest, or the Dockerfile: {where}.image] base",
            )
        if image.python == "host":
            raise ConfigError(
                "[image] python is this machine's, which says nothing of the base's",
                advice=f"say which Python the base has: {where}.image] python",
            )

    def read_image(self, digest: Digest) -> Image:
        """Return what is known of an image; one that served is known to the target, without any registry."""
        if kept := self.target.image(digest):
            image = compose.parse(*kept)
            if image.digest == digest:
                return image
        return read_image(self.images, digest)

    def golden(self, version: Version) -> Path:
        """Return a model folder that has the golden exchanges of what a version holds.

        Where versions do not run on this machine it comes from the store, and holds nothing else.
        """
        if self._runs_here:
            return self.unpacked(version.digest) / version.model.folder
        return self.catalogue.golden_exchanges(version.model, cache=self.cache, tell=self.tell)

    def unpacked(self, digest: Digest) -> Path:
        """Return the folder that holds the image's `srv`, fetched and unpacked where it is not there yet."""
        from shipway.oci.unpack import fetch, unpack

        fetched = self.layout.path(digest).exists()  # the manifest comes last; a way back must not need the registry
        image = read_image(self.layout if fetched else self.images, digest)
        if not fetched:
            fetch(image, self.images, self.layout, self.tell)
        return unpack(self.layout, image, self.state, proc=self.proc, tell=self.tell)

    @property
    def neighbours(self) -> tuple[Site, ...]:
        """Every environment that may need images of this checkout: those used on this machine, and every cluster."""
        used = {home.name for home in (self.state / "environments").glob("*")}
        found = (self._neighbour(name) for name in sorted({*used, *environments(self.root), self.environment}))
        return tuple(each for each in found if each.environment in used or not each.is_here)

    @property
    def is_here(self) -> bool:
        """Whether versions run on this machine."""
        return self.settings.rollout.target == "local"

    def _neighbour(self, name: str) -> Site:
        """Return another environment with its own settings; one that is in no file any more has these."""
        if name == self.environment:
            return self
        loaded = replace(self.loaded, environment=name)
        with contextlib.suppress(ConfigError):
            loaded = load(self.root, environment=name, environ=self.environ)
        return Site(
            root=self.root,
            loaded=loaded,
            environ=self.environ,
            proc=self.proc,
            tell=self.tell,
            began_s=self.began_s,
        )

    @property
    def _stores(self) -> tuple[str, ...]:
        if is_elsewhere(self.settings.model.store):
            return ()
        store = (self.root / self.settings.model.store).resolve()
        return (str(store.relative_to(self.root.resolve())),) if store.is_relative_to(self.root.resolve()) else ()

    @property
    def _home(self) -> Path:
        return self.state / "environments" / self.environment
