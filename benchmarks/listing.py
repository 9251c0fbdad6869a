"""`invoke --list` of this repository beside that of a bare tasks file: what shipway costs to load."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks import Row, middle

_ROUNDS = 15
_BARE = '''from invoke import task

@task
def hello(c):
    """Say hello."""
'''


def measure(repository: Path, folder: Path) -> Iterator[Row]:
    """Time both, in turns, so that a busy moment meets both."""
    bare = folder / "bare"
    bare.mkdir()
    (bare / "tasks.py").write_text(_BARE)
    pairs = [(_list_s(repository), _list_s(bare)) for _ in range(_ROUNDS + 1)][1:]  # the first one fills caches
    ours, theirs = middle(pairs)
    yield Row(what="invoke --list", value=ours, unit="s", reference=theirs, against="a bare tasks file's")


def _list_s(folder: Path) -> float:
    began = time.perf_counter()
    subprocess.run([sys.executable, "-m", "invoke", "--list"], cwd=folder, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began
