"""A kubectl that is somebody's death: what it was told to do is done, and whoever asked never hears of it.

Owns a program that stands before the real kubectl on the path. When a command that succeeded,
with the document that it read, matches `$FATAL`, its parent gets SIGKILL; where it matches
`$FATAL_FIRST`, before anything is done.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

_PROGRAM = """\
#!/bin/sh
test -n "$FATAL$FATAL_FIRST" || exec {kubectl} "$@"
deadly() {{ test -n "$1" && printf '%s %s' "$argv" "$document" | grep -Eq -- "$1" && kill -KILL "$PPID"; }}
argv=$*
case "$* " in
*port-forward*) exec {kubectl} "$@" ;;
*" --filename=- "*) document=$(cat) ;;
*) document= ;;
esac
deadly "$FATAL_FIRST" && exit 1
printf %s "$document" | {kubectl} "$@" || exit
deadly "$FATAL" || true
"""


def kubectl(folder: Path, environ: Mapping[str, str]) -> dict[str, str]:
    """Return the environment in which this one is found before the one that `environ` has on its path."""
    path = environ.get("PATH", os.environ["PATH"])
    program = folder / "kubectl"
    folder.mkdir()
    program.write_text(_PROGRAM.format(kubectl=shutil.which("kubectl", path=path)), "utf-8")
    program.chmod(0o755)
    return {**environ, "PATH": os.pathsep.join([str(folder), path])}
