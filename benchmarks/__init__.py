"""Side-by-side measurements, as ratios from one run; see README.md."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One figure, and how many times that is of what it was measured beside."""

    what: str
    value: float
    unit: str
    reference: float
    against: str

    @property
    def ratio(self) -> float:
        """The figure as a multiple of its reference."""
        return self.value / self.reference


def middle(pairs: Iterable[tuple[float, float]]) -> tuple[float, float]:
    """Return the pair, both measured in one round, whose ratio is the median of all rounds'."""
    rounds = sorted(pairs, key=lambda pair: pair[0] / pair[1])
    return rounds[len(rounds) // 2]


def run(argv: Sequence[str | Path], *, cwd: Path | None = None, env: Mapping[str, str] | None = None) -> int:
    """Run a program to its good end, and return the bytes that it, or one that it started, had in memory at most."""
    with tempfile.TemporaryFile() as told:
        process = subprocess.Popen(argv, cwd=cwd, env=env, stdout=told, stderr=told)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            told.seek(0)
            end = told.read()[-4000:].decode("utf-8", "replace")
            message = f"{' '.join(map(str, argv))} ended with {process.returncode}:\n{end}"
            raise RuntimeError(message)
    return usage.ru_maxrss * 1024


def report(rows: Iterable[Row], out: Path, *, commit: str) -> None:
    """Print the rows for people as they come, and write all of them for machines."""
    done = []
    for row in rows:
        done.append(asdict(row))
        print(f"{row.what:<44} {row.value:>10,.4g} {row.unit:<6} {row.ratio:>8.3g} x {row.against}", flush=True)
    machine = {"cpus": os.cpu_count(), "python": platform.python_version(), "platform": platform.platform()}
    out.parent.mkdir(exist_ok=True)
    out.write_text(json.dumps({"machine": machine, "commit": commit, "rows": done}, indent=2) + "\n", "utf-8")
