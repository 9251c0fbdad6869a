"""`python -m tests.parts`: build or install what tests with real parts want, once, before they ask for it.

The tests do the same where they find that something is not there; CI begins with this, since a
bare machine needs minutes for it. Kubernetes, which takes longest, is
built while the rest is made: that waits for networks half of the time.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest

from tests.cluster.programs import programs
from tests.docker import machine, tools
from tests.stores import parts as stores
from tests.stores import tracking

PARTS: Mapping[str, Callable[[], object]] = {
    "what Kubernetes is": programs,
    "a base with Python 3.13": partial(machine.prepared, "3.13"),
    "a base with Python 3.13 and git": partial(machine.prepared, "3.13", "git"),
    "a base with Python 3.11": partial(machine.prepared, "3.11"),
    "Azurite": stores.installed_azurite,
    "MLflow": tracking.installed,
    "versitygw": tools.versitygw,
    "distribution": tools.distribution,
    "crane": tools.crane,
    "oras": tools.oras,
}


def main() -> int:
    """Make all, two at a time; return 1 where something cannot be had, and say how to get it."""
    with ThreadPoolExecutor(2) as pool:
        return int(not all(list(pool.map(_made, PARTS.items()))))


def _made(part: tuple[str, Callable[[], object]]) -> bool:
    name, make = part
    began = time.monotonic()
    try:
        make()
        there, end = True, "there"
    except pytest.skip.Exception as skipped:
        there, end = False, str(skipped)
    print(f"{name}: {end}, {time.monotonic() - began:.0f} s", flush=True)  # noqa: T201 - the result
    return there


if __name__ == "__main__":
    sys.exit(main())
