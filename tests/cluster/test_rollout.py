"""Releases to the cluster with a fault in each: the section Rollout of faults.md.

One project serves from the first test to the last, two replicas on two nodes. A referee asks
through the load balancer all the while. After each test the fixture looks again: status tells
the truth, nobody holds the lock, every attempt has its closing record, no candidate is left.
"""

from __future__ import annotations

import json
import re
import signal
import threading
import time
import urllib.request
from collections.abc import Iterator

import pytest

from tests.cluster import adder as adders
from tests.cluster.adder import NAME, Adder
from tests.cluster.cluster import Cluster
from tests.cluster.conftest import fresh
from tests.cluster.plan import NODES
from tests.system.project import kill_at
from tests.system.referee import Referee, Request

SCORE = Request(method="POST", path="/score", body=b"[1, 2]", headers={"Content-Type": "application/json"})
RATE = 50


@pytest.fixture(scope="module")
def released(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Adder]:
    for namespace in fresh(cluster, __file__):
        made = adders.adder(cluster, namespace, tmp_path_factory.mktemp("rollout"))
        made.project.invoke("release")
        yield made


@pytest.fixture
def adder(released: Adder) -> Iterator[Adder]:
    """Give the project, serving a good version; looked at again afterwards."""
    project = released.project
    good = project.git("rev-parse", "HEAD").strip()
    try:
        yield released
    finally:
        project.git("reset", "--quiet", "--hard", good)
    told, (build,) = project.invoke("status")[0], released.builds()
    assert f"build {build[:12]}" in told
    assert ", healthy" in told
    assert "changing it now" not in told
    assert [record["outcome"] for record in project.facts("history") if record["outcome"] is None] == []
    assert [pod["metadata"]["name"] for pod in released.staying() if "candidate" in pod["metadata"]["name"]] == []


# -- good releases ---------------------------------------------------------------------------


def test_no_request_fails_when_good_and_refused_versions_follow_one_another(adder: Adder) -> None:
    """Three good ones and three refused ones; what users met is only what was released."""
    before, builds = adder.builds(), []
    with Referee(adder.url, rate=RATE) as referee:
        for word, fault, code in (
            ("one", "raise RuntimeError('no weights')", 51),
            ("two", "return errors", 60),
            ("three", "return wrong", 53),
        ):
            adder.touched(word)
            builds.append(adder.project.facts("release")["current"]["build"])
            adder.broken(fault)
            adder.project.invoke("release", exits=code)
            adder.project.git("reset", "--quiet", "--hard", "HEAD~1")

    print(referee.summary())  # noqa: T201 - the figures, for `pytest -s`
    assert referee.failed() == [], referee.summary()
    assert referee.builds() == [*before, *builds]
    assert adder.builds() == {builds[-1]}


def test_both_replicas_run_the_digest_when_it_was_released(adder: Adder) -> None:
    digest = adder.project.facts("status")["digest"]

    images = {pod["spec"]["nodeName"]: pod["spec"]["containers"][0]["image"] for pod in adder.staying()}

    wanted = f"{adder.project.environ['SHIPWAY_PUSH_REPOSITORY']}@{digest}"
    assert set(images.values()) == {wanted}
    assert len(images) == 2


# -- candidates that are refused -------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "code", "told"),
    [
        pytest.param("raise RuntimeError('no weights')", 51, "no weights", id="crashes at start"),
        pytest.param("return never_ready", 51, "not ready|ready", id="never gets ready"),
        pytest.param("public or threading.Timer(4, end).start()", 60, "fail", id="ends when it was ready"),
        pytest.param("return errors", 60, "failures", id="answers with errors"),
        pytest.param("return wrong", 53, "sum", id="predicts wrongly"),
        pytest.param("return late", 60, "p95", id="answers late"),
        pytest.param("os.environ['SHIPWAY_BUILD'] = 'another'", 52, "another", id="says another build"),
        pytest.param("b'x' * 300_000_000", 51, "OOMKilled|out of memory", id="is killed for memory"),
    ],
)
def test_candidate_is_refused_and_users_never_meet_it_when_it(adder: Adder, fault: str, code: int, told: str) -> None:
    before = adder.builds()
    adder.broken(fault)
    with Referee(adder.url, rate=RATE) as referee:
        _, err = adder.project.invoke(
            "release",
            exits=code,
            SHIPWAY_SERVICE_START_TIMEOUT_S="10",
            SHIPWAY_LOADCHECK_SECONDS="6" if "Timer" in fault else "2",
            SHIPWAY_LOADCHECK_MAX_P95_MS="250",
        )

    assert re.search(told, err)
    assert "Serving, as before: build" in err
    assert (referee.failed(), set(referee.builds())) == ([], before)


def test_candidate_is_refused_when_its_nodes_cannot_pull_it(adder: Adder) -> None:
    before = adder.builds()
    adder.touched("not to be pulled")
    with Referee(adder.url, rate=RATE) as referee:
        _, err = adder.project.invoke(
            "release", exits=51, SHIPWAY_ROLLOUT_PULL_FROM=f"{adder.cluster.registry}/nobody/knows"
        )

    assert re.search("ErrImagePull|ImagePullBackOff", err)
    assert (referee.failed(), set(referee.builds())) == ([], before)


def test_check_without_figures_passes_nobody_and_condemns_nothing(adder: Adder) -> None:
    before = adder.builds()
    adder.project.write("broken.py", "raise RuntimeError('the generator is broken')\n")
    adder.touched("unmeasured")
    with Referee(adder.url, rate=RATE) as referee:
        _, err = adder.project.invoke("release", exits=61, SHIPWAY_LOADCHECK_LOCUSTFILE="broken.py")
        refused = adder.builds()
        again = adder.project.facts("release")

    assert "the generator is broken" in err
    assert (refused, again["outcome"]) == (before, "released")
    assert referee.failed() == [], referee.summary()


def test_second_release_names_the_first_and_waits_for_it_when_told_to(adder: Adder) -> None:
    adder.touched("first")
    first = adder.project.start("release", "--json")
    kill_at(first, re.compile(r"^rollout +starting"), signal.SIGCONT)
    _, refused = adder.project.invoke("release", exits=4)
    waited = adder.project.facts("release", "--wait")
    out, err = first.communicate(timeout=240)

    assert first.returncode == 0, err
    assert re.search(r"\(process \d+\), since .*: release of", refused)
    assert (json.loads(out)["outcome"], waited["outcome"]) == ("released", "unchanged")


def test_slow_start_is_waited_for(adder: Adder) -> None:
    adder.broken("time.sleep(12)")
    with Referee(adder.url, rate=RATE) as referee:
        facts = adder.project.facts("release")

    assert (facts["outcome"], referee.failed()) == ("released", [])


def test_bad_versions_need_no_hand_work_and_the_same_one_is_refused_without_force(adder: Adder) -> None:
    before = adder.builds()
    with Referee(adder.url, rate=RATE) as referee:
        adder.broken("raise RuntimeError('no weights')")
        adder.project.invoke("release", exits=51)
        adder.project.invoke("release", exits=54)
        adder.project.invoke("release", "--force", exits=51)
        adder.project.git("revert", "--no-edit", "HEAD")
        adder.touched("mended")
        mended = adder.project.facts("release")

    assert mended["outcome"] == "released"
    assert referee.failed() == [], referee.summary()
    assert set(referee.builds()) == before | {mended["current"]["build"]}


# -- after promotion -------------------------------------------------------------------------


def test_release_is_undone_without_losing_a_request_when_it_turns_bad_after_promotion(adder: Adder) -> None:
    before = adder.builds()
    adder.broken("return errors if public else answer")
    with Referee(adder.url, rate=RATE, request=SCORE) as referee:
        _, err = adder.project.invoke("release", exits=60)

    assert "Serving, as before: build" in err
    assert {(answer.status, answer.build in before) for answer in referee.failed()} == {(500, False)}
    assert adder.builds() == before


def test_all_requests_are_answered_when_replicas_end_in_the_middle_of_long_ones(adder: Adder) -> None:
    adder.broken("return slow")
    adder.project.invoke("release")
    answers: list[int] = []
    url = f"{adder.url}/slow"
    threads = [threading.Thread(target=lambda: answers.append(status_of(url))) for _ in range(24)]
    adder.project.git("revert", "--no-edit", "HEAD")
    process = adder.project.start("release")
    kill_at(process, re.compile(r"^rollout +applying"), signal.SIGCONT)

    for thread in threads:
        thread.start()
        time.sleep(0.2)
    _, err = process.communicate(timeout=240)
    for thread in threads:
        thread.join()

    assert process.returncode == 0, err
    assert answers == [200] * len(threads)


def status_of(url: str) -> int:
    """Return the status of a request that may take a while."""
    with urllib.request.urlopen(url, timeout=60) as answer:  # noqa: S310 - http, as it says
        return int(answer.status)


# -- the cluster's own faults ----------------------------------------------------------------


def test_release_waits_out_an_api_server_that_is_away_for_a_minute(adder: Adder) -> None:
    adder.touched("patient")
    with Referee(adder.url, rate=RATE) as referee:
        process = adder.project.start("release", "--json")
        kill_at(process, re.compile(r"^rollout +applying"), signal.SIGCONT)
        adder.cluster.kill("apiserver")
        time.sleep(60)
        adder.cluster.start("apiserver")
        out, err = process.communicate(timeout=400)

    assert process.returncode == 0, err
    assert json.loads(out)["outcome"] == "released"
    assert referee.failed() == [], referee.summary()


def test_replicas_stay_as_somebody_set_them_when_a_release_is_under_way(adder: Adder) -> None:
    adder.touched("scaled")
    with Referee(adder.url, rate=RATE) as referee:
        process = adder.project.start("release", "--json")
        kill_at(process, re.compile(r"^rollout +applying"), signal.SIGCONT)
        adder.cluster.kubectl("scale", f"deployment/{NAME}", "-n", adder.namespace, "--replicas=3")
        _, err = process.communicate(timeout=240)
    found = adder.cluster.get("deployment", NAME, "-n", adder.namespace)["spec"]["replicas"]
    adder.cluster.kubectl("scale", f"deployment/{NAME}", "-n", adder.namespace, "--replicas=2")

    assert process.returncode == 0, err
    assert found == 3
    assert referee.failed() == [], referee.summary()


def test_no_request_fails_when_a_node_is_drained_in_the_middle_of_a_release(adder: Adder) -> None:
    node = max(adder.cluster.nodes())
    adder.touched("drained")
    with Referee(adder.url, rate=RATE) as referee:
        process = adder.project.start("release", "--json")
        kill_at(process, re.compile(r"^rollout +applying"), signal.SIGCONT)
        try:
            adder.cluster.kubectl("drain", node, "--ignore-daemonsets", "--delete-emptydir-data", "--force")
            out, err = process.communicate(timeout=240)
        finally:
            adder.cluster.kubectl("uncordon", node)

    assert process.returncode == 0, err
    assert json.loads(out)["outcome"] == "released"
    assert referee.failed() == [], referee.summary()


def test_next_release_converges_when_a_node_died_in_the_middle_of_one(adder: Adder) -> None:
    before = adder.builds()
    adder.touched("bereaved")
    with Referee(adder.url, rate=RATE, timeout_s=5) as referee:
        process = adder.project.start("release", "--json")
        kill_at(process, re.compile(r"^rollout +applying"), signal.SIGCONT)
        with adder.cluster.without(NODES[1]):
            _, err = process.communicate(timeout=300)
            healed = time.time()
            time.sleep(5)
        again = adder.project.facts("release")

    lost = [answer.at + answer.latency_ms / 1000 for answer in referee.failed()]
    print(f"{max(lost, default=0) - min(lost, default=0):.0f} s of failures:", referee.summary())  # noqa: T201 - as above
    assert process.returncode in {0, *range(50, 70)}, err
    assert again["outcome"] in {"released", "unchanged"}
    assert [answer for answer in referee.failed() if answer.at > healed] == [], referee.summary()
    assert set(referee.builds()) <= before | {again["current"]["build"]}
