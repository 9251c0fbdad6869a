"""200 random cuts, flips and shortenings over pulls: never a wrong byte in the cache."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from shipway.artifacts import ModelFile
from shipway.errors import ModelError
from shipway.stores import transfer
from tests.docker import proxy
from tests.docker.proxy import Act, Fault
from tests.stores import front
from tests.stores.front import READ, Front

ROUNDS = 100  # for each store
_RANGE_BYTES = 1 << 18


@pytest.mark.parametrize("kind", front.FRONTS)
def test_cache_never_holds_a_wrong_byte(
    kind: str, request: pytest.FixtureRequest, prefix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transfer, "RANGE_BYTES", _RANGE_BYTES)  # ranges of the real size would move gigabytes
    rng = random.Random(20261125)  # noqa: S311 - the same faults each time
    data = rng.randbytes(5 * _RANGE_BYTES + 777)
    made, part = front.FRONTS[kind]
    ended: dict[str, int] = {"right": 0, "refused": 0}
    harmed = 0
    with made(request.getfixturevalue(part), prefix) as faulty:
        file = faulty.put(data)
        for number in range(ROUNDS):
            script = faulty.proxy.script(*(_fault(rng) for _ in range(rng.choice((1, 1, 2, 3)))))
            ended[_pulled(faulty, file, tmp_path / str(number), data)] += 1
            harmed += script.done
            faulty.proxy.script()
            assert faulty.pull(file, tmp_path / str(number)) == data  # whatever half was left behind

    print(f"\n{kind}: {ended}, {harmed} answers harmed")  # noqa: T201 - for who runs it with -s
    assert ended["right"] > ROUNDS / 2
    assert ended["refused"] > 0
    assert harmed >= ROUNDS


def _pulled(faulty: Front, file: ModelFile, folder: Path, data: bytes) -> str:
    whole = folder / "sha256" / file.digest.hex
    try:
        assert faulty.pull(file, folder) == data
    except ModelError:
        assert not whole.exists()
        return "refused"
    return "right"


def _fault(rng: random.Random) -> Fault:
    at = rng.randrange(1, _RANGE_BYTES)
    acts: dict[str, Act] = {
        "reset": proxy.cut_download(at),
        "cut at once": proxy.cut_at_once,
        "cleanly short": proxy.end_short(at),
        "length shortened": proxy.shorten(at),
        "bit flipped": proxy.flip_a_bit(at),
    }
    name = rng.choice(list(acts))
    return Fault(name=name, act=acts[name], on=READ, skip=rng.randrange(5), times=rng.choice((1, 1, 1, 2, 3, 1000)))
