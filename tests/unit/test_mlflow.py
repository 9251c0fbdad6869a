"""A registry of MLflow, as a script of answers: what no real server does on request."""

from __future__ import annotations

import re
import traceback
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from json import dumps, loads
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from shipway import entra
from shipway.console import Console
from shipway.errors import ConfigError, ModelCorrupt, ModelRefused, NotConfigured, StoreRefused
from shipway.proc import Proc
from shipway.stores import open_catalogue
from shipway.stores.adopt import Adopter, Registered
from shipway.stores.artifacts import Proxied
from shipway.stores.azureml import Lent
from shipway.stores.mlflow import Mlflow
from shipway.stores.objects import Access, Found
from shipway.stores.patience import Clock
from shipway.stores.registry import Registry
from shipway.stores.rest import Entra, Rest, Variables
from shipway.stores.transfer import Unasked

BASE = httpx.URL("https://mlflow.example/team")
Answer = Callable[[httpx.Request], httpx.Response]


def said(status: int, *, json: Any = None, text: str = "", headers: Mapping[str, str] | None = None) -> httpx.Response:
    """An answer whose body is still to be read, as one from the network."""
    body = text.encode() if json is None else dumps(json).encode()
    return httpx.Response(status, stream=httpx.ByteStream(body), headers=headers)


def rest(
    answer: Answer,
    *,
    base: httpx.URL = BASE,
    environ: Mapping[str, str] | None = None,
    waits: list[float] | None = None,
) -> Rest:
    client = httpx.Client(transport=httpx.MockTransport(answer))
    clock = Clock(sleep=(waits if waits is not None else []).append)
    return Rest(base, client=client, login=Variables(Access(environ=environ or {})), clock=clock)


def registry(answer: Answer, folder: Path) -> Mlflow:
    way = rest(answer)
    adopter = Adopter(cache=folder, run=Proc(), tell=Console())
    told = Registry(way, address="mlflow+https://mlflow.example/team")
    return Mlflow(told, Proxied(way), adopter=adopter, warn=print)


class Versions:
    """Answers searches in pages of `page`, in whatever order the versions are given."""

    def __init__(self, numbers: list[int], *, page: int, again: bool = False) -> None:
        self.numbers = numbers
        self.page = page
        self.again = again
        self.asked: list[httpx.URL] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.asked.append(request.url)
        assert request.url.path == "/team/api/2.0/mlflow/model-versions/search"
        start = int(request.url.params.get("page_token", 0))
        tags = [{"key": "shipway.digest", "value": "x"}, {"key": "shipway.manifest", "value": "y"}]
        found = [
            {"version": str(number), "name": "adds", "tags": tags, "creation_timestamp": 1}
            for number in self.numbers[start : start + self.page]
        ]
        more = start + self.page < len(self.numbers)
        token = str(start) if self.again and start else str(start + self.page) if more else ""
        return said(200, json={"model_versions": found, "next_page_token": token})


def test_numbers_are_of_all_pages(tmp_path: Path) -> None:
    server = Versions(list(range(1, 8)), page=3)

    assert registry(server, tmp_path).children("adds/versions") == [f"{number}.json" for number in range(1, 8)]
    assert [url.params.get("page_token") for url in server.asked] == [None, "3", "6"]
    assert server.asked[0].params["filter"] == "name='adds'"


def test_numbers_end_when_a_server_gives_the_same_page_for_ever(tmp_path: Path) -> None:
    server = Versions(list(range(1, 8)), page=3, again=True)

    assert len(registry(server, tmp_path).children("adds/versions")) == 6
    assert len(server.asked) == 2


@pytest.mark.parametrize("numbers", [[9, 8, 7], [7, 8, 9], [8, 9, 7]])
def test_latest_is_the_highest_number_in_whatever_order_they_come(tmp_path: Path, numbers: list[int]) -> None:
    stored = registry(Versions(numbers, page=20), tmp_path).read("adds/aliases/latest.json")

    assert stored is not None
    assert loads(stored.data)["version"] == 9


def test_latest_is_one_request_when_the_server_sorts(tmp_path: Path) -> None:
    server = Versions(list(range(500, 0, -1)), page=20)

    assert registry(server, tmp_path).read("adds/aliases/latest.json") is not None
    assert len(server.asked) == 1


def test_a_server_that_is_no_mlflow_is_told_apart_from_an_empty_one(tmp_path: Path) -> None:
    with pytest.raises(StoreRefused, match="no MLflow answers there"):
        registry(lambda _request: said(404, text="<html>not found</html>"), tmp_path).children("")


@pytest.mark.parametrize("told", [[1], {"registered_model": {"aliases": [{"alias": "x"}]}}, {"registered_model": 5}])
def test_an_answer_that_is_nonsense_is_told_as_that(tmp_path: Path, told: object) -> None:
    with pytest.raises(StoreRefused, match="does not answer as MLflow does"):
        registry(lambda _request: said(200, json=told), tmp_path).read("adds/aliases/x.json")


@pytest.mark.parametrize("key", ["a//b", "../a", "a/./b", "a/b\0"])
def test_a_key_that_is_none_is_refused(tmp_path: Path, key: str) -> None:
    def nobody(request: httpx.Request) -> httpx.Response:
        raise AssertionError(request)

    with pytest.raises(ValueError, match="not a key"):
        registry(nobody, tmp_path).read(key)


# -- addresses -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("address", "why"),
    [
        ("mlflow+http://mlflow.example", "is not https, and mlflow.example is not this machine"),
        ("mlflow+ftp://host", "is no registry of MLflow"),
        ("mlflow+https://", "is no registry of MLflow"),
        ("mlflow+https://ada:s3cret@host", "is no registry of MLflow"),
    ],
)
def test_an_address_is_not_configured_when_it_is_none_or_not_safe(address: str, why: str) -> None:
    with pytest.raises(NotConfigured, match=re.escape(why)) as caught:
        open_catalogue(address)

    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize(
    ("uri", "path"),
    [
        ("mlflow-artifacts:/1/r/artifacts/model", "1/r/artifacts/model"),
        ("mlflow-artifacts://mlflow.example/1/r/artifacts", "1/r/artifacts"),
        ("https://mlflow.example/team/api/2.0/mlflow-artifacts/artifacts/1/r", "1/r"),
    ],
)
def test_place_is_below_the_servers_own_root(uri: str, path: str) -> None:
    assert Proxied(rest(lambda _request: said(500))).place(uri) == path


@pytest.mark.parametrize(
    "uri",
    [
        "s3://bucket/1/r",
        "file:///etc",
        "/etc",
        "mlflow-artifacts://elsewhere.example/1/r",
        "https://elsewhere.example/team/api/2.0/mlflow-artifacts/artifacts/1",
        "http://mlflow.example/team/api/2.0/mlflow-artifacts/artifacts/1",
        "mlflow-artifacts:/1/../2",
        "mlflow-artifacts:",
        "",
    ],
)
def test_place_is_refused_when_it_is_elsewhere(uri: str) -> None:
    with pytest.raises(StoreRefused, match="which this server does not hand out"):
        Proxied(rest(lambda _request: said(500))).place(uri)


# -- answers ---------------------------------------------------------------------------------


def test_ask_waits_as_the_server_says_and_goes_on(capsys: pytest.CaptureFixture[str]) -> None:
    answers = iter([said(503, headers={"Retry-After": "4"}), said(200, json={"a": 1})])
    waits: list[float] = []

    told = rest(lambda _request: next(answers), waits=waits).ask("GET", "/x")

    assert (told, waits) == ({"a": 1}, [4])
    assert capsys.readouterr() == ("", "")


def test_ask_asks_again_when_two_wrote_one_row_in_one_moment() -> None:
    clash = {"error_code": "BAD_REQUEST", "message": "(sqlite3.IntegrityError) UNIQUE constraint failed: tags.key"}
    answers = iter([said(400, json=clash), said(200, json={})])

    assert rest(lambda _request: next(answers)).ask("POST", "/set-tag", body={}) == {}


def test_ask_says_so_when_a_page_for_people_comes() -> None:
    with pytest.raises(StoreRefused, match=r"GET https://mlflow\.example/team/x: the answer is no JSON"):
        rest(lambda _request: said(200, text="<html>Log in</html>")).ask("GET", "/x", query={"key": "s3cret"})


def test_ask_tells_the_servers_words_in_one_line_without_control_characters() -> None:
    words = {"error_code": "INVALID_PARAMETER_VALUE", "message": "bad\n\x1b[31mname" + "!" * 1000}

    with pytest.raises(StoreRefused) as caught:
        rest(lambda _request: said(400, json=words)).ask("GET", "/x")

    first = caught.value.message
    assert first.startswith("GET https://mlflow.example/team/x was answered 400 INVALID_PARAMETER_VALUE (bad [31mname!")
    assert "\n" not in first
    assert len(first) < 450


def test_ask_gives_nothing_when_there_is_no_such_thing() -> None:
    absent = {"error_code": "RESOURCE_DOES_NOT_EXIST", "message": "no run"}

    assert rest(lambda _request: said(404)).ask("GET", "/x") is None
    assert rest(lambda _request: said(400, json=absent)).ask("GET", "/x") is None


def test_another_servers_address_gets_no_login() -> None:
    seen: list[tuple[str, str | None]] = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append((request.url.host, request.headers.get("authorization")))
        return said(200, json={})

    way = rest(answer, environ={"MLFLOW_TRACKING_TOKEN": "s3cret"})
    for where in ("/x", httpx.URL("https://blobs.example/x?sig=1")):
        with way.opened("GET", where):
            pass

    assert seen == [("mlflow.example", "Bearer s3cret"), ("blobs.example", None)]


@pytest.mark.parametrize(
    ("environ", "header"),
    [
        ({"MLFLOW_TRACKING_TOKEN": "s3cret\n"}, "Bearer s3cret"),
        ({"MLFLOW_TRACKING_TOKEN": "\n"}, None),
        ({"MLFLOW_TRACKING_USERNAME": "ada\n", "MLFLOW_TRACKING_PASSWORD": "pass\r\n"}, "Basic YWRhOnBhc3M="),
    ],
)
def test_a_login_is_what_a_file_holds_without_the_end_of_its_line(environ: Mapping[str, str], header: str) -> None:
    assert Variables(Access(environ=environ)).header() == header


@pytest.mark.parametrize("token", ["s3cret\nX-Other: 1", "s3cret two", "s3cret\0", "s3cr\u00e9t", "s3cret\udcff"])
def test_a_token_is_refused_without_a_word_of_it_when_no_header_can_hold_it(token: str) -> None:
    with pytest.raises(ConfigError, match="MLFLOW_TRACKING_TOKEN has signs that no header can hold") as caught:
        Variables(Access(environ={"MLFLOW_TRACKING_TOKEN": token}))

    assert "s3c" not in f"{caught.value!r} {caught.value}"


def test_ask_gives_up_at_once_without_quoting_when_a_request_cannot_be_sent() -> None:
    asked: list[httpx.URL] = []

    def refuse(request: httpx.Request) -> httpx.Response:
        asked.append(request.url)
        message = "Illegal header value b'Bearer s3cret'"
        raise httpx.LocalProtocolError(message)

    with pytest.raises(StoreRefused, match=r"https://mlflow\.example/team/x is no request that HTTP knows") as caught:
        rest(refuse).ask("GET", "/x")

    assert len(asked) == 1
    assert "s3cret" not in "".join(traceback.format_exception(caught.value))


def test_entras_token_is_asked_again_shortly_before_its_end() -> None:
    lives = iter([200, 4000, 4000])
    asked: list[str] = []

    def get_token(scope: str) -> SimpleNamespace:
        asked.append(scope)
        return SimpleNamespace(token=f"t{len(asked)}", expires_on=datetime.now(UTC).timestamp() + next(lives))

    who = entra.Identity(name="Some", advice="", make=lambda _name: SimpleNamespace(get_token=get_token))
    login = Entra(who, "scope")

    assert [login.header() for _ in range(3)] == ["Bearer t1", "Bearer t2", "Bearer t2"]
    assert asked == ["scope", "scope"]


# -- files -----------------------------------------------------------------------------------


class Endless(httpx.SyncByteStream):
    """A body that goes on long after everybody has enough; counts what was taken of it."""

    def __init__(self) -> None:
        self.taken_bytes = 0

    def __iter__(self) -> Iterator[bytes]:
        for _ in range(64):
            self.taken_bytes += 1 << 20
            yield bytes(1 << 20)


def test_a_file_is_spooled_as_far_as_it_was_found_to_go() -> None:
    body = Endless()

    def answer(request: httpx.Request) -> httpx.Response:
        if "path" in request.url.params:
            return said(200, json={"files": [{"path": "big", "file_size": 3 << 20}]})
        if request.headers.get("range") == "bytes=0-0":
            return said(200)
        return httpx.Response(200, stream=body if "range" not in request.headers else httpx.ByteStream(b""))

    with pytest.raises(Unasked, match=r"^1/r/big: more came than was asked for\n"):
        list(Proxied(rest(answer)).stream("1/r/big", start=1 << 20, stop=2 << 20))

    assert body.taken_bytes == 4 << 20


def test_read_ends_when_an_artifact_does_not(tmp_path: Path) -> None:
    body = Endless()
    told = {
        "experiments/get-by-name": {"experiment": {"experiment_id": "1"}},
        "runs/search": {"runs": [{"info": {"run_id": "r", "artifact_uri": "mlflow-artifacts:/1/r/artifacts"}}]},
    }

    def answer(request: httpx.Request) -> httpx.Response:
        if "mlflow-artifacts" in request.url.path:
            return httpx.Response(206, stream=body, headers={"Content-Range": "bytes 0-9/10"})
        return said(200, json=told[request.url.path.removeprefix("/team/api/2.0/mlflow/")])

    with pytest.raises(ModelCorrupt, match=r"1/r/artifacts/log/x-1\.json has more than 16,777,216 bytes"):
        registry(answer, tmp_path).read("adds/log/x-1.json")

    assert body.taken_bytes == 17 << 20


@pytest.mark.parametrize(("service", "is_lent"), [("mlflow.example", False), ("127.0.0.1", True)])
def test_a_workspace_elsewhere_lends_nothing_on_this_machine(service: str, is_lent: bool) -> None:  # noqa: FBT001 - a table
    asked: list[str] = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request.url.host)
        if request.url.host == service:
            return said(200, json={"contentUri": "http://localhost:8080/secret"})
        return said(206, text="x", headers={"Content-Range": "bytes 0-0/1"})

    lent = Lent(rest(answer, base=httpx.URL(f"https://{service}/artifact")))
    if is_lent:
        assert lent.find("ExperimentRun/dcid.r/x") == Found(size_bytes=1, etag="")
    else:
        with pytest.raises(StoreRefused, match="lends no address, or one that is not https"):
            lent.find("ExperimentRun/dcid.r/x")

    assert asked == [service, *["localhost"] * is_lent]


# -- what mlflow registered ------------------------------------------------------------------


class Nothing:
    """A file that nobody may ask for."""

    def find(self) -> Found | None:
        raise AssertionError

    def stream(self, *, start: int, stop: int, etag: str | None = None) -> Iterator[bytes]:
        raise AssertionError(start, stop, etag)


@pytest.mark.parametrize(
    "path", ["../evil.onnx", "/etc/passwd", "a/../../b", ".hidden", "-rf", "a\0b", "n" * 300, "two words.txt"]
)
def test_a_folder_is_refused_by_its_list_when_a_name_is_hostile(tmp_path: Path, path: str) -> None:
    listing: Mapping[str, int] = {"model.onnx": 10, path: 10}

    with pytest.raises(ModelRefused, match="adds/1: the path"):
        adopted(tmp_path, listing)

    assert list(tmp_path.rglob("*")) == []


def test_a_folder_is_refused_by_its_list_when_it_has_too_many_files(tmp_path: Path) -> None:
    with pytest.raises(ModelRefused, match="has more than 1,000 files"):
        adopted(tmp_path, {"model.onnx": 1, **{f"{number}.txt": 1 for number in range(1000)}})


def adopted(folder: Path, listing: Mapping[str, int]) -> Any:
    registered = Registered(
        where="adds/1",
        source="1/r/artifacts/model",
        name="adds",
        number=1,
        publisher="ada",
        created=datetime(2026, 11, 25, tzinfo=UTC),
        metrics=dict,
        listing=lambda: listing,
        file=lambda _path: Nothing(),
    )
    return Adopter(cache=folder, run=Proc(), tell=Console()).manifest(registered)
