"""Users of the service: each asks golden exchanges, picked at random, and checks every answer.

`$EXCHANGES` names a folder of exchanges (`*.json`, as they travel with a model); without it
the users ask `$READY_PATH`. With `$CHECK_ANSWERS` 0, an answer's status alone counts. How
much load, for how long, and what is good enough is not said here.
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
        if os.environ.get("CHECK_ANSWERS") == "0":
            case["response"] = {"status": case["response"].get("status", 200)}
    return cases or [{"name": "ready", "request": {"path": os.environ.get("READY_PATH", "/")}, "response": {}}]


_COMES_ANEW = 0.1  # the share of requests after which a user's connection ends
CASES = _cases(os.environ.get("EXCHANGES", ""))


class Caller(FastHttpUser):
    """Keeps its connection for a while, asks without a pause, and waits no longer than people would.

    Where two versions share an address, a connection stays with the one that took it: users
    who never came anew could measure the old one alone.
    """

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
            headers={**request.get("headers", {}), **self._connection()},
            data=request.get("body"),
            catch_response=True,
        ) as answer:
            if answer.status_code == 0:
                return  # nobody answered: Locust knows the reason
            if wrong := mistake(case["response"], answer.status_code, answer.content or b""):
                answer.failure(wrong)
            else:
                answer.success()

    def _connection(self) -> dict[str, str]:
        return {"connection": "close"} if random.random() < _COMES_ANEW else {}  # noqa: S311 - no secret
