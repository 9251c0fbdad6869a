"""kubectl: every word that is said, when it is said again, and what its answers mean."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest

from shipway.console import Console
from shipway.errors import ClusterRefused, ClusterUnreachable, ConfigError
from shipway.proc import Completed
from shipway.targets.kubectl import Cluster, Kubectl
from tests.fake_kubectl import SERVER, FakeKubectl

BEGIN = ("kubectl", "--context", "there", "--namespace", "shop", "--request-timeout=20s")


class Script:
    """Answers each command in turn with a text for stdout, or, where it begins with `error`, for stderr."""

    def __init__(self, *answers: str) -> None:
        view = json.dumps({"clusters": [{"cluster": {"server": SERVER}}]})
        self.answers = [view, "namespace/shop", *answers]
        self.argvs: list[tuple[str, ...]] = []
        self.slept: list[float] = []

    def run(
        self,
        argv: Sequence[str | Path],
        *,
        cwd: Path | None = None,  # noqa: ARG002 - as `Run` has it
        env: Mapping[str, str] | None = None,  # noqa: ARG002 - as above
        stdin: bytes | None = None,
        on_line: Callable[[str], None] | None = None,  # noqa: ARG002 - as above
        timeout_s: float | None = None,  # noqa: ARG002 - as above
    ) -> Completed:
        words = tuple(map(str, argv))
        self.argvs.append(words)
        self.stdin = stdin or b""
        answer = self.answers.pop(0)
        failed = answer.startswith("error")
        return Completed(argv=words, code=int(failed), stdout=b"" if failed else answer.encode(), tail=answer)

    def kubectl(self) -> Kubectl:
        cluster = Cluster(context="there", namespace="shop")
        return Kubectl(cluster, run=self, tell=Console(), clock=lambda: sum(self.slept), sleep=self.slept.append)

    @property
    def asked(self) -> list[tuple[str, ...]]:
        """What was asked once the cluster was known to be the right one."""
        assert all(words[:6] == BEGIN for words in self.argvs)
        return [words[6:] for words in self.argvs[2:]]


@pytest.mark.parametrize(
    ("ask", "words"),
    [
        (lambda k: k.find("pods", labels={"a": "b", "c": "d"}), ("get", "pods", "--selector=a=b,c=d", "--output=json")),
        (lambda k: k.get("pods", "x"), ("get", "pods", "x", "--ignore-not-found", "--output=json")),
        (lambda k: k.apply([]), ("apply", "--server-side", "--field-manager=shipway", "--filename=-")),
        (
            lambda k: k.apply([], force=True),
            ("apply", "--server-side", "--field-manager=shipway", "--force-conflicts", "--filename=-"),
        ),
        (
            lambda k: k.apply([], dry_run=True),
            ("apply", "--server-side", "--field-manager=shipway", "--dry-run=server", "--filename=-"),
        ),
        (lambda k: k.replace({}), ("replace", "--filename=-")),
        (lambda k: k.create({}), ("create", "--filename=-")),
        (
            lambda k: k.delete(["service/a"]),
            ("delete", "service/a", "--interactive=false", "--ignore-not-found", "--wait=false"),
        ),
        (lambda k: k.scale("deployment.apps", "web", 2), ("scale", "deployment.apps/web", "--replicas=2")),
        (
            lambda k: k.logs("x", container="c", lines=5, previous=True),
            ("logs", "x", "--container=c", "--tail=5", "--previous"),
        ),
        (
            lambda k: k.proxied("x", 8080, "/version"),
            ("get", "--raw=/api/v1/namespaces/shop/pods/x:8080/proxy/version"),
        ),
        (lambda k: k.render("k8s"), ("create", "--kustomize=k8s", "--dry-run=client", "--output=json")),
    ],
)
def test_command_says_context_and_namespace_and_what_is_wanted(
    ask: Callable[[Kubectl], object], words: tuple[str, ...]
) -> None:
    script = Script('{"items": []}')

    ask(script.kubectl())

    assert script.asked == [words]


def test_all_rights_are_asked_for_in_one_question_by_the_names_that_the_server_has() -> None:
    allowed, refused = '{"status": {"allowed": true}}\n', '{"status": {"allowed": false}}\n'
    names = "pods po v1 true Pod\nnetworkpolicies netpol networking.k8s.io/v1 true NetworkPolicy\n"
    script = Script(names, allowed + refused + allowed + refused)
    rights = [("get", "pod/log"), ("list", "networkpolicy.networking.k8s.io"), ("get", "pod"), ("get", "odd.example")]

    lacking = script.kubectl().lacking(rights)

    assert lacking == [rights[1], rights[3]]
    assert script.asked == [
        ("api-resources", "--no-headers"),
        ("create", "--validate=false", "--output=json", "--filename=-"),
    ]
    asked = [each["spec"]["resourceAttributes"] for each in json.loads(script.stdin)["items"]]
    assert [(each["group"], each["resource"], each["subresource"]) for each in asked] == [
        ("", "pods", "log"),
        ("networking.k8s.io", "networkpolicies", ""),
        ("", "pods", ""),
        ("example", "odd", ""),
    ]
    assert {each["namespace"] for each in asked} == {"shop"}


def test_forwarding_has_no_time_limit() -> None:
    words = Cluster(context="there", namespace="shop").forward("service/web", local=1234, remote=8080)

    assert words == (*BEGIN[:5], "port-forward", "--address=127.0.0.1", "service/web", "1234:8080")


def test_question_is_put_again_when_nobody_answered() -> None:
    script = Script("error: connection refused", "error: TLS handshake timeout", '{"items": [{}]}')

    found = script.kubectl().find("pods")

    assert (found, script.slept) == ([{}], [0.5, 1.0])


@pytest.mark.parametrize(
    "said",
    [
        "dial tcp: lookup shop.azmk8s.io: no such host",
        "dial tcp: lookup shop.azmk8s.io on 127.0.0.53:53: server misbehaving",
        "dial tcp: lookup shop.azmk8s.io: Temporary failure in name resolution",
        "write tcp 10.0.0.1:1->10.0.0.2:443: write: broken pipe",
        "http2: server sent GOAWAY and closed the connection",
    ],
)
def test_network_that_is_away_for_a_moment_is_no_refusal(said: str) -> None:
    script = Script(f"error: {said}", '{"items": []}')

    assert script.kubectl().find("pods") == []


def test_error_names_how_long_nobody_answered() -> None:
    script = Script(*["error: i/o timeout"] * 40)

    with pytest.raises(ClusterUnreachable, match=r"there did not answer for 9\d s: get pods"):
        script.kubectl().find("pods")

    assert 90 <= sum(script.slept) < 96


def test_what_replaces_pods_is_applied_at_once_when_the_server_was_never_away() -> None:
    script = Script("applied")

    script.kubectl().apply_when_heard([])

    assert ([words[0] for words in script.asked], script.slept) == (["apply"], [])


@pytest.mark.parametrize(
    ("failures", "away_s", "waited_s"),
    [pytest.param(3, 3.5, 7, id="briefly"), pytest.param(15, 62.5, 120, id="for a minute")],
)
def test_what_replaces_pods_waits_for_every_node_to_hear_when_the_server_was_away(
    failures: int, away_s: float, waited_s: float
) -> None:
    refused = "error: The connection to the server there:6443 was refused - did you specify the right host or port?"
    script = Script(refused, *[refused] * failures, "{}", "applied")

    script.kubectl().apply_when_heard([])

    assert [words[0] for words in script.asked] == ["apply", *["get"] * (failures + 1), "apply"]
    assert (sum(script.slept[:-1]), script.slept[-1]) == (away_s, waited_s)


def test_what_replaces_pods_waits_when_the_server_was_away_for_another_question() -> None:
    script = Script("error: EOF", json.dumps({"items": []}), "applied")
    kubectl = script.kubectl()

    kubectl.find("pods")
    kubectl.apply_when_heard([])

    assert script.slept == [0.5, 1]


def test_what_replaces_pods_is_given_up_when_the_server_stays_away() -> None:
    script = Script(*["error: i/o timeout"] * 40)

    with pytest.raises(ClusterUnreachable, match=r"there did not answer for 9\d s: get --raw=/version"):
        script.kubectl().apply_when_heard([])


def test_refusal_is_told_at_once_with_what_was_said() -> None:
    script = Script('error from server (Forbidden): pods is forbidden: User "ann" cannot list')

    with pytest.raises(ClusterRefused, match="the cluster refused: get pods") as refused:
        script.kubectl().find("pods")

    assert 'User "ann" cannot list' in refused.value.tail
    assert script.slept == []


@pytest.mark.parametrize(
    ("cluster", "told"),
    [
        (Cluster(context="nowhere", namespace="shop"), "no context 'nowhere'"),
        (Cluster(context="there", namespace="other"), "no namespace 'other'"),
        (Cluster(context="there", namespace="shop", server="https://another:6443"), "is of https://cluster.example"),
    ],
)
def test_wrong_cluster_is_refused_before_anything_is_asked_of_it(cluster: Cluster, told: str) -> None:
    fake = FakeKubectl()

    with pytest.raises(ConfigError, match=told):
        Kubectl(cluster, run=fake, tell=Console()).apply([])

    assert not any(call[0] == "apply" for call in fake.calls)


def test_right_server_is_accepted_with_or_without_a_slash_at_its_end() -> None:
    cluster = Cluster(context="there", namespace="shop", server=f"{SERVER}/")

    assert Kubectl(cluster, run=FakeKubectl(), tell=Console()).find("pods") == []


def test_conflict_is_no_error_but_an_answer() -> None:
    script = Script("error from server (Conflict): the object has been modified")

    assert not script.kubectl().replace({})
