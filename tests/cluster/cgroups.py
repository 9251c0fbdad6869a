"""A cluster's cgroups: one for each node below the cluster's own, in every hierarchy of the machine."""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path

_TOP = Path("/sys/fs/cgroup")
_EMPTY_S = 60.0


def make(*names: str) -> None:
    """Make a cgroup; in version 2, each above it must hand its controllers down."""
    for hierarchy in _hierarchies():
        folder = hierarchy
        for name in names:
            if (folder / "cgroup.subtree_control").exists():
                for controller in (folder / "cgroup.controllers").read_text("ascii").split():
                    with contextlib.suppress(OSError):  # what cannot be handed down, the kubelet says if it wants it
                        (folder / "cgroup.subtree_control").write_text(f"+{controller}", "ascii")
            folder /= name
            folder.mkdir(exist_ok=True)


def remove(*names: str) -> None:
    """Remove a cgroup and those below it, once the last process has left them; raises `TimeoutError`."""
    until = time.monotonic() + _EMPTY_S
    for hierarchy in _hierarchies():
        top = hierarchy.joinpath(*names)
        while top.exists():
            for folder, _, _ in os.walk(top, topdown=False):
                with contextlib.suppress(OSError):
                    Path(folder).rmdir()
            if time.monotonic() > until:
                raise TimeoutError(f"processes stay in {top}")
            if top.exists():
                time.sleep(0.05)


def _hierarchies() -> list[Path]:
    """Return the one of version 2, or the several of version 1."""
    if (_TOP / "cgroup.controllers").exists():
        return [_TOP]
    return [folder for folder in _TOP.iterdir() if (folder / "cgroup.procs").exists() and not folder.is_symlink()]
