"""Tiny versions for tests of targets: a folder with a service of 30 lines, good or bad as wanted."""

from __future__ import annotations

import contextlib
import importlib.util
import json
from dataclasses import dataclass
from pathlib import Path

from shipway.artifacts import Digest, Image, ModelRef, Version

_SERVICE = """
import json, os, signal, sys, threading, time

BEGAN = time.monotonic()
PLAN = json.loads(os.environ["PLAN"])
print("plan", PLAN, flush=True)
time.sleep(PLAN.get("slow_start_s", 0))
if PLAN.get("crash_at_start") or (PLAN.get("crash_in_public") and "fd://" in " ".join(sys.argv)):
    raise RuntimeError("no such thing as a model")
if "end_after_s" in PLAN:  # the whole service, not one worker
    threading.Timer(PLAN["end_after_s"], os.kill, [os.getppid(), signal.SIGKILL]).start()
    threading.Timer(PLAN["end_after_s"], os.kill, [os.getpid(), signal.SIGKILL]).start()

def app(environ, start_response):
    path, age = environ["PATH_INFO"], time.monotonic() - BEGAN
    status = "200 OK"
    if path == "/readyz" and PLAN.get("never_ready"):
        status = "503 Service Unavailable"
    if path == "/score":
        time.sleep(PLAN.get("score_s", 0))
        if age > PLAN.get("bad_after_s", 1e9):
            status = "500 Internal Server Error"
    build = PLAN.get("says", os.environ["SHIPWAY_BUILD"])
    answer = {"service": "standin", "build": build, "instance": str(os.getpid())}
    if path == "/environment":
        answer |= {"environment": dict(os.environ), "path": sys.path}
    body = json.dumps(answer)
    start_response(status, [("Content-Type", "application/json"), ("Content-Length", str(len(body)))])
    return [body.encode()]
"""

_GUNICORN = """
import os
bind = f"127.0.0.1:{os.environ['PORT']}"
worker_class, workers, threads, keepalive = "gthread", 1, 8, 10
control_socket_disable = True
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class StandIn:
    """A version, its image, and its unpacked folder."""

    version: Version
    image: Image
    root: Path


def make(folder: Path, build: str, *, start_timeout_s: float = 20, **plan: object) -> StandIn:
    """Make a version under `folder` that behaves as planned."""
    digest = Digest.of(json.dumps([build, plan]).encode())
    root = folder / digest.hex
    packages = root / "srv" / "site-packages"
    packages.mkdir(parents=True, exist_ok=True)
    for name in ("gunicorn", "packaging"):
        found = importlib.util.find_spec(name)
        assert found
        assert found.origin
        with contextlib.suppress(FileExistsError):
            (packages / name).symlink_to(Path(found.origin).parent)
    (root / "srv" / "standin.py").write_text(_SERVICE, "utf-8")
    (root / "srv" / "gunicorn.conf.py").write_text(_GUNICORN, "utf-8")
    service = {"command": ["python"], "start_timeout_s": start_timeout_s, "ports": {"METRICS_PORT": 9090}}
    config = {
        "config": {
            "Cmd": ["python", "-m", "gunicorn", "--config", "gunicorn.conf.py", "standin:app"],
            "WorkingDir": "/srv",
            "Env": [
                "PATH=/usr/local/bin:/usr/bin:/bin",
                "PYTHONPATH=/srv/site-packages:/srv",
                f"SHIPWAY_BUILD={build}",
                f"PLAN={json.dumps(plan)}",
            ],
            "Labels": {"dev.shipway.service": json.dumps(service)},
        }
    }
    model = ModelRef(name="standin", version=1, digest=Digest.of(b"model"))
    version = Version(digest=digest, build=build, commit="0" * 40, model=model)
    image = Image(build=build, manifest=b"", config=json.dumps(config).encode(), layers=())
    return StandIn(version=version, image=image, root=root)
