"""A hundred releases with random faults between us and a real registry; the seed is told with every failure.

Another seed: `FAULT_SEED=7 pytest tests/docker/test_random_faults.py`.
"""

from __future__ import annotations

import os
import random
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from shipway.errors import PushError
from shipway.oci.compose import Composed
from tests.docker.parts import composed
from tests.docker.proxy import Proxy
from tests.docker.random_faults import faults
from tests.docker.registries import Registry
from tests.docker.shelf import Shelf
from tests.system import project as projects
from tests.system.project import Project

SEED = int(os.environ.get("FAULT_SEED", "2026"))
ROUNDS, ROUNDS_IN_A_REPOSITORY, WHOLE_ROUNDS = 100, 10, 6


def test_every_release_ends_well_or_clearly_and_the_next_converges_when_faults_are_random(
    running: Callable[[str], Registry],
) -> None:
    rng, outcomes, began = random.Random(SEED), Counter[str](), time.monotonic()  # noqa: S311 - repeatable on purpose
    words = dict.fromkeys(("app", "model", "big", "small"), "first")
    for repository in range(ROUNDS // ROUNDS_IN_A_REPOSITORY):
        registry = running(("debian-open", "v3-open")[repository % 2])
        with Proxy(registry.address) as proxy:
            shelf = Shelf(registry=registry, proxy=proxy, name=f"shop/random-{repository}")
            for number in range(ROUNDS_IN_A_REPOSITORY):
                before, words = composed(**words), words | _changed(rng, f"{repository}{number}")
                where = f"seed {SEED}, repository {repository}, round {number}"
                outcomes[_play(shelf, before, composed(**words), rng, where)] += 1

    print(f"seed {SEED}: {dict(outcomes)} in {time.monotonic() - began:.0f} s")  # noqa: T201 - pytest -rP shows it
    assert outcomes.total() == ROUNDS
    assert ROUNDS / 4 < outcomes["released"] < ROUNDS, "some faults are deadly, and not all of them"


def test_every_build_ends_well_or_clearly_and_the_next_converges_when_whole_commands_meet_faults(
    running: Callable[[str], Registry], tmp_path: Path
) -> None:
    rng, registry = random.Random(SEED), running("v3-open")  # noqa: S311 - repeatable on purpose
    with Proxy(registry.address) as proxy:
        shelf = Shelf(registry=registry, proxy=proxy, name="shop/whole")
        for project in projects.adder(tmp_path):
            project.environ["SHIPWAY_PUSH_REPOSITORY"] = f"{proxy.address}/{shelf.name}"
            for number in range(WHOLE_ROUNDS):
                _build(project, shelf, rng, number)


def _build(project: Project, shelf: Shelf, rng: random.Random, number: int) -> None:
    """Commit, build with faults, judge, build without, judge again."""
    project.write("app/note.py", f"NOTE = {number}\n")
    project.commit(f"Change {number}")
    planned = faults(rng, composed(app=f"change {number}"), composed(), shelf.name)
    told = "; ".join([f"seed {SEED}, round {number}", *map(str, planned)])
    shelf.proxy.script(*planned)
    process = project.start("build")
    _, err = process.communicate(timeout=120)
    shelf.proxy.script()
    ended = process.returncode == 0 or (40 <= process.returncode < 50 and "error: " in err and "Next: " in err)
    assert (ended, "Traceback" in err, shelf.wrongs()) == (True, False, []), f"{told}\n{err}"
    digest = project.facts("build")["digest"]
    assert (shelf.tags()["tested"], shelf.wrongs()) == (digest, []), told


def _changed(rng: random.Random, text: str) -> dict[str, str]:
    return dict.fromkeys(rng.sample(("app", "model", "big", "small"), rng.choice((1, 1, 1, 2))), text)


def _play(shelf: Shelf, before: Composed, made: Composed, rng: random.Random, where: str) -> str:
    """Push with faults, judge, push without, judge again; return how the first push ended."""
    planned = faults(rng, made, before, shelf.name)
    told = "; ".join([where, *map(str, planned)])
    shelf.proxy.script(*planned)
    clear: object = True
    try:
        shelf.push(made, "latest")
        outcome = "released"
    except PushError as error:
        outcome = type(error).__name__
        clear = 40 <= error.code < 50 and error.message and error.next
    except BaseException as error:
        error.add_note(told)
        raise
    shelf.proxy.script()
    assert (bool(clear), shelf.wrongs()) == (True, []), told
    shelf.push(made, "latest")
    assert (shelf.tags()["latest"], shelf.wrongs()) == (made.image.digest, []), told
    return outcome
