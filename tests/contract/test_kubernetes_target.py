"""The Kubernetes target on an API server in memory: every way in which a release can end."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from shipway import documents
from shipway.artifacts import Digest, Image, ModelRef, Version
from shipway.config import RolloutSettings, ServiceSettings
from shipway.console import Console
from shipway.errors import (
    CandidateFailed,
    ClusterRefused,
    ConfigError,
    NotReady,
    PromotionFailed,
    RolloutError,
    UndoFailed,
    WrongBuild,
)
from shipway.targets import manifests
from shipway.targets.kubectl import Cluster, Kubectl
from shipway.targets.kubernetes import Kubernetes
from tests.fake_kubectl import FakeKubectl

MODEL = ModelRef(name="net", version=1, digest=Digest.of(b"model"))
SERVICE = ServiceSettings(command=("serve",), start_timeout_s=60)


def overlay(**labels: str) -> list[dict[str, Any]]:
    return [
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "web", "namespace": "shop"}},
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": "web", "namespace": "shop"},
            "spec": {"type": "LoadBalancer", "selector": labels or {"app": "web"}, "ports": [{"port": 80}]},
        },
        {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": {"name": "web", "namespace": "shop"},
            "spec": {
                "replicas": 2,
                "selector": {"matchLabels": {"app": "web"}},
                "template": {
                    "metadata": {"labels": {"app": "web", "team": "shop"}},
                    "spec": {"containers": [{"name": "service", "image": "web"}]},
                },
            },
        },
    ]


def version(build: str, service: ServiceSettings = SERVICE) -> tuple[Version, Image]:
    config = json.dumps({"config": {"Labels": {"dev.shipway.service": documents.encoded(service).decode()}}}).encode()
    image = Image(build=build, manifest=json.dumps({"build": build}).encode(), config=config, layers=())
    return Version(digest=image.digest, build=build, commit="c" * 40, model=MODEL), image


class Killed(BaseException):
    """As by SIGKILL: nobody cleans up."""


@dataclass
class Host:
    """A cluster in memory, and the target as each command makes it anew."""

    cluster: FakeKubectl = field(default_factory=lambda: FakeKubectl(overlay()))
    now: float = 0.0
    is_killed: bool = False
    settings: RolloutSettings = field(default_factory=lambda: RolloutSettings(proofs=2, address_timeout_s=60))

    def __post_init__(self) -> None:
        self.target = self.another()

    def another(self) -> Kubernetes:
        kubectl = Kubectl(
            Cluster(context="there", namespace="shop"),
            run=self.cluster,
            tell=Console(),
            clock=lambda: self.now,
            sleep=self.sleep,
        )
        return Kubernetes(
            kubectl,
            name="web",
            folder="k8s",
            repository="registry.example/web",
            platform="linux/amd64",
            settings=self.settings,
            service=SERVICE,
            tell=Console(),
            start=self.cluster.start,
            ask=self.cluster.ask,
            unresolved=lambda _url: None,
            sleep=self.sleep,
            clock=lambda: self.now,
        )

    def sleep(self, seconds: float) -> None:
        if self.is_killed:
            raise Killed
        self.now += seconds

    def release(self, build: str, fate: str = "good", *, as_before: bool = False) -> Version:
        wanted, image = version(build)
        self.cluster.fates[wanted.digest] = fate
        self.target = self.another()
        candidate = self.target.start(wanted, image, as_before=as_before)
        self.target.promote(candidate)
        self.target.settle()
        return wanted

    def try_release(self, build: str, fate: str, error: type[Exception]) -> Exception:
        """Release what fails, and go back, as the flow does."""
        live = self.another().current()
        with pytest.raises(error) as failed:
            self.release(build, fate)
        self.target.undo(live.version if live else None)
        return failed.value

    def users(self) -> str | None:
        return self.cluster.ask("http://192.0.2.7", SERVICE)


@pytest.fixture
def host() -> Iterator[Host]:
    host = Host()
    yield host
    host.target.discard_candidate()


def test_release_serves_every_replica_by_digest_and_leaves_no_candidate(host: Host) -> None:
    released = host.release("one")

    live = host.another().current()
    deployment = host.cluster.objects[("deployment.apps", "web")]
    assert live
    assert (live.version, live.builds, live.healthy, live.url) == (released, ("one",), True, "http://192.0.2.7")
    container = deployment["spec"]["template"]["spec"]["containers"][0]
    assert container["image"] == f"registry.example/web@{released.digest}"
    assert host.cluster.names("deployment.apps") == ["web"]
    assert host.cluster.names("service") == ["web"]


def test_new_deployment_begins_with_the_replicas_of_its_manifest_and_a_person_may_change_them(host: Host) -> None:
    host.release("one")
    deployment = ("deployment.apps", "web")
    first = host.cluster.objects[deployment]["spec"]["replicas"]
    host.cluster.objects[deployment]["spec"]["replicas"] = 5

    host.release("two")

    assert (first, host.cluster.objects[deployment]["spec"]["replicas"]) == (2, 5)


@pytest.mark.parametrize(
    ("fate", "error", "told"),
    [
        ("crashes", CandidateFailed, "CrashLoopBackOff"),
        ("cannot pull", CandidateFailed, "ImagePullBackOff"),
        ("unschedulable", CandidateFailed, "no node takes it: 0/2 nodes are free"),
        ("says another", WrongBuild, "another answered"),
        ("restarts", CandidateFailed, "was started again"),
        ("mixed", PromotionFailed, "says another"),
        ("bad in public", PromotionFailed, "build another answers on"),
    ],
)
def test_bad_version_is_told_and_undone(host: Host, fate: str, error: type[RolloutError], told: str) -> None:
    good = host.release("one")

    failed = host.try_release("two", fate, error)

    live = host.another().current()
    assert told in str(failed)
    assert live
    assert (live.version, live.healthy, host.users()) == (good, True, "one")
    assert host.cluster.names("deployment.apps") == ["web"]


def test_hopeless_candidate_is_given_up_at_once_with_its_events_and_last_lines(host: Host) -> None:
    host.release("one")
    began = host.now

    failed = host.try_release("two", "crashes", CandidateFailed)

    assert host.now - began < 10
    assert isinstance(failed, CandidateFailed)
    assert "Failed web-candidate-" in failed.tail
    assert "no weights" in failed.tail


@pytest.mark.parametrize(
    ("fate", "hindered"),
    [
        ("cannot pull", True),
        ("pulls slowly", True),
        ("unschedulable", True),
        ("never ready", False),
        ("crashes", False),
        ("says another", False),
    ],
)
def test_version_is_not_blamed_for_what_the_cluster_lacks(host: Host, fate: str, *, hindered: bool) -> None:
    failed = host.try_release("one", fate, RolloutError)

    assert isinstance(failed, RolloutError)
    assert failed.is_hindered == hindered


@pytest.mark.parametrize("fate", ["crashes", "bad in public"])
def test_each_version_is_asked_as_its_own_image_says(host: Host, fate: str) -> None:
    other = ServiceSettings(command=("serve",), start_timeout_s=60, version_path="/build")
    good, image = version("one", other)
    host.cluster.paths = {good.digest: "/build", version("two")[0].digest: "/version"}
    host.target.promote(host.target.start(good, image, as_before=False))
    host.target.settle()

    host.try_release("two", fate, RolloutError)

    assert (live := host.another().current())
    assert (live.version, live.healthy) == (good, True)


def test_what_is_still_there_is_not_called_gone_when_kubectl_deleted_nothing(host: Host) -> None:
    host.release("one")
    host.cluster.deletes_nothing = True

    with pytest.raises(RolloutError, match="the Deployment web is still there"):
        host.another().stop()
    with pytest.raises(UndoFailed, match="the Deployment web is still there"):
        host.another().undo(None)


def test_nothing_is_released_nor_undone_where_somebody_scaled_the_service_to_nothing(host: Host) -> None:
    host.release("one")
    host.cluster.objects["deployment.apps", "web"]["spec"]["replicas"] = 0

    failed = host.try_release("two", "good", ConfigError)

    assert "is scaled to 0" in str(failed)
    assert host.cluster.names("deployment.apps") == ["web"]


def test_candidate_that_somebody_took_away_is_a_hindrance(host: Host) -> None:
    host.release("one")
    host.target = host.another()
    candidate = host.target.start(*version("two"), as_before=False)
    before = host.target.hindrance()
    (pod,) = [name for name in host.cluster.names("pod") if "candidate" in name]
    host.cluster.objects["pod", pod]["metadata"]["deletionTimestamp"] = "now"

    told = host.target.hindrance()

    assert candidate.version == version("two")[0]
    assert before == ""
    assert told == f"{pod} was drained, evicted or deleted while it was measured"


@pytest.mark.parametrize("restarts", [0, 1])
def test_way_that_was_cut_is_a_hindrance_where_the_candidate_ran_on(host: Host, restarts: int) -> None:
    host.target.start(*version("one"), as_before=False)
    (name,) = host.cluster.names("pod")
    first = host.cluster.forwarding
    assert first
    first.end()
    until = time.monotonic() + 20
    while host.cluster.forwarding is first and time.monotonic() < until:
        time.sleep(0.05)
    host.cluster.objects["pod", name]["status"]["containerStatuses"][0]["restartCount"] = restarts

    assert host.target.hindrance() == ("" if restarts else f"the way to {name} was cut 1 times while it was measured")


def test_candidate_of_whoever_holds_the_lock_now_is_left_alone_when_ours_failed(host: Host) -> None:
    host.cluster.fates[version("two")[0].digest] = "never ready"

    with pytest.raises(CandidateFailed):
        host.target.start(*version("two"), as_before=False)

    assert "web-candidate" in host.cluster.names("deployment.apps")


def test_nothing_is_settled_but_what_was_promoted(host: Host) -> None:
    host.release("one")
    host.target = host.another()
    host.target.promote(host.target.start(*version("two"), as_before=False))
    another = host.another()
    another.promote(another.start(*version("three"), as_before=False))

    with pytest.raises(PromotionFailed, match="somebody put build three"):
        host.target.settle()


def test_first_release_that_was_killed_before_it_was_scaled_gets_its_replicas_by_the_next(host: Host) -> None:
    host.target.promote(host.target.start(*version("one"), as_before=False))
    host.cluster.objects["deployment.apps", "web"]["spec"]["replicas"] = 1

    host.release("one")

    assert host.cluster.objects["deployment.apps", "web"]["spec"]["replicas"] == 2


def test_first_release_leaves_nothing_behind_when_it_fails(host: Host) -> None:
    host.try_release("one", "bad in public", PromotionFailed)

    assert host.another().current() is None
    assert {kind: host.cluster.names(kind) for kind in ("deployment.apps", "service", "serviceaccount", "pod")} == {
        "deployment.apps": [],
        "service": [],
        "serviceaccount": [],
        "pod": [],
    }


def test_nothing_is_left_behind_when_the_first_release_was_killed_and_the_next_one_fails(host: Host) -> None:
    host.target.promote(host.target.start(*version("one"), as_before=False))

    host.try_release("two", "crashes", CandidateFailed)

    assert [host.cluster.names(kind) for kind in ("deployment.apps", "service", "pod")] == [[], [], []]


def test_address_is_kept_when_the_first_release_after_a_stop_fails(host: Host) -> None:
    host.release("one")
    host.target.stop()
    stopped = (host.another().current(), host.cluster.names("service"), host.cluster.names("pod"))

    host.try_release("two", "bad in public", PromotionFailed)

    assert stopped == (None, ["web"], [])
    assert host.cluster.names("service") == ["web"]
    assert host.cluster.names("deployment.apps") == []


def test_undo_brings_back_the_recorded_manifests_when_they_changed_too(host: Host) -> None:
    good = host.release("one")
    host.cluster.overlay = [*overlay(), {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "more"}}]
    host.cluster.overlay[2]["spec"]["template"]["spec"]["containers"][0]["env"] = [{"name": "X", "value": "1"}]

    host.try_release("two", "bad in public", PromotionFailed)

    deployment = host.cluster.objects[("deployment.apps", "web")]
    assert "env" not in deployment["spec"]["template"]["spec"]["containers"][0]
    assert "more" not in host.cluster.names("configmap")
    assert (live := host.another().current())
    assert (live.version, live.healthy) == (good, True)


def test_way_back_asks_neither_checkout_nor_registry(host: Host) -> None:
    first = host.release("one")
    host.release("two")
    host.cluster.overlay = []

    kept = host.another().image(first.digest)
    host.release("one", as_before=True)

    assert kept == (version("one")[1].manifest, version("one")[1].config)
    assert (live := host.another().current())
    assert (live.version, live.healthy) == (first, True)


def test_what_is_not_applied_any_more_is_deleted_once_the_new_one_serves(host: Host) -> None:
    host.cluster.overlay = [*overlay(), {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "old"}}]
    host.release("one")
    host.cluster.overlay = overlay()

    host.release("two")

    assert "old" not in host.cluster.names("configmap")


def test_killed_promotion_is_not_what_is_to_serve_and_the_next_release_ends_it(host: Host) -> None:
    good = host.release("one")
    host.target = host.another()
    host.target.promote(host.target.start(*version("two"), as_before=False))

    left = host.another().current()
    again = host.release("two")

    assert left
    assert (left.version, left.builds, left.healthy) == (good, ("two",), False)
    assert (live := host.another().current())
    assert (live.version, live.healthy) == (again, True)


@pytest.mark.parametrize("is_bad", [False, True])
def test_what_a_killed_promotion_alone_applied_is_deleted_by_the_next_version_however_it_ends(
    host: Host, *, is_bad: bool
) -> None:
    good = host.release("one")
    host.cluster.overlay = [*overlay(), {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "more"}}]
    host.target = host.another()
    host.target.promote(host.target.start(*version("two"), as_before=False))
    host.cluster.overlay = overlay()
    was_left = "more" in host.cluster.names("configmap")

    if is_bad:
        host.try_release("three", "bad in public", PromotionFailed)
    else:
        good = host.release("three")

    assert (was_left, "more" in host.cluster.names("configmap")) == (True, False)
    assert (live := host.another().current())
    assert (live.version, live.healthy) == (good, True)


def test_nothing_is_deleted_when_the_record_of_what_was_promoted_is_gone_and_the_undo_brings_back(host: Host) -> None:
    good = host.release("one")
    host.target = host.another()
    host.target.promote(host.target.start(*version("two"), as_before=False))
    record = host.cluster.objects["deployment.apps", "web"]["metadata"]["annotations"][manifests.RECORD]
    del host.cluster.objects["configmap", record]

    with pytest.raises(RolloutError, match="not found"):
        host.target.settle()
    left = host.cluster.names("deployment.apps"), host.cluster.names("service")
    host.target.undo(good)

    assert left == (["web"], ["web"])
    assert (live := host.another().current())
    assert (live.version, live.healthy) == (good, True)


def test_what_is_not_applied_any_more_is_deleted_by_the_next_release_when_one_was_killed_while_old_pods_end(
    host: Host,
) -> None:
    host.cluster.overlay = [*overlay(), {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "old"}}]
    good = host.release("one")
    host.cluster.overlay = overlay()
    host.cluster.ends_slowly = True
    host.target = host.another()
    host.target.promote(host.target.start(*version("two"), as_before=False))
    host.is_killed = True
    with pytest.raises(Killed):
        host.target.settle()
    host.is_killed = host.cluster.ends_slowly = False

    left = host.another().current()
    again = host.release("two")

    assert left
    assert (left.version, left.healthy) == (good, False), "there is something to do"
    assert (live := host.another().current())
    assert (live.version, live.healthy) == (again, True)
    assert "old" not in host.cluster.names("configmap")


def test_other_manifests_are_another_release_of_the_same_image(host: Host) -> None:
    host.release("one")
    live = host.another().current()
    assert live
    before = host.another().is_as_wanted(live)
    host.cluster.overlay[2]["spec"]["minReadySeconds"] = 9

    assert (before, host.another().is_as_wanted(live)) == (True, False)


def test_conflict_is_told_when_another_owns_a_field_and_the_undo_takes_it_back(host: Host) -> None:
    good = host.release("one")
    host.cluster.others_own.add("Deployment")

    failed = host.try_release("two", "good", ClusterRefused)

    assert "kubectl-edit" in str(failed)
    assert (live := host.another().current())
    assert (live.version, live.healthy) == (good, True)


def test_release_goes_on_when_the_api_server_was_gone_for_a_minute(host: Host) -> None:
    host.release("one")
    host.cluster.gone = 12

    released = host.release("two")

    assert (live := host.another().current())
    assert live.version == released


@pytest.mark.parametrize("spoiled", ["another Service", "the API server"])
def test_what_serves_is_not_touched_when_nothing_was_started_yet(host: Host, spoiled: str) -> None:
    good = host.release("one")
    before = sorted(host.cluster.objects)
    host.cluster.overlay = overlay(team="shop")
    if spoiled == "the API server":
        host.cluster.overlay = overlay()
        host.cluster.others_own.add("ConfigMap")

    host.try_release("two", "good", ConfigError if spoiled == "another Service" else ClusterRefused)

    assert (live := host.another().current())
    assert (live.version, live.healthy, host.users()) == (good, True, "one")
    assert sorted(host.cluster.objects) == before


def test_undo_takes_back_what_was_applied_before_the_deployment_was_refused(host: Host) -> None:
    host.release("one")
    more = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "more"}}
    host.cluster.overlay = [more, *overlay()]
    host.cluster.overlay[2]["spec"]["sessionAffinity"] = "ClientIP"
    host.cluster.others_own.add("Deployment")

    host.try_release("two", "good", ClusterRefused)

    assert "sessionAffinity" not in host.cluster.objects[("service", "web")]["spec"]
    assert "more" not in host.cluster.names("configmap")


def test_candidate_is_refused_when_a_service_would_send_users_to_it(host: Host) -> None:
    host.cluster.overlay = overlay(team="shop")

    with pytest.raises(ConfigError, match="'web' would send users to the candidate"):
        host.release("one")


def test_deployment_of_another_hand_is_not_taken_over(host: Host) -> None:
    host.release("one")
    deployment = host.cluster.objects[("deployment.apps", "web")]
    deployment["spec"]["template"]["metadata"]["annotations"].pop("shipway.dev/model")

    with pytest.raises(ConfigError, match="was not made by shipway"):
        host.another().start(*version("two"), as_before=False)


def test_undo_says_that_a_person_is_needed_when_the_record_is_gone(host: Host) -> None:
    good = host.release("one")
    host.release("two")
    for name in host.cluster.names("configmap"):
        del host.cluster.objects[("configmap", name)]

    with pytest.raises(UndoFailed, match="the record of build one"):
        host.another().undo(good)


def test_pending_address_is_waited_for_and_said(host: Host, capsys: pytest.CaptureFixture[str]) -> None:
    host.cluster.has_address = False

    failed = host.try_release("one", "good", PromotionFailed)

    assert "the Service of web has no address yet" in str(failed)
    assert "waiting: the Service of web has no address yet" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda cluster: cluster.overlay.pop(), "has no Deployment 'web'"),
        (lambda cluster: cluster.overlay[2]["spec"].pop("selector"), "matchLabels"),
    ],
)
def test_manifests_that_cannot_do_are_refused_before_anything_is_applied(
    host: Host, spoil: Callable[[FakeKubectl], object], told: str
) -> None:
    spoil(host.cluster)

    with pytest.raises(ConfigError, match=told):
        host.release("one")

    assert host.cluster.objects == {}


def test_doctor_renders_once_and_asks_for_all_rights_in_one_question(host: Host) -> None:
    host.release("one")
    host.cluster.calls.clear()
    host.cluster.others_own.add("events")
    looks = host.another().looks()

    with pytest.raises(NotReady, match="you may not list event\n"):
        looks["rights"]()

    assert looks["manifests"]() == "k8s: 3 objects, accepted"
    assert [words[0] for words in host.cluster.calls] == [
        *("config", "get"),  # whether it is the right cluster
        *("create", "api-resources", "create", "apply"),
    ]
