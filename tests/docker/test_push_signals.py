"""A push that is killed or interrupted at each of its steps, before a real registry."""

from __future__ import annotations

import signal
import subprocess
import threading
import time
from dataclasses import dataclass, field
from typing import Literal

import pytest

from tests.docker import proxy as proxies
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
from tests.docker.shelf import Shelf
from tests.silence import swallowing
from tests.system.shop import Shop, open_shop

STEPS = {
    "the look for a blob": LOOK,
    "the begin of an upload": BEGIN,
    "the upload": SEND,
    "the end of an upload": FINISH,
    "the manifest": PUT_MANIFEST,
    "the reading of the manifest": READ_MANIFEST,
    "the reading of the configuration": READ_BLOB,
    "the look for a tag": ASK_TAG,
    "the tag": PUT_TAG,
}
MODEL_BYTES = 20_000_000
HANG_S = 6  # long enough to be noticed, and no longer: a client that goes away unread is not seen to go


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Shop:
    """A shop that has made its image before, so that nothing but the push is left to do."""
    shop = open_shop(tmp_path_factory.mktemp("signals") / "shop")
    shop.make()
    return shop


@dataclass(kw_only=True)
class Victim:
    """A push in a process of its own, which gets a signal when the proxy sees a call."""

    shop: Shop
    shelf: Shelf
    number: signal.Signals
    begun: threading.Event = field(default_factory=threading.Event)
    process: subprocess.Popen[str] | None = None
    hit_at: float = 0.0

    def push(self, *flags: str) -> None:
        """Begin; `ended` waits for the end."""
        self.process = self.shop.start(*self.flags, *flags)
        self.begun.set()

    @property
    def flags(self) -> tuple[str, ...]:
        return ("--repository", f"{self.shelf.proxy.address}/{self.shelf.name}")

    def hit(self) -> None:
        """Send the signal, once."""
        assert self.begun.wait(10)
        assert self.process
        if not self.hit_at:
            self.hit_at = time.monotonic()
            self.process.send_signal(self.number)

    def before(self, exchange: Exchange) -> None:
        """Hit instead of doing what is asked."""
        self.hit()
        proxies.cut_at_once(exchange)

    def after(self, exchange: Exchange) -> None:
        """Hit when the registry has done it, and the client does not know yet."""
        proxies.drain(exchange.forward().body)
        self.hit()
        proxies.cut_at_once(exchange)

    def ended(self, code: int) -> float:
        """Wait for the end with this code; return how many seconds the signal took."""
        assert self.process
        self.shop.end(self.process, code=code)
        return time.monotonic() - self.hit_at


@pytest.mark.parametrize("on", STEPS.values(), ids=STEPS.keys())
@pytest.mark.parametrize("when", ["before", "after"])
def test_next_push_finishes_with_the_same_digest_when_one_was_killed_at(
    shop: Shop, shelf: Shelf, on: str, when: Literal["before", "after"]
) -> None:
    victim = Victim(shop=shop, shelf=shelf, number=signal.SIGKILL)
    shelf.proxy.script(Fault(on=on, act={"before": victim.before, "after": victim.after}[when]))
    victim.push()
    victim.ended(-signal.SIGKILL)
    shelf.proxy.script()

    assert shelf.wrongs() == []
    finished = shop.make(*victim.flags)

    assert finished["digest"] == shop.layout.tags()["tested"]
    assert (shelf.tags()["tested"], shelf.wrongs()) == (finished["digest"], [])


def test_next_push_finishes_when_one_was_killed_at_every_line(shop: Shop, shelf: Shelf) -> None:
    whole = shop.make("--repository", f"{shelf.proxy.address}/{shelf.name}-whole")
    for line in range(1, whole["lines"] + 1):
        shelf.name = f"{shelf.name.partition('-')[0]}-{line}"
        flags = ("--repository", f"{shelf.proxy.address}/{shelf.name}")
        shop.make(*flags, "--die-at", str(line), code=-signal.SIGKILL)

        finished = shop.make(*flags)

        assert finished["digest"] == whole["digest"], line
        assert (shelf.tags()["tested"], shelf.wrongs()) == (whole["digest"], []), line


@pytest.mark.parametrize(
    ("on", "act"),
    [
        pytest.param(SEND, proxies.slow_upload(2_000_000), id="a slow upload"),
        pytest.param(SEND, proxies.delay(HANG_S), id="an upload that nobody reads"),
        pytest.param(BEGIN, proxies.delay(HANG_S), id="a registry that does not answer"),
        pytest.param(PUT_MANIFEST, proxies.delay(HANG_S), id="a manifest that is not answered"),
        pytest.param(LOOK, proxies.status(503, headers={"retry-after": "60"}), id="a long Retry-After"),
        pytest.param(PUT_TAG, proxies.status(429, headers={"retry-after": "60"}), id="a long Retry-After of the tag"),
    ],
)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_push_ends_within_two_seconds_when_it_is_interrupted_in(
    shop: Shop, shelf: Shelf, number: signal.Signals, on: str, act: Act
) -> None:
    victim = Victim(shop=shop, shelf=shelf, number=number)
    begun = threading.Event()

    def harm(exchange: Exchange) -> None:
        begun.set()
        act(exchange)

    shelf.proxy.script(Fault(on=on, act=harm, times=99))
    victim.push("--model-size", str(MODEL_BYTES))
    assert begun.wait(20)
    time.sleep(0.3)  # into the middle of it: a client cannot be seen to wait
    victim.hit()

    assert victim.ended(130) < 2

    shelf.proxy.script()
    assert _are_ended(shelf), "what was begun is ended"
    finished = shop.make(*victim.flags, "--model-size", str(MODEL_BYTES))
    assert (shelf.tags()["tested"], shelf.wrongs()) == (finished["digest"], [])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_push_ends_within_two_seconds_when_it_is_interrupted_while_nobody_lets_it_connect(
    shop: Shop, number: signal.Signals
) -> None:
    with swallowing() as port:
        process = shop.start("--repository", f"127.0.0.1:{port}/shop/small")
        time.sleep(2)  # until it connects: nobody can see that
        hit_at = time.monotonic()
        process.send_signal(number)

        shop.end(process, code=130)

    assert time.monotonic() - hit_at < 2


def _are_ended(shelf: Shelf) -> bool:
    """Tell whether every upload was ended; the client does not wait until a busy registry has noticed."""
    until = time.monotonic() + HANG_S
    while not (ended := _sessions(shelf, "PATCH") <= _sessions(shelf, "(GET|DELETE|PUT)")) and time.monotonic() < until:
        time.sleep(0.05)
    return ended


def _sessions(shelf: Shelf, method: str) -> set[str]:
    """Return the upload sessions that were asked so; where one is forgotten already, GET learns that."""
    return {call.path.partition("?")[0] for call in shelf.proxy.found(f"^{method} .*/blobs/uploads/")}
