"""Run every benchmark that needs neither root nor Docker, print a table, write `.shipway/benchmarks.json`.

A benchmark that cannot run raises; nothing is left out of the table silently.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from benchmarks import listing, releases, report, service

ROOT = Path(__file__).parents[1]


def main() -> None:
    """Measure in a scratch clone of the committed state, so that this checkout is left alone."""
    with tempfile.TemporaryDirectory(prefix="shipway-bench-") as folder, releases.scratch(ROOT, Path(folder)) as clone:
        rows = [*listing.measure(clone.root, Path(folder)), *releases.measure(clone), *service.measure(clone.root)]
    report(rows, ROOT / ".shipway" / "benchmarks.json", commit=clone.commit)


if __name__ == "__main__":
    main()
