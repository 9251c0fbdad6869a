"""Run every benchmark, print a table, write `.shipway/benchmarks.json`.

A benchmark that cannot run raises; nothing is left out of the table silently.
"""

from __future__ import annotations

import json
import os
import platform
import tempfile
from dataclasses import asdict
from pathlib import Path

from benchmarks import Row, listing, releases, service

ROOT = Path(__file__).parents[1]


def main() -> None:
    """Measure in a scratch clone of the committed state, so that this checkout is left alone."""
    with tempfile.TemporaryDirectory(prefix="shipway-bench-") as folder, releases.scratch(ROOT, Path(folder)) as clone:
        rows = [*listing.measure(clone.root, Path(folder)), *releases.measure(clone), *service.measure(clone.root)]
    machine = {"cpus": os.cpu_count(), "python": platform.python_version(), "platform": platform.platform()}
    result = {"machine": machine, "commit": clone.commit, "rows": [asdict(row) for row in rows]}
    out = ROOT / ".shipway" / "benchmarks.json"
    out.parent.mkdir(exist_ok=True)
    out.write_text(json.dumps(result, indent=2) + "\n", "utf-8")
    print(table(rows))


def table(rows: list[Row]) -> str:
    """Return the rows for people."""
    lines = [f"{row.what:<44} {row.value:>10,.4g} {row.unit:<6} {row.ratio:>8.3g} x {row.against}" for row in rows]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
