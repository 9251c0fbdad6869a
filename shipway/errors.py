"""Everything that can go wrong, one class each, with its exit code.

A class builds its own message from facts: what failed, the tool's own last lines, what is
serving now where that is in question, and what to type next. The tens digit of the code is
the stage. `docs/errors.md` is generated from this module: a class's first line of
documentation and its `advice` are what the user reads there.
"""

from __future__ import annotations

import signal
from collections.abc import Collection, Sequence
from typing import ClassVar


class ShipwayError(Exception):
    """The root of the tree; never raised itself."""

    code: ClassVar[int] = 1
    advice: ClassVar[str] = ""
    is_hindered = False  # set where something came between, such as no room or no leave: no version is to blame

    def __init__(self, message: str, *, tail: str = "", advice: str = "", serving: str = "") -> None:
        """Build the error from what failed, the tool's last lines, what to type, what is live."""
        message = message.encode("utf-8", "backslashreplace").decode()  # others' words may hold half a surrogate pair
        super().__init__(message)
        self.message = message
        self.tail = tail
        self.next = advice or type(self).advice
        self.serving = serving

    def __str__(self) -> str:
        quoted = "\n".join(f"  | {line}" for line in self.tail.splitlines())
        return "\n".join(
            part for part in (self.message, quoted, self.serving, self.next and f"Next: {self.next}") if part
        )


# -- 2, 3, 4: before anything began ------------------------------------------------------


class ConfigError(ShipwayError):
    """`release.toml`, a flag or a `SHIPWAY_…` variable is wrong."""

    code = 2
    advice = "mend what is named; docs/settings.md explains every setting"


class NotConfigured(ShipwayError):
    """The environment does not say what this task needs."""

    code = 2
    advice = "see docs/settings.md for what release.toml can hold"


class ToolMissing(ShipwayError):
    """A program that this step needs is not installed."""

    code = 3
    advice = "install it, then run the same command again"

    def __init__(self, *, program: str) -> None:
        """Name the program."""
        super().__init__(f"there is no program {program!r} on this machine")
        self.program = program


class DockerMissing(ShipwayError):
    """No Docker daemon answers, and what `[image]` asks for cannot be made without one."""

    code = 3
    advice = "start Docker, or say in DOCKER_HOST where it answers; a base by digest needs none"


class LoginMissing(ShipwayError):
    """There is no credential where the settings say that there is one, or its owner did not answer in time."""

    code = 3
    advice = "log in as [push] login says, then invoke doctor"


class CheckoutError(ShipwayError):
    """The folder is not a git checkout, or git refuses to read it."""

    code = 3
    advice = "run inside a git checkout that has at least one commit"


class NotReady(ShipwayError):
    """`invoke doctor` found something that a release would stumble over."""

    code = 3
    advice = "mend what is marked BAD above"


class MachineRefused(ShipwayError):
    """This machine refused: a folder is read-only, a disk or a table of processes is full."""

    code = 3
    advice = "make what is named writable, or make room, then run the same command again"


class LockHeld(ShipwayError):
    """Another release holds the environment's lock."""

    code = 4
    advice = "wait for it, or run again with --wait"


class Overtaken(ShipwayError):
    """Another release changed what serves while this command waited for the lock; nothing was done."""

    code = 4
    advice = "invoke status shows what serves; if that is what you want to leave, run the same command again"


class LockLost(ShipwayError):
    """The lock ran out and another release took it, so this one stopped before its next change."""

    code = 4
    advice = "invoke status, then run the same command again"


# -- 10 to 19: test ----------------------------------------------------------------------


class SuiteFailed(ShipwayError):
    """The test suite did not pass."""

    code = 10
    advice = "invoke test runs the suite alone"


class SuiteEmpty(ShipwayError):
    """The test suite ran no test, which proves nothing."""

    code = 11
    advice = "look at [test] command in release.toml"


# -- 20 to 29: model ---------------------------------------------------------------------


class ModelError(ShipwayError):
    """The model store cannot be read or written."""

    code = 20
    advice = "invoke model.list shows what the store holds"


class StoreUnreachable(ModelError):
    """The model store did not answer, or only with errors, however often it was asked."""

    code = 20
    advice = "look at [model] store and endpoint; then run the same command again: what arrived is not sent twice"


class StoreRefused(ModelError):
    """The model store refused: a login that is not good enough, a right that is lacking, or no such container."""

    code = 20
    advice = "look in docs/stores.md which rights a store's login needs"


class ModelMissing(ModelError):
    """There is no such model, version or alias in the store."""

    code = 21


class ModelRefused(ModelError):
    """A file of the model is not safe data, or not what the manifest says."""

    code = 22
    advice = "mend the file that is named, then publish again"


class ModelCorrupt(ModelError):
    """What the store sent is not what the manifest promises."""

    code = 23
    advice = "run again; if it stays, publish the same files again, which mends the store"


class GoldenFailed(ModelError):
    """The model does not give its own golden answers."""

    code = 24
    advice = "look at the case that is named: the model, or the expected answer, is wrong"


class AliasMoved(ModelError):
    """Somebody else moved the alias first."""

    code = 25
    advice = "look at invoke model.history, then promote again if it is still right"


class ModelUnfit(ModelError):
    """The model's inputs or outputs are not those the service understands."""

    code = 26
    advice = "publish a model that fits, or change the service first"


class ModelUntrusted(ModelError):
    """No key that this environment trusts has signed the version as it is."""

    code = 27
    advice = "publish it signed by one of [model] trusted_keys, or trust the key that signed it (docs/models.md)"


class ModelDowngrade(ModelError):
    """What would be released is older than the model that was released here, or no longer what it was."""

    code = 28
    advice = "look at invoke model.history; where it is meant, say --allow-downgrade"


class ModelInUse(ModelError):
    """Files that this needs are being cleaned up in this moment, or another clean-up is under way."""

    code = 29
    advice = "run again in a while; a clean-up that was killed elsewhere stands in the way for an hour at most"


# -- 30 to 39: image ---------------------------------------------------------------------


class ImageError(ShipwayError):
    """The image cannot be composed."""

    code = 30
    advice = "look at [image] in release.toml"


class DirtyTree(ImageError):
    """Files are changed but not committed, and this is a CI run."""

    code = 31
    advice = "commit the change"


class DependenciesFailed(ImageError):
    """The locked dependencies cannot be installed for the image's Python and platform."""

    code = 32
    advice = "a package without a wheel belongs into the Dockerfile's base stage"


class BaseRefused(ImageError):
    """The base image is not what it says it is, or holds what must not be built upon."""

    code = 33
    advice = "name another base in [image] base"


class DockerFailed(ImageError):
    """Docker could not build the Dockerfile, or hand over what it built."""

    code = 34
    advice = "mend the Dockerfile: docker build . shows the same"


class NotBuilt(ImageError):
    """What Docker would have to build is not built yet, and this command builds nothing."""

    code = 35
    advice = "invoke image builds it"


# -- 40 to 49: push ----------------------------------------------------------------------


class PushError(ShipwayError):
    """The image cannot be written to, or read back from, its registry or layout."""

    code = 40
    advice = "run again: what arrived is not sent twice"


class ImageMissing(PushError):
    """There is no such image in the registry or layout."""

    code = 41
    advice = "invoke build makes it"


class ImageCorrupt(PushError):
    """What is stored under a digest is something else."""

    code = 42
    advice = "delete the file that is named, then invoke release writes it again"


class BlobsLost(PushError):
    """The registry has not got what a manifest names, although it said so."""

    code = 43

    def __init__(self, message: str, *, digests: Collection[str] = ()) -> None:
        """Take the digests that the registry named; none means that any may be lost."""
        super().__init__(message)
        self._digests = frozenset(digests)

    def concerns(self, digest: str) -> bool:
        """Tell whether this blob may be lost."""
        return not self._digests or digest in self._digests


class RegistryUnreachable(PushError):
    """The registry, or its token service, did not answer, or only with errors, however often it was asked."""

    code = 44
    advice = "invoke doctor asks it again; then run the same command again: what arrived is not sent twice"


class RegistryRefused(PushError):
    """The registry refused: a login that is not good enough, a right that is lacking, or a request it does not take."""

    code = 45
    advice = "invoke doctor says which credential was used, and whether it may push"


# -- 50 to 59: rollout -------------------------------------------------------------------


class RolloutError(ShipwayError):
    """The rollout failed and was undone."""

    code = 50
    advice = "invoke history shows the attempt; its logs are named above"


class CandidateFailed(RolloutError):
    """The candidate crashed, or did not get ready in time."""

    code = 51
    advice = "mend what the log says and release again"


class WrongBuild(RolloutError):
    """Another build answered than the one that was started."""

    code = 52


class GoldenAnswersWrong(RolloutError):
    """The candidate does not give the model's golden answers."""

    code = 53
    advice = "compare app/ with the model's preprocessing contract"


class RefusedBefore(RolloutError):
    """This digest failed in this environment before."""

    code = 54
    advice = "release a mended commit, or say --force to try it once more"


class PromotionFailed(RolloutError):
    """The candidate was good but did not serve on the public address."""

    code = 55


class NothingToGoBackTo(RolloutError):
    """There is no earlier version to roll back to."""

    code = 56
    advice = "invoke history lists what was released here"


class AddressTaken(RolloutError):
    """Another program listens on the public address."""

    code = 57
    advice = "stop it, or choose another port: SHIPWAY_ROLLOUT_PORT=8081 invoke release, or invoke run --port 8081"


class ClusterRefused(RolloutError):
    """The cluster refused: a right is lacking, a manifest is not accepted, or another owns a field of it."""

    code = 58
    advice = "invoke doctor says which rights are lacking and whether the manifests are accepted"


class ClusterUnreachable(RolloutError):
    """The API server did not answer, however long it was asked."""

    code = 59
    advice = "invoke status, once it answers; then run the same command again"


# -- 60 to 69: loadcheck -----------------------------------------------------------------


class LoadCheckFailed(ShipwayError):
    """The load check measured figures beyond the limits."""

    code = 60
    advice = "the report that is named has the plots; limits are in [loadcheck] of release.toml"


class LoadCheckInconclusive(ShipwayError):
    """The load check has too little, or the wrong, data to say anything; that is not a pass."""

    code = 61
    advice = "look at the log that is named, then run again"


class GeneratorsNotStarted(ShipwayError):
    """The load generators in the cluster could not be started, so nothing was measured."""

    code = 62
    advice = "mend what the cluster says above, or ask for fewer --workers"


# -- 70, 130 -----------------------------------------------------------------------------


class UndoFailed(ShipwayError):
    """Going back failed: a person is needed."""

    code = 70
    advice = "see docs/operating.md, 'undo by hand'"


class Interrupted(ShipwayError):
    """A signal ended the command."""

    code = 130
    advice = "run the same command again to finish it"


# -- raised by proc, translated by whoever called -----------------------------------------


class ToolFailed(ShipwayError):
    """A program that shipway started failed."""

    code = 3
    advice = "mend what its last lines say, then run the same command again"

    def __init__(self, *, argv: Sequence[str], code: int, tail: str) -> None:
        """Name the program, how it ended, and its last lines."""
        how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with {code}"
        super().__init__(f"{' '.join(argv[:4])}{' …' if len(argv) > 4 else ''} {how}", tail=tail)  # noqa: PLR2004
