"""Manifests: what a version changes in them, what a candidate has in common, what is kept of a release."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from shipway.artifacts import Digest, ModelRef, Version
from shipway.errors import ConfigError
from shipway.targets import manifests

MODEL = ModelRef(name="net", version=3, digest=Digest.of(b"model"))
VERSION = Version(digest=Digest.of(b"image"), build="b" * 16, commit="c" * 40, model=MODEL)
IMAGE = f"registry.example/web@{VERSION.digest}"


def rendered() -> list[dict[str, Any]]:
    return [
        {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": {"name": "web", "namespace": "shop", "creationTimestamp": None},
            "spec": {
                "replicas": 3,
                "selector": {"matchLabels": {"app": "web"}},
                "template": {
                    "metadata": {"labels": {"app": "web", "identity": "yes"}},
                    "spec": {"containers": [{"name": "first", "image": "x"}, {"name": "second", "image": "y"}]},
                },
            },
            "status": {},
        },
        {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "key"}},
        {
            "apiVersion": "autoscaling/v2",
            "kind": "HorizontalPodAutoscaler",
            "metadata": {"name": "web"},
            "spec": {"scaleTargetRef": {"name": "web"}, "minReplicas": 4},
        },
    ]


def released(**how: Any) -> list[dict[str, Any]]:
    given = {"name": "web", "container": None, **how}
    return manifests.released(rendered(), image=IMAGE, version=VERSION, **given)


def test_released_has_the_digest_and_says_its_version_and_no_replicas() -> None:
    before = rendered()

    deployment = manifests.find(released(), "web")

    spec = deployment["spec"]
    assert [each["image"] for each in spec["template"]["spec"]["containers"]] == [IMAGE, "y"]
    assert manifests.version_of(spec["template"]) == VERSION
    assert spec["template"]["metadata"]["labels"] == {"app": "web", "identity": "yes", "shipway.dev/build": "b" * 16}
    assert "replicas" not in spec
    assert "status" not in deployment
    assert before == rendered(), "what was rendered is not touched"


def test_image_goes_into_the_container_that_is_named() -> None:
    containers = manifests.find(released(container="second"), "web")["spec"]["template"]["spec"]["containers"]

    assert [each["image"] for each in containers] == ["x", IMAGE]


@pytest.mark.parametrize(
    ("how", "told"), [({"container": "third"}, "no container 'third'"), ({"name": "shop"}, "no Deployment 'shop'")]
)
def test_manifests_are_refused_when_they_lack_what_is_named(how: dict[str, str], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        released(**how)


def test_new_deployment_begins_with_its_autoscalers_least_or_with_what_it_says() -> None:
    objects = released()

    assert manifests.replicas(objects, "web") == 4
    assert manifests.replicas(objects[:2], "web") == 3


def test_candidate_differs_in_the_selectors_labels_alone() -> None:
    deployment = manifests.find(released(), "web")

    candidate, service = manifests.candidate(deployment, port=8080)

    labels = candidate["spec"]["template"]["metadata"]["labels"]
    assert labels["app"] == "web-candidate"
    assert labels["identity"] == "yes"
    assert candidate["spec"]["selector"] == {"matchLabels": {"app": "web-candidate"}}
    assert candidate["spec"]["replicas"] == 1
    assert candidate["spec"]["template"]["spec"] == deployment["spec"]["template"]["spec"]
    assert service["spec"]["selector"] == {"app": "web-candidate"}
    assert {each["metadata"]["name"] for each in (candidate, service)} == {"web-candidate"}


@pytest.mark.parametrize("selector", [{"app": "web"}, {}, None])
def test_service_that_leaves_candidates_alone_is_accepted(selector: dict[str, str] | None) -> None:
    _require_unreachable(selector)


def test_service_that_would_send_users_to_a_candidate_is_refused() -> None:
    with pytest.raises(ConfigError, match="'other' would send users to the candidate"):
        _require_unreachable({"identity": "yes"})


def _require_unreachable(selector: dict[str, str] | None) -> None:
    candidate, own = manifests.candidate(manifests.find(released(), "web"), port=8080)
    other = {"kind": "Service", "metadata": {"name": "other"}, "spec": {"selector": selector}}
    manifests.require_unreachable(manifests.pod_labels(candidate), [own, other], own="web-candidate")


def test_record_gives_back_what_was_applied_and_the_image_and_no_secret() -> None:
    objects = released()

    record = manifests.record(objects, name="web", version=VERSION, image=(b"manifest", b"config"))

    assert manifests.recorded(record) == [each for each in objects if each["kind"] != "Secret"]
    assert manifests.recorded_image(record) == (b"manifest", b"config")
    assert record["metadata"]["name"] == manifests.record_of(objects[0])
    assert manifests.digest_of(record) == VERSION.digest


@pytest.mark.parametrize("damage", ["", "AAAA", "H4sIAAAA"])
def test_damaged_record_is_a_value_error(damage: str) -> None:
    record = manifests.record(released(), name="web", version=VERSION, image=(b"", b""))
    record["binaryData"]["manifests"] = damage

    with pytest.raises(ValueError):  # noqa: PT011 - of whatever library
        manifests.recorded(record)


def test_record_has_another_name_when_image_or_manifests_differ() -> None:
    other = copy.deepcopy(rendered())
    other[0]["spec"]["minReadySeconds"] = 5
    names = {
        manifests.record_name("web", VERSION.digest, rendered()),
        manifests.record_name("web", VERSION.digest, other),
        manifests.record_name("web", Digest.of(b"another"), rendered()),
    }

    assert len(names) == 3


def test_names_leave_out_what_is_never_deleted() -> None:
    kept = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop"}}

    assert manifests.names([*rendered(), kept]) == ["deployment.apps/web", "horizontalpodautoscaler.autoscaling/web"]
    assert manifests.names(rendered(), without=rendered()[2:]) == ["deployment.apps/web"]
