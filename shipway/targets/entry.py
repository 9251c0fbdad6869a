"""What the daemon runs in place of a service: it becomes the service.

A script of its own, started by path with a bare interpreter and an empty environment, so
that no quoting rule of the daemon's configuration ever meets a service's arguments or
variables. It imports nothing of shipway. Arguments: the file with the start's facts, and
the number of the shared socket, if there is one.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path


def main(path: str, fd: str = "") -> None:
    """Replace this process with the service."""
    os.dup2(1, 2)  # one log, in the order in which things were said
    start = json.loads(Path(path).read_text("utf-8"))
    words = [*start["argv"], *(word.replace("{fd}", fd) for word in start["listen"])]
    os.chdir(start["cwd"])
    try:
        os.execvpe(words[0], words, start["env"])  # noqa: S606 - this process becomes the service, no shell
    except OSError as error:
        sys.exit(f"{words[0]}, the first word of [service] command, cannot be started: {error.strerror}")


if __name__ == "__main__":
    main(*sys.argv[1:])
