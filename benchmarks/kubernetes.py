"""A changed line of code, from commit to serving on both replicas: `python -m benchmarks.kubernetes`.

The sample service with a 241 MB model on the tests' cluster of two nodes, released by
`invoke release` with all its checks, beside `docker build`, `docker push`, `kubectl set image`
and `kubectl rollout status` with two Dockerfiles, in turns. All push to one registry through
one wire, and the nodes pull from it through another; both count. Needs root, and what
`nox -s cluster` and `nox -s bench-images` need.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from PIL import Image

from benchmarks import Row, middle, report, rivals
from benchmarks.images import Dockerfile, Shipway, base_image, change_code, context, git, project, weights
from benchmarks.wire import Moved, Wire, registry
from tests.cluster import keeper
from tests.cluster.cluster import Cluster
from tests.cluster.plan import document

ROOT = Path(__file__).parents[1]
_MODEL_BYTES = 241_000_000
_ROUNDS = 3
_DEPLOYMENT, _CONTAINER = "image-classifier", "service"
_OVERLAY = "k8s/overlays/test"
_WAIT_S = 300


def main() -> None:
    """Measure, print the table, write `.shipway/benchmarks-cluster.json`."""
    with tempfile.TemporaryDirectory(prefix="shipway-bench-", ignore_cleanup_errors=True) as folder:
        commit = git(ROOT, "rev-parse", "HEAD").strip()
        report(measure(Path(folder)), ROOT / ".shipway" / "benchmarks-cluster.json", commit=commit)


def measure(folder: Path) -> Iterator[Row]:
    """Release the same changes in each way, to the same cluster."""
    with ExitStack() as stack:
        wire = stack.enter_context(registry(folder / "registry"))
        machine = stack.enter_context(rivals.machine(folder / "machine"))
        cluster = stack.enter_context(keeper.running())
        nodes = stack.enter_context(_way_of_nodes(cluster, wire))
        base = base_image(machine, wire)
        model = _with_golden(weights(folder / "model", _MODEL_BYTES, seed=1))
        ours = _ours(project(folder, wire, base, model, names=()), cluster, nodes)
        others = []
        for name, text, folder_of_model in (
            ("original", rivals.ORIGINAL, "/code/model"),
            ("best", rivals.BEST, "/srv/model"),
        ):
            dockerfile = context(folder / name, text, model, machine=machine, wire=wire, base=base)
            others.append(_rival(dockerfile, cluster, nodes, {"MODEL_DIR": folder_of_model}))
        yield from _compared(ours, *others)


# -- who is measured ---------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What a release took: until both replicas served, of that in suite and load check, until it ended; bytes."""

    serving_s: float
    checks_s: float = 0.0
    all_s: float
    pushed: Moved
    pulled: Moved


@dataclass(frozen=True, slots=True, kw_only=True)
class Ours:
    """A project that is released by `invoke release`."""

    project: Shipway
    nodes: Wire

    def release(self) -> Cost:
        """Test, build, push, roll out and check what is committed."""
        os.sync()  # what was written before this is nobody's cost
        pushed, pulled, began = self.project.wire.moved, self.nodes.moved, time.perf_counter()
        told = self._told(began)
        all_s = time.perf_counter() - began
        return Cost(
            serving_s=told.at(r"^rollout +asked one by one, 2 of 2"),
            all_s=all_s,
            checks_s=told.seconds("^test +pytest", r"^test +\d+ passed in")
            + told.seconds("^rollout +golden exchanges", "^rollout +applying"),
            pushed=self.project.wire.moved - pushed,
            pulled=self.nodes.moved - pulled,
        )

    def _told(self, began: float) -> Told:
        argv = [sys.executable, "-m", "invoke", "release"]
        root, environ = self.project.root, self.project.environ
        with subprocess.Popen(
            argv, cwd=root, env=environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        ) as process:
            lines = process.stdout or ()
            told = Told(lines=tuple((time.perf_counter() - began, line.rstrip()) for line in lines))
        if process.returncode:
            text = "\n".join(line for _, line in told.lines)
            message = f"invoke release ended with {process.returncode}:\n{text}"
            raise RuntimeError(message)
        return told


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """What a release told, and after how many seconds."""

    lines: tuple[tuple[float, str], ...]

    def at(self, pattern: str) -> float:
        """Return when a line that matches was told first."""
        return next(after_s for after_s, line in self.lines if re.search(pattern, line))

    def seconds(self, first: str, last: str) -> float:
        """Return what went by from one line to the other."""
        return self.at(last) - self.at(first)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rival:
    """A Dockerfile whose image is put into a Deployment of its own."""

    dockerfile: Dockerfile
    cluster: Cluster
    nodes: Wire

    def release(self, number: int) -> Cost:
        """Build, push, set the image and wait until all replicas are new."""
        os.sync()
        pushed, pulled, began = self.dockerfile.wire.moved, self.nodes.moved, time.perf_counter()
        name = f"{self.dockerfile.root.name}:{number}"
        replace(self.dockerfile, image=f"{self.dockerfile.wire.host}/{name}").release()
        deployment = ("-n", self.dockerfile.root.name, f"deployment/{_DEPLOYMENT}")
        self.cluster.kubectl("set", "image", *deployment, f"{_CONTAINER}={self.nodes.host}/{name}")
        self.cluster.kubectl("rollout", "status", *deployment, f"--timeout={_WAIT_S}s")
        serving_s = time.perf_counter() - began
        return Cost(
            serving_s=serving_s,
            all_s=serving_s,
            pushed=self.dockerfile.wire.moved - pushed,
            pulled=self.nodes.moved - pulled,
        )


def _way_of_nodes(cluster: Cluster, wire: Wire) -> Wire:
    """Return a wire that every node's containerd asks without TLS."""
    nodes = wire.beside(cluster.mine.host)
    file = cluster.mine.folder / "certs.d" / nodes.host / "hosts.toml"
    file.parent.mkdir()
    file.write_text(f'server = "http://{nodes.host}"\n[host."http://{nodes.host}"]\n', "utf-8")
    return nodes


def _with_golden(model: Path) -> Path:
    """Give the model an exchange, for the golden answers and the load check; the form of an answer counts."""
    folder = model / "golden" / "exchanges"
    folder.mkdir(parents=True)
    Image.effect_noise((224, 224), 60).convert("RGB").save(folder / "noise.jpg")
    asked = {"method": "POST", "path": "/score", "headers": {"content-type": "image/jpeg"}, "body_file": "noise.jpg"}
    wanted = {"status": 200, "json": {"predictions": [{}]}}
    (folder / "noise.json").write_text(document({"request": asked, "response": wanted}), "utf-8")
    return model


def _ours(made: Shipway, cluster: Cluster, nodes: Wire) -> Ours:
    namespace = "shipway"
    cluster.kubectl("create", "namespace", namespace)
    settings = {
        "SHIPWAY_ENV": "test",
        "SHIPWAY_ROLLOUT_CONTEXT": cluster.context,
        "SHIPWAY_ROLLOUT_NAMESPACE": namespace,
        "SHIPWAY_ROLLOUT_PULL_FROM": f"{nodes.host}/shipway",
        "SHIPWAY_SERVICE_START_TIMEOUT_S": str(_WAIT_S),
        "SHIPWAY_LOADCHECK_MAX_P95_GROWTH": "100",
        "PYTHONUNBUFFERED": "1",
    }
    return Ours(project=replace(made, environ={**made.environ, **cluster.environ, **settings}), nodes=nodes)


def _rival(dockerfile: Dockerfile, cluster: Cluster, nodes: Wire, variables: dict[str, str]) -> Rival:
    """Apply the same manifests to a namespace of its own, with what its image does not say itself."""
    namespace = dockerfile.root.name
    cluster.kubectl("create", "namespace", namespace)
    rendered = cluster.kubectl("kustomize", str(ROOT / _OVERLAY))
    cluster.kubectl("apply", "-n", namespace, "--filename=-", stdin=rendered)
    said = [f"{name}={value}" for name, value in {"PORT": "8080", "METRICS_PORT": "9090", **variables}.items()]
    cluster.kubectl("set", "env", "-n", namespace, f"deployment/{_DEPLOYMENT}", *said)
    return Rival(dockerfile=dockerfile, cluster=cluster, nodes=nodes)


# -- what is measured --------------------------------------------------------------------


def _compared(ours: Ours, original: Rival, best: Rival) -> Iterator[Row]:
    ours.release()
    for rival in (original, best):
        rival.release(0)
    rounds = []
    for number in range(1, _ROUNDS + 1):
        change_code(ours.project, original.dockerfile, best.dockerfile)
        rounds.append((ours.release(), original.release(number), best.release(number)))
    for whose, pairs in (
        ("the original", [(mine, theirs) for mine, theirs, _ in rounds]),
        ("the best Dockerfile", [(mine, theirs) for mine, _, theirs in rounds]),
    ):
        yield from _beside(pairs, whose)


def _beside(pairs: list[tuple[Cost, Cost]], whose: str) -> Iterator[Row]:
    for what, rounds in (
        ("to serving on both replicas", [(mine.serving_s, theirs.serving_s) for mine, theirs in pairs]),
        (
            "  without suite and load check",
            [(mine.serving_s - mine.checks_s, theirs.serving_s) for mine, theirs in pairs],
        ),
        ("the whole release, all checks", [(mine.all_s, theirs.all_s) for mine, theirs in pairs]),
    ):
        mine_s, theirs_s = middle(rounds)
        yield Row(what=what, value=mine_s, unit="s", reference=theirs_s, against=f"{whose}'s {theirs_s:.1f} s")
    for what, moved in (
        ("  sent to the registry", [(mine.pushed.sent, theirs.pushed.sent) for mine, theirs in pairs]),
        ("  pulled by the nodes", [(mine.pulled.received, theirs.pulled.received) for mine, theirs in pairs]),
    ):
        mine_bytes, theirs_bytes = middle(moved)
        yield Row(
            what=what,
            value=mine_bytes / 1e6,
            unit="MB",
            reference=theirs_bytes / 1e6,
            against=f"{whose}'s {theirs_bytes / 1e6:.3f} MB",
        )


if __name__ == "__main__":
    main()
