"""16 publishers and 16 promoters at once, and readers beside them, in several processes.

Ten seconds for each store; `CONTENTION_S=60` makes it a minute. What every one of them
was told is written down, and compared with what the store holds in the end.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from shipway.artifacts import Digest
from shipway.console import Console
from shipway.errors import AliasMoved, ModelMissing
from shipway.proc import Completed
from shipway.stores import Access, Catalogue, open_catalogue
from shipway.stores.manifest import Move
from tests import model_folder
from tests.stores.parts import ACCOUNT, CONTAINER, Azurite, S3Server

SECONDS = float(os.environ.get("CONTENTION_S", "10"))
NAME, ALIAS = "adds", "production"
PROCESSES, PUBLISHERS, PROMOTERS, READERS = 4, 4, 4, 1  # of each in every process
SIGNATURE = {
    "inputs": [{"name": "x", "type": "float32", "shape": [None, 2]}],
    "outputs": [{"name": "y", "type": "float32", "shape": [None, 2]}],
}


class Child:
    """Answers in place of the process that opens a model: it is the store that is tried here."""

    def run(self, argv: Sequence[str | Path], **_options: object) -> Completed:
        return Completed(
            argv=tuple(map(str, argv)), code=0, stdout=json.dumps({"signature": SIGNATURE}).encode(), tail=""
        )


@pytest.fixture(params=["azure", "s3"])
def place(request: pytest.FixtureRequest, prefix: str) -> tuple[str, Mapping[str, str]]:
    """Give a store's address, and what a process needs to reach it."""
    if request.param == "azure":
        azurite: Azurite = request.getfixturevalue("azurite")
        return f"az://{ACCOUNT}/{CONTAINER}/{prefix}", azurite.settings()
    s3: S3Server = request.getfixturevalue("s3_gateway")  # moto looks and writes in two steps
    return f"s3://{CONTAINER}/{prefix}", s3.settings()


def test_every_version_is_whole_and_the_log_tells_the_order_when_many_write_at_once(
    place: tuple[str, Mapping[str, str]], tmp_path: Path
) -> None:
    address, settings = place
    told = _crowd(address, settings, tmp_path)
    catalogue = _open(address, settings)

    versions = sorted(version.version for version in catalogue.versions(NAME))
    published = Counter(each["version"] for each in told if each["kind"] == "published")
    history = catalogue.history(NAME)
    moves = [each for each in told if each["kind"] == "promoted"]
    reads = sum(each["count"] for each in told if each["kind"] == "read")
    lost = sum(each["count"] for each in told if each["kind"] == "lost")
    print(  # noqa: T201 - for who runs it with -s
        f"\n{address}, {SECONDS:g} s: {len(versions)} versions, {len(moves)} promotions, {lost} told to look again, "
        f"{len(history)} moves, {reads} reads"
    )
    assert versions == list(range(1, len(versions) + 1))
    assert set(published.values()) == {1}
    assert sorted(published) == versions
    for number in versions:
        _require_whole(catalogue, number, tmp_path / "whole")
    for alias in (ALIAS, "latest"):
        _require_chain([move for move in history if move.alias == alias], catalogue.aliases(NAME)[alias])
    logged = [_fact(move) for move in history if move.alias == ALIAS]
    assert sorted(logged) == sorted(json.loads(json.dumps(each["move"])) for each in moves)
    assert catalogue.aliases(NAME)["latest"] == versions[-1]
    assert reads > 0
    assert min(len(versions), len(moves)) > 1


def _require_chain(moves: list[Move], last: int) -> None:
    """Each move begins where the one before it ended, and the last one is where the alias is."""
    assert [move.turn for move in moves] == list(range(1, len(moves) + 1))
    assert moves[0].previous is None
    for before, after in itertools.pairwise(moves):
        assert after.previous == before.version
    assert moves[-1].version == last


def _require_whole(catalogue: Catalogue, number: int, cache: Path) -> None:
    model = catalogue.resolve(NAME, number)
    layer = b"".join(catalogue.layer_bytes(model, cache=cache))
    assert (Digest.of(layer), len(layer)) == (model.layer.digest, model.layer.size_bytes)


# -- the crowd ---------------------------------------------------------------------------


def _crowd(address: str, settings: Mapping[str, str], folder: Path) -> list[dict[str, Any]]:
    """Let all of them loose, and return what each was told."""
    environ = {**os.environ, **settings, "PYTHONPATH": str(Path(__file__).parents[2])}
    processes = []
    for number in range(PROCESSES):
        argv = [sys.executable, __file__, address, str(folder / str(number)), str(number), str(SECONDS)]
        processes.append(subprocess.Popen(argv, env=environ, stdout=subprocess.PIPE, text=True))
    try:
        outputs = [process.communicate(timeout=SECONDS + 120)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    assert [process.returncode for process in processes] == [0] * PROCESSES
    return [json.loads(line) for output in outputs for line in output.splitlines()]


def _open(address: str, settings: Mapping[str, str]) -> Catalogue:
    authority = settings.get("SHIPWAY_MODEL_AUTHORITY")
    access = Access(
        azure_credential="managed_identity",
        endpoint=settings["SHIPWAY_MODEL_ENDPOINT"],
        authority=Path(authority) if authority else None,
        region="eu-central-1",
        environ=settings,
    )
    return open_catalogue(address, access=access, run=Child())


def main() -> None:
    """Publish, promote and read until the time is up; print what was told, and fail if anything failed."""
    address, folder, number, seconds = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])
    told: list[dict[str, Any]] = []
    failed: list[BaseException] = []

    def run(work: Any, who: str) -> None:
        try:
            catalogue = _open(address, os.environ)
            catalogue.aliases(NAME)  # connected, before the clock starts
            ready.wait()
            told.extend(work(catalogue, who, folder, time.monotonic() + seconds))
        except BaseException as error:
            failed.append(error)
            ready.abort()
            raise

    crowd = [
        *((_publish, f"publisher {number}.{each}") for each in range(PUBLISHERS)),
        *((_promote, f"promoter {number}.{each}") for each in range(PROMOTERS)),
        *((_read, f"reader {number}.{each}") for each in range(READERS)),
    ]
    ready = threading.Barrier(len(crowd))
    threads = [threading.Thread(target=run, args=each) for each in crowd]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for each in told:
        print(json.dumps(each))  # noqa: T201 - what the test reads
    sys.exit(1 if failed else 0)


def _publish(catalogue: Catalogue, who: str, folder: Path, until: float) -> Iterator[dict[str, Any]]:
    weights = itertools.count(1)
    while time.monotonic() < until:
        made = model_folder.make(folder / who.replace(" ", "-") / str(next(weights)), weight=random.random())  # noqa: S311
        published = catalogue.publish(made, name=NAME, publisher=who, tell=Console(err=Path(os.devnull).open("w")))  # noqa: SIM115
        assert published.created
        yield {"kind": "published", "who": who, "version": published.version.version}


def _promote(catalogue: Catalogue, who: str, _folder: Path, until: float) -> Iterator[dict[str, Any]]:
    lost = 0
    for turn in itertools.count(1):
        if time.monotonic() > until:
            break
        try:
            newest = catalogue.show(NAME, "latest").version
            move = catalogue.promote(NAME, random.randint(1, newest), ALIAS, who=who, why=f"try {turn}")  # noqa: S311
        except AliasMoved:
            lost += 1
        except ModelMissing:  # nobody has published yet
            time.sleep(0.05)
        else:
            if move:
                yield {"kind": "promoted", "move": _fact(move)}
    yield {"kind": "lost", "count": lost}


def _read(catalogue: Catalogue, who: str, folder: Path, until: float) -> Iterator[dict[str, Any]]:
    count = 0
    while time.monotonic() < until:
        for alias in ("latest", ALIAS):
            if alias in catalogue.aliases(NAME):
                model = catalogue.resolve(NAME, alias)
                layer = b"".join(catalogue.layer_bytes(model, cache=folder / who))
                assert Digest.of(layer) == model.layer.digest
                count += 1
    yield {"kind": "read", "count": count}


def _fact(move: Move) -> list[Any]:
    return [move.turn, move.previous or 0, move.version, move.who, move.why]


if __name__ == "__main__":
    main()
