"""`python -m tests.parts`: build or install what tests with real parts want, once, before they ask for it.

The tests do the same where they find that something is not there; CI begins with this beside
its first tests, since a bare machine needs minutes for it. What Go builds comes last: it is built
one after the other, and whoever starts a cluster meanwhile begins with Kubernetes.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from functools import partial

import pytest

from tests.cluster.programs import programs
from tests.docker import machine, tools
from tests.stores import parts as stores
from tests.stores import tracking

PARTS: Mapping[str, Callable[[], object]] = {
    "a base with Python 3.13": partial(machine.prepared, "3.13"),
    "a base with Python 3.13 and git": partial(machine.prepared, "3.13", "git"),
    "a base with Python 3.11": partial(machine.prepared, "3.11"),
    "Azurite": stores.installed_azurite,
    "MLflow": tracking.installed,
    "what Kubernetes is": programs,
    "versitygw": tools.versitygw,
    "distribution": tools.distribution,
    "crane": tools.crane,
    "oras": tools.oras,
}


def main() -> int:
    """Make all; return 1 where something cannot be had, and say how to get it."""
    lacking = 0
    for name, make in PARTS.items():
        began = time.monotonic()
        try:
            make()
            end = "there"
        except pytest.skip.Exception as skipped:
            lacking, end = 1, str(skipped)
        print(f"{name}: {end}, {time.monotonic() - began:.0f} s", flush=True)  # noqa: T201 - the result
    return lacking


if __name__ == "__main__":
    sys.exit(main())
