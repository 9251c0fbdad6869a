"""`python -m tests.halves FOLDER FILE…`: these files of the folder, and beside them all others of it.

What mostly waits is done in half of the time so. The first half is seen as it goes, the second
when both have ended. What is interrupted ends both.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import tempfile
from typing import IO


def main(folder: str, *first: str) -> int:
    """Run both; return the first exit code that is not 0."""
    files = [f"{folder}/{name}" for name in first]
    signal.signal(signal.SIGINT, lambda *_: None)  # both hear it themselves, and have something to stop
    with tempfile.TemporaryFile() as kept:
        halves = [_started(files, None), _started([folder, *(f"--ignore={file}" for file in files)], kept)]

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
    sys.exit(main(*sys.argv[1:]))
