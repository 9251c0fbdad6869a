"""Releases in a scratch clone: the first one, one where nothing changed, one with a changed line of code.

The load checks are shortened to the same few seconds in all of them: how long they take is
the user's choice, not a cost of releasing.
"""

from __future__ import annotations

import contextlib
import os
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks import Row

_ROUNDS = 5
_LOAD = {"SECONDS": "3", "PUBLIC_SECONDS": "2", "WARMUP_SECONDS": "1", "MIN_REQUESTS": "10", "MAX_P95_GROWTH": "100"}
_AUTHOR = ("-c", "user.name=benchmark", "-c", "user.email=benchmark@example.invalid")


@dataclass(frozen=True, slots=True, kw_only=True)
class Scratch:
    """A clone that releases to a port of its own."""

    root: Path
    commit: str
    environ: dict[str, str]

    def invoke(self, *words: str) -> float:
        """Run a task of the clone, and return its seconds."""
        began = time.perf_counter()
        argv = [sys.executable, "-m", "invoke", *words]
        subprocess.run(argv, cwd=self.root, env=self.environ, check=True, stdout=subprocess.DEVNULL)
        return time.perf_counter() - began

    def images(self) -> dict[Path, int]:
        """Return the files of the image layout and their sizes in bytes."""
        files = (self.root / ".shipway" / "images").rglob("*")
        return {path: path.stat().st_size for path in files if path.is_file()}

    def change_code(self) -> None:
        """Commit a changed line in the app."""
        with (self.root / "app" / "__init__.py").open("a", encoding="utf-8") as module:
            module.write("# changed by a benchmark\n")
        subprocess.run(
            ["git", *_AUTHOR, "commit", "--quiet", "--all", "-m", "Change a line"], cwd=self.root, check=True
        )


@contextlib.contextmanager
def scratch(repository: Path, folder: Path) -> Iterator[Scratch]:
    """Clone the committed state; what the clone serves is stopped at the end."""
    root = folder / "clone"
    subprocess.run(["git", "clone", "--quiet", repository, root], check=True)
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=root, check=True, capture_output=True, text=True).stdout
    load = {f"SHIPWAY_LOADCHECK_{key}": value for key, value in _LOAD.items()}
    environ = os.environ | load | {"SHIPWAY_ROLLOUT_PORT": str(free_port())}
    clone = Scratch(root=root, commit=commit.strip(), environ=environ)
    try:
        yield clone
    finally:
        clone.invoke("stop")


def measure(clone: Scratch) -> Iterator[Row]:
    """Release three ways."""
    first_s = clone.invoke("release")
    before = clone.images()
    same_s = statistics.median(clone.invoke("release") for _ in range(_ROUNDS))
    clone.change_code()
    code_s = clone.invoke("release")
    after = clone.images()
    added = sum(size - before.get(path, 0) for path, size in after.items() if size > before.get(path, 0))
    first = f"the first release's {first_s:.1f} s"
    yield Row(what="invoke release, nothing changed", value=same_s, unit="s", reference=first_s, against=first)
    yield Row(what="invoke release, a line of code", value=code_s, unit="s", reference=first_s, against=first)
    whole = sum(before.values())
    yield Row(
        what="  bytes it added to the layout",
        value=added / 1e3,
        unit="kB",
        reference=whole / 1e3,
        against=f"the first release's {whole / 1e6:.0f} MB",
    )


def free_port() -> int:
    """Return a port that nobody listens on now."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
        return port
