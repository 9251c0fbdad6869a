"""A real MLflow server for tests, a process of its own on a free port of loopback.

MLflow is installed once, at a pinned version, into a virtual environment in
`~/.cache/shipway-tests`: its dependencies and ours do not agree. It keeps its registry in
SQLite and its artifacts in a folder, and hands them out itself. `python` runs plain mlflow
beside it, as another team's notebook would.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil
import pytest
from uv import find_uv_bin

from shipway.oci.staging import locked
from tests.docker.tools import PLACE
from tests.system.project import free_port

_MLFLOW, _ONNX = "3.17.2", "1.20.0"
_START_S, _INSTALL_S = 120.0, 600
_QUIET = {"MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true", "GIT_PYTHON_REFRESH": "quiet"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Tracking:
    """A server that answers at `url`; `artifacts` is the folder where it keeps files."""

    url: str
    artifacts: Path
    client: httpx.Client

    @property
    def host(self) -> str:
        """`HOST:PORT`."""
        return self.url.removeprefix("http://")

    @property
    def address(self) -> str:
        """What `[model] store` calls it."""
        return f"mlflow+{self.url}"

    def python(self, script: str, *arguments: str | Path) -> str:
        """Run a script with plain mlflow and onnx, which talk to this server; return what it prints."""
        environ = {**os.environ, **_QUIET, "MLFLOW_TRACKING_URI": self.url}
        done = subprocess.run(
            [installed() / "bin" / "python", "-c", script, *map(str, arguments)],
            capture_output=True,
            text=True,
            env=environ,
            timeout=_START_S,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout.strip()

    def ask(self, method: str, path: str, **asked: object) -> dict[str, object]:
        """Ask the server's own API, past shipway: `registered-models/get`."""
        sent = {"params": asked} if method == "GET" else {"json": asked}
        answer = self.client.request(method, f"{self.url}/api/2.0/mlflow/{path}", **sent)  # type: ignore[arg-type]
        assert answer.is_success, answer.text
        return dict(answer.json())


@contextlib.contextmanager
def tracking(folder: Path, *, environ: Mapping[str, str] | None = None) -> Iterator[Tracking]:
    """Start a server of its own."""
    program = installed() / "bin" / "mlflow"
    port, artifacts = free_port(), folder / "artifacts"
    argv = [str(program), "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    argv += ["--backend-store-uri", f"sqlite:///{folder}/mlflow.db", "--artifacts-destination", str(artifacts)]
    quiet = {**os.environ, **_QUIET, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", **(environ or {})}
    with (folder / "log").open("wb") as log, httpx.Client(trust_env=False, timeout=30) as client:
        process = subprocess.Popen(argv, stdout=log, stderr=log, env=quiet, cwd=folder)
        try:
            made = Tracking(url=f"http://127.0.0.1:{port}", artifacts=artifacts, client=client)
            _wait(process, made, folder / "log")
            yield made
        finally:
            family = [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]
            for each in family:
                with contextlib.suppress(psutil.NoSuchProcess):
                    each.terminate()
            for each in psutil.wait_procs(family, 10)[1]:
                each.kill()
            process.wait()


def installed() -> Path:
    """Return the virtual environment that holds MLflow, made where it is not there yet."""
    place = PLACE / f"mlflow-{_MLFLOW}"
    PLACE.mkdir(parents=True, exist_ok=True)
    with locked(PLACE / "mlflow.lock"):
        if not (place / "whole").exists():
            uv = find_uv_bin()
            wanted = [f"mlflow=={_MLFLOW}", f"onnx=={_ONNX}", "onnxruntime"]
            for argv in (
                [uv, "venv", "--quiet", "--clear", "--python", "3.11", str(place)],
                [uv, "pip", "install", "--quiet", "--python", str(place / "bin" / "python"), *wanted],
            ):
                done = subprocess.run(argv, capture_output=True, timeout=_INSTALL_S, check=False)
                if done.returncode != 0:
                    pytest.skip(f"{' '.join(argv[1:])} failed: {done.stderr.decode()[-300:]}")
            (place / "whole").touch()
    return place


def _wait(process: subprocess.Popen[bytes], tracking: Tracking, log: Path) -> None:
    until = time.monotonic() + _START_S
    while time.monotonic() < until and process.poll() is None:
        with contextlib.suppress(httpx.TransportError):
            if tracking.client.get(f"{tracking.url}/health").is_success:
                return
        time.sleep(0.1)
    message = f"it did not start (exit code {process.poll()}):\n{log.read_text('utf-8')[-2000:]}"
    raise AssertionError(message)
