"""A blob on its way to a registry: every rung of the ladder, and every fall from it."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import httpx
import pytest

from shipway.artifacts import Descriptor, Digest
from shipway.errors import PushError, RegistryRefused, RegistryUnreachable
from shipway.oci.compose import TAR
from shipway.oci.images import described
from shipway.oci.patience import TRANSIENT
from shipway.oci.registry import Repository
from shipway.oci.upload import CHUNK_BYTES, PIECE_BYTES
from tests.fake_registry import (
    ADDRESS,
    FakeRegistry,
    Fault,
    QuickClock,
    ScriptedLogin,
    answer,
    answers,
    cut,
    cut_after,
    first,
    keep,
    lose_answer,
    redirects,
    repository,
    saying,
    spoil,
)

NAME = "team/service"
SMALL = b"hello"
BIG = bytes(range(256)) * (4 * PIECE_BYTES // 256)  # four pieces
HUGE = bytes(range(256)) * (CHUNK_BYTES // 256) + b"and a bit"  # two chunks


class Source:
    """Gives its bytes, counts how often it was asked, and hears what moved."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.asked = 0
        self.moved: list[int] = []

    def __call__(self) -> Iterator[bytes]:
        self.asked += 1
        yield from (self.data[:1000], self.data[1000:])

    @property
    def blob(self) -> Descriptor:
        return described(self.data, TAR)


@pytest.fixture
def fake() -> Iterator[FakeRegistry]:
    fake = FakeRegistry()
    yield fake
    fake.require_all_met()


@pytest.fixture
def images(fake: FakeRegistry) -> Iterator[Repository]:
    images = repository(fake, NAME)
    yield images
    images.close()


def add(images: Repository, source: Source, *, origins: tuple[str, ...] = (), anew: bool = False) -> int:
    return images.add(source.blob, source, origins=origins, advance=source.moved.append, anew=anew)


def arrived(fake: FakeRegistry, source: Source) -> bool:
    """Tell whether the blob is there to the byte, all that moved was told of, and nothing was left behind."""
    stored = fake[NAME].blobs.get(source.blob.digest)
    return (stored, sum(source.moved), fake.open_sessions) == (source.data, len(source.data), 0)


def steps(fake: FakeRegistry) -> list[str]:
    """Return what was asked of the registry, without the names."""
    return [f"{line.split()[0]} {line.split('/')[2]}" for line in fake.calls]


# -- the ladder --------------------------------------------------------------------------


def test_small_blob_goes_in_one_request_when_it_is_lacking(fake: FakeRegistry, images: Repository) -> None:
    source = Source(SMALL)

    assert add(images, source) == len(SMALL)

    assert fake.calls == [
        "HEAD team/service/blobs/2cf24d",
        "POST team/service/blobs/uploads/",
        "PUT team/service/blobs/uploads/1",
    ]
    assert arrived(fake, source)


def test_big_blob_goes_in_one_streamed_request_when_it_is_lacking(fake: FakeRegistry, images: Repository) -> None:
    source = Source(BIG)

    assert add(images, source) == len(BIG)

    assert [line.split()[0] for line in fake.calls] == ["HEAD", "POST", "PATCH", "PUT"]
    patch = fake.requests[2].headers
    assert (patch["content-length"], patch.get("content-range"), patch.get("transfer-encoding")) == (
        str(len(BIG)),
        None,
        None,
    )
    assert (arrived(fake, source), source.asked, max(source.moved)) == (True, 1, PIECE_BYTES)


def test_blob_is_only_looked_at_when_it_is_there(fake: FakeRegistry, images: Repository) -> None:
    source = Source(SMALL)
    fake[NAME].blobs[source.blob.digest] = SMALL

    assert add(images, source) == 0
    assert ([line.split()[0] for line in fake.calls], source.asked, source.moved) == (["HEAD"], 0, [])


def test_blob_is_sent_without_a_look_when_it_only_seems_to_be_there(fake: FakeRegistry, images: Repository) -> None:
    source = Source(SMALL)
    fake[NAME].blobs[source.blob.digest] = b"lies"

    assert add(images, source, anew=True) == len(SMALL)
    assert ([line.split()[0] for line in fake.calls], arrived(fake, source)) == (["POST", "PUT"], True)


def test_blob_is_mounted_when_another_repository_has_it(fake: FakeRegistry, images: Repository) -> None:
    source = Source(BIG)
    fake["base"].blobs[source.blob.digest] = BIG

    assert add(images, source, origins=("nothing/here", "base")) == 0

    assert [line.split()[0] for line in fake.calls] == ["HEAD", "POST", "POST"]
    assert dict(fake.requests[2].url.params) == {"mount": source.blob.digest, "from": "base"}
    assert (fake[NAME].blobs[source.blob.digest], source.asked) == (BIG, 0)


def test_upload_of_a_refused_mount_is_used_when_the_registry_opened_one(fake: FakeRegistry, images: Repository) -> None:
    source = Source(BIG)

    assert add(images, source, origins=("nothing/here",)) == len(BIG)
    assert ([line.split()[0] for line in fake.calls], arrived(fake, source)) == (["HEAD", "POST", "PATCH", "PUT"], True)


@pytest.mark.parametrize("fault", [answers(404, "NAME_UNKNOWN"), answers(403, "DENIED"), answers(503), cut])
def test_blob_is_sent_when_the_mount_fails(fake: FakeRegistry, images: Repository, fault: Fault) -> None:
    source = Source(BIG)
    fake["base"].blobs[source.blob.digest] = BIG
    fake.script("POST", "uploads", fault)

    assert add(images, source, origins=("base",)) == len(BIG)
    assert arrived(fake, source)


@pytest.mark.parametrize("status", [405, 411, 413, 415, 501])
def test_blob_goes_in_chunks_when_one_long_request_is_refused(
    fake: FakeRegistry, images: Repository, status: int
) -> None:
    source = Source(HUGE)
    fake.script("PATCH", "uploads", answers(status))

    assert add(images, source) == len(HUGE)

    assert _ranges(fake) == [None, f"0-{CHUNK_BYTES - 1}", f"{CHUNK_BYTES}-{len(HUGE) - 1}"]
    assert (arrived(fake, source), source.asked) == (True, 1)


def test_chunks_are_as_long_as_the_registry_wants_when_it_says_so(fake: FakeRegistry, images: Repository) -> None:
    source = Source(HUGE)
    fake.script("PATCH", "uploads", answers(405, headers={"OCI-Chunk-Min-Length": str(CHUNK_BYTES + 1)}))

    add(images, source)

    assert _ranges(fake)[1:] == [f"0-{CHUNK_BYTES}", f"{CHUNK_BYTES + 1}-{len(HUGE) - 1}"]


def test_chunks_get_smaller_when_they_are_too_large(fake: FakeRegistry, images: Repository) -> None:
    source = Source(BIG)
    fake.script("PATCH", "uploads", *[answers(413)] * 3)

    add(images, source)

    assert _ranges(fake)[3:] == [f"{at}-{at + PIECE_BYTES - 1}" for at in range(0, len(BIG), PIECE_BYTES)]
    assert arrived(fake, source)


def test_push_is_refused_when_even_the_smallest_chunk_is_too_large(fake: FakeRegistry, images: Repository) -> None:
    fake.script("PATCH", "uploads", *[answers(413)] * 4)

    with pytest.raises(RegistryRefused, match=r"PATCH .* was answered 413 "):
        add(images, Source(BIG))
    assert fake.open_sessions == 0


def test_push_is_refused_when_the_registry_wants_chunks_that_it_does_not_take(
    fake: FakeRegistry, images: Repository
) -> None:
    fake.script("PATCH", "uploads", *[answers(413, headers={"OCI-Chunk-Min-Length": str(CHUNK_BYTES)})] * 2)

    with pytest.raises(RegistryRefused, match=r"PATCH .* was answered 413 "):
        add(images, Source(HUGE))
    assert fake.open_sessions == 0


@pytest.mark.parametrize("said", ["9" * 5000, "-1", "many", ""])
def test_chunks_are_as_long_as_usual_when_the_registry_wants_nonsense(
    fake: FakeRegistry, images: Repository, said: str
) -> None:
    source = Source(HUGE)
    fake.script("PATCH", "uploads", answers(405, headers={"OCI-Chunk-Min-Length": said}))

    add(images, source)

    assert _ranges(fake)[1:] == [f"0-{CHUNK_BYTES - 1}", f"{CHUNK_BYTES}-{len(HUGE) - 1}"]


# -- addresses ---------------------------------------------------------------------------


def test_relative_location_is_resolved_when_the_registry_gives_one(fake: FakeRegistry, images: Repository) -> None:
    source = Source(BIG)
    fake.script("POST", "uploads", saying(location="1?_state=a%2Bb%3D0"))
    fake.script("PATCH", "uploads", saying(location=f"/v2/{NAME}/blobs/uploads/1?_state=a%2Bb%3D{len(BIG)}"))

    add(images, source)

    assert arrived(fake, source)
    digest = source.blob.digest.replace(":", "%3A")
    assert fake.requests[-1].url.raw_path.decode() == (
        f"/v2/{NAME}/blobs/uploads/1?_state=a%2Bb%3D{len(BIG)}&digest={digest}"
    )


def test_push_is_refused_when_the_location_is_none(fake: FakeRegistry, images: Repository) -> None:
    fake.script("POST", "uploads", saying(location="https://store.example:port/x"))

    with pytest.raises(RegistryRefused, match="leads to an address that is none"):
        add(images, Source(SMALL))


def test_push_is_refused_when_there_is_no_location(fake: FakeRegistry, images: Repository) -> None:
    fake.script("POST", "uploads", saying(location=None))

    with pytest.raises(RegistryRefused, match="without the Location to send to"):
        add(images, Source(SMALL))


def test_login_stays_with_the_registry_when_the_upload_is_on_another_host(fake: FakeRegistry) -> None:
    source, seen = Source(SMALL), dict[str, str | None]()

    def elsewhere(request: httpx.Request) -> httpx.Response:
        seen[str(request.url)] = request.headers.get("authorization")
        fake[NAME].blobs[source.blob.digest] = b"".join(request.stream)  # type: ignore[arg-type]
        return answer(201)

    fake.tokens, fake.elsewhere = {"Bearer secret"}, elsewhere
    fake.script("POST", "uploads", saying(location="https://store.example/up?signature=xyz"))
    images = repository(fake, NAME, login=ScriptedLogin("Bearer secret"))

    add(images, source)

    assert seen == {f"https://store.example/up?signature=xyz&digest={source.blob.digest.replace(':', '%3A')}": None}


def test_upload_is_refused_when_everybody_could_listen(fake: FakeRegistry, images: Repository) -> None:
    fake.script("POST", "uploads", saying(location="http://store.example/up?signature=xyz"))

    with pytest.raises(RegistryRefused, match=r"leads to http://store\.example/up, which is not https") as caught:
        add(images, Source(SMALL))
    assert "must be told its own public address" in caught.value.next


# -- faults that pass --------------------------------------------------------------------


@pytest.mark.parametrize("method", ["HEAD", "POST", "PATCH", "PUT"])
@pytest.mark.parametrize("status", sorted(TRANSIENT))
def test_blob_arrives_when_one_call_fails(fake: FakeRegistry, images: Repository, method: str, status: int) -> None:
    source = Source(BIG)
    fake.script(method, "blobs", answers(status))

    assert add(images, source) == len(BIG)
    assert arrived(fake, source)


@pytest.mark.parametrize("method", ["HEAD", "POST", "PATCH", "PUT"])
@pytest.mark.parametrize("fault", [cut, lose_answer])
@pytest.mark.parametrize("data", [SMALL, BIG], ids=["small", "big"])
def test_blob_arrives_when_one_connection_breaks(
    fake: FakeRegistry, images: Repository, method: str, fault: Fault, data: bytes
) -> None:
    if method == "PATCH" and data == SMALL:
        data = BIG + SMALL
    source = Source(data)
    fake.script(method, "blobs", fault)

    add(images, source)

    assert fake[NAME].blobs[source.blob.digest] == data
    assert sum(source.moved) == len(data)
    assert fake.open_sessions == int(method == "POST" and fault is lose_answer)  # nobody ever heard of that one


def test_upload_goes_on_from_the_registry_s_offset_when_it_was_cut(fake: FakeRegistry, images: Repository) -> None:
    source, held = Source(BIG), PIECE_BYTES + 7
    fake.script("PATCH", "uploads", cut_after(held))

    sent = add(images, source)

    assert _ranges(fake) == [None, f"{held}-{len(BIG) - 1}"]
    assert (arrived(fake, source), source.asked, sent) == (True, 2, 2 * len(BIG) - held)
    assert min(source.moved) == held - len(BIG)


def test_upload_goes_on_when_the_registry_kept_less_than_was_sent(fake: FakeRegistry, images: Repository) -> None:
    source, kept = Source(BIG), 2 * PIECE_BYTES
    fake.script("PATCH", "uploads", keep(kept))

    add(images, source)

    assert _ranges(fake) == [None, f"{kept}-{len(BIG) - 1}"]
    assert arrived(fake, source)


def test_nothing_is_sent_twice_when_only_the_answer_to_the_bytes_was_lost(
    fake: FakeRegistry, images: Repository
) -> None:
    source = Source(BIG)
    fake.script("PATCH", "uploads", lose_answer)

    assert add(images, source) == len(BIG)
    assert [line.split()[0] for line in fake.calls] == ["HEAD", "POST", "PATCH", "GET", "PUT"]


def test_nothing_is_sent_twice_when_only_the_last_answer_was_lost(fake: FakeRegistry, images: Repository) -> None:
    source = Source(BIG)
    fake.script("PUT", "uploads", lose_answer)

    assert add(images, source) == len(BIG)
    assert [line.split()[0] for line in fake.calls] == ["HEAD", "POST", "PATCH", "PUT", "HEAD"]
    assert arrived(fake, source)


@pytest.mark.parametrize("method", ["PATCH", "PUT"])
@pytest.mark.parametrize("data", [SMALL + BIG, BIG], ids=["more", "big"])
def test_blob_is_begun_anew_when_the_registry_forgot_the_upload(
    fake: FakeRegistry, images: Repository, method: str, data: bytes
) -> None:
    source = Source(data)
    fake.script(method, "uploads", first(fake.forget_sessions))

    add(images, source)

    assert [line for line in fake.calls if line.startswith("POST")] == [f"POST {NAME}/blobs/uploads/"] * 2
    assert arrived(fake, source)


def test_blob_is_begun_anew_when_the_upload_is_forgotten_after_a_cut(fake: FakeRegistry, images: Repository) -> None:
    source = Source(BIG)
    fake.script("PATCH", "uploads", cut_after(PIECE_BYTES))
    fake.script("GET", "uploads", first(fake.forget_sessions))

    add(images, source)

    assert _ranges(fake) == [None, None]
    assert arrived(fake, source)


def test_offset_is_asked_for_when_the_registry_expects_another(fake: FakeRegistry, images: Repository) -> None:
    source = Source(BIG)
    fake.script("PATCH", "uploads", answers(416, "RANGE_INVALID"))

    add(images, source)

    assert [line.split()[0] for line in fake.calls] == ["HEAD", "POST", "PATCH", "GET", "PATCH", "PUT"]
    assert arrived(fake, source)


def test_blob_is_begun_anew_in_chunks_when_nothing_else_helps(fake: FakeRegistry, images: Repository) -> None:
    source = Source(HUGE)
    fake.script("PATCH", "uploads", *[cut] * 3)

    add(images, source)

    assert _ranges(fake)[-2:] == [f"0-{CHUNK_BYTES - 1}", f"{CHUNK_BYTES}-{len(HUGE) - 1}"]
    assert sum(line.startswith("POST") for line in fake.calls) == 2
    assert arrived(fake, source)


@pytest.mark.parametrize("said", ["0-99999999999", "junk", "5-9", None])
def test_blob_is_begun_anew_when_the_registry_names_no_possible_offset(
    fake: FakeRegistry, images: Repository, said: str | None
) -> None:
    source = Source(BIG)
    fake.script("PATCH", "uploads", cut_after(PIECE_BYTES))
    fake.script("GET", "uploads", saying(range=said))

    add(images, source)

    assert fake[NAME].blobs[source.blob.digest] == BIG
    assert _ranges(fake) == [None, None]


@pytest.mark.parametrize("data", [SMALL, BIG], ids=["small", "big"])
def test_blob_is_sent_again_when_it_was_spoilt_on_its_way(fake: FakeRegistry, images: Repository, data: bytes) -> None:
    source = Source(data)
    fake.script("PUT" if data == SMALL else "PATCH", "uploads", spoil)

    add(images, source)

    assert fake[NAME].blobs[source.blob.digest] == data


def test_upload_is_redirected_whole_when_the_registry_says_so(fake: FakeRegistry, images: Repository) -> None:
    source = Source(BIG)
    fake.script("PATCH", "uploads", redirects(f"{ADDRESS}/v2/{NAME}/blobs/uploads/1?_state=a%2Bb%3D0"))

    add(images, source)

    assert arrived(fake, source)


def test_login_is_renewed_when_its_token_ends_in_the_middle(fake: FakeRegistry) -> None:
    source, login = Source(BIG), ScriptedLogin("Bearer first", "Bearer second")
    fake.tokens = {"Bearer first"}
    fake.script("PATCH", "uploads", cut_after(PIECE_BYTES))
    fake.script("GET", "uploads", first(partial(setattr, fake, "tokens", {"Bearer second"})))
    images = repository(fake, NAME, login=login)

    add(images, source)

    assert (arrived(fake, source), len(login.scopes), set(login.scopes)) == (
        True,
        2,
        {(f"repository:{NAME}:push,pull",)},
    )


def test_login_covers_the_origin_too_when_a_blob_is_mounted(fake: FakeRegistry) -> None:
    source, login = Source(SMALL), ScriptedLogin("Bearer first", "Bearer second")
    fake["base"].blobs[source.blob.digest] = SMALL
    fake.tokens = {"Bearer first"}
    fake.script("POST", "uploads", first(partial(setattr, fake, "tokens", {"Bearer second"})))
    images = repository(fake, NAME, login=login)

    assert add(images, source, origins=("base",)) == 0
    assert login.scopes[-1] == (f"repository:{NAME}:push,pull", "repository:base:pull")


@pytest.mark.parametrize("more", [0, 1, 10**12])
def test_blob_arrives_when_the_registry_counts_more_than_was_sent(
    fake: FakeRegistry, images: Repository, more: int
) -> None:
    source = Source(BIG)
    fake.script("PATCH", "uploads", saying(range=f"0-{len(BIG) + more}"))

    def advance(count: int) -> None:
        source.moved.append(count)
        assert len(source.moved) < 100, "nothing moves any more"

    images.add(source.blob, source, advance=advance)

    assert arrived(fake, source)


# -- faults that stay --------------------------------------------------------------------


def test_push_gives_up_when_the_registry_answers_only_with_errors(fake: FakeRegistry, images: Repository) -> None:
    fake.script("PATCH", "uploads", *[answers(503)] * 6)

    with pytest.raises(RegistryUnreachable) as caught:
        add(images, Source(BIG))

    assert caught.value.message == (
        f"PATCH {ADDRESS}/v2/{NAME}/blobs/uploads/2 was answered 503 Service Unavailable "
        "(UNKNOWN: unknown), tried 6 times"
    )


def test_push_goes_on_when_every_cut_leaves_something(fake: FakeRegistry, images: Repository) -> None:
    source = Source(HUGE)
    fake.script("PATCH", "uploads", *[cut_after(PIECE_BYTES)] * 12)

    add(images, source)

    assert arrived(fake, source)


def test_push_gives_up_when_there_are_cuts_without_end(fake: FakeRegistry, images: Repository) -> None:
    fake.script("PATCH", "uploads", *[cut_after(1000)] * 100)

    with pytest.raises(RegistryUnreachable, match="tried 100 times"):
        add(images, Source(BIG))


def test_push_ends_when_somebody_stops_it_while_it_waits(fake: FakeRegistry) -> None:
    clock = QuickClock()
    images = repository(fake, NAME, clock=clock.clock)
    fake.script("POST", "uploads", answers(503, headers={"Retry-After": "50"}))

    def stop(_count: int) -> None:
        raise KeyError("stop")

    with pytest.raises(KeyError):
        images.add(described(SMALL, TAR), lambda: [SMALL], advance=stop)
    assert clock.waited_s < 1


def test_nothing_is_left_when_the_source_gives_other_bytes_the_second_time(
    fake: FakeRegistry, images: Repository
) -> None:
    given = iter([BIG, bytes(len(BIG))])
    fake.script("PATCH", "uploads", cut_after(PIECE_BYTES))

    with pytest.raises(PushError, match="nothing was stored"):
        images.add(described(BIG, TAR), lambda: [next(given)])
    assert (fake[NAME].blobs, fake.open_sessions) == ({}, 0)


def test_registry_s_own_words_are_told_when_it_refuses(fake: FakeRegistry, images: Repository) -> None:
    fake.script("PUT", "uploads", answers(400, "NAME_INVALID"))

    with pytest.raises(RegistryRefused) as caught:
        add(images, Source(SMALL))
    assert caught.value.message == (
        f"PUT {ADDRESS}/v2/{NAME}/blobs/uploads/1 was answered 400 Bad Request (NAME_INVALID: name invalid)"
    )
    assert fake.open_sessions == 0


def test_empty_blob_arrives_when_it_is_pushed(fake: FakeRegistry, images: Repository) -> None:
    assert images.add(described(b"", TAR), list) == 0
    assert fake[NAME].blobs == {Digest.of(b""): b""}


def test_nothing_is_stored_when_an_empty_blob_is_not_empty(fake: FakeRegistry, images: Repository) -> None:
    with pytest.raises(PushError, match="nothing was stored"):
        images.add(described(b"", TAR), lambda: [b"x"])
    assert fake[NAME].blobs == {}


def _ranges(fake: FakeRegistry) -> list[str | None]:
    return [request.headers.get("content-range") for request in fake.requests if request.method == "PATCH"]
