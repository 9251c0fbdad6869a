"""Whatever a store or the network does: never a wrong byte in the cache, and an end with a word."""

from __future__ import annotations

import random
import ssl
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import repeat
from pathlib import Path

import pytest

from shipway.errors import LoginMissing, ModelCorrupt, ModelError, NotConfigured, StoreRefused, StoreUnreachable
from shipway.stores import transfer
from shipway.stores.azure import open_azure
from shipway.stores.objects import SMALL_BYTES, Access, Blob, Store
from shipway.stores.s3 import open_s3
from shipway.stores.transfer import RANGE_BYTES, Part
from tests.docker import proxy
from tests.docker.proxy import Act, Exchange, Fault
from tests.stores import front
from tests.stores.front import LOOK, READ, Front
from tests.stores.parts import ACCOUNT, CONTAINER, Azurite, S3Server

CONTENT = random.Random(7).randbytes(RANGE_BYTES + 1_500_000)  # noqa: S311 - the same bytes each time
_FOR_EVER = 10_000


@pytest.fixture(params=["azure", "s3"])
def faulty(request: pytest.FixtureRequest, prefix: str) -> Iterator[Front]:
    made = front.azure if request.param == "azure" else front.s3
    with made(request.getfixturevalue("azurite" if request.param == "azure" else "s3"), prefix) as opened:
        yield opened


@pytest.fixture(params=["azure", "s3", "mlflow"])
def reading(request: pytest.FixtureRequest, prefix: str) -> Iterator[Front]:
    """Give every store that is read over a network; a look at a file is a read in MLflow, which answers no HEAD."""
    made, part = front.FRONTS[request.param]
    with made(request.getfixturevalue(part), prefix) as opened:
        yield opened


# -- downloads ---------------------------------------------------------------------------

PASSING: dict[str, Act] = {
    "cut at once": proxy.cut_at_once,
    "reset in the middle": proxy.cut_download(700_000),
    "cleanly short": proxy.end_short(1_000_000),
    "length shortened": proxy.shorten(1_000_000),
    "bit flipped": proxy.flip_a_bit(1_234_567),
    "500": proxy.status(500),
    "503": proxy.status(503),
    "429 with Retry-After": proxy.status(429, headers={"Retry-After": "7"}),
}


@pytest.mark.parametrize("fault", PASSING)
def test_pull_ends_right_when_a_fault_passes(reading: Front, fault: str, tmp_path: Path) -> None:
    file = reading.put(CONTENT)
    script = reading.proxy.script(Fault(act=PASSING[fault], on=READ, skip=1, times=2))

    assert reading.pull(file, tmp_path) == CONTENT

    assert script.done == 2
    if fault == "429 with Retry-After":
        assert reading.slept == [7, 7]


STAYING: dict[str, Act] = {**PASSING, "reset in the middle": proxy.cut_download(0)}


@pytest.mark.parametrize("fault", STAYING)
def test_pull_keeps_nothing_when_a_fault_stays(reading: Front, fault: str, tmp_path: Path) -> None:
    file = reading.put(CONTENT)
    reading.proxy.script(Fault(act=STAYING[fault], on=READ, times=_FOR_EVER))

    with pytest.raises(ModelError) as caught:
        reading.pull(file, tmp_path)

    assert [path.suffix for path in (tmp_path / "sha256").iterdir()] == [".part"]
    assert isinstance(caught.value, ModelCorrupt if fault == "bit flipped" else StoreUnreachable), caught.value
    reading.proxy.script()
    assert reading.pull(file, tmp_path) == CONTENT


def _begin(many_bytes: int) -> Act:
    """Send so much of an answer, and end it cleanly."""

    def act(exchange: Exchange) -> None:
        answer = exchange.forward()
        data = b"".join(answer.body)[:many_bytes]
        exchange.reply(answer.having(content_length=None).with_body([data], clean_end=True))

    return act


def test_pull_ends_right_when_every_answer_is_cut(faulty: Front, tmp_path: Path) -> None:
    file = faulty.put(CONTENT)
    script = faulty.proxy.script(Fault(act=_begin(3_000_000), on=READ, times=_FOR_EVER))

    assert faulty.pull(file, tmp_path) == CONTENT

    assert script.done == 4  # three for the first range, one for the second
    assert faulty.proxy.sent_bytes(READ) == len(CONTENT)


def test_pull_fetches_the_rest_alone_when_it_is_run_again(faulty: Front, tmp_path: Path) -> None:
    file = faulty.put(CONTENT)
    faulty.proxy.script(
        Fault(act=_begin(1_000_000), on=READ, times=2),
        Fault(act=proxy.cut_at_once, on=READ, times=_FOR_EVER),
    )
    with pytest.raises(StoreUnreachable):
        faulty.pull(file, tmp_path)
    faulty.settle()
    with (tmp_path / "sha256" / f"{file.digest.hex}.part").open("rb+") as part:
        held_bytes = Part(part, file.size_bytes).held_bytes  # what came when nobody waited any more is not
    faulty.proxy.script()
    faulty.proxy.forget()

    assert faulty.pull(file, tmp_path) == CONTENT

    assert held_bytes >= 1_000_000
    assert faulty.proxy.sent_bytes(READ) == len(CONTENT) - held_bytes


def test_pull_refuses_when_the_object_is_replaced_in_the_middle(faulty: Front, tmp_path: Path) -> None:
    file = faulty.put(CONTENT)

    def replace(exchange: Exchange) -> None:
        faulty.direct.put(front.KEY, [bytes(len(CONTENT))], size_bytes=len(CONTENT))
        exchange.reply(exchange.forward())

    faulty.proxy.script(Fault(act=replace, on=READ, skip=1))

    with pytest.raises(ModelCorrupt, match="the bytes that came are not those of"):
        faulty.pull(file, tmp_path)

    assert [call.status for call in faulty.proxy.found(READ)].count(412) >= 1
    assert not (tmp_path / "sha256" / file.digest.hex).exists()


# -- what is asked again, and how long -----------------------------------------------------


def test_read_ends_with_a_word_when_the_store_is_busy_for_good(faulty: Front) -> None:
    faulty.proxy.script(Fault(act=proxy.status(503), times=_FOR_EVER))

    with pytest.raises(StoreUnreachable, match=r"a/b\.json: 503 .*tried 6 times") as caught:
        faulty.store.read("a/b.json")

    assert caught.value.code == 20
    assert len(faulty.slept) == 5


def test_read_takes_no_more_than_a_small_object_may_have_however_much_comes(faulty: Front) -> None:
    sent, piece = [0], bytes(1 << 20)

    def flood(exchange: Exchange) -> None:
        answer = exchange.forward().having(content_length=str(1 << 40))
        exchange.reply(answer.with_body(map(counted, repeat(piece, 200))))

    def counted(data: bytes) -> bytes:
        sent[0] += len(data)
        return data

    faulty.direct.create("a/1.json", b"{}")
    faulty.proxy.script(Fault(act=flood, on=r"^GET .*/a/1\.json"))

    with pytest.raises(ModelCorrupt, match=r"a/1\.json has more than 16,777,216 bytes"):
        faulty.store.read("a/1.json")

    assert sent[0] < 3 * SMALL_BYTES


def test_create_is_believed_when_its_answer_is_lost(faulty: Front) -> None:
    faulty.proxy.script(Fault(act=proxy.lose_answer, on="^PUT "))

    assert faulty.store.create("a/1.json", b"mine")

    assert not faulty.store.create("a/1.json", b"another's")


def test_replace_is_believed_when_its_answer_is_lost(faulty: Front) -> None:
    faulty.store.create("a/1.json", b"first")
    seen = faulty.store.read("a/1.json")
    assert seen is not None
    faulty.proxy.script(Fault(act=proxy.lose_answer, on="^PUT "))

    assert faulty.store.replace("a/1.json", b"second", etag=seen.etag)

    assert not faulty.store.replace("a/1.json", b"third", etag=seen.etag)


@pytest.mark.parametrize("act", ["cut", "503", "lost"])
def test_put_is_whole_when_a_fault_passes(faulty: Front, act: str) -> None:
    acts = {"cut": proxy.cut_upload(1_000_000), "503": proxy.status(503), "lost": proxy.lose_answer}
    script = faulty.proxy.script(Fault(act=acts[act], on="^(PUT|POST) ", skip=1, times=2))

    faulty.store.put(front.KEY, [CONTENT], size_bytes=len(CONTENT))

    assert script.done == 2
    assert b"".join(transfer.ahead(Blob(faulty.direct, front.KEY), len(CONTENT))) == CONTENT


def test_put_is_believed_when_the_last_answer_is_lost(faulty: Front) -> None:
    last = {"azure": "^PUT .*comp=blocklist", "s3": "^POST .*uploadId="}[faulty.kind]
    script = faulty.proxy.script(Fault(act=proxy.lose_answer, on=last))

    faulty.store.put(front.KEY, [CONTENT], size_bytes=len(CONTENT))

    assert script.done == 1
    found = faulty.direct.find(front.KEY)
    assert found is not None
    assert found.size_bytes == len(CONTENT)


def test_two_who_store_one_object_both_succeed(faulty: Front) -> None:
    with ThreadPoolExecutor(4) as threads:
        put = [threads.submit(faulty.store.put, "same", [CONTENT], size_bytes=len(CONTENT)) for _ in range(4)]
        for each in put:
            each.result()

    assert b"".join(transfer.ahead(Blob(faulty.direct, "same"), len(CONTENT))) == CONTENT


@pytest.mark.parametrize(("kind", "many"), [("azure", 5_050), ("s3", 2_050)])  # a page has 5,000, and 1,000
def test_children_are_all_there_when_they_fill_pages(
    kind: str, many: int, request: pytest.FixtureRequest, prefix: str
) -> None:
    store = _opened(kind, request, prefix)
    with ThreadPoolExecutor(16) as threads:
        list(threads.map(lambda number: store.create(f"m/versions/{number}.json", b"{}"), range(many)))

    assert sorted(store.children("m/versions")) == sorted(f"{number}.json" for number in range(many))


# -- logins ------------------------------------------------------------------------------


def _opened(kind: str, request: pytest.FixtureRequest, prefix: str) -> Store:
    if kind == "azure":
        azurite: Azurite = request.getfixturevalue("azurite")
        return open_azure(f"az://{ACCOUNT}/{CONTAINER}/{prefix}", azurite.access())
    s3: S3Server = request.getfixturevalue("s3")
    return open_s3(f"s3://{CONTAINER}/{prefix}", s3.access())


def _refused(store: Store) -> ModelError | LoginMissing:
    began = time.monotonic()
    with pytest.raises((StoreRefused, LoginMissing)) as caught:
        store.read("m/aliases/latest.json")
    assert time.monotonic() - began < 30  # a token has 10 s, and a machine that is full of tests takes some more
    assert isinstance(caught.value, ModelError | LoginMissing)
    return caught.value


@pytest.mark.parametrize(
    ("audience", "life_s"), [("https://vault.azure.net", 3600), ("https://storage.azure.com", -60)]
)
def test_azure_says_whom_it_refused_when_a_token_is_wrong(
    azurite: Azurite, prefix: str, audience: str, life_s: float
) -> None:
    azurite.identity.audience, azurite.identity.life_s = audience, life_s

    error = _refused(open_azure(f"az://{ACCOUNT}/{CONTAINER}/{prefix}", azurite.access()))

    assert "Azure's ManagedIdentityCredential was refused" in error.message
    assert "Storage Blob Data Contributor" in error.next
    assert "[model] azure_credential" in error.next


@pytest.mark.parametrize("fault", ["hangs", "refuses", "is not there"])
def test_azure_says_who_gave_no_token_in_time(
    azurite: Azurite, prefix: str, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if fault == "hangs":
        azurite.identity.wait_s = 60
    elif fault == "refuses":
        azurite.identity.status = 400
    else:
        monkeypatch.setenv("IDENTITY_ENDPOINT", "http://127.0.0.1:9/nobody")

    error = _refused(open_azure(f"az://{ACCOUNT}/{CONTAINER}/{prefix}", azurite.access()))

    assert error.code == 3
    assert azurite.identity.asked == {"hangs": 1, "refuses": 1, "is not there": 0}[fault]  # nobody waits twice
    assert error.message.startswith("Azure's ManagedIdentityCredential gave no token")
    assert "give this machine a managed identity with the role Storage Blob Data Contributor" in error.next


def test_azure_says_what_to_type_when_nobody_logged_in(
    azurite: Azurite, prefix: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    access = Access(endpoint=azurite.endpoint, authority=azurite.authority)

    error = _refused(open_azure(f"az://{ACCOUNT}/{CONTAINER}/{prefix}", access))

    assert (error.code, error.next) == (3, "az login, then invoke doctor")


def test_azure_says_so_when_there_is_no_container(azurite: Azurite) -> None:
    error = _refused(open_azure(f"az://{ACCOUNT}/nowhere/models", azurite.access()))

    assert error.message == f"az://{ACCOUNT}/nowhere/models: there is no such container"


def test_azure_says_so_when_nobody_vouches_for_the_certificate(azurite: Azurite, prefix: str) -> None:
    access = Access(azure_credential="managed_identity", endpoint=azurite.endpoint, environ=azurite.identity.environ)

    with pytest.raises(StoreUnreachable, match="certificate is not trusted") as caught:
        open_azure(f"az://{ACCOUNT}/{CONTAINER}/{prefix}", access).read("a")

    assert "[model] authority" in caught.value.next


@pytest.mark.parametrize("text", [None, "no certificate"])
def test_azure_says_so_when_the_authority_is_no_certificate(azurite: Azurite, text: str | None, tmp_path: Path) -> None:
    authority = tmp_path / "authority.pem"
    if text:
        authority.write_text(text)
    access = Access(azure_credential="managed_identity", endpoint=azurite.endpoint, authority=authority)

    with pytest.raises(NotConfigured, match=r"authority\.pem is no file of certificates"):
        open_azure(f"az://{ACCOUNT}/{CONTAINER}/models", access)


def test_authorities_are_read_once_for_all_connections(
    azurite: Azurite, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[object] = []
    load = ssl.SSLContext.load_verify_locations

    def loaded(self: ssl.SSLContext, cafile: str | None = None, *more: str | None) -> None:
        read.append(str(cafile))
        load(self, cafile, *more)

    monkeypatch.setattr(ssl.SSLContext, "load_verify_locations", loaded)
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(azurite.authority))
    access = Access(azure_credential="managed_identity", endpoint=azurite.endpoint, environ=azurite.identity.environ)
    store = open_azure(f"az://{ACCOUNT}/{CONTAINER}/{prefix}", access)
    store.put("blob", [CONTENT], size_bytes=len(CONTENT))

    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(lambda _: store.read("missing"), range(8)))

    assert found == [None] * 8
    assert read == [str(azurite.authority)]


def test_tokens_are_asked_for_once_when_many_threads_want_one(azurite: Azurite, prefix: str) -> None:
    store = open_azure(f"az://{ACCOUNT}/{CONTAINER}/{prefix}", azurite.access())
    with ThreadPoolExecutor(16) as threads:
        list(threads.map(store.read, map(str, range(64))))

    assert azurite.identity.asked == 1


@pytest.fixture
def no_credential(s3: S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> S3Server:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    return s3


def test_s3_says_where_it_looked_when_there_is_no_credential(no_credential: S3Server) -> None:
    error = _refused(open_s3(f"s3://{CONTAINER}/models", no_credential.access()))

    assert error.code == 3
    assert error.message == f"AWS's usual chain has no credential for s3://{CONTAINER}/models"
    assert "aws sso login" in error.next


@pytest.mark.parametrize("fault", ["hangs", "is not there", "fails"])
def test_s3_says_which_profile_gave_no_credential_in_time(no_credential: S3Server, fault: str, tmp_path: Path) -> None:
    command = {"hangs": "sleep 12", "fails": "false", "is not there": ""}[fault]
    if command:
        (tmp_path / "config").write_text(f"[profile models]\ncredential_process = {command}\n")
    access = Access(endpoint=no_credential.endpoint, region="eu-central-1", profile="models")

    error = _refused(open_s3(f"s3://{CONTAINER}/models", access))

    assert error.code == 3
    assert error.message.startswith("the profile models gave no credential")


@pytest.mark.parametrize("code", ["InvalidAccessKeyId", "ExpiredToken", "AccessDenied"])
def test_s3_says_whom_it_refused(s3: S3Server, prefix: str, code: str) -> None:
    def refuse(exchange: Exchange) -> None:
        body = f"<Error><Code>{code}</Code><Message>no</Message></Error>".encode()
        headers = {"content-type": "application/xml", "content-length": str(len(body))}
        status = 400 if code == "ExpiredToken" else 403
        exchange.reply(proxy.Answer(status=status, headers=headers, body=[body]))

    with front.s3(s3, prefix) as faulty:
        faulty.proxy.script(Fault(act=refuse, times=_FOR_EVER))
        error = _refused(faulty.store)

    assert f"{code}: the credential from AWS's usual chain (env) was refused" in error.message
    assert "docs/stores.md" in error.next


def test_s3_says_so_when_there_is_no_bucket(s3: S3Server) -> None:
    error = _refused(open_s3("s3://nowhere/models", s3.access()))

    assert error.message == "s3://nowhere/models: there is no such bucket"


def test_look_goes_on_when_a_head_fails(faulty: Front) -> None:
    faulty.put(b"something")
    faulty.proxy.script(Fault(act=proxy.status(503), on=LOOK, times=2))

    found = faulty.store.find(front.KEY)

    assert found is not None
    assert found.size_bytes == len(b"something")
