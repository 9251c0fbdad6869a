"""`python -m tests.cluster up|down|status [NAME]`: the tests' cluster, for people.

stdout has the path for KUBECONFIG alone; all else is on stderr.
"""

from __future__ import annotations

import argparse
import sys

import pytest

from tests.cluster import keeper
from tests.cluster.cluster import Cluster


def main() -> int:
    """Do what was asked; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.cluster", description=__doc__)
    parser.add_argument("command", choices=["up", "down", "status"])
    parser.add_argument("name", nargs="?", default="default", help="which cluster; several stand beside one another")
    asked = parser.parse_args()
    try:
        return {"up": _up, "down": _down, "status": _status}[asked.command](asked.name)
    except (keeper.ClusterError, pytest.skip.Exception) as error:
        _tell(str(error))
        return 1


def _up(name: str) -> int:
    _show(keeper.up(name))
    return 0


def _down(name: str) -> int:
    _tell("gone" if keeper.down(name) else f"there is no cluster {name!r}")
    return 0


def _status(name: str) -> int:
    found = keeper.find(name)
    if not found:
        _tell(f"there is no cluster {name!r}; of others there is something: {', '.join(keeper.names()) or 'nothing'}")
        return 1
    _show(found)
    _tell(found.kubectl("get", "nodes,services,pods", "-A", "-o", "wide"))
    return 0


def _show(found: Cluster) -> None:
    print(found.kubeconfig)  # noqa: T201 - the result
    for name, value in found.environ.items():
        _tell(f"export {name}={value}")
    _tell(f"# context {found.context}, registry {found.registry} (TLS, a login), public names below {found.zone}")
    _tell(f"# base with Python {keeper.PYTHON}: {found.base}")


def _tell(text: str) -> None:
    print(text, file=sys.stderr)  # noqa: T201 - for people


if __name__ == "__main__":
    sys.exit(main())
