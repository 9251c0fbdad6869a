"""What a user would pick instead: `docker build` and `docker push`, and `crane append`.

Owns the two Dockerfiles and a Docker daemon that nobody else uses: it begins with nothing, so
it is a machine with empty caches, and the caches of the machine's own daemon are left alone.
Containers use this machine's network while they are built.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks import run
from tests.docker.machine import with_buildkit

_START_S = 60.0

# Everything, then pip: what most people write first.
ORIGINAL = """\
ARG BASE
FROM ${BASE}
ADD . /code
WORKDIR /code
RUN python -m pip install --no-cache-dir --break-system-packages -r app/requirements.txt
CMD ["python", "-m", "gunicorn", "--config", "app/gunicorn.conf.py", "app:create_app()"]
"""
# From what changes least to what changes most, with pip's cache kept between builds.
BEST = """\
ARG BASE
FROM ${BASE}
COPY app/requirements.txt /tmp/requirements.txt
RUN --mount=type=cache,target=/wheels \\
    PIP_CACHE_DIR=/wheels python -m pip install --no-compile --require-hashes --only-binary :all: \\
    --target /srv/site-packages --requirement /tmp/requirements.txt
COPY model /srv/model
COPY app /srv/app
WORKDIR /srv
ENV PYTHONPATH=/srv/site-packages:/srv
CMD ["python", "-m", "gunicorn", "--config", "app/gunicorn.conf.py", "app:create_app()"]
"""
# What a user of Invoke writes around the two commands.
TASKS = """\
from invoke import task


@task
def release(c):
    c.run({build!r})
    c.run({push!r})
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Docker:
    """A daemon of our own, and the client that has BuildKit."""

    program: str
    environ: dict[str, str]

    def release(self, context: Path, image: str, *, base: str, options: Sequence[str] = ()) -> int:
        """Build the Dockerfile in `context` and push it; return the client's peak memory in bytes."""
        return max(self.run(*words) for words in _commands(context, image, base, options))

    def task(self, context: Path, image: str, *, base: str) -> int:
        """Do the same by `invoke release`; return the peak memory of the largest process in bytes."""
        folder = context.with_name(f"{context.name}-task")
        folder.mkdir(exist_ok=True)
        build, push = (shlex.join([self.program, *words]) for words in _commands(context, image, base))
        (folder / "tasks.py").write_text(TASKS.format(build=build, push=push), "utf-8")
        return run([sys.executable, "-m", "invoke", "release"], cwd=folder, env=self.environ)

    def run(self, *words: str) -> int:
        """Run the client; return its peak memory in bytes."""
        return run([self.program, *words], env=self.environ)


def _commands(context: Path, image: str, base: str, options: Sequence[str] = ()) -> tuple[tuple[str, ...], ...]:
    build = ("build", "--quiet", "--network", "host", "--build-arg", f"BASE={base}", "--tag", image)
    return (*build, *options, str(context)), ("push", "--quiet", image)


@contextlib.contextmanager
def machine(folder: Path) -> Iterator[Docker]:
    """Start a daemon without images and caches in `folder`, which stays when it ends.

    Deleting it there would cost whoever makes files next: ext4 looks for those that are
    gone since a minute or less before it makes a new one.
    """
    folder.mkdir()
    (folder / "config").mkdir()
    url = f"unix://{folder}/socket"
    environ = os.environ | {"DOCKER_HOST": url, "DOCKER_CONFIG": f"{folder}/config", "DOCKER_BUILDKIT": "1"}
    docker = Docker(program=with_buildkit(), environ=environ)
    argv: list[str | Path] = [
        *("dockerd", "--host", url, "--pidfile", folder / "pid", "--data-root", folder / "data"),
        *("--exec-root", folder / "run", "--bridge", "none", "--iptables=false", "--ip-masq=false"),
    ]
    with (folder / "log").open("wb") as log, subprocess.Popen(argv, stdout=log, stderr=log) as daemon:
        try:
            _wait(docker, daemon, folder)
            yield docker
        finally:
            daemon.terminate()
            daemon.wait()


def _wait(docker: Docker, daemon: subprocess.Popen[bytes], folder: Path) -> None:
    deadline = time.monotonic() + _START_S
    while daemon.poll() is None and time.monotonic() < deadline:
        asked = subprocess.run([docker.program, "version"], env=docker.environ, capture_output=True, check=False)
        if asked.returncode == 0:
            return
        time.sleep(0.1)
    message = f"dockerd did not start:\n{(folder / 'log').read_text('utf-8')[-2000:]}"
    raise RuntimeError(message)


def append(crane: Path, layer: Path, *, base: str, image: str) -> int:
    """Append a layer to an image with crane; return its peak memory in bytes."""
    return run([crane, "append", "--base", base, "--new_layer", layer, "--new_tag", image])
