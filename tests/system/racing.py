"""Publish, promote or sweep over and over in one store, until a moment comes: a program for tests."""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Callable, Mapping
from datetime import timedelta
from pathlib import Path

from shipway.console import Console
from shipway.errors import AliasMoved, ModelInUse, ModelMissing
from shipway.stores.catalogue import Catalogue
from shipway.stores.directory import Directory
from shipway.stores.sweep import Rule
from tests import model_folder
from tests.unit.test_catalogue import Child

WEIGHTS = 5


def publish(catalogue: Catalogue, root: Path, who: str) -> None:
    """Publish one of a few contents, which others publish, and sweep away, too."""
    weight = random.randrange(WEIGHTS)  # noqa: S311 - no secret
    folder = model_folder.make(root / f"folder-{who}", weight=weight)
    catalogue.publish(folder, name="adds", publisher=who, aliases=[f"of-{who}"], tell=Console())
    # whatever is swept beside: what an alias names is whole
    named = catalogue.resolve("adds", f"of-{who}")
    catalogue.pull(named, cache=root / f"cache-{who}-{random.random()}", tell=Console())  # noqa: S311 - as above


def promote(catalogue: Catalogue, root: Path, who: str) -> None:
    """Promote any version that is there."""
    numbers = [version.version for version in catalogue.versions("adds")]
    try:
        catalogue.promote("adds", random.choice(numbers), f"by-{who}", who=who, why="")  # noqa: S311 - as above
    except ModelMissing:  # what was seen in the list was swept before it was said to be needed
        return
    catalogue.pull(catalogue.resolve("adds", f"by-{who}"), cache=root / f"cache-{who}", tell=Console())


def sweep(catalogue: Catalogue, root: Path, who: str) -> None:
    """Delete all that nobody needs, however young."""
    del root
    catalogue.sweep("adds", Rule(released={}, younger_than=timedelta()), who=who, apply=True, tell=Console())


WORK: Mapping[str, Callable[[Catalogue, Path, str], None]] = {"publish": publish, "promote": promote, "sweep": sweep}


def main(root: Path, work: str, who: str, seconds: float) -> None:
    """Do it until the time is over; print how often it was done, and how often somebody stood in the way."""
    catalogue = Catalogue(Directory(root / "store"), run=Child(), pause=lambda _seconds: time.sleep(0.01))
    done = sent_away = 0
    end = time.monotonic() + seconds
    while time.monotonic() < end or not done:
        try:
            WORK[work](catalogue, root, who)
            done += 1
        except (ModelInUse, AliasMoved):
            sent_away += 1
    Console().result(f"{done} {sent_away}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3], float(sys.argv[4]))
