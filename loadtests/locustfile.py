"""Users of the service: each asks golden exchanges, picked at random, and checks every answer.

`$EXCHANGES` names a folder of exchanges (`*.json`, as they travel with a model); without it
the users ask `$READY_PATH`. How much load, for how long, and what is good enough is not
said here.
"""

from __future__ import annotations

import json
import os
import random
from pathlib import Path
from typing import Any

from locust import FastHttpUser, task

from loadtests.answers import mistake


def _cases(folder: str) -> list[dict[str, Any]]:
    files = sorted(Path(folder).glob("*.json")) if folder else []
    cases = [{"name": file.stem, **json.loads(file.read_bytes())} for file in files]
    for case in cases:
        if "body_file" in case["request"]:
            case["request"]["body"] = (Path(folder) / case["request"]["body_file"]).read_bytes()
        elif "json" in case["request"]:
            case["request"]["body"] = json.dumps(case["request"]["json"])
            case["request"]["headers"] = {"content-type": "application/json", **case["request"].get("headers", {})}
    return cases or [{"name": "ready", "request": {"path": os.environ.get("READY_PATH", "/")}, "response": {}}]


CASES = _cases(os.environ.get("EXCHANGES", ""))


class Caller(FastHttpUser):
    """Keeps its connection, asks without a pause, and waits no longer than people would."""

    network_timeout = connection_timeout = 10.0

    @task
    def ask(self) -> None:
        """Ask one exchange; a wrong answer is a failure, named."""
        case = random.choice(CASES)  # noqa: S311 - no secret
        request = case["request"]
        method = request.get("method", "GET")
        with self.client.request(
            method,
            request["path"],
            name=f"{request['path']} ({case['name']})",
            headers=request.get("headers", {}),
            data=request.get("body"),
            catch_response=True,
        ) as answer:
            if answer.status_code == 0:
                return  # nobody answered: Locust knows the reason
            if wrong := mistake(case["response"], answer.status_code, answer.content or b""):
                answer.failure(wrong)
            else:
                answer.success()
