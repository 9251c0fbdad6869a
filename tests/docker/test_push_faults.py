"""What a push survives: the rows of faults.md on registries, each before a real one."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace

import pytest

from shipway.errors import BlobsLost, ImageCorrupt, PushError, RegistryRefused, RegistryUnreachable
from shipway.oci.images import read_image
from tests.docker import proxy as proxies
from tests.docker.parts import composed, digest_of, size_of
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
    Fault,
    Proxy,
)
from tests.docker.shelf import Shelf

CALLS = {
    "the look for a blob": LOOK,
    "the begin of an upload": BEGIN,
    "the upload": SEND,
    "the end of an upload": FINISH,
    "the manifest": PUT_MANIFEST,
    "the reading back": READ_MANIFEST,
    "the look for a tag": ASK_TAG,
    "the tag": PUT_TAG,
}
BIG = "bigwheel"
PUT_MEMORY = r"^PUT .*/manifests/layers-"
TRIES, JOBS = 6, 4


@pytest.fixture
def storage(guarded: Shelf) -> Iterator[Proxy]:
    """The storage behind a guarded registry: another host, where no login belongs."""
    with Proxy(guarded.registry.address, authorization=guarded.registry.authorization) as proxy:
        yield proxy


def _is_released(shelf: Shelf, tag: str = "v1") -> bool:
    """Say whether the tag means the image, and everything in the registry is whole."""
    made = composed()
    return (shelf.tags()[tag], shelf.wrongs()) == (made.image.digest, [])


# -- only what changed moves -------------------------------------------------------------


def test_nothing_is_sent_when_nothing_changed(shelf: Shelf) -> None:
    shelf.push(composed(), "v1")
    shelf.proxy.forget()

    _, sent = shelf.push(composed(), "v1")

    assert (sent.bytes_sent, shelf.proxy.received_bytes()) == (0, 0)
    assert shelf.proxy.found("^(POST|PATCH|PUT)") == []


@pytest.mark.parametrize(
    ("word", "title"),
    [("app", "app"), ("model", "net version 1"), ("big", BIG), ("small", "1 small packages")],
)
def test_only_one_layer_and_the_documents_are_sent_when_only_it_changed(shelf: Shelf, word: str, title: str) -> None:
    shelf.push(composed(), "v1")
    shelf.proxy.forget()
    changed = composed(**{word: "2"})

    _, sent = shelf.push(changed, "v1")

    documents = len(changed.image.config) + len(changed.image.manifest)
    assert sent.bytes_sent == size_of(changed, title) + documents
    more = len(changed.image.manifest)  # a tag is the manifest once more
    if title in {BIG, "1 small packages"}:  # and the dependencies are remembered
        more += shelf.proxy.found(PUT_MEMORY)[0].size_bytes
    assert shelf.proxy.received_bytes() == sent.bytes_sent + more
    assert more < 4_000


# -- errors on each call -------------------------------------------------------------------


@pytest.mark.parametrize(
    "act",
    [
        proxies.status(500),
        proxies.status(502),
        proxies.status(503, headers={"retry-after": "1"}),
        proxies.status(429, headers={"retry-after": "2"}),
        proxies.cut_at_once,
        proxies.lose_answer,
        proxies.status(500, after=True),
    ],
    ids=["500", "502", "503", "429", "reset", "answer lost", "500 after it was done"],
)
def test_push_comes_through_when_each_call_fails_once(shelf: Shelf, act: Act) -> None:
    script = shelf.proxy.script(*(Fault(on=on, act=act) for on in CALLS.values()))

    shelf.push(composed(), "v1")

    assert _is_released(shelf)
    assert script.done == len(CALLS)


@pytest.mark.parametrize("on", CALLS.values(), ids=CALLS.keys())
def test_push_gives_up_after_six_tries_and_the_next_finishes_when_a_call_always_fails(shelf: Shelf, on: str) -> None:
    shelf.proxy.script(Fault(on=on, act=proxies.status(503), times=1_000))

    with pytest.raises(RegistryUnreachable) as caught:
        shelf.push(composed(), "v1")

    paths = [call.path.partition("?")[0] for call in shelf.proxy.found(on)]
    assert "503 Service Unavailable" in caught.value.message
    assert "tried 6 times" in caught.value.message
    assert max(paths.count(path) for path in paths) <= TRIES * (JOBS if on == BEGIN else 1)
    assert (shelf.tags(), shelf.wrongs()) == ({}, [])
    shelf.proxy.script()
    shelf.push(composed(), "v1")
    assert _is_released(shelf)


# -- uploads that break ----------------------------------------------------------------------


def test_upload_goes_on_from_the_registrys_offset_when_it_is_reset(shelf: Shelf) -> None:
    size = size_of(composed(), BIG)
    shelf.proxy.script(Fault(on=SEND, least_bytes=size, act=proxies.cut_upload(size // 2)))

    shelf.push(composed(), "v1")

    first, second = shelf.proxy.found(SEND)
    assert _is_released(shelf)
    # Distribution 2.8 forgets an upload whose state is not what its address says; v3 says where it is.
    kept = size // 2 if "v3" in str(shelf.registry.storage) else 0
    assert (second.received_bytes, first.received_bytes < size) == (size - kept, True)


def test_blob_is_not_sent_again_when_the_answer_was_lost_after_the_registry_had_it(shelf: Shelf) -> None:
    size = size_of(composed(), BIG)
    shelf.proxy.script(Fault(on=FINISH, act=proxies.lose_answer, times=99))

    shelf.push(composed(), "v1")

    assert _is_released(shelf)
    assert shelf.proxy.received_bytes(SEND) == size
    assert len(shelf.proxy.found(FINISH)) == 6  # four layers, the configuration and the memory's, each once


@pytest.mark.parametrize("on", [SEND, FINISH], ids=["before the bytes", "before the end"])
def test_blob_is_begun_again_when_its_upload_session_is_lost(shelf: Shelf, on: str) -> None:
    shelf.proxy.script(Fault(on=on, act=proxies.lose_session, times=2))

    shelf.push(composed(), "v1")

    assert _is_released(shelf)


def test_rest_is_sent_when_the_registry_kept_less_than_was_sent(shelf: Shelf) -> None:
    size = size_of(composed(), BIG)
    shelf.proxy.script(Fault(on=SEND, least_bytes=size, act=proxies.take_half))

    shelf.push(composed(), "v1")

    assert _is_released(shelf)
    assert shelf.proxy.received_bytes(SEND) == size + (size - size // 2)


@pytest.mark.parametrize("code", [416, 404, 413, 400], ids=str)
def test_push_ends_well_or_says_why_when_an_upload_is_refused_once(shelf: Shelf, code: int) -> None:
    shelf.proxy.script(Fault(on=SEND, least_bytes=1_000_000, act=proxies.status(code)))

    if code in {416, 404, 413}:
        shelf.push(composed(), "v1")
    else:
        with pytest.raises(RegistryRefused):
            shelf.push(composed(), "v1")
        assert shelf.wrongs() == []
        shelf.push(composed(), "v1")

    assert _is_released(shelf)


def test_push_follows_a_location_that_is_relative(shelf: Shelf) -> None:
    shelf.proxy.script(
        Fault(on=BEGIN, act=proxies.locate_relatively, times=99),
        Fault(on=SEND, act=proxies.locate_relatively, times=99),
    )

    shelf.push(composed(), "v1")

    assert _is_released(shelf)


# -- other hosts -----------------------------------------------------------------------------


def test_no_login_is_sent_when_a_location_is_on_another_host(guarded: Shelf, storage: Proxy) -> None:
    guarded.proxy.script(Fault(on=BEGIN, act=proxies.locate_at(storage.address), times=99))

    guarded.push(composed(), "v1")

    assert _is_released(guarded)
    assert storage.received_bytes() > size_of(composed(), BIG)
    assert [call for call in storage.calls if "authorization" in call.headers] == []
    assert [call for call in guarded.proxy.found(PUT_TAG) if "authorization" not in call.headers] == []


def test_no_login_is_sent_when_a_blob_is_redirected_to_another_host(guarded: Shelf, storage: Proxy) -> None:
    made = composed()
    guarded.push(made, "v1")
    guarded.proxy.script(Fault(on=READ_BLOB, act=proxies.redirect_to(storage.address), times=99))

    with guarded.repository() as images:
        data = b"".join(images.pieces(made.image.layers[0].descriptor))

    assert (len(data), storage.sent_bytes()) == (size_of(made, BIG), size_of(made, BIG))
    assert [call for call in storage.calls if "authorization" in call.headers] == []


MOUNT = r"^POST .*[?&]mount="


@pytest.mark.parametrize("status", [None, 400, 403, 404, 405, 500, 503], ids=str)
def test_blob_is_mounted_or_else_sent_when_another_repository_has_it(shelf: Shelf, status: int | None) -> None:
    made = composed()
    layer = made.image.layers[0].descriptor
    source, origin = made.sources[layer.digest], replace(shelf, name=f"{shelf.name}-origin")
    with origin.repository() as images:
        images.add(layer, source)
    shelf.proxy.forget()
    if status:
        shelf.proxy.script(Fault(on=MOUNT, act=proxies.status(status), times=99))

    with shelf.repository() as images:
        sent = images.add(layer, source, origins=[origin.name])
        there = b"".join(images.pieces(layer))

    assert (sent, there) == (layer.size_bytes if status else 0, b"".join(source()))
    assert len(shelf.proxy.found(MOUNT)) == 1


def test_blob_is_sent_in_the_session_that_a_registry_opened_instead_of_mounting(shelf: Shelf) -> None:
    made = composed()
    layer = made.image.layers[0].descriptor

    with shelf.repository() as images:
        sent = images.add(layer, made.sources[layer.digest], origins=["nobody/has-it"])

    assert sent == layer.size_bytes
    assert [call.status for call in shelf.proxy.found(BEGIN)] == [202]


# -- blobs that are not there ------------------------------------------------------------------


def test_blob_is_sent_after_all_when_the_registry_said_that_it_had_it(shelf: Shelf) -> None:
    made = composed()
    sizes = {layer.descriptor.digest: layer.descriptor.size_bytes for layer in made.image.layers}
    shelf.proxy.script(Fault(on=LOOK, act=proxies.say_it_is_there(sizes), times=5))

    shelf.push(made, "v1")

    assert _is_released(shelf)
    assert any("sending it again" in line for line in shelf.log)


def test_blobs_are_sent_again_when_they_were_collected_before_the_manifest(shelf: Shelf) -> None:
    collected = f"/v2/{shelf.name}/blobs/{digest_of(composed(), BIG)}"
    shelf.proxy.script(Fault(on=PUT_MANIFEST, act=proxies.after_deleting(collected)))

    shelf.push(composed(), "v1")

    assert _is_released(shelf)
    assert len([call for call in shelf.proxy.found(SEND) if call.size_bytes == size_of(composed(), BIG)]) == 2


def test_push_gives_up_and_names_nothing_when_blobs_are_collected_again_and_again(shelf: Shelf) -> None:
    collected = f"/v2/{shelf.name}/blobs/{digest_of(composed(), BIG)}"
    shelf.proxy.script(Fault(on=PUT_MANIFEST, act=proxies.after_deleting(collected), times=99))

    with pytest.raises(BlobsLost):
        shelf.push(composed(), "v1")

    assert (shelf.tags(), shelf.wrongs()) == ({}, [])


# -- answers that lie --------------------------------------------------------------------------


def test_image_is_not_tagged_when_another_manifest_is_read_back(shelf: Shelf) -> None:
    other = composed(app="2").image.manifest
    lie = proxies.answer_with(other, "application/vnd.oci.image.manifest.v1+json")
    shelf.proxy.script(Fault(on=READ_MANIFEST, act=lie, times=99))

    with pytest.raises(ImageCorrupt):
        shelf.push(composed(), "v1")

    assert shelf.tags() == {}


@pytest.mark.parametrize("on", [FINISH, PUT_MANIFEST, PUT_TAG, READ_MANIFEST, ASK_TAG, LOOK])
def test_push_is_right_or_refused_when_the_registry_says_another_digest(shelf: Shelf, on: str) -> None:
    shelf.proxy.script(Fault(on=on, act=proxies.say_another_digest, times=99))

    try:
        shelf.push(composed(), "v1")
    except PushError:
        assert shelf.wrongs() == []
        shelf.proxy.script()
        shelf.push(composed(), "v1")

    assert _is_released(shelf)


LIES = {
    "reset": proxies.cut_download(500),
    "cleanly short": proxies.end_short(1_000),
    "a shortened length": proxies.shorten(1_000),
    "a flipped bit": proxies.flip_a_bit(50_000),
}


@pytest.mark.parametrize("act", LIES.values(), ids=LIES.keys())
def test_blob_is_never_accepted_when_its_download_is(shelf: Shelf, act: Act) -> None:
    made = composed()
    shelf.push(made, "v1")
    shelf.proxy.script(Fault(on=READ_BLOB, act=act, times=1))
    layer = made.image.layers[0].descriptor

    with shelf.repository() as images:
        first = None
        with contextlib.suppress(PushError):
            first = b"".join(images.pieces(layer))
        second = b"".join(images.pieces(layer))

    truth = b"".join(made.sources[layer.digest]())
    assert first in {None, truth}
    assert second == truth


@pytest.mark.parametrize("act", LIES.values(), ids=LIES.keys())
@pytest.mark.parametrize("on", [READ_MANIFEST, READ_BLOB], ids=["manifest", "configuration"])
def test_document_is_right_or_refused_when_every_download_is(shelf: Shelf, on: str, act: Act) -> None:
    made = composed()
    shelf.push(made, "v1")
    shelf.proxy.script(Fault(on=on, act=act, times=99))

    read = made.image
    with shelf.repository() as images, contextlib.suppress(PushError):
        read = read_image(images, made.image.digest)

    assert (read.manifest, read.config) == (made.image.manifest, made.image.config)
