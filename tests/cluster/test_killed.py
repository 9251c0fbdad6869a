"""Releases to the cluster that are cut short, and two at once: the section "The release itself" of faults.md.

One project serves from the first test to the last, as in `test_rollout.py`, and is asked all the
while; the one who releases has the rights of k8s/setup and none besides.
"""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Iterator

import pytest

from tests.cluster import adder as adders
from tests.cluster import deadly, releaser
from tests.cluster.adder import Adder
from tests.cluster.cluster import Cluster
from tests.cluster.conftest import fresh
from tests.system.project import kill_at
from tests.system.referee import Referee

RATE = 50
ROLLING = r"^rollout +adder: "

# A release, step by step: what it told last, what the cluster did for it last, or what it did not do any more.
# All are of one commit.
STEPS = (
    ("told", r"^test +python -m pytest"),
    ("told", r"^model "),
    ("told", r"^image "),
    ("told", r"^push "),
    ("done", r'(create|replace) .*"Lease".*"holderIdentity"'),
    ("done", r"create .*adder-attempt-"),
    ("done", r'apply .*"kind": "ConfigMap"'),  # how it is about to be applied
    ("done", r'apply .*"name": "adder-candidate"'),
    ("told", r"^rollout +candidate ready"),
    ("told", r"^rollout +golden exchanges"),
    ("told", r"^loadcheck "),
    ("told", r"^rollout +applying"),  # the candidate is gone
    ("done", r'apply .*"name": "adder"[,}]'),
    ("told", r"^rollout +asked one by one"),
    ("told", r"^rollout +build \w+ answers users"),
    ("done", r"annotate configmap adder-release-"),
    ("done", r"annotate deployments?.apps adder"),  # written down as the one to serve
    ("done", r"replace .*adder-attempt-.*released"),
    ("done", r'replace .*"Lease".*"spec": [{][}]'),
)
BEFORE_A_RECORD = 5
# And an undo, which SIGTERM begins in the middle of a rolling update.
UNDO_STEPS = (
    ("done", r'apply .*--force-conflicts .*"name": "adder"[,}]'),
    ("not done", r"replace .*adder-attempt-.*interrupted"),  # it is undone, and that is not written down
    ("done", r"replace .*adder-attempt-.*interrupted"),
)


@pytest.fixture(scope="module")
def adder(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Adder]:
    for namespace in fresh(cluster, __file__):
        releaser.set_up(cluster, namespace)
        folder = tmp_path_factory.mktemp("killed")
        made = adders.adder(cluster, namespace, folder)
        made.restricted()
        logged_in = releaser.log_in(cluster, namespace, folder)
        made.project.environ.update(deadly.kubectl(folder / "deadly", logged_in), FATAL="", FATAL_FIRST="")
        made.project.invoke("release")
        yield made


def killed(adder: Adder, step: tuple[str, str], *, undone: bool = False) -> None:
    """Release until SIGKILL comes at this step; when `undone`, SIGTERM comes first, in the middle."""
    kind, pattern = step
    after, first = (pattern if kind == each else "" for each in ("done", "not done"))
    process = adder.project.start("release", FATAL=after, FATAL_FIRST=first)
    lines = kill_at(process, re.compile(ROLLING), signal.SIGTERM) if undone else []
    if kind == "told":
        lines += kill_at(process, re.compile(pattern))
    _, err = process.communicate(timeout=120)
    assert process.returncode == -signal.SIGKILL, f"{pattern}: {process.returncode}\n" + "\n".join([*lines, err])


def test_release_that_was_killed_at_any_step_is_finished_by_the_next_without_hand_work(adder: Adder) -> None:
    project, before = adder.project, adder.builds()
    attempts = len(project.outcomes())
    adder.touched("killed anywhere")
    with Referee(adder.url, rate=RATE) as referee:
        for step in STEPS:
            killed(adder, step)
        adder.touched("killed in the middle of a rolling update")
        killed(adder, ("told", ROLLING))
        released = project.facts("release")

    assert referee.failed() == [], referee.summary()
    records = [*["killed"] * (len(STEPS) - BEFORE_A_RECORD - 2), "released", "unchanged", "killed", "released"]
    assert project.outcomes()[attempts:] == [("release", outcome) for outcome in records]
    assert_serves_alone(adder, released["current"]["build"])
    assert set(referee.builds()) > {*before, released["current"]["build"]}
    assert len(set(referee.builds())) == 3


def test_undo_that_was_killed_at_any_step_needs_no_hand_work(adder: Adder) -> None:
    project, before = adder.project, adder.builds()
    attempts = len(project.outcomes())
    with Referee(adder.url, rate=RATE) as referee:
        for number, step in enumerate(UNDO_STEPS):
            adder.touched(f"killed while undone {number}")
            killed(adder, step, undone=True)
        undone = adder.builds()
        released = project.facts("release")

    assert referee.failed() == [], referee.summary()
    assert undone == before
    outcomes = [outcome for _, outcome in project.outcomes()[attempts:]]
    assert outcomes == ["killed", "killed", "interrupted", "released"]
    assert_serves_alone(adder, released["current"]["build"])


def assert_serves_alone(adder: Adder, build: str) -> None:
    """Look at all that a release could leave behind."""
    told, status = adder.project.invoke("status")[0], adder.project.facts("status")
    assert (status["build"], status["healthy"], adder.builds()) == (build, True, {build})
    assert "changing it now" not in told
    assert [pod["metadata"]["name"] for pod in adder.staying() if "candidate" in pod["metadata"]["name"]] == []
    labels = ("--selector=shipway.dev/candidate-of=adder", "--namespace", adder.namespace)
    assert adder.cluster.get("deployments,services", *labels)["items"] == []


def test_second_releaser_is_told_who_is_first_or_waits_and_goes_next(adder: Adder) -> None:
    adder.touched("first of two")
    first = adder.project.start("release", "--json")
    kill_at(first, re.compile("starting build"), signal.SIGCONT)

    _, held = adder.project.invoke("release", exits=4)
    waited = adder.project.facts("release", "--wait")
    out, err = first.communicate(timeout=120)

    assert first.returncode == 0, err
    assert re.search(rf"the lock is held by \S+ on \S+ \(process {first.pid}\), since .* UTC: release of build", held)
    assert (waited["outcome"], waited["current"]) == ("unchanged", json.loads(out)["current"])


def test_promotion_that_is_interrupted_is_taken_back_without_losing_a_request(adder: Adder) -> None:
    before = adder.builds()
    adder.touched("interrupted")
    with Referee(adder.url, rate=RATE) as referee:
        process = adder.project.start("release")
        kill_at(process, re.compile(ROLLING), signal.SIGTERM)
        _, err = process.communicate(timeout=120)
        undone = adder.builds()
        again = adder.project.facts("release")

    assert (process.returncode, undone) == (130, before)
    assert re.search(r"undone in \d+ s", err)
    assert "Serving, as before: build" in err
    assert again["outcome"] == "released"
    assert referee.failed() == [], referee.summary()


def test_rollback_needs_no_registry(adder: Adder) -> None:
    live = adder.project.facts("status")
    with Referee(adder.url, rate=RATE) as referee, adder.cluster.without("registry"):
        back = adder.project.facts("rollback")

    assert (back["outcome"], back["previous"]["digest"]) == ("rolled back", live["digest"])
    assert adder.builds() == {back["current"]["build"]}
    assert referee.failed() == [], referee.summary()


def test_manifests_alone_are_a_release_of_their_own(adder: Adder) -> None:
    adder.touched("to be served in two manners")
    first = adder.project.facts("release")
    text = (adder.project.root / "k8s/deployment.yaml").read_text("utf-8")
    adder.project.write("k8s/deployment.yaml", text.replace('"memory": "128Mi"', '"memory": "192Mi"'))

    second = adder.project.facts("rollout", first["current"]["digest"])

    assert (second["outcome"], second["current"]) == ("released", first["current"])
    assert {pod["spec"]["containers"][0]["resources"]["limits"]["memory"] for pod in adder.staying()} == {"192Mi"}


def test_stop_keeps_the_address_for_the_next_release(adder: Adder) -> None:
    url, live = adder.url, adder.project.facts("status")

    adder.project.invoke("stop")
    stopped, pods = adder.project.facts("status"), adder.staying()
    again = adder.project.facts("rollout", live["digest"])

    assert (stopped["digest"], pods) == (None, [])
    assert (again["outcome"], again["url"], adder.url) == ("released", url, url)


def test_first_release_that_fails_leaves_nothing_behind(
    cluster: Cluster, tmp_path_factory: pytest.TempPathFactory
) -> None:
    for namespace in fresh(cluster, "first release fails"):
        made = adders.adder(cluster, namespace, tmp_path_factory.mktemp("first"))
        made.broken("return errors if public else answer")

        _, err = made.project.invoke("release", exits=60)

        assert "Nothing serves, as before." in err
        assert made.staying() == []
        assert cluster.get("deployments,services", "--namespace", namespace)["items"] == []
