"""The local target: versions run by this machine's Python, side by side on one socket.

Owns what a promotion and an undo are here. A version is served by a *set* of workers: a
candidate on a private port, or a public one. A promotion lets a public set of the new
version join the shared socket beside the old one; when that is settled, the old one
finishes its requests and ends. So until then, an undo has but to remove the new set.

What runs is asked of the daemon; which set was settled last stands in a small file. What is not
said of a function here is said in `Target`.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from shipway.artifacts import Digest, Image, Version
from shipway.config import RolloutSettings
from shipway.console import Tell
from shipway.errors import (
    CandidateFailed,
    ConfigError,
    PromotionFailed,
    RolloutError,
    UndoFailed,
    WrongBuild,
)
from shipway.targets import Candidate, Live, answers
from shipway.targets.daemon import Address, Daemon, require_free, tail
from shipway.targets.launch import MARK
from shipway.targets.workers import Kind, Shelf, Workers, free_ports, is_public

_POLL_S = 0.1
_SETTLING_S = 10.0
_CANDIDATE_DRAIN_S = 5.0


class Local:
    """One service on this machine; a `Target`."""

    def __init__(
        self,
        folder: Path,
        *,
        settings: RolloutSettings,
        tell: Tell,
        python: Path,
        folder_of: Callable[[Digest], Path],
    ) -> None:
        """Keep everything in `folder`; `python` runs the versions.

        `folder_of` gives the folder that holds a version's `srv`, and unpacks it where it is
        not there.
        """
        folder = folder.resolve()
        self._shelf = Shelf(folder)
        self._daemon = Daemon(folder / "daemon", mark=MARK)
        self._settings = settings
        self._address = Address(host=settings.host, port=settings.port)
        self._tell = tell
        self._python = str(python.resolve())  # a virtual environment may be deleted any time
        self._folder_of = folder_of
        self._joined: Workers | None = None

    @property
    def url(self) -> str:
        """The public address."""
        return self._address.url

    @property
    def manner(self) -> str:
        """Nothing: an image is all."""
        return ""

    # -- what is served ----------------------------------------------------------------------

    def current(self) -> Live | None:
        """Return what users are served, as it really is; `None` when nothing was settled since the last stop."""
        public = self._public()
        settled = self._shelf.settled()
        if settled is None:
            for workers in public:
                self._tell.warn(f"{workers.version} serves but was never settled: a killed release left it")
            return None
        url = self._url(settled.workers)
        answer = answers.build(url, settled.workers.service)
        return Live(
            version=settled.version,
            url=url,
            since=settled.since,
            builds=tuple(workers.version.build for workers in public) or ((answer,) if answer else ()),
            healthy=public == [settled.workers] and answer == settled.version.build,
        )

    def is_as_wanted(self, live: Live) -> bool:
        """Say whether it is served on the address that the settings say now."""
        return live.url == self.url

    def digests(self) -> frozenset[Digest]:
        """Return the versions whose folders are in use."""
        settled = self._shelf.settled()
        names = {*self._running(), *self._daemon.added(), *([settled.workers.name] if settled else ())}
        return frozenset(workers.version.digest for workers in self._shelf.all() if workers.name in names)

    def image(self, digest: Digest) -> None:
        """Keep none: the images' own place is on this machine."""

    def looks(self) -> Mapping[str, Callable[[], str]]:
        """Look whether it is well, or could be started: `AddressTaken` names who listens."""
        return {"target": self._look}

    def _look(self) -> str:
        if live := self.current():
            return f"{live.version} on {live.url}, {'healthy' if live.healthy else 'not healthy'}"
        require_free(self._address)
        return f"nothing serves; {self.url} is free"

    def explain(self) -> str:
        """Return nothing: whatever ends here is told at once, by its log's last lines."""
        return ""

    def hindrance(self) -> str:
        """Return nothing: no network and no other hand is between us and it."""
        return ""

    def logs(self) -> str:
        """Name the folder that has a folder with a log for each set of workers; later ones sort last."""
        return str(self._shelf.folder)

    # -- what a release does, in this order --------------------------------------------------

    def start(self, version: Version, image: Image, *, as_before: bool) -> Candidate:  # noqa: ARG002 - an image is all
        """Start a set of its workers on a private port.

        Raises `AddressTaken` too, and `ConfigError` when another address is served than the
        settings say.
        """
        root = self._folder_of(version.digest)
        self._converge()
        self._tell.say("rollout", f"starting {version} on a private port")
        address = Address(host="127.0.0.1", port=free_ports(1)[0])
        workers = self._launch("candidate", version, config=image.config, root=root, address=address)
        self._await_ready(workers)
        self._prove(workers, error=WrongBuild)
        return Candidate(version=version, url=workers.url)

    def promote(self, candidate: Candidate) -> None:
        """Let the candidate's version serve users beside the one that does, which is not stopped yet."""
        tried = self._known(candidate.version)
        self.discard_candidate()
        if same := self._serving(candidate.version):  # another image of the same parts: nothing to start
            self._joined = same
            self._shelf.settle(same, candidate.version, since=time.time())
            return
        address = self._daemon.address() or self._address
        self._tell.say("rollout", f"{candidate.version} joins on {address.url}")
        joined = self._launch("public", candidate.version, config=tried.config, root=tried.root, address=address)
        self._joined = joined
        self._prove(joined, error=PromotionFailed, proofs=1, timeout_s=joined.service.start_timeout_s)

    def met(self, version: Version, before: Version | None) -> tuple[Version, ...]:
        """Return both: they share the socket."""
        return (version, before) if before else (version,)

    def settle(self) -> None:
        """Let all but what joined last finish their requests and end."""
        settled = self._shelf.settled()
        workers = settled.workers if settled else None
        for each in self._public():
            if workers is None or each.name > workers.name:
                workers = each
        if workers is None:
            raise PromotionFailed("nothing joined that could be settled")
        if self._joined and workers != self._joined:
            raise PromotionFailed(f"{self._joined.version} joined, and does not run any more; {workers.version} does")
        if settled is None or workers != settled.workers:
            self._shelf.settle(workers, workers.version, since=time.time())
        self._leave_only(workers)
        self._prove(workers, error=PromotionFailed)
        self._shelf.prune({*self._running(), *self._daemon.added()})

    def undo(self, previous: Version | None) -> None:
        """Serve `previous` alone; what runs of it is neither stopped nor started again."""
        try:
            if previous is None:
                self.stop()
            else:
                self._go_back(previous)
        except Exception as error:  # whatever it was, a person must know that going back failed
            builds = ""
            with contextlib.suppress(Exception):  # nothing may hide that it failed
                live = self.current()
                builds = " and ".join(live.builds) if live else ""
            raise UndoFailed(
                f"going back to {previous or 'nothing'} failed: {error}",
                serving=f"Now serving: {f'build {builds}' if builds else 'nothing'}. Logs: {self.logs()}",
            ) from error

    def discard_candidate(self) -> None:
        """Remove every candidate; none is no error."""
        self._remove(name for name in self._there() if not is_public(name))

    def stop(self) -> None:
        """End everything, the daemon too."""
        drains = [workers.service.drain_timeout_s for workers in self._public()]
        self._daemon.stop(drain_s=max(drains, default=_CANDIDATE_DRAIN_S))
        self._shelf.unsettle()

    # -- steps -------------------------------------------------------------------------------

    def _converge(self) -> None:
        """See that the daemon runs, with what was settled last and nothing else."""
        settled = self._shelf.settled()
        self._wake(settled.version if settled else None)
        if not self._daemon.serves(self._address):
            if settled:
                raise ConfigError(
                    f"[rollout] says {self._address.url}, but {self._url(settled.workers)} is served",
                    advice="set it back, or end what is served there with: invoke stop",
                )
            self._daemon.stop(drain_s=_CANDIDATE_DRAIN_S)
            self._wake(None)
        self._remove(name for name in self._there() if not settled or name != settled.workers.name)

    def _wake(self, version: Version | None) -> None:
        """Start the daemon if it does not run, with no other version than this."""
        if self._daemon.address():
            return
        for name in self._daemon.added():
            workers = self._shelf.get(name)
            if not (version and workers and workers.public and workers.version.build == version.build):
                self._daemon.forget(name)
        self._tell.say("rollout", f"starting the local daemon on {self._address.url}")
        self._daemon.start(self._address)

    def _go_back(self, previous: Version) -> None:
        self._wake(previous)
        workers = self._serving(previous)
        if workers is None:
            self._tell.say("rollout", f"starting {previous} again")
            config, address = self._known(previous).config, self._daemon.address() or self._address
            root = self._folder_of(previous.digest)
            workers = self._launch("public", previous, config=config, root=root, address=address)
            self._prove(workers, error=RolloutError, proofs=1, timeout_s=workers.service.start_timeout_s)
        settled = self._shelf.settled()
        if settled is None or (settled.workers, settled.version) != (workers, previous):
            self._shelf.settle(workers, previous, since=time.time())
        self._leave_only(workers)
        self._prove(workers, error=RolloutError, timeout_s=workers.service.start_timeout_s)

    def _launch(self, kind: Kind, version: Version, *, config: bytes, root: Path, address: Address) -> Workers:
        workers = self._shelf.make(kind, version, root=root, config=config, url=address.url)
        self._shelf.write_start(workers, python=self._python, port=address.port, listen=self._settings.listen)
        self._daemon.add(
            workers.name,
            start=workers.start,
            log=workers.log,
            public=workers.public,
            drain_s=self._drain_s(workers.name),
            python=self._python,
        )
        return workers

    def _await_ready(self, workers: Workers) -> None:
        began, limit = time.monotonic(), workers.service.start_timeout_s
        while not answers.ready(workers.url, workers.service):
            if not self._running().get(workers.name):
                raise self._failed(CandidateFailed, workers, "ended before it was ready")
            waited = time.monotonic() - began
            if waited > limit:
                raise self._failed(CandidateFailed, workers, f"was not ready within {limit:g} s")
            if waited > 1:
                self._tell.live("rollout", f"not ready yet, {waited:.0f} of {limit:.0f} s")
            time.sleep(_POLL_S)

    def _prove(
        self, workers: Workers, *, error: type[RolloutError], proofs: int | None = None, timeout_s: float = _SETTLING_S
    ) -> None:
        """Have the right build answer on new connections, `proofs` times in a row (default: the setting)."""
        url, build = self._url(workers), workers.version.build
        processes = self._running().get(workers.name)
        deadline = time.monotonic() + timeout_s
        in_a_row = 0
        while in_a_row < (proofs or self._settings.proofs):
            answer = answers.build(url, workers.service)
            in_a_row = in_a_row + 1 if answer == build else 0
            if in_a_row:
                continue
            if not processes or self._running().get(workers.name) != processes:
                raise self._failed(error, workers, f"ended before it answered on {url}")
            if time.monotonic() > deadline or (answer and not workers.public):  # nobody else answers there
                said = f"build {answer} answered" if answer else "nothing told its build"
                raise self._failed(error, workers, f"was expected on {url}, but {said}")
            time.sleep(_POLL_S)

    def _failed(self, error: type[RolloutError], workers: Workers, what: str) -> RolloutError:
        return error(f"{workers.version} {what}; its log: {workers.log}", tail=tail(workers.log))

    def _leave_only(self, workers: Workers) -> None:
        self._remove(name for name in self._there() if name != workers.name)

    def _remove(self, names: Iterable[str]) -> None:
        for name in names:
            self._tell.say("rollout", f"{name} finishes its requests and ends")
            self._daemon.remove(name, drain_s=self._drain_s(name))

    # -- looking -----------------------------------------------------------------------------

    def _running(self) -> dict[str, tuple[int, ...]]:
        return self._daemon.sets() if self._daemon.address() else {}

    def _there(self) -> list[str]:
        return sorted({*self._running(), *self._daemon.added()})

    def _public(self) -> list[Workers]:
        return [workers for name in sorted(self._running()) if is_public(name) and (workers := self._shelf.get(name))]

    def _serving(self, version: Version) -> Workers | None:
        return next((workers for workers in self._public() if workers.version.build == version.build), None)

    def _known(self, version: Version) -> Workers:
        for workers in reversed(self._shelf.all()):
            if workers.version.build == version.build:
                return workers
        raise RolloutError(f"it is not known any more how {version} is started")

    def _url(self, workers: Workers) -> str:
        return (self._daemon.address() or self._address).url if workers.public else workers.url

    def _drain_s(self, name: str) -> float:
        workers = self._shelf.get(name) if is_public(name) else None
        return workers.service.drain_timeout_s if workers else _CANDIDATE_DRAIN_S
