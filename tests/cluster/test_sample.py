"""The sample service on the cluster, as `docs/kubernetes.md` says it, by somebody with the least rights."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.cluster import releaser
from tests.cluster.cluster import Cluster
from tests.cluster.conftest import fresh
from tests.system import project as projects
from tests.system.project import ROOT, Project
from tests.system.referee import Referee

NAME = "image-classifier"


@pytest.fixture(scope="module")
def namespace(cluster: Cluster) -> Iterator[str]:
    for name in fresh(cluster, __file__):
        releaser.set_up(cluster, name)
        yield name


@pytest.fixture(scope="module")
def sample(cluster: Cluster, namespace: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    """Give a checkout of this very repository; its public name is the namespace's."""
    folder = tmp_path_factory.mktemp("sample")
    for project in projects.sample(folder):
        project.change(
            "k8s/overlays/test/kustomization.yaml", f"dns-label-name: {NAME}", f"dns-label-name: {namespace}"
        )
        project.commit("Name it")
        project.environ.update(releaser.log_in(cluster, namespace, folder))
        project.environ.update(
            SHIPWAY_ENV="test",
            SHIPWAY_IMAGE_BASE=cluster.base,
            SHIPWAY_PUSH_REPOSITORY=f"{cluster.registry}/{namespace}/{NAME}",
            SHIPWAY_ROLLOUT_CONTEXT=cluster.context,
            SHIPWAY_ROLLOUT_NAMESPACE=namespace,
            SHIPWAY_ROLLOUT_URL=f"http://{cluster.public_name(namespace)}",
            SHIPWAY_SERVICE_START_TIMEOUT_S="180",
            SHIPWAY_LOADCHECK_SECONDS="6",  # on a slow machine that is full of tests, an answer takes more than one
            SHIPWAY_LOADCHECK_PUBLIC_SECONDS="4",
        )
        yield project


def test_doctor_finds_all_well_with_the_least_rights(sample: Project) -> None:
    findings = {each["what"]: each for each in sample.facts("doctor")}

    assert findings["rights"]["seen"].startswith("all ")
    assert "you may not look at them" in findings["nodes"]["seen"]
    assert [what for what, each in findings.items() if not each["well"]] == []


def test_sample_is_released_and_replaced_without_a_failed_request(
    sample: Project, cluster: Cluster, namespace: str, tmp_path: Path
) -> None:
    first = sample.facts("release")
    url = f"http://{cluster.public_name(namespace)}"
    with Referee(url, rate=50) as referee:
        sample.change("app/__init__.py", 'SERVICE = "image-classifier"', 'SERVICE = "image-classifier"  # two')
        sample.commit("two")
        second = sample.facts("release")
        elsewhere = replace(sample, root=tmp_path / "elsewhere")
        sample.git("clone", "--quiet", ".", str(elsewhere.root))
        status = elsewhere.facts("status")

    pods = cluster.get("pods", "--namespace", namespace, "--selector", f"app.kubernetes.io/name={NAME}")["items"]
    images = {pod["spec"]["containers"][0]["image"] for pod in pods}
    builds = [first["current"]["build"], second["current"]["build"]]
    assert referee.failed() == [], referee.summary()
    assert referee.builds() == builds
    assert images == {f"{sample.environ['SHIPWAY_PUSH_REPOSITORY']}@{second['current']['digest']}"}
    assert len({pod["spec"]["nodeName"] for pod in pods}) == 2
    assert (status["build"], status["healthy"], status["url"]) == (builds[1], True, url)
    assert _build(url) == _build(f"http://{cluster.address(NAME, namespace=namespace)}") == builds[1]
    assert [(each["kind"], each["outcome"]) for each in elsewhere.facts("history")] == [("release", "released")] * 2


def test_replica_obeys_the_restricted_rules(sample: Project, cluster: Cluster, namespace: str) -> None:
    assert sample.facts("status")["healthy"]
    pod = cluster.get("pods", "--namespace", namespace, "--selector", f"app.kubernetes.io/name={NAME}")["items"][0]
    asked = "import os; print(os.getuid(), os.path.exists('/var/run/secrets/kubernetes.io')); open('/x', 'w')"

    tried = cluster.tried("exec", "--namespace", namespace, pod["metadata"]["name"], "--", "python", "-c", asked)

    assert tried.stdout.split() == ["65532", "False"]
    assert "Read-only file system" in tried.stderr


def test_overlay_for_azure_is_accepted_under_the_restricted_level(cluster: Cluster, namespace: str) -> None:
    overlay = str(ROOT / "k8s" / "overlays" / "aks")

    tried = cluster.tried(
        "apply", "--namespace", namespace, f"--kustomize={overlay}", "--dry-run=server", "--validate=strict"
    )

    assert tried.returncode == 0, tried.stderr
    assert "violate PodSecurity" not in tried.stderr


def test_doctor_names_the_rights_that_are_lacking(sample: Project, cluster: Cluster, namespace: str) -> None:
    role = cluster.get("role", "releaser", "--namespace", namespace)
    kept = [rule for rule in role["rules"] if not {"leases", "networkpolicies"} & {*rule["resources"]}]
    cluster.kubectl("replace", "--filename=-", stdin=json.dumps({**role, "rules": kept}))
    try:
        out, err = sample.invoke("doctor", exits=3)
    finally:
        releaser.set_up(cluster, namespace)

    assert "you may not get networkpolicy.networking.k8s.io" in out
    assert "get lease.coordination.k8s.io" in out
    assert "not ready for a release" in err


def _build(url: str) -> str:
    with urllib.request.urlopen(f"{url}/version", timeout=10) as answer:  # noqa: S310 - http, see above
        return str(json.load(answer)["build"])
