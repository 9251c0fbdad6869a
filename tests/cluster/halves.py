"""`python -m tests.cluster.halves`: all tests of this folder, one half beside the other, each in a cluster of its own.

Half of the time they wait for their cluster, and one may do something while the other waits.
The first half is seen as it goes, the second when both have ended. What is interrupted ends both.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import IO

_HERE = Path(__file__).parent
_FIRST = [str(_HERE / f"test_{name}.py") for name in ("cluster", "rollout")]  # half of the time, as measured
_SECOND = [str(_HERE), *(f"--ignore={file}" for file in _FIRST)]


def main() -> int:
    """Run both; return the first exit code that is not 0."""
    signal.signal(signal.SIGINT, lambda *_: None)  # both hear it themselves, and have something to stop
    with tempfile.TemporaryFile() as kept:
        halves = [_started(_FIRST, None), _started(_SECOND, kept)]

        def end(*_: object) -> None:
            for half in halves:
                half.terminate()

        signal.signal(signal.SIGTERM, end)
        codes = [half.wait() for half in halves]
        kept.seek(0)
        sys.stdout.write(kept.read().decode("utf-8", "replace"))
    return next(filter(None, codes), 0)


def _started(words: list[str], output: IO[bytes] | None) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-m", "pytest", *words], stdout=output, stderr=output)


if __name__ == "__main__":
    sys.exit(main())
