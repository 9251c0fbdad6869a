"""A registry of MLflow: a real server, plain mlflow beside it, and a proxy that does harm in front."""

from __future__ import annotations

import random
import threading
import uuid
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import cast

import pytest

from shipway.artifacts import Digest, ModelFile
from shipway.console import Console
from shipway.errors import GoldenFailed, ModelCorrupt, ModelRefused, StoreRefused, StoreUnreachable
from shipway.proc import Proc
from shipway.stores import Access, Catalogue, open_catalogue
from shipway.stores.cache import Cache
from shipway.stores.mlflow import Mlflow, open_mlflow
from shipway.stores.objects import Blob, Found, Store, Stored
from shipway.stores.patience import Clock
from shipway.stores.review import verify
from tests import model_folder
from tests.catalogue_contract import CatalogueContract, Open
from tests.docker import proxy
from tests.docker.proxy import Proxy
from tests.store_contract import StoreContract
from tests.stores.tracking import Tracking
from tests.system.project import free_port


def registry(address: str, folder: Path) -> Mlflow:
    return open_mlflow(address, Access(), cache=folder / "cache", run=Proc(), tell=Console())


def through(between: Proxy, folder: Path, *, access: Access | None = None) -> Catalogue:
    return open_catalogue(f"mlflow+http://{between.address}", root=folder, access=access)


class Renamed:
    """A store whose models have another name, so that tests can share a server."""

    def __init__(self, store: Store, prefix: str) -> None:
        self._store = store
        self._prefix = f"{prefix}-"

    def __str__(self) -> str:
        return str(self._store)

    def read(self, key: str) -> Stored | None:
        return self._store.read(self._prefix + key)

    def create(self, key: str, data: bytes) -> bool:
        return self._store.create(self._prefix + key, data)

    def replace(self, key: str, data: bytes, *, etag: str) -> bool:
        return self._store.replace(self._prefix + key, data, etag=etag)

    def find(self, key: str) -> Found | None:
        return self._store.find(self._prefix + key)

    def put(self, key: str, pieces: Iterable[bytes], *, size_bytes: int) -> None:
        self._store.put(self._prefix + key, pieces, size_bytes=size_bytes)

    def stream(self, key: str, *, start: int, stop: int, etag: str | None = None) -> Iterator[bytes]:
        return self._store.stream(self._prefix + key, start=start, stop=stop, etag=etag)

    def delete(self, key: str) -> None:
        self._store.delete(self._prefix + key)

    def children(self, folder: str) -> list[str]:
        return self._store.children(self._prefix + folder)


class TestStore(StoreContract):
    """With less where MLflow promises less: several winners of one key, and versions that are versions."""

    def test_create_succeeds_once_when_many_try(self, store: Store) -> None:
        with ThreadPoolExecutor(4) as threads:
            won = list(threads.map(lambda each: store.create("a/1.json", b"%d" % each), range(16)))

        stored = store.read("a/1.json")
        assert stored is not None
        assert won[int(stored.data)]

    def test_replace_loses_no_change_when_many_try(self, store: Store) -> None:
        store.create("a/alone", b"0")

        for each in range(1, 4):
            seen = store.read("a/alone")
            assert seen is not None
            assert store.replace("a/alone", b"%d" % each, etag=seen.etag)

        final = store.read("a/alone")
        assert final is not None
        assert final.data == b"3"

    def test_children_are_the_names_directly_below(self, store: Store) -> None:
        for key in ("m/signatures/1/ab.json", "m/signatures/10/cd.json", "m/log/1.json"):
            store.create(key, b"{}")

        assert sorted(store.children("m")) == ["log", "signatures"]
        assert sorted(store.children("m/signatures")) == ["1", "10"]
        assert store.children("m/versions") == store.children("m/aliases") == []

    @pytest.fixture
    def store(self, tracking: Tracking, prefix: str, tmp_path: Path) -> Store:
        return Renamed(registry(tracking.address, tmp_path), prefix)


class TestCatalogue(CatalogueContract):
    @pytest.fixture
    def opens(self, tracking: Tracking, tmp_path: Path) -> Open:
        return partial(open_catalogue, tracking.address, root=tmp_path)

    @pytest.fixture
    def name(self, prefix: str) -> str:
        return prefix

    def test_versions_are_copied_into_a_folder_but_not_out_of_one(self, opens: Open, name: str, tmp_path: Path) -> None:
        folder = open_catalogue("copies", root=tmp_path)
        for weight in (1, 2):
            self.publish(opens(), tmp_path / "m", name, weight=weight)

        copied = folder.copy_from(opens(), name, who="ada", aliases=["latest"], tell=Console())

        assert (copied.created, [move.version for move in copied.moves]) == ((2,), [2])
        assert verify(folder, name, 2, cache=tmp_path / "cache", tell=Console()).version == opens().show(name, 2)
        with pytest.raises(StoreRefused, match="is a registry"):
            opens().copy_from(folder, name, who="ada", tell=Console())


# -- plain mlflow beside it ------------------------------------------------------------------

NOTEBOOK = """
import sys
from pathlib import Path
import mlflow, numpy as np
ours, theirs, folders = sys.argv[1], sys.argv[2], Path(sys.argv[3])

model = mlflow.onnx.load_model(f"models:/{ours}@staging")
scored = mlflow.pyfunc.load_model(f"models:/{ours}/1").predict({"x": np.array([[1, 2]], np.float32)})
version = mlflow.MlflowClient().get_model_version(ours, "1")
print(scored["y"].tolist(), mlflow.get_run(version.run_id).data.metrics)

model.graph.initializer[0].raw_data = np.full(2, 5, np.float32).tobytes()
mlflow.onnx.log_model(model, name="model", registered_model_name=theirs)
client = mlflow.MlflowClient()
for folder in sorted(folders.iterdir()):
    with mlflow.start_run() as run:
        mlflow.log_metric("accuracy", 0.25)
        mlflow.log_artifacts(folder, "model")
    name = f"{theirs}-{folder.name}"
    client.create_registered_model(name)
    client.create_model_version(name, f"runs:/{run.info.run_id}/model", run.info.run_id)
client.set_registered_model_alias(theirs, "champion", "1")
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Notebook:
    """What plain mlflow printed, and the names of the models: one of ours, and theirs."""

    printed: str
    ours: str
    theirs: str


@pytest.fixture(scope="module")
def notebook(tracking: Tracking, tmp_path_factory: pytest.TempPathFactory) -> Notebook:
    """Publish a model, let plain mlflow load it, and register several of its own, good and bad."""
    folder, ours, theirs = (
        tmp_path_factory.mktemp("notebook"),
        *(f"{who}-{uuid.uuid4().hex[:6]}" for who in ("ours", "theirs")),
    )
    open_catalogue(tracking.address, root=folder).publish(
        model_folder.make(folder / "m", weight=1),
        name=ours,
        publisher="ada",
        tell=Console(),
        metrics={"accuracy": 0.5},
        aliases=("staging",),
    )
    folders = folder / "theirs"
    model_folder.make(folders / "golden", weight=3)
    model_folder.make(folders / "wrong", weight=3, answer=4)
    for kind, name, data in (
        ("pickled", "model.onnx", b"\x80\x04cos\nsystem\n(S'true'\ntR."),
        ("sklearn", "model.pkl", b"\x80\x04N."),
        ("random", "model.onnx", bytes(range(256)) * 9),
        ("beside", "run.sh", b"true\n"),
    ):
        (folders / kind).mkdir()
        (folders / kind / name).write_bytes(data)
    (folders / "beside/model.onnx").write_bytes(model_folder.onnx())
    printed = tracking.python(NOTEBOOK, ours, theirs, folders)
    return Notebook(printed=printed, ours=ours, theirs=theirs)


def test_mlflow_itself_loads_what_shipway_published(notebook: Notebook) -> None:
    assert notebook.printed.splitlines()[0] == "[[2.0, 3.0]] {'accuracy': 0.5}"


def test_a_version_that_mlflow_registered_is_read_and_the_same_in_every_checkout(
    tracking: Tracking, notebook: Notebook, tmp_path: Path
) -> None:
    made = [
        open_catalogue(tracking.address, root=tmp_path / checkout).show(notebook.theirs, "latest")
        for checkout in ("a", "b")
    ]
    model = open_catalogue(tracking.address, root=tmp_path / "a").resolve(notebook.theirs, "champion")

    assert made[0] == made[1]
    assert made[0].model == model
    assert [file.path for file in model.files] == ["model.onnx"]
    assert [tensor.name for tensor in made[0].inputs] == ["x"]
    layer = b"".join(
        open_catalogue(tracking.address, root=tmp_path / "a").layer_bytes(model, cache=tmp_path / "a/.shipway/cache")
    )
    assert (Digest.of(layer), len(layer)) == (model.layer.digest, model.layer.size_bytes)


def test_golden_cases_and_metrics_of_mlflows_own_versions_come_along(
    tracking: Tracking, notebook: Notebook, tmp_path: Path
) -> None:
    version = open_catalogue(tracking.address, root=tmp_path).show(f"{notebook.theirs}-golden", 1)

    assert version.golden.tensors == ("one",)
    assert version.golden.exchanges == ("one",)
    assert version.metrics == {"accuracy": 0.25}


def test_mlflows_own_version_is_fetched_once_and_listed_once_it_was_read(
    tracking: Tracking, notebook: Notebook, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert open_catalogue(tracking.address, root=tmp_path).versions(notebook.theirs) == ()
    assert "mlflow registered 1, not read here yet: invoke model.show --version NUMBER" in capsys.readouterr().err
    shown = open_catalogue(tracking.address, root=tmp_path).show(notebook.theirs, 1)
    assert "has no golden cases" in capsys.readouterr().err
    with Proxy(tracking.host) as between:
        model = shown.model

        listed = through(between, tmp_path).versions(notebook.theirs)
        through(between, tmp_path).pull(model, cache=tmp_path / ".shipway/cache", tell=Console())

        assert between.found(r"model\.onnx") == []
    assert open_catalogue(tracking.address, root=tmp_path).versions(notebook.theirs) == (shown,)
    assert listed == ()  # another address is another registry


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        ("pickled", r"theirs-\w+-pickled/1: .*model\.onnx is refused: it is a pickle"),
        ("sklearn", r"there is no model\.onnx; it holds model\.pkl"),
        ("random", r"model\.onnx is refused"),
        ("beside", r"run\.sh is refused: \.sh is none of the safe formats"),
        ("wrong", r"does not give its golden answers"),
    ],
)
def test_mlflows_own_version_is_refused_when_a_publisher_would_not_get_past_either(
    tracking: Tracking, notebook: Notebook, tmp_path: Path, kind: str, why: str
) -> None:
    catalogue = open_catalogue(tracking.address, root=tmp_path)

    for _ in range(2):  # nothing was kept of the first time
        with pytest.raises((ModelRefused, GoldenFailed), match=why):
            catalogue.resolve(f"{notebook.theirs}-{kind}", 1)


def test_mlflows_own_version_is_not_taken_when_a_bit_was_turned_on_its_way(
    tracking: Tracking, notebook: Notebook, tmp_path: Path
) -> None:
    with Proxy(tracking.host) as between:
        between.script(proxy.Fault(on=r"^GET .*model\.onnx", act=proxy.flip_a_bit(60)))
        with pytest.raises(ModelCorrupt, match=r"model\.onnx: the bytes that came are not those"):
            through(between, tmp_path).show(notebook.theirs, 1)

        shown = through(between, tmp_path).show(notebook.theirs, 1)

    assert shown.model == open_catalogue(tracking.address, root=tmp_path).show(notebook.theirs, 1).model


# -- numbers ---------------------------------------------------------------------------------


def test_publish_finishes_what_a_killed_publisher_began(tracking: Tracking, prefix: str, tmp_path: Path) -> None:
    folder = model_folder.make(tmp_path / "m")
    with Proxy(tracking.host) as between:
        between.plan = lambda call: (
            proxy.status(400) if "model-versions/set-tag" in call.path or call.method == "DELETE" else None
        )
        with pytest.raises(StoreRefused):
            through(between, tmp_path).publish(folder, name=prefix, publisher="ada", tell=Console())

    seen = open_catalogue(tracking.address, root=tmp_path)
    assert (seen.versions(prefix), seen.aliases(prefix)) == ((), {})
    again = open_catalogue(tracking.address, root=tmp_path).publish(
        folder, name=prefix, publisher="ada", tell=Console()
    )

    assert (again.version.version, again.created) == (1, True)
    assert open_catalogue(tracking.address, root=tmp_path).aliases(prefix) == {"latest": 1}


def test_publish_takes_its_number_back_when_it_fails_in_the_end(
    tracking: Tracking, prefix: str, tmp_path: Path
) -> None:
    folder = model_folder.make(tmp_path / "m")
    with Proxy(tracking.host) as between:
        between.plan = lambda call: proxy.status(400) if "model-versions/set-tag" in call.path else None
        with pytest.raises(StoreRefused):
            through(between, tmp_path).publish(folder, name=prefix, publisher="ada", tell=Console())
    assert tracking.ask("GET", "model-versions/search", filter=f"name='{prefix}'") == {}

    again = open_catalogue(tracking.address, root=tmp_path).publish(
        folder, name=prefix, publisher="ada", tell=Console()
    )

    assert (again.version.version, again.created) == (2, True)  # MLflow gives no number twice


def test_nobody_meets_half_a_version_while_others_publish(tracking: Tracking, prefix: str, tmp_path: Path) -> None:
    ended = threading.Event()

    def publish(weight: int) -> int:
        folder = model_folder.make(tmp_path / str(weight), weight=weight)
        catalogue = open_catalogue(tracking.address, root=tmp_path)
        return catalogue.publish(folder, name=prefix, publisher="ada", tell=Console()).version.version

    def read(reader: int) -> set[int]:
        """Pull whatever is newest, over and over; each must be whole."""
        found = set()
        while not ended.is_set():
            catalogue = open_catalogue(tracking.address, root=tmp_path)
            if newest := catalogue.versions(prefix, most=1):
                model = catalogue.resolve(prefix, newest[0].version)
                catalogue.pull(model, cache=tmp_path / f"cache{reader}", tell=Console())
                found.add(model.version)
        return found

    with ThreadPoolExecutor(6) as threads:
        readers = [threads.submit(read, reader) for reader in range(2)]
        try:
            numbers = list(threads.map(publish, range(6)))
        finally:
            ended.set()

    assert sorted(numbers) == list(range(1, 7))
    assert all(reader.result() <= set(numbers) for reader in readers)


def test_publish_makes_one_version_when_an_answer_is_lost(tracking: Tracking, prefix: str, tmp_path: Path) -> None:
    folder = model_folder.make(tmp_path / "m")
    with Proxy(tracking.host) as between:
        script = between.script(proxy.Fault(on="^POST .*model-versions/create", act=proxy.lose_answer))

        made = through(between, tmp_path).publish(folder, name=prefix, publisher="ada", tell=Console())

    assert script.done == 1
    assert made.version.version == 1
    versions = tracking.ask("GET", "model-versions/search", filter=f"name='{prefix}'")["model_versions"]
    assert [version["version"] for version in cast("list[dict[str, str]]", versions)] == ["1"]


def test_latest_takes_two_requests_whatever_the_number_of_versions(
    tracking: Tracking, prefix: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    catalogue = open_catalogue(tracking.address, root=tmp_path)
    catalogue.publish(model_folder.make(tmp_path / "m", weight=1), name=prefix, publisher="ada", tell=Console())
    first = tracking.ask("GET", "model-versions/get", name=prefix, version="1")["model_version"]
    again = {key: cast("dict[str, object]", first)[key] for key in ("name", "source", "run_id")}
    for _ in range(25):
        tracking.ask("POST", "model-versions/create", **again)
    open_catalogue(tracking.address, root=tmp_path).publish(
        model_folder.make(tmp_path / "m", weight=2), name=prefix, publisher="ada", tell=Console()
    )
    with Proxy(tracking.host) as between:
        shown = through(between, tmp_path).show(prefix, "latest")

        assert shown.version == 27
        assert "for the first time" not in capsys.readouterr().err  # mlflow's own are not looked into for this
        assert [call.path.partition("?")[0].rpartition("/mlflow")[2] for call in between.calls][:1] == [
            "/model-versions/search"
        ]
        assert len(between.calls) == 2


def test_latest_cannot_be_moved_and_expectations_are_refused(tracking: Tracking, prefix: str, tmp_path: Path) -> None:
    catalogue = open_catalogue(tracking.address, root=tmp_path)
    for weight in (1, 2):
        catalogue.publish(
            model_folder.make(tmp_path / "m", weight=weight), name=prefix, publisher="ada", tell=Console()
        )

    with pytest.raises(StoreRefused, match="always the newest version"):
        catalogue.promote(prefix, 1, "latest", who="ada", why="")
    with pytest.raises(StoreRefused, match="does not compare"):
        catalogue.promote(prefix, 1, "production", who="ada", why="", expected=2)

    assert catalogue.aliases(prefix) == {"latest": 2}


# -- the network -----------------------------------------------------------------------------

BIG = random.Random(5).randbytes(17 << 20)  # noqa: S311 - the same each time


def fetch(store: Store, folder: Path) -> bytes:
    file = ModelFile(path="blob", digest=Digest.of(BIG), size_bytes=len(BIG))
    return Cache(folder).fetch(file, Blob(store, "big/blob"), lambda _count: None).read_bytes()


@pytest.fixture(scope="module")
def big(tracking: Tracking, tmp_path_factory: pytest.TempPathFactory) -> Tracking:
    """Keep 17 MiB under `big/blob`."""
    store = registry(tracking.address, tmp_path_factory.mktemp("big"))
    store.put("big/blob", (BIG[at : at + 99_999] for at in range(0, len(BIG), 99_999)), size_bytes=len(BIG))
    return tracking


def test_a_file_comes_once_when_the_server_knows_no_ranges(big: Tracking, tmp_path: Path) -> None:
    def forget_ranges(exchange: proxy.Exchange) -> None:
        headers = {name: value for name, value in exchange.call.headers.items() if name != "range"}
        exchange.reply(exchange.forward(headers=headers).having(content_length=None, etag=None, accept_ranges=None))

    with Proxy(big.host, plan=lambda call: forget_ranges if call.path.endswith("/blob") else None) as between:
        fetched = fetch(registry(f"mlflow+http://{between.address}", tmp_path), tmp_path)

        between.settle()
        assert fetched == BIG
        assert between.sent_bytes("/blob$") < 2.6 * len(BIG)  # once, what the first range took, and what a look did


def test_requests_are_made_again_when_the_server_asks_for_patience(tracking: Tracking, tmp_path: Path) -> None:
    waits: list[float] = []
    with Proxy(tracking.host) as between:
        between.script(
            proxy.Fault(on="registered-models/get", times=2, act=proxy.status(429, headers={"retry-after": "7"}))
        )
        store = open_mlflow(
            f"mlflow+http://{between.address}",
            Access(),
            cache=tmp_path,
            run=Proc(),
            tell=Console(),
            clock=Clock(sleep=waits.append),
        )

        assert store.read("nothing/aliases/staging.json") is None

    assert waits == [7, 7]


def test_nobody_there_is_told_with_what_was_asked(tmp_path: Path) -> None:
    store = open_mlflow(
        f"mlflow+http://127.0.0.1:{free_port()}",
        Access(),
        cache=tmp_path,
        run=Proc(),
        tell=Console(),
        clock=Clock(sleep=lambda _seconds: None),
    )

    with pytest.raises(
        StoreUnreachable, match=r"GET http://127\.0\.0\.1:\d+/api/2\.0/mlflow/registered-models/get: Conn"
    ):
        store.read("adds/aliases/staging.json")


@pytest.mark.parametrize(
    ("environ", "sent"),
    [
        ({"MLFLOW_TRACKING_TOKEN": "s3cret"}, "Bearer s3cret"),
        ({"MLFLOW_TRACKING_USERNAME": "ada", "MLFLOW_TRACKING_PASSWORD": "s3cret"}, "Basic YWRhOnMzY3JldA=="),
        ({"MLFLOW_TRACKING_USERNAME": "ada"}, None),
    ],
)
def test_the_login_is_that_of_the_named_variables(
    tracking: Tracking, tmp_path: Path, environ: dict[str, str], sent: str | None
) -> None:
    with Proxy(tracking.host) as between:
        through(between, tmp_path, access=Access(environ=environ)).names()

        assert {call.headers.get("authorization") for call in between.calls} == {sent}


def test_a_refused_login_is_told_without_its_secret(tracking: Tracking, tmp_path: Path) -> None:
    access = Access(environ={"MLFLOW_TRACKING_TOKEN": "s3cret"})
    with Proxy(tracking.host, plan=lambda _call: proxy.status(401)) as between:
        with pytest.raises(StoreRefused, match="401: the token in MLFLOW_TRACKING_TOKEN was refused") as caught:
            through(between, tmp_path, access=access).names()

        assert len(between.calls) == 1
    assert "s3cret" not in f"{caught.value!r} {caught.value}"
    assert "set MLFLOW_TRACKING_TOKEN, or" in caught.value.next


def test_a_redirect_is_not_followed(tracking: Tracking, tmp_path: Path) -> None:
    access = Access(environ={"MLFLOW_TRACKING_TOKEN": "s3cret"})
    with Proxy(tracking.host) as elsewhere, Proxy(tracking.host) as between:
        between.plan = lambda _call: proxy.redirect_to(elsewhere.address)
        with pytest.raises(StoreRefused, match="is redirected, which is not followed"):
            through(between, tmp_path, access=access).names()

        assert elsewhere.calls == []


def test_files_that_another_server_has_are_refused(tracking: Tracking, prefix: str, tmp_path: Path) -> None:
    tracking.ask("POST", "registered-models/create", name=prefix)
    tracking.ask("POST", "model-versions/create", name=prefix, source="s3://bucket/models/adds")

    with pytest.raises(StoreRefused, match="the files are at 's3://bucket/models/adds', which this server does not"):
        open_catalogue(tracking.address, root=tmp_path).show(prefix, 1)
