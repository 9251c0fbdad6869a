"""Load generators in the cluster: what is applied, what comes home, what is told, and that nothing stays."""

from __future__ import annotations

import base64
import copy
import gzip
import hashlib
import io
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from shipway.console import Console
from shipway.errors import GeneratorsNotStarted, Interrupted
from shipway.targets.generators import Generators, Wanted, belongings, brought, look, master
from shipway.targets.kubectl import Cluster, Kubectl
from tests.fake_kubectl import FakeKubectl, Forwarding, Object

WANTED = Wanted(
    service="web",
    name="web-loadtest-1",
    image="registry.example/web@sha256:1",
    python=("python",),
    load=("--users", "8"),
    variables={"EXCHANGES": "/srv/model/golden/exchanges"},
    workers=4,
    lasts_s=60,
    who="ann@laptop",
)
OWNER = {"metadata": {"name": "web-loadtest-1-master", "uid": "u-1"}}


def pod(job: Object) -> Object:
    return dict(job["spec"]["template"]["spec"])


# -- what is applied -----------------------------------------------------------------------


def test_master_says_how_many_workers_and_brings_its_folder_home() -> None:
    job = master(WANTED)
    container = pod(job)["containers"][0]

    assert container["command"] == ["python", "-m", "locust"]
    assert container["args"] == [
        *("--headless", "--only-summary", "--users", "8"),
        *("--master", "--master-bind-port", "5557", "--expect-workers", "4"),
        *("--meter-connect", "120", "--meter-home", "/report"),
        *("--html", "/report/report.html", "--meter-figures", "/report/figures.json"),
    ]
    assert {mount["mountPath"] for mount in container["volumeMounts"]} == {"/tmp", "/report"}  # noqa: S108 - in it
    assert (job["spec"]["parallelism"], job["metadata"]["annotations"]) == (1, {"shipway.dev/started-by": "ann@laptop"})


def test_workers_find_the_master_by_name_and_all_belongs_to_it() -> None:
    service, workers = belongings(WANTED, OWNER)

    assert (service["spec"]["clusterIP"], service["metadata"]["name"]) == ("None", "web-loadtest-1")
    assert service["spec"]["selector"].items() <= master(WANTED)["spec"]["template"]["metadata"]["labels"].items()
    assert not service["spec"]["selector"].items() <= workers["spec"]["template"]["metadata"]["labels"].items()
    assert (workers["spec"]["parallelism"], workers["spec"]["completions"]) == (4, 4)
    assert "--worker --master-host web-loadtest-1 --master-port 5557" in " ".join(pod(workers)["containers"][0]["args"])
    owner = {"apiVersion": "batch/v1", "kind": "Job", "name": "web-loadtest-1-master", "uid": "u-1"}
    assert [each["metadata"]["ownerReferences"] for each in (service, workers)] == [[owner], [owner]]


@pytest.mark.parametrize("job", [master(WANTED), belongings(WANTED, OWNER)[1]], ids=["master", "workers"])
def test_job_ends_by_itself_and_its_pods_may_do_nothing(job: Object) -> None:
    spec, container = pod(job), pod(job)["containers"][0]

    assert {key: job["spec"][key] for key in ("backoffLimit", "activeDeadlineSeconds", "ttlSecondsAfterFinished")} == {
        "backoffLimit": 0,
        "activeDeadlineSeconds": 300,
        "ttlSecondsAfterFinished": 600,
    }
    assert (spec["automountServiceAccountToken"], spec["securityContext"]["runAsNonRoot"]) == (False, True)
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert container["resources"]["requests"].keys() == {"cpu", "memory"}
    assert job["spec"]["template"]["metadata"]["labels"]["app.kubernetes.io/name"] != "web"


# -- what comes home -----------------------------------------------------------------------


def home(name: str, data: bytes, *, digest: str = "") -> list[str]:
    text = base64.b64encode(gzip.compress(data)).decode()
    half = len(text) // 2
    return [
        *(f"home {name} {part}" for part in (text[:half], text[half:])),
        f"home-end {name} {digest or hashlib.sha256(data).hexdigest()}",
    ]


def test_files_come_home_whole_and_other_lines_are_the_log() -> None:
    lines = ["live 10 req/s", "a warning", *home("figures.json", b"{}"), *home("report.html", b"<html>")]

    assert brought(lines) == ({"figures.json": b"{}", "report.html": b"<html>"}, ["a warning"])


@pytest.mark.parametrize(
    "lines",
    [
        home("figures.json", b"{}")[:-1],
        home("figures.json", b"{}")[1:],
        home("figures.json", b"{}", digest="0" * 64),
        ["home figures.json !", f"home-end figures.json {'0' * 64}"],
        [f"home-end figures.json {hashlib.sha256(b'').hexdigest()}"],
        home("../figures.json", b"{}"),
        home("other.json", b"{}"),
    ],
    ids=["no end", "a piece lost", "altered", "not base64", "nothing", "elsewhere", "not asked for"],
)
def test_file_does_not_come_home_when_it_is_not_whole_or_not_ours(lines: list[str]) -> None:
    assert brought(lines)[0] == {}


# -- one test ------------------------------------------------------------------------------

FIGURES = json.dumps({"expected": 4, "parts": []}).encode()


class Loaded(FakeKubectl):
    """A cluster that runs Jobs: pods come with one look, run with the next, and the master ends after some more.

    `fate` is what becomes of the workers.
    """

    def __init__(self, fate: str = "good", *, logs: Sequence[str] = ()) -> None:
        super().__init__()
        self.fate_of_workers = fate
        self.master_log = list(logs) or ["hello", *home("figures.json", FIGURES)]
        self.looks = 0
        self.interrupt_at = 0

    def start(self, argv: Sequence[str], on_line: Callable[[str], None]) -> Forwarding:
        assert argv[5:] == ("logs", "--follow", "--since=5s", "web-loadtest-1-master-0", "--container=locust")
        on_line("live 10 req/s  p95 5 ms  failures 0")
        on_line("something else")
        return Forwarding()

    def _verbs(self) -> dict[str, Callable[[tuple[str, ...], Object | None], str]]:
        def logs(words: tuple[str, ...], _: Object | None) -> str:
            return "\n".join(self.master_log) if "master" in words[0] else "worker's words"

        return {**super()._verbs(), "logs": logs}

    def _delete(self, words: tuple[str, ...], stdin: Object | None) -> str:
        super()._delete(words, stdin)
        jobs = {name for kind, name in self.objects if kind == "job.batch"}
        for key in [key for key in self.objects if key[0] == "pod" and key[1].rpartition("-")[0] not in jobs]:
            del self.objects[key]
        return ""

    def _reconcile(self) -> None:
        self.looks += 1
        if self.looks == self.interrupt_at:
            raise Interrupted("interrupted by SIGTERM")
        for (kind, name), job in list(self.objects.items()):
            if kind == "job.batch":
                job["metadata"].setdefault("uid", f"uid-{name}")
                for number in range(job["spec"]["parallelism"]):
                    self._step(job, f"{name}-{number}")

    def _step(self, job: Object, name: str) -> None:
        key, labels = ("pod", name), job["spec"]["template"]["metadata"]["labels"]
        if key not in self.objects:
            status: Object = {"phase": "Pending"}
            self.objects[key] = {"kind": "Pod", "metadata": {"name": name, "labels": dict(labels)}, "status": status}
            return
        self.objects[key]["status"] = self._status(labels["shipway.dev/role"])

    def _status(self, role: str) -> Object:
        if role == "worker" and self.fate_of_workers != "good":
            return copy.deepcopy(FATES[self.fate_of_workers])
        if role == "master" and self.looks > 8 and self.fate_of_workers == "good":  # it waits for its workers
            ended = {"terminated": {"exitCode": 0, "reason": "Completed"}}
            return {"phase": "Succeeded", "containerStatuses": [{"state": ended}]}
        return {"phase": "Running", "containerStatuses": [{"state": {"running": {}}}]}


FATES: Mapping[str, Any] = {
    "no room": {
        "phase": "Pending",
        "conditions": [
            {"type": "PodScheduled", "status": "False", "message": "0/2 nodes are available: 2 Insufficient cpu."}
        ],
    },
    "no such image": {
        "phase": "Pending",
        "containerStatuses": [{"state": {"waiting": {"reason": "InvalidImageName", "message": "what a name"}}}],
    },
    "no pull": {
        "phase": "Pending",
        "containerStatuses": [{"state": {"waiting": {"reason": "ErrImagePull", "message": "401 Unauthorized"}}}],
    },
    "ends": {"phase": "Failed", "containerStatuses": [{"state": {"terminated": {"exitCode": 1}}}]},
}


def ran(cluster: Loaded, folder: Path, wanted: Wanted = WANTED) -> tuple[str, list[str]]:
    """Run a test; return how it ended, and what was said."""
    said, slept = io.StringIO(), list[float]()
    tell = Console(err=said)
    kubectl = Kubectl(Cluster(context="there", namespace="shop"), run=cluster, tell=tell, sleep=slept.append)
    generators = Generators(
        kubectl,
        service="web",
        tell=tell,
        start=cluster.start,
        sleep=lambda seconds: slept.append(seconds + 4),
        clock=lambda: sum(slept),
    )
    generators.sweep()
    return generators.run(wanted, folder), said.getvalue().splitlines()


def left(cluster: Loaded) -> list[str]:
    return sorted(f"{kind}/{name}" for kind, name in cluster.objects)


def test_report_comes_home_and_nothing_stays_when_all_went_well(tmp_path: Path) -> None:
    cluster = Loaded()

    ended, said = ran(cluster, tmp_path)

    assert ended == "the master ended with 0; its last line: hello"
    assert {file.name for file in tmp_path.iterdir()} == {"figures.json", "locust.log"}
    assert (tmp_path / "figures.json").read_bytes() == FIGURES
    assert "-- web-loadtest-1-master-0\nhello\n" in (tmp_path / "locust.log").read_text()
    assert "loadcheck starting 4 generators as web-loadtest-1" in said
    assert "loadcheck 10 req/s  p95 5 ms  failures 0" in said
    assert left(cluster) == []


@pytest.mark.parametrize(
    ("fate", "told"),
    [
        ("no room", "did not start within 120 s: 1 of 5 generators run; no node takes it: 0/2 nodes are available"),
        ("no such image", "cannot start: web-loadtest-1-worker-0: InvalidImageName: what a name"),
        ("no pull", "cannot start: web-loadtest-1-worker-0: ErrImagePull: 401 Unauthorized"),
        ("ends", "cannot start: web-loadtest-1-worker-0 ended with 1"),
    ],
)
def test_error_says_what_the_cluster_says_when_workers_do_not_start(tmp_path: Path, fate: str, told: str) -> None:
    cluster = Loaded(fate)
    cluster.start = lambda argv, on_line: Forwarding()  # type: ignore[method-assign] # noqa: ARG005 - says nothing
    event = {
        "kind": "Event",
        "metadata": {"name": "e"},
        "involvedObject": {"kind": "Pod", "name": "web-loadtest-1-worker-0"},
        "reason": "Why",
        "message": "because",
    }
    cluster.objects["event", "e"] = event

    with pytest.raises(GeneratorsNotStarted) as caught:
        ran(cluster, tmp_path)

    assert told in caught.value.message
    assert "Why web-loadtest-1-worker-0: because" in caught.value.tail
    assert "-- web-loadtest-1-worker-1:\nworker's words" in caught.value.tail
    assert left(cluster) == ["event/e"]


@pytest.mark.parametrize("look_number", range(2, 9))
def test_nothing_stays_when_a_signal_comes(tmp_path: Path, look_number: int) -> None:
    cluster = Loaded()
    cluster.interrupt_at = look_number

    with pytest.raises(Interrupted):
        ran(cluster, tmp_path)

    assert left(cluster) == []


def test_nothing_is_measured_when_the_master_left_nothing(tmp_path: Path) -> None:
    ran(Loaded(logs=["Killed"]), tmp_path)

    assert [file.name for file in tmp_path.iterdir()] == ["locust.log"]


def test_leftovers_of_a_killed_test_go_first(tmp_path: Path) -> None:
    cluster = Loaded()
    for each in (master(WANTED), *belongings(WANTED, OWNER)):
        cluster._put(json.loads(json.dumps(each).replace("web-loadtest-1", "web-loadtest-0")))  # noqa: SLF001 - as if

    _, said = ran(cluster, tmp_path)

    assert said[0] == "loadcheck removing web-loadtest-0, which a killed load test left"
    assert left(cluster) == []


def test_load_tests_of_another_service_are_left_alone(tmp_path: Path) -> None:
    cluster = Loaded()
    theirs = json.loads(json.dumps(master(WANTED)).replace("web", "shop"))
    cluster._put(theirs)  # noqa: SLF001 - as if

    ran(cluster, tmp_path)

    assert ("job.batch", "shop-loadtest-1-master") in cluster.objects


@pytest.mark.parametrize(
    ("status", "how"),
    [
        ({"reason": "Evicted", "message": "low on memory"}, "the master failed: Evicted low on memory"),
        (
            {"containerStatuses": [{"state": {"terminated": {"exitCode": 137, "reason": "OOMKilled"}}}]},
            "the master ended with 137 (OOMKilled)",
        ),
    ],
)
def test_how_the_master_ended_is_told(status: Object, how: str) -> None:
    labels = {"shipway.dev/role": "master"}

    assert look([{"metadata": {"name": "m", "labels": labels}, "status": {"phase": "Failed", **status}}]).ended == how
