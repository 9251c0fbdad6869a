"""Hostile models, watched by the kernel: what is opened while one is published lies in its own folder."""

from __future__ import annotations

import os
import re
import shutil
import site
import subprocess
import sys
import sysconfig
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.system import hostile_publish

ROOT = Path(__file__).parents[2]
MARKED = re.compile(r'"/nonexistent/([^"]*)", ')
OPENED = re.compile(r"\) = \d+<([^>]*)>$")  # the file that a descriptor really names, links followed


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Mapping[str, set[str]]]:
    """Return a folder, and for each model what was opened, anywhere, while it was published."""
    if shutil.which("strace") is None:
        pytest.skip("strace is missing: apt-get install strace")
    root = tmp_path_factory.mktemp("hostile").resolve()
    trace, program = root / "trace", [sys.executable, "-m", "tests.system.hostile_publish", str(root)]
    words = ["strace", "-f", "-qq", "-y", "-s", "500", "-e", "trace=open,openat,openat2,creat", "-o", str(trace)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [*words, *program], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, set[str]] = {"": set()}
    case = ""
    for line in trace.read_text("utf-8", "replace").splitlines():
        if marked := MARKED.search(line):
            case = marked[1]
            found.setdefault(case, set())
        elif name := OPENED.search(line):
            found[case].add(name[1])
    return root, found


def test_the_trace_sees_what_is_opened(opened: tuple[Path, Mapping[str, set[str]]]) -> None:
    root, found = opened

    assert {f"{root}/good/model.onnx", f"{root}/good/weights.bin", f"{root}/good/golden/tensors/one.npz"} <= found[
        "good"
    ]
    assert set(found) == {"", "good", *hostile_publish.HOSTILE}


@pytest.mark.parametrize("case", hostile_publish.HOSTILE)
def test_publish_opens_nothing_outside_for_a_hostile_model(
    case: str, opened: tuple[Path, Mapping[str, set[str]]]
) -> None:
    root, found = opened
    folder = f"{root}/folder-{list(hostile_publish.HOSTILE).index(case)}/"
    others = [path for path in found[case] if not f"{path}/".startswith(folder)]

    unexplained = [path for path in others if path not in found["good"] and not _is_pythons(path)]

    assert unexplained == []
    assert not any("/outside" in path for path in found[case])


def _is_pythons(path: str) -> bool:
    """Tell whether a file is the interpreter's, a package's or ours: an error may import what no success needs."""
    places = [*sysconfig.get_paths().values(), *site.getsitepackages(), sys.base_prefix, str(ROOT / "shipway")]
    return any(path.startswith(str(Path(place).resolve())) for place in places)
