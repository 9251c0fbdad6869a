"""Release a stand-in, step by step, and die by SIGKILL at a given line of progress: a program for tests."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from shipway.config import RolloutSettings
from shipway.targets.local import Local
from tests.system import standin


class Deadly:
    """Counts the lines of progress, and dies at one of them."""

    def __init__(self, fatal: int) -> None:
        self.count, self.fatal = 0, fatal

    def say(self, stage: str, text: str) -> None:
        """Tell, and perhaps die."""
        sys.stdout.write(f"{stage} {text}\n")
        sys.stdout.flush()
        self.count += 1
        if self.count == self.fatal:
            os.kill(os.getpid(), signal.SIGKILL)

    def warn(self, text: str) -> None:
        """Tell."""
        self.say("warning", text)

    def live(self, stage: str, text: str) -> None:
        """Nobody looks."""

    def progress(
        self, stage: str, label: str, total_bytes: int
    ) -> contextlib.AbstractContextManager[Callable[[int], None]]:
        """Nothing moves here."""
        raise AssertionError(stage, label, total_bytes)


def main(folder: Path, port: str, build: str, fatal: str) -> None:
    """Release one build."""
    made = standin.make(folder / "versions", build)
    tell = Deadly(int(fatal))
    target = Local(
        folder / "target",
        settings=RolloutSettings(port=int(port)),
        tell=tell,
        python=Path(sys.executable),
        folder_of=lambda digest: folder / "versions" / digest.hex,
    )
    candidate = target.start(made.version, made.image, as_before=False)
    tell.say("rollout", "candidate ready")
    target.promote(candidate)
    tell.say("rollout", "promoted")
    target.settle()
    tell.say("rollout", "settled")


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
