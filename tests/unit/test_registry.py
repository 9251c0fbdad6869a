"""A repository of a registry: what it believes, what it asks again, and whom it tells its login."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import httpx
import pytest

from shipway.artifacts import Descriptor, Digest
from shipway.errors import BlobsLost, ImageCorrupt, PushError, RegistryRefused, RegistryUnreachable
from shipway.oci.address import Url
from shipway.oci.compose import CONFIG, MANIFEST, TAR, canonical
from shipway.oci.images import DOCUMENT_BYTES, described
from shipway.oci.patience import TRANSIENT
from shipway.oci.reference import Reference
from shipway.oci.registry import Repository
from shipway.oci.transport import Transport
from tests.fake_registry import (
    ADDRESS,
    FakeRegistry,
    Fault,
    QuickClock,
    ScriptedLogin,
    answer,
    answers,
    broken_after,
    cut,
    flipped,
    lose_answer,
    problem,
    redirects,
    repository,
    saying,
    sending,
)
from tests.httpx_client import FakeClient

NAME = "team/service"
DATA = bytes(range(256)) * 1000
BLOB = described(DATA, TAR)
MANIFEST_BYTES = canonical(
    {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": {"mediaType": CONFIG, "digest": BLOB.digest, "size": BLOB.size_bytes},
        "layers": [],
    }
)
DIGEST = Digest.of(MANIFEST_BYTES)


@pytest.fixture
def fake() -> Iterator[FakeRegistry]:
    fake = FakeRegistry()
    fake[NAME].blobs[BLOB.digest] = DATA
    fake[NAME].manifests[DIGEST] = (MANIFEST, MANIFEST_BYTES)
    fake[NAME].tags["tested"] = DIGEST
    yield fake
    fake.require_all_met()


@pytest.fixture
def images(fake: FakeRegistry) -> Iterator[Repository]:
    images = repository(fake, NAME)
    yield images
    images.close()


def fetched(images: Repository, blob: Descriptor = BLOB) -> bytes:
    return b"".join(images.pieces(blob))


def asked_from(fake: FakeRegistry) -> list[str | None]:
    return [request.headers.get("range") for request in fake.requests]


# -- blobs -------------------------------------------------------------------------------


@pytest.mark.parametrize("cause", [broken_after(1000), lambda data: data[:1000]], ids=["reset", "cleanly short"])
def test_rest_of_a_blob_alone_is_fetched_when_it_was_cut(
    fake: FakeRegistry, images: Repository, cause: Callable[[bytes], bytes]
) -> None:
    fake.script("GET", "blobs", sending(cause))

    assert fetched(images) == DATA
    assert asked_from(fake) == [None, "bytes=1000-"]


def test_blob_is_whole_when_the_registry_knows_no_ranges(fake: FakeRegistry, images: Repository) -> None:
    fake.script("GET", "blobs", sending(broken_after(1000)), lambda _request, _handle: answer(200, DATA))

    assert fetched(images) == DATA


def test_blob_is_whole_when_every_connection_brings_a_little(fake: FakeRegistry, images: Repository) -> None:
    fake.script("GET", "blobs", *[sending(broken_after(10_000))] * 20)

    assert fetched(images) == DATA


@pytest.mark.parametrize(
    ("lie", "why"),
    [
        (sending(flipped), "its bytes have another digest"),
        (sending(lambda data: data + b"!"), "more than its 256000 bytes came"),
    ],
)
def test_blob_is_corrupt_when_the_registry_sends_something_else(
    fake: FakeRegistry, images: Repository, lie: Fault, why: str
) -> None:
    fake.script("GET", "blobs", lie)

    with pytest.raises(ImageCorrupt) as caught:
        fetched(images)
    assert caught.value.message == f"localhost:5000/{NAME}@{BLOB.digest} is damaged: {why}"


def test_blob_is_corrupt_when_another_range_comes_than_was_asked_for(fake: FakeRegistry, images: Repository) -> None:
    later = partial(answer, 206, DATA[2000:], {"Content-Range": f"bytes 2000-{len(DATA) - 1}/{len(DATA)}"})
    fake.script("GET", "blobs", sending(broken_after(1000)), lambda _request, _handle: later())

    with pytest.raises(ImageCorrupt, match="bytes from 2000 on came, asked for were those from 1000 on"):
        fetched(images)


def test_blob_is_believed_by_its_bytes_when_the_registry_calls_them_encoded(
    fake: FakeRegistry, images: Repository
) -> None:
    fake.script("GET", "blobs", saying(content_encoding="gzip"))

    assert fetched(images) == DATA


def test_blob_is_whole_when_it_is_cut_behind_its_last_byte(fake: FakeRegistry, images: Repository) -> None:
    fake.script("GET", "blobs", sending(broken_after(len(DATA))))

    assert fetched(images) == DATA
    assert asked_from(fake) == [None]


def test_blob_is_corrupt_when_it_is_cut_behind_another_last_byte(fake: FakeRegistry, images: Repository) -> None:
    fake.script("GET", "blobs", sending(lambda data: broken_after(len(DATA))(flipped(data))))

    with pytest.raises(ImageCorrupt, match="its bytes have another digest"):
        fetched(images)


def test_fetching_gives_up_when_every_connection_brings_next_to_nothing(fake: FakeRegistry, images: Repository) -> None:
    fake.script("GET", "blobs", *[sending(broken_after(1))] * 6)

    with pytest.raises(RegistryUnreachable, match="tried 6 times"):
        fetched(images)


def test_fetching_gives_up_when_a_blob_only_drips(fake: FakeRegistry) -> None:
    clock = QuickClock()

    def dripping(data: bytes) -> Iterator[bytes]:
        for at in range(len(data)):
            clock.sleep(59)
            yield data[at : at + 1]

    fake.script("GET", "blobs", sending(dripping))

    with pytest.raises(RegistryUnreachable, match="sends too slowly: no end after 904 s"):
        fetched(repository(fake, NAME, clock=clock.clock))
    assert clock.waited_s < 1000


def test_blob_is_whole_when_whoever_takes_it_needs_long(fake: FakeRegistry) -> None:
    clock = QuickClock()
    fake.script("GET", "blobs", sending(lambda data: iter([data[:1000], data[1000:]])))

    for _ in (pieces := repository(fake, NAME, clock=clock.clock).pieces(BLOB)):
        clock.sleep(10_000)

    assert list(pieces) == []


def test_fetching_gives_up_when_nothing_more_comes(fake: FakeRegistry, images: Repository) -> None:
    fake.script("GET", "blobs", sending(broken_after(1000)), *[cut] * 5)

    with pytest.raises(RegistryUnreachable, match=rf"GET {ADDRESS}/v2/{NAME}/blobs/{BLOB.digest}: ReadError"):
        fetched(images)


def test_login_stays_with_the_registry_when_a_blob_is_on_another_host(fake: FakeRegistry) -> None:
    seen = list[tuple[str, str | None]]()

    def elsewhere(request: httpx.Request) -> httpx.Response:
        seen.append((str(request.url), request.headers.get("authorization")))
        return answer(200, DATA)

    fake.tokens, fake.elsewhere = {"Bearer secret"}, elsewhere
    images = repository(fake, NAME, login=ScriptedLogin("Bearer secret"))
    assert images.has(BLOB)
    fake.script("GET", "blobs", redirects("https://store.example/data?signature=xyz"))

    assert fetched(images) == DATA
    assert seen == [("https://store.example/data?signature=xyz", None)]


def test_challenge_of_another_host_is_not_answered(fake: FakeRegistry) -> None:
    challenge = {"WWW-Authenticate": 'Bearer realm="https://evil.example/token"'}
    fake.elsewhere = lambda _request: problem(401, "UNAUTHORIZED", headers=challenge)
    login = ScriptedLogin("Bearer secret")
    images = repository(fake, NAME, login=login)
    fake.script("GET", "blobs", redirects("https://store.example/data?signature=xyz"))

    with pytest.raises(RegistryRefused) as caught:
        fetched(images)
    assert "by store.example, where the registry redirected to" in caught.value.message
    assert ("xyz" in caught.value.message, login.challenges) == (False, [])


@pytest.mark.parametrize(
    ("location", "message"),
    [
        ("http://store.example/x", "leads to http://store.example/x, which is not https"),
        ("file:///etc/passwd", "without a host"),
        ("ftp://store.example/x", "which is not https"),
        ("https:///x", "without a host"),
        ("https://me:secret@store.example/x", "with a login in it"),
    ],
)
def test_redirect_is_refused_when_it_leads_nowhere_good(
    fake: FakeRegistry, images: Repository, location: str, message: str
) -> None:
    fake.script("GET", "blobs", redirects(location))

    with pytest.raises(RegistryRefused) as caught:
        fetched(images)
    assert message in caught.value.message
    assert "secret" not in caught.value.message


@pytest.mark.parametrize("where", ["http://127.0.0.1:6443/x", "http://localhost/x", "http://[::1]:80/x"])
@pytest.mark.parametrize("status", [307, 202])
def test_nobody_is_led_to_this_machine_when_the_registry_is_another(
    fake: FakeRegistry, where: str, status: int
) -> None:
    fake.elsewhere = lambda _request: answer(status, headers={"Location": where})
    remote = Transport(
        Url.parse("https://registry.example"),
        client=FakeClient(fake),
        login=ScriptedLogin(),
        clock=QuickClock().clock,
        warn=lambda _text: None,
    )

    with pytest.raises(RegistryRefused, match="which is not https"):
        Repository(Reference(host="registry.example", path=NAME), remote).examined()
    assert len(fake.calls) == 1


def test_redirects_are_refused_when_they_do_not_end(fake: FakeRegistry, images: Repository) -> None:
    fake.script("GET", "blobs", *[redirects(f"{ADDRESS}/v2/{NAME}/blobs/{BLOB.digest}")] * 6)

    with pytest.raises(RegistryRefused, match="redirected more than 5 times"):
        fetched(images)


def test_redirect_is_refused_when_it_would_lose_what_is_sent(fake: FakeRegistry, images: Repository) -> None:
    fake.script("PUT", "manifests", redirects(ADDRESS, status=303))

    with pytest.raises(RegistryRefused, match="303 See Other, which loses what is sent"):
        images.tag("new", MANIFEST_BYTES, MANIFEST)


# -- manifests and names -----------------------------------------------------------------

_CALLS: dict[str, tuple[str, Callable[[Repository], object]]] = {
    "read": ("GET", lambda images: images.read(DIGEST)),
    "put": ("HEAD", lambda images: images.put(MANIFEST_BYTES, MANIFEST)),
    "tag": ("PUT", lambda images: images.tag("new", MANIFEST_BYTES, MANIFEST)),
    "tagged": ("HEAD", lambda images: images.tagged("tested")),
    "names": ("GET", lambda images: list(images.names())),
    "pieces": ("GET", fetched),
    "has": ("HEAD", lambda images: images.has(BLOB)),
    "delete": ("DELETE", lambda images: images.delete(DIGEST)),
    "examined": ("POST", lambda images: images.examined()),
}


@pytest.mark.parametrize("call", _CALLS)
@pytest.mark.parametrize("status", sorted(TRANSIENT))
def test_call_is_made_again_when_its_failure_may_pass(
    fake: FakeRegistry, images: Repository, call: str, status: int
) -> None:
    method, ask = _CALLS[call]
    fake.script(method, "", answers(status))

    ask(images)

    assert [request.method for request in fake.requests[:2]] == [method] * 2


@pytest.mark.parametrize("call", _CALLS)
@pytest.mark.parametrize("fault", [cut, lose_answer])
def test_call_is_made_again_when_the_connection_breaks(
    fake: FakeRegistry, images: Repository, call: str, fault: Fault
) -> None:
    method, ask = _CALLS[call]
    fake.script(method, "", fault)

    ask(images)


@pytest.mark.parametrize("call", _CALLS)
def test_call_gives_up_when_nobody_answers(fake: FakeRegistry, call: str) -> None:
    method, ask = _CALLS[call]
    clock = QuickClock()
    fake.script(method, "", *[cut] * 6)

    with pytest.raises(RegistryUnreachable, match=rf"{method} .*: connection reset by peer, tried 6 times"):
        ask(repository(fake, NAME, clock=clock.clock))
    assert 3 < clock.waited_s < 8


@pytest.mark.parametrize("call", _CALLS)
def test_call_is_refused_with_the_login_s_words_when_it_is_forbidden(
    fake: FakeRegistry, images: Repository, call: str
) -> None:
    method, ask = _CALLS[call]
    fake.script(method, "", answers(403, "DENIED"))

    with pytest.raises(RegistryRefused, match=r"403 Forbidden \(DENIED: denied\) \(a scripted login\)"):
        ask(images)
    assert len(fake.calls) == 1


def test_login_is_tried_twice_when_it_stays_refused(fake: FakeRegistry) -> None:
    fake.tokens = set()
    login = ScriptedLogin("Bearer one", "Bearer two", "Bearer three")

    with pytest.raises(RegistryRefused, match="401 Unauthorized"):
        repository(fake, NAME, login=login).read(DIGEST)

    assert [request.headers.get("authorization") for request in fake.requests] == [None, "Bearer one", "Bearer two"]
    assert login.challenges == [['Bearer realm="https://tokens.example"']] * 2


@pytest.mark.parametrize(
    ("said", "waited_s"),
    [
        ("7", 7),
        ("86400", 60),
        ("-5", 0),
        ("Fri, 01 Jan 2100 00:00:00 GMT", 60),
        ("Sat, 01 Jan 2000 00:00:00 GMT", 0),
    ],
)
def test_wait_is_what_the_registry_asks_for_when_it_is_not_too_long(
    fake: FakeRegistry, said: str, waited_s: float
) -> None:
    clock, warned = QuickClock(), list[str]()
    fake.script("GET", "manifests", answers(429, "TOOMANYREQUESTS", headers={"Retry-After": said}))

    repository(fake, NAME, clock=clock.clock, warn=warned.append).read(DIGEST)

    assert clock.waited_s == pytest.approx(waited_s)
    assert [line.rpartition("; ")[2] for line in warned] == ([f"asking again in {waited_s} s"] if waited_s else [])


@pytest.mark.parametrize("said", ["soon", "9" * 400, "Mon, 01 Jan 2100 00:00:00 +99999999999999"])
def test_wait_grows_by_itself_when_the_registry_says_nothing_sensible(fake: FakeRegistry, said: str) -> None:
    clock = QuickClock()
    fake.script("GET", "manifests", *[answers(503, headers={"Retry-After": said})] * 3)

    repository(fake, NAME, clock=clock.clock).read(DIGEST)

    assert 0.25 * 3.5 <= clock.waited_s <= 0.25 * 7


def test_call_gives_up_when_the_registry_asks_to_wait_too_often(fake: FakeRegistry) -> None:
    clock = QuickClock()
    fake.script("GET", "manifests", *[answers(429, headers={"Retry-After": "3600"})] * 6)

    with pytest.raises(RegistryUnreachable):
        repository(fake, NAME, clock=clock.clock).read(DIGEST)
    assert clock.waited_s <= 300


@pytest.mark.parametrize(
    "lie", [sending(flipped), sending(lambda data: data[:-1]), sending(lambda _: bytes(DOCUMENT_BYTES + 1))]
)
def test_manifest_is_corrupt_when_the_registry_sends_something_else(
    fake: FakeRegistry, images: Repository, lie: Fault
) -> None:
    fake.script("GET", "manifests", lie)

    with pytest.raises(ImageCorrupt, match=rf"{NAME}@{DIGEST} is damaged"):
        images.read(DIGEST)


def test_answer_is_cut_when_it_does_not_end(fake: FakeRegistry, images: Repository) -> None:
    given = 0

    def endless(_data: bytes) -> Iterator[bytes]:
        nonlocal given
        while True:
            given += 1 << 16
            yield bytes(1 << 16)

    fake.script("GET", "manifests", sending(endless))

    with pytest.raises(ImageCorrupt):
        images.read(DIGEST)
    assert given <= DOCUMENT_BYTES + (1 << 16)


def test_answer_is_cut_when_it_only_drips(fake: FakeRegistry) -> None:
    clock = QuickClock()

    def dripping(_data: bytes) -> Iterator[bytes]:
        while True:
            clock.sleep(30)
            yield b"x"

    fake.script("GET", "manifests", sending(dripping))

    assert repository(fake, NAME, clock=clock.clock).read(DIGEST) == MANIFEST_BYTES


def test_name_is_known_by_the_manifest_when_no_digest_is_said(fake: FakeRegistry, images: Repository) -> None:
    quiet = saying(docker_content_digest=None)
    fake.script("HEAD", "manifests", quiet)
    fake.script("GET", "manifests", quiet)

    assert images.tagged("tested") == DIGEST


def test_names_are_refused_when_their_pages_do_not_end(fake: FakeRegistry, images: Repository) -> None:
    fake.script("GET", "tags", *[saying(link=f'</v2/{NAME}/tags/list>; rel="next"')] * 1000)

    with pytest.raises(RegistryRefused, match="does not end after 1000 pages"):
        list(images.names())


@pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b'{"tags": 5}', b'{"names": []}', b"[" * 9999])
def test_names_are_refused_when_they_are_no_list(fake: FakeRegistry, images: Repository, body: bytes) -> None:
    fake.script("GET", "tags", lambda _request, _handle: answer(200, body))

    with pytest.raises(RegistryRefused, match="not answered with a list of tags"):
        list(images.names())


def test_login_stays_with_the_registry_when_a_page_is_on_another_host(fake: FakeRegistry) -> None:
    seen = list[str | None]()

    def elsewhere(request: httpx.Request) -> httpx.Response:
        seen.append(request.headers.get("authorization"))
        return answer(200, b'{"tags": ["more"]}')

    fake.tokens, fake.elsewhere = {"Bearer secret"}, elsewhere
    images = repository(fake, NAME, login=ScriptedLogin("Bearer secret"))
    assert images.tagged("tested")
    fake.script("GET", "tags", saying(link='<https://evil.example/more>; rel="next"'))

    assert (list(images.names()), seen) == (["tested", "more"], [None])


@pytest.mark.parametrize("status", [400, 404])
@pytest.mark.parametrize("code", ["MANIFEST_BLOB_UNKNOWN", "BLOB_UNKNOWN"])
def test_blobs_are_lost_when_the_registry_says_so(
    fake: FakeRegistry, images: Repository, status: int, code: str
) -> None:
    details = [{"Digest": BLOB.digest}, f"unknown blob {'sha256:' + 'b' * 64}"]
    fake.script("PUT", "manifests", lambda _request, _handle: problem(status, code, details=details))

    with pytest.raises(BlobsLost) as caught:
        images.tag("new", MANIFEST_BYTES, MANIFEST)

    concerned = [caught.value.concerns(digest) for digest in (BLOB.digest, "sha256:" + "b" * 64, DIGEST)]
    assert concerned == [True, True, False]


def test_every_blob_may_be_lost_when_the_registry_names_none(fake: FakeRegistry, images: Repository) -> None:
    fake.script("PUT", "manifests", answers(404, "BLOB_UNKNOWN"))

    with pytest.raises(BlobsLost) as caught:
        images.tag("new", MANIFEST_BYTES, MANIFEST)
    assert caught.value.concerns(BLOB.digest)


@pytest.mark.parametrize(
    ("fault", "error", "message"),
    [
        (answers(400, "MANIFEST_INVALID"), RegistryRefused, "400 Bad Request (MANIFEST_INVALID: manifest invalid)"),
        (answers(404, "NAME_UNKNOWN"), RegistryRefused, "404 Not Found (NAME_UNKNOWN: name unknown)"),
        (answers(413), RegistryRefused, "413 "),
        (saying(docker_content_digest=f"sha256:{'0' * 64}"), PushError, "under another digest"),
    ],
)
def test_manifest_is_refused_in_the_registry_s_words_when_it_is_not_taken(
    fake: FakeRegistry, images: Repository, fault: Fault, error: type[PushError], message: str
) -> None:
    fake.script("PUT", "manifests", fault)

    with pytest.raises(error) as caught:
        images.tag("new", MANIFEST_BYTES, MANIFEST)
    assert message in caught.value.message


def test_stranger_s_words_are_shown_in_one_short_line_when_they_are_wild(
    fake: FakeRegistry, images: Repository
) -> None:
    wild = '{"errors": [{"code": "BAD", "message": "\\u001b[31mred\\nline\\u0000' + "x" * 5000 + '"}]}'
    fake.script("PUT", "manifests", lambda _request, _handle: answer(400, wild.encode()))

    with pytest.raises(RegistryRefused) as caught:
        images.tag("new", MANIFEST_BYTES, MANIFEST)
    assert "(BAD: [31mred line xxx" in caught.value.message
    assert (caught.value.message.isprintable(), len(caught.value.message) < 600) == (True, True)


def test_refusal_is_told_without_words_when_they_are_nested_without_end(fake: FakeRegistry, images: Repository) -> None:
    fake.script("PUT", "manifests", lambda _request, _handle: answer(400, b'{"errors":' + b"[" * 9999))

    with pytest.raises(RegistryRefused) as caught:
        images.tag("new", MANIFEST_BYTES, MANIFEST)
    assert caught.value.message.endswith("was answered 400 Bad Request")


def test_deletion_is_refused_with_advice_when_the_registry_allows_none(fake: FakeRegistry, images: Repository) -> None:
    fake.script("DELETE", "manifests", answers(405, "UNSUPPORTED"))

    with pytest.raises(RegistryRefused) as caught:
        images.delete(DIGEST)
    assert "REGISTRY_STORAGE_DELETE_ENABLED=true" in caught.value.next


def test_examination_begins_and_cancels_an_upload_when_it_may_push(fake: FakeRegistry, images: Repository) -> None:
    assert images.examined() == f"localhost:5000/{NAME} takes images, with a scripted login"

    assert fake.calls == [f"POST {NAME}/blobs/uploads/", f"DELETE {NAME}/blobs/uploads/1"]
    assert fake.open_sessions == 0


def test_rights_are_asked_for_as_each_call_needs_them(fake: FakeRegistry) -> None:
    asked: dict[str, tuple[str, ...]] = {}
    for call, (_, ask) in _CALLS.items():
        fake.tokens, login = {"Bearer secret"}, ScriptedLogin("Bearer secret")
        ask(repository(fake, NAME, login=login))
        asked[call] = login.scopes[0]

    pull, push, delete = ((f"repository:{NAME}:{right}",) for right in ("pull", "push,pull", "delete"))
    assert asked == {
        "read": pull,
        "put": push,
        "tag": push,
        "tagged": pull,
        "names": pull,
        "pieces": pull,
        "has": pull,
        "delete": delete,
        "examined": push,
    }
