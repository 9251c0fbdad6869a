"""Random faults for the proxy, the same for the same seed: which harm, to which call, how often."""

from __future__ import annotations

import http
import random

from shipway.oci.compose import Composed
from tests.docker import proxy
from tests.docker.proxy import (
    ASK_TAG,
    BEGIN,
    FINISH,
    LOOK,
    PUT_MANIFEST,
    PUT_TAG,
    READ_BLOB,
    READ_MANIFEST,
    SEND,
    Act,
    Exchange,
    Fault,
)

_ANY = (LOOK, BEGIN, SEND, FINISH, PUT_MANIFEST, READ_MANIFEST, READ_BLOB, ASK_TAG, PUT_TAG, "")
_READS = (READ_MANIFEST, READ_BLOB)
_FOR_EVER = 1_000


def faults(rng: random.Random, made: Composed, before: Composed, repository: str) -> tuple[Fault, ...]:
    """Return one to three faults for a push of `made`, in a repository that holds what was made `before`."""
    return tuple(_fault(rng, made, before, repository) for _ in range(rng.choice((1, 1, 1, 2, 3))))


def _fault(rng: random.Random, made: Composed, before: Composed, repository: str) -> Fault:
    harms = _harms(rng, made, before, repository)
    name = rng.choice(list(harms))
    calls, act = harms[name]
    return Fault(
        name=name,
        act=act,
        on=rng.choice(calls),
        skip=rng.choice((0, 0, 0, 1, 2, 5)),
        times=rng.choice((1, 1, 1, 1, 2, 3, 8, _FOR_EVER)),
    )


def _harms(
    rng: random.Random, made: Composed, before: Composed, repository: str
) -> dict[str, tuple[tuple[str, ...], Act]]:
    sizes = {layer.descriptor.digest: layer.descriptor.size_bytes for layer in made.image.layers}
    some = rng.randrange(1, max(sizes.values()))
    fresh = rng.choice(sorted(sizes.keys() - {layer.descriptor.digest for layer in before.image.layers}))
    collected = _collect(f"/v2/{repository}/blobs/{fresh}", f"/v2/{repository}/manifests/{made.image.digest}")
    return {
        **{str(code): (_ANY, proxy.status(code)) for code in (408, 500, 502, 503, 504)},
        "429 with Retry-After": (_ANY, proxy.status(429, headers={"Retry-After": str(rng.randrange(4))})),
        "403": (_ANY, proxy.status(403)),
        "404": (_ANY, proxy.status(404)),
        "416": ((SEND,), proxy.status(416)),
        "500 after it was done": (_ANY, proxy.status(500, after=True)),
        "reset": (_ANY, proxy.cut_at_once),
        "answer lost": (_ANY, proxy.lose_answer),
        f"upload reset at {some}": ((SEND, FINISH, PUT_MANIFEST), proxy.cut_upload(some)),
        f"download reset at {some}": (_READS, proxy.cut_download(some % 1_000)),
        "download cleanly short": (_READS, proxy.end_short(1 + some % 50)),
        "length shortened": (_READS, proxy.shorten(1 + some % 50)),
        "bit flipped": (_READS, proxy.flip_a_bit(some)),
        "another digest said": (_ANY, proxy.say_another_digest),
        "session lost": ((SEND, FINISH), proxy.lose_session),
        "half taken": ((SEND,), proxy.take_half),
        "relative Location": ((BEGIN, SEND), proxy.locate_relatively),
        "no login seen": (_ANY, proxy.without_login),
        "blob collected": ((SEND, FINISH, PUT_MANIFEST), collected),
        "said to be there": ((LOOK,), proxy.say_it_is_there(sizes)),
        "slow": (_ANY, proxy.delay(0.05)),
    }


def _collect(blob: str, manifest: str) -> Act:
    """Delete a blob first, as a registry does that collects what no manifest names."""

    def act(exchange: Exchange) -> None:
        if exchange.behind("HEAD", manifest) != http.HTTPStatus.OK:
            exchange.behind("DELETE", blob)
        exchange.reply(exchange.forward())

    return act
