"""What it costs to bring a changed service into a registry: `python -m benchmarks.images`.

The sample service with a 241 MB model, beside Dockerfiles and crane: one run, one registry, one
wire that counts. What is timed are programs from start to end: `invoke push`, which composes
and pushes, beside `docker build` and `docker push`; no test suite, no rollout. Needs root,
Docker, Debian's docker-registry and mmdebstrap, crane or Go, and the package index.
"""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import docker
from uv import find_uv_bin

from benchmarks import Row, middle, report, rivals, run
from benchmarks.rivals import Docker
from benchmarks.wire import Moved, Wire, registry
from tests.docker.machine import python_image
from tests.docker.proxy import Proxy
from tests.docker.tools import crane

ROOT = Path(__file__).parents[1]
_PYTHON = "3.11"
_MODEL_BYTES, _LARGE_BYTES = 241_000_000, 2_000_000_000
_ROUNDS, _COLD_ROUNDS = 7, 3
_PROJECT = ("app", "release.toml", "tasks.py", ".gitignore")
_LOCK = Path("app", "requirements.txt")
_BUMPED = "prometheus-client"  # small, and nothing depends on it
_AUTHOR = ("-c", "user.name=benchmark", "-c", "user.email=benchmark@example.invalid")
_IMPORTS = "import invoke.main, shipway.tasks, shipway.flow, shipway.oci.registry, uv, deflate"
_TASK = "the same commands as an Invoke task"
_INLINE_CACHE = ("--build-arg", "BUILDKIT_INLINE_CACHE=1")


def main() -> None:
    """Measure, print the table, write `.shipway/benchmarks-images.json`."""
    with tempfile.TemporaryDirectory(prefix="shipway-bench-", ignore_cleanup_errors=True) as folder:
        commit = git(ROOT, "rev-parse", "HEAD").strip()
        _compile()
        report(measure(Path(folder)), ROOT / ".shipway" / "benchmarks-images.json", commit=commit)


def _compile() -> None:
    """Leave all modules as pip does: compiled. Invoke writes no bytecode, whatever the environment says."""
    run([sys.executable, "-m", "compileall", "-q", ROOT / "shipway"])
    run([sys.executable, "-c", _IMPORTS], env=_writing_bytecode())


def _writing_bytecode() -> dict[str, str]:
    return {name: text for name, text in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}


def measure(folder: Path) -> Iterator[Row]:
    """Bring the same changes into the registry in each way."""
    with registry(folder / "registry") as wire, rivals.machine(folder / "machine") as machine:
        base = base_image(machine, wire)
        model = weights(folder / "model", _MODEL_BYTES, seed=1)
        ours = project(folder, wire, base, model)
        best = context(folder / "best", rivals.BEST, model, machine=machine, wire=wire, base=base)
        original = context(folder / "original", rivals.ORIGINAL, model, machine=machine, wire=wire, base=base)
        yield from _first(ours, best, original, folder)
        yield from _nothing(ours, best)
        yield from _code(ours, best, original)
        yield from _code_cold(ours, best, folder)
        yield from _model(ours, best, weights(folder / "retrained", _MODEL_BYTES, seed=2))
        yield from _dependency(ours, best)
        yield from _large(ours, folder)


# -- who is measured ---------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What a release took. `peak_bytes` is the memory of the client's largest process."""

    seconds: float
    moved: Moved
    peak_bytes: int


def _cost(wire: Wire, release: Callable[[], int]) -> Cost:
    os.sync()  # what was written before this is nobody's cost
    before, began = wire.moved, time.perf_counter()
    peak_bytes = release()
    return Cost(seconds=time.perf_counter() - began, moved=wire.moved - before, peak_bytes=peak_bytes)


@dataclass(frozen=True, slots=True, kw_only=True)
class Stages:
    """What a push took but for the start of Python: the stage `push`, and all. `layers`: bytes by title."""

    push_s: float
    all_s: float
    image: str
    layers: dict[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Shipway:
    """A project in git, with a repository, a model store and caches of its own."""

    root: Path
    wire: Wire
    environ: dict[str, str]

    def release(self) -> Cost:
        """Compose and push what is committed."""
        return _cost(self.wire, lambda: self.invoke("push"))

    def invoke(self, *words: str) -> int:
        """Run a task; return its peak memory in bytes."""
        return run([sys.executable, "-m", "invoke", *words], cwd=self.root, env=self.environ)

    def stages(self) -> Stages:
        """Do the same in a process that runs already."""
        argv = [sys.executable, "-m", "benchmarks.stages"]
        environ = self.environ | {"PYTHONPATH": str(ROOT)}
        os.sync()  # as before every other measurement
        ended = subprocess.run(argv, cwd=self.root, env=environ, check=True, capture_output=True)
        return Stages(**json.loads(ended.stdout))

    def commit(self) -> None:
        """Commit whatever was changed."""
        git(self.root, "add", "--all")
        git(self.root, *_AUTHOR, "commit", "--quiet", "--message", "Change")

    def afresh(self, folder: Path) -> Shipway:
        """Return a machine that has a clone and the store, and pushes to a repository where nothing is."""
        git(self.root, "clone", "--quiet", str(self.root), str(folder))
        place = {"SHIPWAY_PUSH_REPOSITORY": f"{self.wire.host}/{folder.name}", "UV_CACHE_DIR": str(folder / ".uv")}
        return replace(self, root=folder, environ=self.environ | place)

    @contextmanager
    def elsewhere(self, folder: Path) -> Iterator[Shipway]:
        """Be a machine that has a clone and nothing else; the store is there, its files are but holes.

        So whoever reads a byte of a model finds another one than was said, and fails.
        """
        git(self.root, "clone", "--quiet", str(self.root), str(folder))
        (blobs,) = Path(self.environ["SHIPWAY_MODEL_STORE"]).glob("*/blobs/sha256")
        away = blobs.rename(blobs.with_name("away"))
        blobs.mkdir()
        for blob in away.iterdir():
            with (blobs / blob.name).open("wb") as hole:
                hole.truncate(blob.stat().st_size)
        try:
            yield replace(self, root=folder, environ=self.environ | {"UV_CACHE_DIR": str(folder / ".uv")})
        finally:
            shutil.rmtree(blobs)
            away.rename(blobs)


@dataclass(frozen=True, slots=True, kw_only=True)
class Dockerfile:
    """A build context, and the daemon that builds it."""

    root: Path
    image: str
    docker: Docker
    wire: Wire
    base: str

    def release(self, *options: str) -> Cost:
        """Build and push."""
        return _cost(self.wire, lambda: self.docker.release(self.root, self.image, base=self.base, options=options))

    def task(self) -> Cost:
        """Build and push by a task of Invoke."""
        return _cost(self.wire, lambda: self.docker.task(self.root, self.image, base=self.base))

    @contextmanager
    def elsewhere(self, folder: Path) -> Iterator[Dockerfile]:
        """Be a machine that has the same files, fetched afresh, and the base."""
        with rivals.machine(folder) as docker:
            docker.run("pull", "--quiet", self.base)
            shutil.copytree(self.root, folder / "context", copy_function=shutil.copyfile)
            yield replace(self, root=folder / "context", docker=docker)


def base_image(machine: Docker, wire: Wire) -> str:
    """Push a base with Python, and return its name there, by digest."""
    client = docker.DockerClient(base_url=machine.environ["DOCKER_HOST"])
    try:
        image = client.images.get(python_image(_PYTHON, client))
        image.tag(f"{wire.host}/base")
        machine.run("push", "--quiet", f"{wire.host}/base")
        image.reload()
        (name,) = image.attrs["RepoDigests"]
    finally:
        client.close()
    return str(name)


def weights(folder: Path, size_bytes: int, *, seed: int) -> Path:
    """Make a model's folder of this size, and return it."""
    run([sys.executable, "-m", "benchmarks.weights", folder, str(size_bytes), str(seed)], cwd=ROOT)
    return folder


def project(folder: Path, wire: Wire, base: str, model: Path, *, names: Sequence[str] = _PROJECT) -> Shipway:
    """Commit the service (`names` of this repository, all of it when there are none) and publish its model."""
    settings = {
        "SHIPWAY_MODEL_STORE": str(folder / "store"),
        "SHIPWAY_PUSH_REPOSITORY": f"{wire.host}/shipway",
        "SHIPWAY_IMAGE_BASE": base,
        "SHIPWAY_IMAGE_PYTHON": f'"{_PYTHON}"',
        "UV_CACHE_DIR": str(folder / "uv"),
    }
    ours = Shipway(root=folder / "project", wire=wire, environ=_writing_bytecode() | settings)
    _export(ours.root, *names)
    git(ours.root, "init", "--quiet")
    ours.commit()
    ours.invoke("model.publish", "--folder", str(model))
    return ours


def context(folder: Path, text: str, model: Path, *, machine: Docker, wire: Wire, base: str) -> Dockerfile:
    """Lay out what a Dockerfile needs, and no more: the service and its model."""
    _export(folder, "app")
    shutil.copytree(model, folder / "model", copy_function=shutil.copyfile)
    (folder / "Dockerfile").write_text(text, "utf-8")
    return Dockerfile(root=folder, image=f"{wire.host}/{folder.name}:latest", docker=machine, wire=wire, base=base)


def _export(folder: Path, *names: str) -> None:
    folder.mkdir()
    packed = subprocess.run(["git", "archive", "HEAD", *names], cwd=ROOT, check=True, capture_output=True).stdout
    with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
        archive.extractall(folder, filter="data")


def git(root: Path, *words: str) -> str:
    """Run git and return its stdout."""
    return subprocess.run(["git", *words], cwd=root, check=True, capture_output=True, text=True).stdout


def change_code(*trees: Shipway | Dockerfile) -> None:
    """Add a line to the service, the same one everywhere."""
    for tree in trees:
        with (tree.root / "app" / "__init__.py").open("a", encoding="utf-8") as module:
            module.write("# changed by a benchmark\n")
        if isinstance(tree, Shipway):
            tree.commit()


# -- what is measured --------------------------------------------------------------------


def _beside(what: str, ours: Cost, theirs: Cost, whose: str) -> Iterator[Row]:
    """Yield the seconds, and the bytes that came to the registry."""
    yield _seconds(what, ours.seconds, theirs.seconds, whose)
    yield Row(
        what="  sent",
        value=ours.moved.sent / 1e6,
        unit="MB",
        reference=theirs.moved.sent / 1e6,
        against=f"{whose}'s {theirs.moved.sent / 1e6:.3f} MB",
    )


def _first(ours: Shipway, best: Dockerfile, original: Dockerfile, folder: Path) -> Iterator[Row]:
    """Begin with nothing but the base, on a machine after another; the last of them goes on."""
    rounds = []
    for number in range(1, _COLD_ROUNDS):
        mine, costs = ours.afresh(folder / f"first-{number}").release(), []
        for each in (best, original):
            with each.elsewhere(folder / f"{each.root.name}-{number}") as cold:
                image = each.image.replace(":latest", f"-{number}:latest")
                costs.append(replace(cold, image=image).release())
        rounds.append((mine, *costs))
    rounds.append((ours.release(), best.release(), original.release()))
    yield from _beside("first release", *_middle([(mine, theirs) for mine, theirs, _ in rounds]), "the best Dockerfile")
    yield from _beside("first release", *_middle([(mine, theirs) for mine, _, theirs in rounds]), "the original")
    yield _memory("  peak memory", rounds[-1][0], _MODEL_BYTES)


def _memory(what: str, cost: Cost, model_bytes: int) -> Row:
    size_mb = model_bytes / 1e6
    return Row(
        what=what,
        value=cost.peak_bytes / 1e6,
        unit="MB",
        reference=size_mb,
        against=f"the model's {size_mb:,.0f} MB",
    )


def _nothing(ours: Shipway, best: Dockerfile) -> Iterator[Row]:
    rounds = [(ours.release(), best.release(), best.task()) for _ in range(_ROUNDS)]
    yield from _beside("nothing changed", *_middle([each[:2] for each in rounds]), "the best Dockerfile")
    yield _seconds("nothing changed", *middle((mine.seconds, task.seconds) for mine, _, task in rounds), _TASK)


def _middle(rounds: list[tuple[Cost, Cost]]) -> tuple[Cost, Cost]:
    """Return the round whose ratio of seconds is the median."""
    by_seconds = {(mine.seconds, theirs.seconds): (mine, theirs) for mine, theirs in rounds}
    return by_seconds[middle(by_seconds)]


def _code(ours: Shipway, best: Dockerfile, original: Dockerfile) -> Iterator[Row]:
    """Change a line of code; crane appends the same folder to the image that was pushed before."""
    rounds, tasks, stages, appends = [], [], [], []
    for number in range(_ROUNDS):
        change_code(ours)
        inside = ours.stages()
        appends.append((inside.push_s, _append(ours, inside.image, number).seconds))
        change_code(ours, best, original)
        rounds.append((ours.release(), best.release()))
        change_code(best)
        tasks.append((rounds[-1][0].seconds, best.task().seconds))
        stages.append((inside.all_s, rounds[-1][1].seconds))
    mine, theirs = _middle(rounds)
    yield from _beside("code only, warm", mine, theirs, "the best Dockerfile")
    yield _seconds("code only, warm", *middle(tasks), _TASK)
    yield from _beside("code only, warm", mine, original.release(), "the original")
    yield _seconds("  without the start of Python", *middle(stages), "the best Dockerfile")
    yield _seconds("  its push stage", *middle(appends), "crane append")
    change_code(ours)
    app_bytes = inside.layers["app"]
    yield _above("  sent above the app's layer", mine.moved.sent, app_bytes, "the app's layer")
    yield _above("    in bodies, without headers", _body_bytes(ours), app_bytes, "the app's layer")


def _append(ours: Shipway, image: str, number: int) -> Cost:
    layer = ours.root.with_name("app.tar")
    git(ours.root, "archive", "--prefix=srv/", f"--output={layer}", "HEAD", "app")
    program, name = crane(), f"{image.partition('@')[0]}:crane-{number}"
    return _cost(ours.wire, lambda: rivals.append(program, layer, base=image, image=name))


def _body_bytes(ours: Shipway) -> int:
    """Push through a proxy that reads HTTP, and return the bytes of the bodies that were sent."""
    with Proxy(ours.wire.host) as proxy:
        environ = {name: value.replace(ours.wire.host, proxy.address) for name, value in ours.environ.items()}
        replace(ours, environ=environ).release()
        return proxy.received_bytes()


def _seconds(what: str, mine_s: float, theirs_s: float, whose: str) -> Row:
    return Row(what=what, value=mine_s, unit="s", reference=theirs_s, against=f"{whose}'s {theirs_s:.3f} s")


def _above(what: str, sent_bytes: int, layer_bytes: int, whose: str) -> Row:
    return Row(
        what=what,
        value=(sent_bytes - layer_bytes) / 1e3,
        unit="kB",
        reference=layer_bytes / 1e3,
        against=f"{whose}'s {layer_bytes / 1e3:,.1f} kB",
    )


def _code_cold(ours: Shipway, best: Dockerfile, folder: Path) -> Iterator[Row]:
    """Change a line of code on machines that nothing was built on before."""
    cache = replace(best, image=f"{best.image}-cache")
    cache.release(*_INLINE_CACHE)
    plain, cached = [], []
    for number in range(_COLD_ROUNDS):
        change_code(ours, best)
        with ours.elsewhere(folder / f"clone-{number}") as clone:
            mine = clone.release()
        with best.elsewhere(folder / f"cold-{number}") as cold:
            plain.append((mine, cold.release()))
        with best.elsewhere(folder / f"cached-{number}") as cold:
            cached.append((mine, cold.release("--cache-from", cache.image)))
    yield from _beside("code only, empty caches", *_middle(plain), "the best Dockerfile")
    yield from _beside("code only, empty caches", *_middle(cached), "the same with --cache-from")


def _model(ours: Shipway, best: Dockerfile, retrained: Path) -> Iterator[Row]:
    """Publish another version of the model."""
    ours.invoke("model.publish", "--folder", str(retrained))
    shutil.copytree(retrained, best.root / "model", copy_function=shutil.copyfile, dirs_exist_ok=True)
    yield from _beside("model only", ours.release(), best.release(), "the best Dockerfile")


def _dependency(ours: Shipway, best: Dockerfile) -> Iterator[Row]:
    """Take another version of one small package."""
    lock, constraint = ours.root / _LOCK, ours.root.with_name("constraint.txt")
    (locked,) = re.findall(rf"^{_BUMPED}==(\S+)", lock.read_text("utf-8"), re.MULTILINE)
    constraint.write_text(f"{_BUMPED}!={locked}\n", "utf-8")
    how = ("--universal", "--python-version", _PYTHON, "--generate-hashes", "--no-header", "--no-emit-index-url")
    words = ("pip", "compile", *how, "--constraint", constraint, _LOCK.with_suffix(".in"), "--output-file", _LOCK)
    run([find_uv_bin(), *words], cwd=ours.root)
    ours.commit()
    shutil.copyfile(lock, best.root / _LOCK)
    mine, theirs = ours.release(), best.release()
    yield from _beside("one small package bumped", mine, theirs, "the best Dockerfile")
    layers = ours.stages().layers
    small_bytes = next(size for title, size in layers.items() if title.endswith("small packages"))
    changed_bytes = small_bytes + layers["app"]  # the lock lies in the app's folder
    yield _above("  sent above its layer and the app's", mine.moved.sent, changed_bytes, "both layers")


def _large(ours: Shipway, folder: Path) -> Iterator[Row]:
    """Push a model of 2 GB for the first time."""
    large = weights(folder / "large", _LARGE_BYTES, seed=3)
    ours.invoke("model.publish", "--folder", str(large))
    shutil.rmtree(large)
    yield _memory("peak memory, 2 GB model", ours.release(), _LARGE_BYTES)


if __name__ == "__main__":
    main()
