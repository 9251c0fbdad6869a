"""Signatures: what is signed, whose word counts, and every way in which a version is not what was signed."""

from __future__ import annotations

import base64
import json
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519, x25519

from shipway.artifacts import Digest
from shipway.config import ModelSettings
from shipway.console import Console
from shipway.errors import ConfigError, ModelUntrusted
from shipway.stores import manifest, signing
from shipway.stores.catalogue import Catalogue
from shipway.stores.objects import Store
from shipway.stores.signing import Keys, PublicKey, Signer
from tests import model_folder
from tests.memory_store import MemoryStore, Wrapped
from tests.unit.test_catalogue import Child, Clock


def signer(seed: int) -> Signer:
    return Signer(ed25519.Ed25519PrivateKey.from_private_bytes(bytes([seed]) * 32))


ADA, BOB = signer(1), signer(2)
TRUSTING_ADA = Keys(trusted=(ADA.public,))


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


def catalogue(store: Store, *, by: Signer | None = None, trusted: tuple[Signer, ...] = ()) -> Catalogue:
    keys = Keys(trusted=tuple(each.public for each in trusted), signer=by)
    return Catalogue(store, run=Child(), keys=keys, now=Clock())


def publish(where: Catalogue, folder: Path, *, weight: float = 1.0, **options: Any) -> tuple[int, bool]:
    made = model_folder.make(folder, weight=weight)
    done = where.publish(made, name="adds", publisher="ada", tell=Console(), **options)
    return done.version.version, done.created


def signatures(store: MemoryStore) -> list[str]:
    return sorted(key for key in store.objects if "/signatures/" in key)


# -- publishing ----------------------------------------------------------------------------


def test_publish_signs_a_statement_about_the_manifest_as_it_is_stored(store: MemoryStore, tmp_path: Path) -> None:
    publish(catalogue(store, by=ADA), tmp_path)

    data = store.objects["adds/versions/1.json"]
    (key,) = signatures(store)
    assert key == f"adds/signatures/1/{Digest.of(data).hex}-{ADA.public.id}.json"
    envelope = json.loads(store.objects[key])
    payload = base64.b64decode(envelope["payload"])
    published = json.loads(data)
    assert json.loads(payload) == {
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [{"name": "adds/versions/1.json", "digest": {"sha256": Digest.of(data).hex}}],
        "predicateType": "https://shipway.dev/model/v1",
        "predicate": {
            "name": "adds",
            "version": 1,
            "digest": published["digest"],
            "layer": published["layer"]["digest"],
        },
    }
    # as https://github.com/secure-systems-lab/dsse/blob/master/protocol.md has it, by cryptography alone
    signed = b"DSSEv1 28 application/vnd.in-toto+json %d %s" % (len(payload), payload)
    (signature,) = envelope["signatures"]
    ed25519.Ed25519PublicKey.from_public_bytes(ADA.public.raw).verify(base64.b64decode(signature["sig"]), signed)


def test_publish_writes_the_signature_before_the_manifest(store: MemoryStore, tmp_path: Path) -> None:
    class Order(Wrapped):
        created: list[str] = []  # noqa: RUF012 - this one store's

        def create(self, key: str, data: bytes) -> bool:
            self.created.append(key.split("/")[1])
            return super().create(key, data)

    order = Order(store)

    publish(catalogue(order, by=ADA), tmp_path)

    assert order.created[:3] == ["pending", "signatures", "versions"]


def test_publish_takes_its_signature_back_when_somebody_else_has_the_number(store: MemoryStore, tmp_path: Path) -> None:
    """Otherwise whoever may write the store could put the loser's manifest, which is signed, in the winner's place."""

    class Race(Wrapped):
        others = 1

        def create(self, key: str, data: bytes) -> bool:
            if key == "adds/versions/1.json" and self.others:
                self.others -= 1
                publish(catalogue(store, by=BOB), tmp_path / "bob", weight=2)
            return super().create(key, data)

    won = publish(catalogue(Race(store), by=ADA), tmp_path / "ada", weight=1)

    assert won == (2, True)
    assert [key.split("/")[2] for key in signatures(store)] == ["1", "2"]
    assert [catalogue(store).signers("adds", number) for number in (1, 2)] == [(BOB.public,), (ADA.public,)]


def test_publish_signs_what_was_published_unsigned(store: MemoryStore, tmp_path: Path) -> None:
    publish(catalogue(store), tmp_path, metrics={"accuracy": 0.75})
    with pytest.raises(ModelUntrusted, match="is not signed"):
        catalogue(store, trusted=(ADA,)).resolve("adds", 1)

    again = publish(catalogue(store, by=ADA, trusted=(ADA,)), tmp_path, metrics={"accuracy": 0.75})

    assert again == (1, False)
    assert catalogue(store, trusted=(ADA,)).resolve("adds", "latest").version == 1


def test_publish_refuses_to_sign_what_somebody_else_said_of_the_same_content(
    store: MemoryStore, tmp_path: Path
) -> None:
    publish(catalogue(store), tmp_path, metrics={"accuracy": 0.99})
    before = dict(store.objects)

    with pytest.raises(ModelUntrusted, match="version 1 of adds holds this content already, but with other metrics"):
        publish(catalogue(store, by=ADA), tmp_path, metrics={"accuracy": 0.75})

    assert store.objects == before


def test_publish_refuses_to_sign_a_layer_that_the_files_do_not_make(store: MemoryStore, tmp_path: Path) -> None:
    publish(catalogue(store), tmp_path)
    published = json.loads(store.objects["adds/versions/1.json"])
    published["layer"]["digest"] = Digest.of(b"another layer")
    store.objects["adds/versions/1.json"] = json.dumps(published).encode()

    with pytest.raises(ModelUntrusted, match="with other layer"):
        publish(catalogue(store, by=ADA), tmp_path)


def test_publish_leaves_the_word_to_whoever_signed_first(store: MemoryStore, tmp_path: Path) -> None:
    publish(catalogue(store, by=BOB), tmp_path, metrics={"accuracy": 0.75})

    assert publish(catalogue(store, by=ADA), tmp_path) == (1, False)

    assert catalogue(store).signers("adds", 1) == (BOB.public,)


def test_publish_mends_a_damaged_signature(store: MemoryStore, tmp_path: Path) -> None:
    publish(catalogue(store, by=ADA), tmp_path)
    (key,) = signatures(store)
    whole, store.objects[key] = store.objects[key], b"{"

    publish(catalogue(store, by=ADA, trusted=(ADA,)), tmp_path)

    assert store.objects[key] == whole


@pytest.mark.parametrize(
    ("by", "told"),
    [(None, "there is no signing key"), (BOB, f"the signing key is {BOB.public}, which is none of them")],
)
def test_publish_writes_nothing_when_nobody_here_would_trust_it(
    by: Signer | None, told: str, store: MemoryStore, tmp_path: Path
) -> None:
    with pytest.raises(ModelUntrusted) as raised:
        publish(catalogue(store, by=by, trusted=(ADA,)), tmp_path)

    assert told in raised.value.message
    assert store.objects == {}


class Killed(BaseException):
    """The publisher is gone: nothing of it goes on."""


class Mortal(Wrapped):
    """Dies at a write: before it, or right after, when the answer never comes."""

    def __init__(self, store: Store, *, at: int, after: bool) -> None:
        super().__init__(store)
        self._left, self._after = at, after

    def create(self, key: str, data: bytes) -> bool:
        return bool(self._write(lambda: super(Mortal, self).create(key, data)))

    def replace(self, key: str, data: bytes, *, etag: str) -> bool:
        return bool(self._write(lambda: super(Mortal, self).replace(key, data, etag=etag)))

    def put(self, key: str, pieces: Any, *, size_bytes: int) -> None:
        self._write(lambda: super(Mortal, self).put(key, pieces, size_bytes=size_bytes))

    def delete(self, key: str) -> None:
        self._write(lambda: super(Mortal, self).delete(key))

    def _write(self, write: Callable[[], object]) -> object:
        if self._left < 0 or (self._left == 0 and not self._after):
            self._left = -1  # the dead do not tidy up
            raise Killed
        done = write()
        self._left -= 1
        if self._left < 0:
            raise Killed
        return done


@pytest.mark.parametrize("when", ["before", "after"])
def test_publish_is_finished_by_the_next_run_when_it_is_killed_at_any_write(when: str, tmp_path: Path) -> None:
    folder, whole = tmp_path / "folder", MemoryStore()
    publish(catalogue(whole, by=ADA), folder, aliases=["staging"])
    died = 0
    while True:
        store = MemoryStore()
        reader, keys = catalogue(store, trusted=(ADA,)), Keys(trusted=(ADA.public,), signer=ADA)
        try:
            dying = Catalogue(Mortal(store, at=died, after=when == "after"), run=Child(), keys=keys, now=Clock())
            publish(dying, folder, aliases=["staging"])
            break
        except Killed:
            died += 1
        seen = [version.version for version in reader.versions("adds")]
        assert [reader.resolve("adds", number).version for number in seen] == seen  # half of one is invisible

        publish(catalogue(store, by=ADA, trusted=(ADA,)), folder, aliases=["staging"])

        assert reader.aliases("adds") == {"latest": 1, "staging": 1}
        assert reader.resolve("adds", "staging") == catalogue(whole).resolve("adds", 1)
        assert _what(store) == _what(whole)
        assert len(reader.history("adds")) == 2
    assert died == len(whole.objects) + 2  # the notice is written, and removed


def _what(store: MemoryStore) -> list[str]:
    """What a store holds but for the log, whose last line a killed one wrote into the alias alone, and signatures."""
    return sorted(key for key in store.objects if key.split("/")[1] not in {"log", "signatures", "pending"})


# -- what is refused -----------------------------------------------------------------------


def rewrite(store: MemoryStore, key: str, **fields: Any) -> None:
    store.objects[key] = json.dumps({**json.loads(store.objects[key]), **fields}).encode()


def _exchange_versions(store: MemoryStore) -> None:
    one, two = (json.loads(store.objects[f"adds/versions/{number}.json"]) for number in (1, 2))
    store.objects["adds/versions/1.json"] = json.dumps({**two, "version": one["version"]}).encode()


def _move_signature(store: MemoryStore) -> None:
    """Version 2's own signature, under the name that version 1's would have."""
    _first, second = signatures(store)
    name = f"{Digest.of(store.objects['adds/versions/1.json']).hex}-{ADA.public.id}"
    store.objects[f"adds/signatures/1/{name}.json"] = store.objects[second]


def _sign_by_bob(store: MemoryStore) -> None:
    """Bob's signature, where Ada's is looked for."""
    (key, _) = signatures(store)
    data = store.objects["adds/versions/1.json"]
    version = manifest.parse(data, name="adds", version=1, where="here")
    store.objects[key] = signing.signed(data, version, BOB)


def _sign_something_else(store: MemoryStore, **changes: Any) -> None:
    """Ada did sign it: but it is about something else."""
    (key, _) = signatures(store)
    statement = json.loads(base64.b64decode(json.loads(store.objects[key])["payload"]))
    payload = json.dumps({**statement, **changes}).encode()
    kind = "application/vnd.in-toto+json"
    signature = ADA.sign(b"DSSEv1 %d %s %d %s" % (len(kind), kind.encode(), len(payload), payload))
    rewrite(
        store,
        key,
        payload=base64.b64encode(payload).decode(),
        signatures=[{"keyid": "", "sig": base64.b64encode(signature).decode()}],
    )


def _sign_another_type(store: MemoryStore) -> None:
    (key, _) = signatures(store)
    payload = base64.b64decode(json.loads(store.objects[key])["payload"])
    signature = ADA.sign(b"DSSEv1 10 text/plain %d %s" % (len(payload), payload))
    signed = [{"keyid": ADA.public.id, "sig": base64.b64encode(signature).decode()}]
    rewrite(store, key, payloadType="text/plain", signatures=signed)


def _flip_signature(store: MemoryStore) -> None:
    (key, _) = signatures(store)
    signature = bytearray(base64.b64decode(json.loads(store.objects[key])["signatures"][0]["sig"]))
    signature[10] ^= 1
    rewrite(store, key, signatures=[{"keyid": ADA.public.id, "sig": base64.b64encode(signature).decode()}])


def _drop(store: MemoryStore) -> None:
    for key in signatures(store):
        del store.objects[key]


def _by_bob_alone(store: MemoryStore) -> None:
    _drop(store)
    data = store.objects["adds/versions/1.json"]
    version = manifest.parse(data, name="adds", version=1, where="here")
    key = f"adds/signatures/1/{Digest.of(data).hex}-{BOB.public.id}.json"
    store.objects[key] = signing.signed(data, version, BOB)


def _set(store: MemoryStore, value: bytes) -> None:
    store.objects[signatures(store)[0]] = value


OTHER = {"name": "adds", "version": 1, "digest": Digest.of(b"other"), "layer": Digest.of(b"other")}
REFUSED: dict[str, tuple[Callable[[MemoryStore], None], str]] = {
    "unsigned": (_drop, "it is not signed"),
    "signed by another": (_by_bob_alone, f"it is signed by {BOB.public}, and [model] trusted_keys has none of them"),
    "signed by another in her name": (_sign_by_bob, "is wrong"),
    "a flipped bit": (_flip_signature, "is wrong"),
    "a manifest with other metrics": (
        lambda store: rewrite(store, "adds/versions/1.json", metrics={"accuracy": 1.0}),
        "its manifest was altered or exchanged",
    ),
    "another version's files": (_exchange_versions, "its manifest was altered or exchanged"),
    "another version's signature": (_move_signature, "is about version '2' of 'adds'"),
    "a statement about another name": (
        lambda store: _sign_something_else(store, predicate={**OTHER, "name": "subtracts"}),
        "is about version '1' of 'subtracts'",
    ),
    "a statement about other content": (
        lambda store: _sign_something_else(store, predicate=OTHER),
        "is about other content",
    ),
    "a statement about another manifest": (
        lambda store: _sign_something_else(store, subject=[]),
        "is about other content",
    ),
    "a statement of another kind": (
        lambda store: _sign_something_else(store, predicateType="https://slsa.dev/provenance/v1"),
        "is about other content",
    ),
    "a payload of another type": (_sign_another_type, "is about 'text/plain', which is no statement"),
    "no envelope": (lambda store: _set(store, b"\0\1"), "is damaged"),
    "a list": (lambda store: _set(store, b"[" * 10_000), "is damaged"),
    "no base64": (
        lambda store: rewrite(store, signatures(store)[0], payload="?"),
        "is damaged",
    ),
    "no signature in it": (lambda store: rewrite(store, signatures(store)[0], signatures=[]), "is wrong"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_show_and_resolve_refuse_before_any_file_is_opened(case: str, store: MemoryStore, tmp_path: Path) -> None:
    for weight in (1, 2):
        publish(catalogue(store, by=ADA), tmp_path, weight=weight)
    spoil, told = REFUSED[case]
    spoil(store)
    watched = Wrapped(store)
    trusting = catalogue(watched, trusted=(ADA,))

    for look in (trusting.show, trusting.resolve):
        with pytest.raises(ModelUntrusted) as raised:
            look("adds", 1)
        assert raised.value.message.startswith("version 1 of adds in memory is refused: ")
        assert told in raised.value.message

    assert watched.calls["stream"] == watched.calls["size"] == 0
    assert 20 <= raised.value.code <= 29


def test_objects_are_refused_when_the_manifest_was_altered_since(store: MemoryStore, tmp_path: Path) -> None:
    publish(catalogue(store, by=ADA), tmp_path)
    trusting = catalogue(store, trusted=(ADA,))
    model = trusting.resolve("adds", 1)
    rewrite(store, "adds/versions/1.json", preprocessing={"scale": 2})

    with pytest.raises(ModelUntrusted, match="its manifest was altered or exchanged"):
        list(trusting.objects(model, cache=tmp_path / "cache"))


def test_resolve_takes_what_any_trusted_key_signed(store: MemoryStore, tmp_path: Path) -> None:
    publish(catalogue(store, by=BOB), tmp_path)

    assert catalogue(store, trusted=(ADA, BOB)).resolve("adds", 1).version == 1


def test_resolve_asks_for_no_signature_when_no_key_is_trusted(store: MemoryStore, tmp_path: Path) -> None:
    publish(catalogue(store), tmp_path)
    watched = Wrapped(store)

    catalogue(watched).resolve("adds", 1)

    assert watched.calls["read"] == 1


def test_resolve_reads_one_object_more_when_it_is_signed(store: MemoryStore, tmp_path: Path) -> None:
    publish(catalogue(store, by=ADA), tmp_path)
    watched = Wrapped(store)

    catalogue(watched, trusted=(ADA,)).resolve("adds", "latest")

    assert watched.calls["read"] == 3
    assert watched.calls["children"] == 0


def test_promote_refuses_what_is_not_signed(store: MemoryStore, tmp_path: Path) -> None:
    publish(catalogue(store), tmp_path)

    with pytest.raises(ModelUntrusted):
        catalogue(store, trusted=(ADA,)).promote("adds", 1, "production", who="ada", why="")

    assert "production" not in catalogue(store).aliases("adds")


# -- keys ----------------------------------------------------------------------------------


def pem(key: Any = None) -> bytes:
    private = key or ed25519.Ed25519PrivateKey.from_private_bytes(bytes([1]) * 32)
    plain = serialization.NoEncryption()
    data: bytes = private.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain)
    return data


def keys(tmp_path: Path, environ: dict[str, str] | None = None, *, signs: bool = True, **settings: Any) -> Keys:
    model = ModelSettings(name="adds", store="store", **settings)
    return Keys.of(model, root=tmp_path, environ=environ or {}, signs=signs)


def test_keygen_makes_a_key_that_only_its_owner_can_read(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        public = signing.keygen(tmp_path / "keys/ada.key")
    finally:
        os.umask(before)

    assert stat.S_IMODE((tmp_path / "keys/ada.key").stat().st_mode) == 0o600
    assert keys(tmp_path, signing_key="keys/ada.key", trusted_keys=(str(public),)).trusted == (public,)
    assert getattr(keys(tmp_path, signing_key="keys/ada.key").signer, "public", None) == public


def test_keygen_replaces_no_key(tmp_path: Path) -> None:
    (tmp_path / "ada.key").write_text("precious")

    with pytest.raises(ConfigError, match="exists already"):
        signing.keygen(tmp_path / "ada.key")

    assert (tmp_path / "ada.key").read_text() == "precious"


def test_keys_come_from_a_file_or_from_the_settings(tmp_path: Path) -> None:
    (tmp_path / "bob.pub").write_text(f"{BOB.public}\n")

    found = keys(tmp_path, trusted_keys=(str(ADA.public), "bob.pub", str(BOB.public)))

    assert found == Keys(trusted=(ADA.public, BOB.public))


def test_the_signing_key_comes_from_the_variable_that_is_named(tmp_path: Path) -> None:
    found = keys(tmp_path, {"TEAM_KEY": pem().decode()}, signing_key_variable="TEAM_KEY", signing_key="absent")

    assert found.signer is not None
    assert found.signer.public == ADA.public


def test_the_signing_key_is_not_read_when_nothing_is_signed(tmp_path: Path) -> None:
    assert keys(tmp_path, signs=False, signing_key="absent") == Keys()


def test_the_signing_key_is_refused_when_others_may_read_it(tmp_path: Path) -> None:
    (tmp_path / "ada.key").write_bytes(pem())
    (tmp_path / "ada.key").chmod(0o640)

    with pytest.raises(ConfigError, match=r"others may read .*ada\.key"):
        keys(tmp_path, signing_key="ada.key")


def _encrypted() -> bytes:
    lock = serialization.BestAvailableEncryption(b"hunter2")
    key = ed25519.Ed25519PrivateKey.generate()
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, lock)


NO_KEYS: dict[str, bytes] = {
    "empty": b"",
    "secret text": b"hunter2",
    "half a key": pem()[:60],
    "a passphrase": _encrypted(),
    "another kind": pem(x25519.X25519PrivateKey.generate()),
}


@pytest.mark.parametrize("case", NO_KEYS)
def test_the_signing_key_is_refused_without_a_word_of_it_when_it_is_none(case: str, tmp_path: Path) -> None:
    (tmp_path / "ada.key").write_bytes(NO_KEYS[case])
    (tmp_path / "ada.key").chmod(0o600)

    with pytest.raises(ConfigError, match=r"ada\.key holds no Ed25519 private key in PEM") as raised:
        keys(tmp_path, signing_key="ada.key")

    assert "hunter2" not in str(raised.value)


def test_the_signing_key_is_named_when_it_is_missing(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"\[model\] signing_key: .*absent: No such file"):
        keys(tmp_path, signing_key="absent")


@pytest.mark.parametrize("text", ["ed25519:", "ed25519:AAAA", "ed25519:" + "?" * 44, "absent.pub", "key.pub"])
def test_a_trusted_key_is_named_when_it_is_none(text: str, tmp_path: Path) -> None:
    (tmp_path / "key.pub").write_bytes(pem())

    with pytest.raises(ConfigError, match=r"\[model\] trusted_keys: ") as raised:
        keys(tmp_path, trusted_keys=(text,))

    assert text in raised.value.message
    assert pem().decode().splitlines()[1] not in str(raised.value)


def test_a_private_key_has_no_words_for_itself() -> None:
    assert repr(ADA) == f"Signer({ADA.public})"
    assert (bytes([1]) * 32).hex() not in repr(Keys(signer=ADA))


def test_a_public_key_reads_itself() -> None:
    assert PublicKey.parse(str(ADA.public)) == ADA.public
