"""kubectl: how the cluster is asked, and what its answers mean.

Owns every word that is given to kubectl. The context and the namespace are always said, never
taken from whatever happens to be the current one, and are checked against the server before
the first question. While the API server does not answer, a question is put again, for a
while. Documents travel through stdin, never in an argument.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from msgspec import Struct

from shipway.console import Tell
from shipway.errors import ClusterRefused, ClusterUnreachable, ConfigError, ToolFailed
from shipway.proc import Completed, Run

Object = dict[str, Any]

MANAGER = "shipway"
_ANSWER_S = 20
_PATIENCE_S = 90.0
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.5, 5.0
_HEARD_S = 120.0  # after a minute without API server kube-proxy was seen to hear of a change after 65 to 88 s
_TRIES = 3
_GONE = (  # what kubectl says when nobody, or nobody who is ready, answered
    "connection refused",
    "was refused - did you specify the right host or port",
    "connection reset",
    "i/o timeout",
    "TLS handshake timeout",
    "EOF",
    "no such host",
    "server misbehaving",
    "name resolution",
    "no route to host",
    "network is unreachable",
    "context deadline exceeded",
    "Client.Timeout exceeded",
    "client connection lost",
    "broken pipe",
    "GOAWAY",
    "unable to handle the request",
    "(ServiceUnavailable)",
    "(TooManyRequests)",
    "(Timeout)",
    "etcdserver:",
    "no end after",
)


class Cluster(Struct, frozen=True, kw_only=True):
    """One namespace of one cluster. `server` is the address that the context must have, where it is set."""

    context: str
    namespace: str
    server: str | None = None

    def argv(self, *words: str) -> tuple[str, ...]:
        """Return the command that asks this very namespace."""
        return (
            *("kubectl", "--context", self.context, "--namespace", self.namespace),
            *(f"--request-timeout={_ANSWER_S}s", *words),
        )

    def forward(self, what: str, *, local: int, remote: int) -> tuple[str, ...]:
        """Return the command that makes a port in the cluster one of this machine; it runs until it is ended."""
        return (
            *("kubectl", "--context", self.context, "--namespace", self.namespace),
            *("port-forward", "--address=127.0.0.1", what, f"{local}:{remote}"),
        )

    def follow(self, pod: str, *, container: str) -> tuple[str, ...]:
        """Return the command that says what a container says from now on, until it ends."""
        return (
            *("kubectl", "--context", self.context, "--namespace", self.namespace),
            *("logs", "--follow", "--since=5s", pod, f"--container={container}"),
        )


class Kubectl:
    """Asks one namespace. Raises `ConfigError`, `ClusterRefused` and `ClusterUnreachable`."""

    def __init__(
        self,
        cluster: Cluster,
        *,
        run: Run,
        tell: Tell,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """Use the kubectl on the path."""
        self.cluster = cluster
        self._run = run
        self._tell = tell
        self._clock = clock
        self._sleep = sleep
        self._is_right = False
        self._heard_at = clock()

    # -- looking -----------------------------------------------------------------------------

    def get(self, kind: str, name: str) -> Object | None:
        """Return one object."""
        said = self.ask("get", kind, name, "--ignore-not-found", "--output=json").stdout
        return dict(json.loads(said)) if said.strip() else None

    def find(self, kinds: str, *, labels: Mapping[str, str] | None = None) -> list[Object]:
        """Return all objects of some kinds that have these labels."""
        selector = ",".join(f"{key}={value}" for key, value in (labels or {}).items())
        said = self.ask("get", kinds, *((f"--selector={selector}",) if selector else ()), "--output=json").stdout
        return list(json.loads(said)["items"])

    def logs(self, pod: str, *, container: str, lines: int, previous: bool = False) -> str:
        """Return the last lines of a container, or of the one that ran before it; none when there are none."""
        words = ("logs", pod, f"--container={container}", f"--tail={lines}", *(("--previous",) if previous else ()))
        with contextlib.suppress(ClusterRefused, ClusterUnreachable):
            return self.ask(*words, patience_s=0).stdout.decode("utf-8", "replace").rstrip()
        return ""

    def proxied(self, pod: str, port: int, path: str) -> bytes | None:
        """Ask one pod, past every Service; `None` when it does not answer 200."""
        where = f"/api/v1/namespaces/{self.cluster.namespace}/pods/{pod}:{port}/proxy{path}"
        with contextlib.suppress(ClusterRefused, ClusterUnreachable):
            return self.ask("get", f"--raw={where}", patience_s=0).stdout
        return None

    def existing(self, objects: Iterable[Object]) -> list[str]:
        """Return which of these objects are there, each as `kind/name` with the kind's group."""
        wanted = {"apiVersion": "v1", "kind": "List", "items": list(objects)}
        said = self.ask("get", "--ignore-not-found", "--output=name", "--filename=-", stdin=wanted).stdout
        return said.decode().split()

    def versions(self) -> tuple[str, str]:
        """Return kubectl's version and the server's."""
        said = json.loads(self.ask("version", "--output=json").stdout)
        return said["clientVersion"]["gitVersion"], said["serverVersion"]["gitVersion"]

    def lacking(self, rights: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
        """Return which rights we have not: each a verb, and a kind with its group; behind a slash, a subresource."""
        self.require_right_cluster()
        resources = self._resources()
        said = self.ask(
            *("create", "--validate=false", "--output=json", "--filename=-"),
            stdin={"apiVersion": "v1", "kind": "List", "items": [self._review(*each, resources) for each in rights]},
        )
        answers = _documents(said.stdout.decode())
        return [right for right, answer in zip(rights, answers, strict=True) if not answer["status"]["allowed"]]

    def _resources(self) -> dict[str, str]:
        """Return the resource of each kind, such as `deployment.apps`; a group that does not answer hides no other."""
        lines = self._once(("api-resources", "--no-headers")).stdout.decode().splitlines()
        found: dict[str, str] = {}
        for name, *_, version, _, kind in map(str.split, lines):
            found.setdefault(f"{kind.lower()}.{version.rpartition('/')[0]}".rstrip("."), name)
        return found

    def _review(self, verb: str, what: str, resources: Mapping[str, str]) -> Object:
        kind, _, part = what.partition("/")
        name, _, group = kind.partition(".")
        asked = {"verb": verb, "group": group, "resource": resources.get(kind, name), "subresource": part}
        return {
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SelfSubjectAccessReview",
            "spec": {"resourceAttributes": {"namespace": self.cluster.namespace, **asked}},
        }

    def render(self, folder: str) -> list[Object]:
        """Return what kustomize makes of a folder, each object with its namespace. Changes nothing."""
        try:
            said = self.ask("create", f"--kustomize={folder}", "--dry-run=client", "--output=json").stdout
        except ClusterRefused as error:
            raise ConfigError(
                f"[rollout] overlay: {folder} cannot be rendered", tail=error.tail, advice=f"kubectl kustomize {folder}"
            ) from error
        return _documents(said.decode())

    # -- changing ----------------------------------------------------------------------------

    def apply(
        self,
        objects: Iterable[Object],
        *,
        force: bool = False,
        dry_run: bool = False,
        patience_s: float = _PATIENCE_S,
    ) -> None:
        """Apply server-side, as `shipway`; `force` takes fields over that another owns, else he is told."""
        flags = (*(("--force-conflicts",) if force else ()), *(("--dry-run=server",) if dry_run else ()))
        self.ask(
            *("apply", "--server-side", f"--field-manager={MANAGER}", *flags, "--filename=-"),
            stdin={"apiVersion": "v1", "kind": "List", "items": list(objects)},
            patience_s=patience_s,
        )

    def apply_when_heard(self, objects: Sequence[Object]) -> None:
        """Apply what replaces pods that serve; when the API server was away, not before every node has heard of it.

        Nodes ask one that does not answer ever more seldom (client-go's reflectors: up to a minute
        apart). One that has not heard of a change yet sends users to pods that have ended.
        """
        for _ in range(_TRIES):
            self._await_heard()
            began = self._clock()
            with contextlib.suppress(ClusterUnreachable):
                return self.apply(objects, patience_s=0)
            self.ask("get", "--raw=/version")
            self._was_away(began)
        return self.apply(objects)

    def create(self, thing: Object) -> bool:
        """Create an object, or return false because there is another of this name.

        One that is the same, word for word, is ours: its answer was lost, and it was sent twice.
        """
        try:
            self.ask("create", "--filename=-", stdin=thing)
        except ClusterRefused as error:
            if "(AlreadyExists)" not in error.tail:
                raise
            return _holds(self.get(thing["kind"].lower(), thing["metadata"]["name"]), thing)
        return True

    def replace(self, thing: Object) -> bool:
        """Replace an object, or return false: it is gone, or not the version that ours was made from."""
        try:
            self.ask("replace", "--filename=-", stdin=thing)
        except ClusterRefused as error:
            if "(Conflict)" in error.tail or "(NotFound)" in error.tail:
                return False
            raise
        return True

    def annotate(self, kind: str, name: str, annotations: Mapping[str, str]) -> None:
        """Write annotations that no manifest has, as another manager than that which applies."""
        pairs = (f"{key}={value}" for key, value in annotations.items())
        self.ask("annotate", kind, name, "--overwrite", f"--field-manager={MANAGER}-settled", *pairs)

    def scale(self, kind: str, name: str, replicas: int) -> None:
        """Ask for so many replicas, once; they stay nobody's business."""
        self.ask("scale", f"{kind}/{name}", f"--replicas={replicas}")

    def delete(self, names: Sequence[str], *, wait: bool = False) -> None:
        """Delete objects, each `kind/name`; what is not there is no error.

        A person's kuberc may have kubectl ask before it deletes. Nobody would answer, and that counts as a success.
        """
        how = ("--interactive=false", "--ignore-not-found", f"--wait={'true' if wait else 'false'}")
        if names:
            self.ask("delete", *names, *how, timeout_s=180)

    # -- asking ------------------------------------------------------------------------------

    def ask(
        self, *words: str, stdin: Object | None = None, patience_s: float = _PATIENCE_S, timeout_s: float = 60
    ) -> Completed:
        """Put a question that may be put twice, until it is answered or nobody was there for too long."""
        self.require_right_cluster()
        return self._ask(words, stdin=stdin, patience_s=patience_s, timeout_s=timeout_s)

    def require_right_cluster(self) -> None:
        """Raise `ConfigError` unless the context exists, has the right server, and the namespace is there."""
        if self._is_right:
            return
        server = self.server()
        if self.cluster.server and server.rstrip("/") != self.cluster.server.rstrip("/"):
            raise ConfigError(
                f"the context {self.cluster.context!r} is of {server}, but [rollout] server says {self.cluster.server}",
                advice="name the right context, or mend [rollout] server",
            )
        words = ("get", "namespace", self.cluster.namespace, "--ignore-not-found", "--output=name")
        with contextlib.suppress(ClusterRefused):  # no right to look at it: what is asked next will tell
            if not self._ask(words).stdout.strip():
                raise ConfigError(
                    f"{self.cluster.context} has no namespace {self.cluster.namespace!r}",
                    advice="an administrator makes it, and your rights in it: kubectl apply -k k8s/setup",
                )
        self._is_right = True

    def server(self) -> str:
        """Return the address of the context's API server. Asks nobody."""
        said = self._once(("config", "view", "--minify", "--output=json"))
        clusters = json.loads(said.stdout).get("clusters") if said.code == 0 else None
        if not clusters:
            raise ConfigError(
                f"[rollout] context: kubectl knows no context {self.cluster.context!r}",
                tail=said.tail,
                advice="kubectl config get-contexts lists them; KUBECONFIG names the file",
            )
        return str(clusters[0]["cluster"].get("server"))

    def _ask(
        self,
        words: Sequence[str],
        *,
        stdin: Object | None = None,
        patience_s: float = _PATIENCE_S,
        timeout_s: float = 60,
    ) -> Completed:
        began, pause_s = self._clock(), _FIRST_PAUSE_S
        while True:
            done = self._once(words, stdin=stdin, timeout_s=timeout_s)
            if done.code == 0:
                if pause_s > _FIRST_PAUSE_S:
                    self._was_away(began)
                return done
            if not any(sign in done.tail for sign in _GONE):
                raise ClusterRefused(f"the cluster refused: {' '.join(done.argv[6:9])}", tail=done.tail)
            waited_s = self._clock() - began
            if waited_s >= patience_s:
                raise ClusterUnreachable(
                    f"{self.cluster.context} did not answer for {waited_s:.0f} s: {' '.join(done.argv[6:9])}",
                    tail=done.tail,
                )
            self._tell.live("rollout", f"the API server of {self.cluster.context} does not answer; asking again")
            self._sleep(pause_s)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)

    def _was_away(self, since: float) -> None:
        now = self._clock()
        self._heard_at = max(self._heard_at, now + min(2 * (now - since), _HEARD_S))

    def _await_heard(self) -> None:
        left_s = self._heard_at - self._clock()
        if left_s > 0:
            self._tell.say("rollout", f"the API server was away; {left_s:.0f} s for every node to hear of it again")
            self._sleep(left_s)

    def _once(self, words: Sequence[str], *, stdin: Object | None = None, timeout_s: float = 60) -> Completed:
        argv = self.cluster.argv(*words)
        data = json.dumps(stdin).encode() if stdin is not None else None
        try:
            return self._run.run(argv, stdin=data, timeout_s=timeout_s)
        except ToolFailed as error:  # it did not end in time
            return Completed(argv=argv, code=1, stdout=b"", tail=error.tail)


def _documents(text: str) -> list[Object]:
    """Return the JSON documents that stand one behind the other."""
    decoder, found, at = json.JSONDecoder(), [], 0
    while (at := at + len(text[at:]) - len(text[at:].lstrip())) < len(text):
        document, at = decoder.raw_decode(text, at)
        found.append(document)
    return found


def _holds(found: Any, wanted: Any) -> bool:
    """Say whether `found` has all that `wanted` has."""
    if isinstance(wanted, dict):
        return isinstance(found, dict) and all(_holds(found.get(key), value) for key, value in wanted.items())
    return bool(found == wanted)
