"""A project of its own to release in tests: a git checkout, a free port, a way to run `invoke` in it."""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from shipway.proc import Proc
from shipway.stores import open_catalogue
from tests import model_folder

ROOT = Path(__file__).parents[2]

_SERVICE = '''\
"""Adds numbers."""

import json
import os
import pathlib

CARD = pathlib.Path(os.environ.get("MODEL_DIR", "."), "card.md")
CARD = CARD.read_text().strip() if CARD.exists() else ""


def create_app():
    return answer


def answer(environ, start_response):
    path, status = environ["PATH_INFO"], "200 OK"
    facts = {"build": os.environ["SHIPWAY_BUILD"], "model": os.environ["MODEL_VERSION"], "instance": os.getpid()}
    if path == "/score":
        length = int(environ.get("CONTENT_LENGTH") or 0)
        facts["sum"] = sum(json.loads(environ["wsgi.input"].read(length)))
        facts["card"] = CARD
    body = json.dumps(facts).encode()
    start_response(status, [("Content-Type", "application/json"), ("Content-Length", str(len(body)))])
    return [body]
'''

_GUNICORN = """\
import os

bind = f"127.0.0.1:{os.environ['PORT']}"
worker_class, workers, threads = "gthread", 1, 8
keepalive = 60  # longer than a machine that is busy with tests may leave a process without a turn
control_socket_disable = True
"""

_RELEASE = """\
[project]
name = "adder"
[test]
command = ["python", "-m", "pytest", "tests/app", "-q"]
requirements = "tests/app/requirements.txt"
[model]
name = "adds"
store = "{store}"
[service]
command = ["python", "-m", "gunicorn", "--config", "app/gunicorn.conf.py", "app:create_app()"]
[rollout]
port = {port}
proofs = 3
[loadcheck]
locustfile = "loadtests/locustfile.py"
seconds = 0.5
rate = 150
public_seconds = 0.5
warmup_seconds = 0.1
min_requests = 1
max_p95_growth = 1000
max_p95_ms = 10000
"""

_SUITE = """\
import app


def test_create_app_gives_an_application():
    assert callable(app.create_app())
"""


@dataclass(frozen=True, kw_only=True)
class Project:
    """A checkout that can be released on this machine."""

    root: Path
    port: int
    environ: dict[str, str] = field(default_factory=dict)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def images(self) -> Path:
        return self.root / ".shipway" / "images"

    def start(
        self, *words: str, umask: int = -1, limit_bytes: int | None = None, **environ: str
    ) -> subprocess.Popen[str]:
        """Start `invoke`; its progress can be read from `stderr`. No file may grow beyond `limit_bytes`."""
        process = subprocess.Popen(
            [sys.executable, "-m", "invoke", *words],
            cwd=self.root,
            env={**plain(os.environ), "PYTHONUNBUFFERED": "1", **self.environ, **environ},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            umask=umask,
        )
        if limit_bytes is not None:  # long before the interpreter is up and writes anything
            resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (limit_bytes, limit_bytes))
        return process

    def invoke(
        self, *words: str, exits: int = 0, umask: int = -1, limit_bytes: int | None = None, **environ: str
    ) -> tuple[str, str]:
        """Run `invoke` to its end, which must be `exits`; return its stdout and stderr."""
        process = self.start(*words, umask=umask, limit_bytes=limit_bytes, **environ)
        out, err = process.communicate(timeout=300)
        assert process.returncode == exits, f"invoke {' '.join(words)} ended with {process.returncode}\n{out}{err}"
        return out, err

    def facts(self, *words: str, **environ: str) -> Any:
        """Run `invoke … --json` and return its result."""
        return json.loads(replace(self, environ=self.environ | environ).invoke(*words, "--json")[0])

    def outcomes(self) -> list[tuple[str, str | None]]:
        """Return (kind, outcome) of every attempt, oldest first."""
        return [(record["kind"], record["outcome"]) for record in reversed(self.facts("history"))]

    def write(self, path: str, text: str) -> None:
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)

    def change(self, path: str, old: str, new: str) -> None:
        text = (self.root / path).read_text()
        assert old in text
        self.write(path, text.replace(old, new))

    def commit(self, subject: str) -> str:
        self.git("add", "--all")
        self.git("commit", "--quiet", "--message", subject)
        return self.git("rev-parse", "HEAD").strip()

    def git(self, *words: str) -> str:
        return subprocess.run(
            ["git", "-c", "user.name=test", "-c", "user.email=test@localhost", *words],
            cwd=self.root,
            check=True,
            capture_output=True,
            text=True,
        ).stdout

    def layout_bytes(self) -> int:
        return sum(path.stat().st_size for path in (self.images / "blobs").rglob("*") if path.is_file())


def plain(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the environment without what would change a release: CI's word, and our own suite's options."""
    return {key: text for key, text in environ.items() if key not in {"CI", "PYTEST_ADDOPTS"}}


def kill_at(process: subprocess.Popen[str], line: re.Pattern[str], number: int = signal.SIGKILL) -> list[str]:
    """Send a signal to the process when it tells a line that matches; return the lines until then."""
    assert process.stderr
    lines: list[str] = []
    for text in process.stderr:
        lines.append(text.rstrip())
        if line.search(text):
            process.send_signal(number)
            return lines
    raise AssertionError(f"no line matches {line.pattern!r}:\n" + "\n".join(lines))


def wait_until(condition: Any, *, seconds: float = 20) -> None:
    """Wait for a condition, at most so long."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.05)


def adder(folder: Path) -> Iterator[Project]:
    """Make the smallest project there can be: a service that adds, a model that adds."""
    yield from _committed(written_adder(folder))


def written_adder(folder: Path) -> Project:
    """Write that project's files; `begin` commits them."""
    store = folder / "store"
    _publish(store, folder / "model", weight=1)
    project = Project(root=folder / "project", port=free_port())
    project.write("release.toml", _RELEASE.format(store=store, port=project.port))
    project.write("app/__init__.py", _SERVICE)
    project.write("app/gunicorn.conf.py", _GUNICORN)
    project.write("app/requirements.txt", _locked("app/requirements.txt", "gunicorn", "packaging"))
    project.write("tests/app/test_adder.py", _SUITE)
    for name in ("tasks.py", ".gitignore", "tests/app/requirements.txt", "loadtests"):
        _copy(name, project.root)
    return project


def sample(folder: Path) -> Iterator[Project]:
    """Make a checkout of this very repository, as it stands."""
    project = Project(
        root=folder / "project",
        port=(port := free_port()),
        environ={
            "SHIPWAY_ROLLOUT_PORT": str(port),
            "SHIPWAY_TEST_COMMAND": '["pytest", "tests/app/test_settings.py", "-q"]',  # the rest is known to pass
            "SHIPWAY_LOADCHECK_RATE": "30",  # as much as the machine can is the business of what follows
            "SHIPWAY_LOADCHECK_SECONDS": "2",
            "SHIPWAY_LOADCHECK_PUBLIC_SECONDS": "3",  # on a full machine an answer may take more than one
            "SHIPWAY_LOADCHECK_WARMUP_SECONDS": "0.5",
            "SHIPWAY_LOADCHECK_MIN_REQUESTS": "5",
            "SHIPWAY_LOADCHECK_MAX_P95_GROWTH": "1000",  # the referee and other tests share this machine
            "SHIPWAY_LOADCHECK_MAX_P95_MS": "10000",
        },
    )
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).exists():
            _copy(name, project.root)
    yield from _committed(project)


def publish(project: Project, *, weight: float) -> int:
    """Publish another version of the adder's model; return its number."""
    return _publish(project.root.parent / "store", project.root.parent / f"model-{weight}", weight=weight)


def free_port() -> int:
    """Return a port that is free now, and that the kernel gives to nobody who only connects somewhere."""
    for port in random.sample(range(10_000, 30_000), 100):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise AssertionError("no port is free")


def begin(project: Project) -> None:
    """Make its files the first commit."""
    project.git("init", "--quiet")
    project.commit("Begin")


def _committed(project: Project) -> Iterator[Project]:
    begin(project)
    try:
        yield project
    finally:
        project.invoke("stop", "--wait")


def _publish(store: Path, folder: Path, *, weight: float) -> int:
    from shipway.console import Console  # noqa: PLC0415 - beside its only use

    catalogue = open_catalogue(str(store), root=store.parent, run=Proc())
    made = model_folder.make(folder, weight=weight)
    (made / "card.md").write_text(f"# Adds {weight:g}\n")
    case = made / "golden/exchanges/one.json"
    case.write_text(case.read_text().replace('"sum": 3', f'"sum": 3, "card": "# Adds {weight:g}"'))
    return catalogue.publish(made, name="adds", publisher="test", tell=Console()).version.version


def _copy(name: str, into: Path) -> None:
    source, target = ROOT / name, into / name
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
    else:
        shutil.copy(source, target)


def _locked(name: str, *wanted: str) -> str:
    """Return these packages' lines of a lock file."""
    blocks = re.split(r"\n(?=\S)", (ROOT / name).read_text())
    return "\n".join(block for block in blocks if block.split("==")[0] in wanted) + "\n"
