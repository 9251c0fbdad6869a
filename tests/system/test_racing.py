"""Publishers, promoters and sweepers in processes of their own, at one store on a disk."""

from __future__ import annotations

import os
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

from shipway.console import Console
from shipway.proc import Proc
from shipway.stores.catalogue import Catalogue
from shipway.stores.directory import Directory
from shipway.stores.sweep import Rule
from tests import model_folder
from tests.unit.test_catalogue import Child

ROOT = Path(__file__).parents[2]
SECONDS = 8


def test_nobody_loses_a_file_while_the_store_is_swept(tmp_path: Path) -> None:
    store = Directory(tmp_path / "store")
    folder = model_folder.make(tmp_path / "folder", weight=9)
    Catalogue(store, run=Child()).publish(folder, name="adds", publisher="ada", tell=Console())
    work = [("publish", "ada"), ("publish", "bob"), ("promote", "cyd"), ("sweep", "eve"), ("sweep", "fay")]

    running = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.system.racing", str(tmp_path), what, who, str(SECONDS)],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for what, who in work
    ]
    said = [(child.communicate(timeout=120), child.returncode) for child in running]

    assert [code for _, code in said] == [0] * len(work), [told[-600:] for (_, told), _ in said]
    done = {who: int(out.split()[0]) for (_, who), ((out, _), _) in zip(work, said, strict=True)}
    assert all(count > 2 for count in done.values()), done
    catalogue = Catalogue(store, run=Proc())
    for version in catalogue.versions("adds"):
        catalogue.pull(catalogue.resolve("adds", version.version), cache=tmp_path / "cache", tell=Console())
    numbers = [move.version for move in catalogue.history("adds") if move.alias == "latest"]
    assert numbers == sorted(set(numbers))  # no number was taken twice
    rule = Rule(released={}, younger_than=timedelta())
    catalogue.sweep("adds", rule, who="eve", apply=True, tell=Console())
    left = {path.name for path in (tmp_path / "store/adds").glob("*/*") if path.parent.name in {"pending", "sweeps"}}
    assert left == set()
