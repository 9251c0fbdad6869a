"""Routes, errors, request ids, logs, metrics: what does not depend on an image."""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from flask import Flask
from flask.testing import FlaskClient
from prometheus_client import REGISTRY

from app import observe, openapi, scoring

ROOT = Path(__file__).parents[2]


def test_index_says_healthy(client: FlaskClient) -> None:
    answer = client.get("/")

    assert (answer.status_code, answer.mimetype, answer.text) == (200, "text/plain", "healthy")


def test_version_says_service_build_model_and_process(client: FlaskClient, model_dir: Path) -> None:
    answer = client.get("/version")

    assert answer.get_json() == {
        "service": "image-classifier",
        "build": "a-build",
        "model": {"name": "classifier", "version": 3, "digest": scoring.set_digest(model_dir)},
        "instance": str(os.getpid()),
    }


def test_probes_answer_when_all_is_well(client: FlaskClient) -> None:
    answers = [client.get("/healthz"), client.get("/readyz")]

    assert [(answer.status_code, answer.get_json()) for answer in answers] == [
        (200, {"status": "alive"}),
        (200, {"status": "ready"}),
    ]


def test_readyz_refuses_and_healthz_does_not_when_the_process_is_stopping(make_app: Callable[..., Flask]) -> None:
    app = make_app()
    app.extensions["stopping"] = lambda: True

    ready, alive = app.test_client().get("/readyz"), app.test_client().get("/healthz")

    assert (ready.status_code, ready.headers["Retry-After"], alive.status_code) == (503, "1", 200)


@pytest.mark.parametrize(
    ("method", "path", "status", "title"),
    [
        ("GET", "/nowhere", 404, "Not Found"),
        ("GET", "/score", 405, "Method Not Allowed"),
    ],
)
def test_errors_are_problem_details_when_flask_refuses(
    method: str, path: str, status: int, title: str, client: FlaskClient
) -> None:
    answer = client.open(path, method=method, headers={"X-Request-Id": "mine"})

    problem = answer.get_json()
    assert isinstance(problem.pop("detail"), str)
    assert (answer.status_code, answer.content_type) == (status, "application/problem+json")
    assert problem == {"type": "about:blank", "title": title, "status": status, "instance": "mine", "errors": []}


def test_score_says_which_methods_are_allowed_when_asked_with_another(client: FlaskClient) -> None:
    answer = client.get("/score")

    assert set(answer.headers["Allow"].split(", ")) == {"OPTIONS", "POST"}


@pytest.mark.parametrize(
    "content_type", ["", "text/plain", "image/svg+xml", "image/tiff", "application/x-www-form-urlencoded"]
)
def test_score_says_what_it_takes_when_sent_another_media_type(content_type: str, client: FlaskClient) -> None:
    answer = client.post("/score", data=b"x", content_type=content_type)

    assert answer.status_code == 415
    assert answer.headers["Accept-Post"].startswith("application/json, multipart/form-data, image/png")


def test_score_refuses_when_the_body_is_compressed(client: FlaskClient) -> None:
    answer = client.post(
        "/score", data=b"\x1f\x8b", content_type="application/json", headers={"Content-Encoding": "gzip"}
    )

    assert (answer.status_code, answer.headers["Accept-Encoding"]) == (415, "identity")


def test_score_refuses_when_the_body_is_longer_than_allowed(make_app: Callable[..., Flask]) -> None:
    client = make_app(max_body_bytes=1000).test_client()

    answer = client.post("/score", data=bytes(1001), content_type="image/png")

    assert (answer.status_code, answer.content_type) == (413, "application/problem+json")


def test_answer_has_no_traceback_and_the_log_has_when_we_make_a_mistake(
    app: Flask, client: FlaskClient, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    # The one way to make code of ours fail where it cannot; "secret" stands for whatever the exception knows.
    def mistake() -> None:
        raise RuntimeError("secret")

    monkeypatch.setitem(app.view_functions, "healthz", mistake)

    answer = client.get("/healthz", headers={"X-Request-Id": "mine"})

    (record,) = [record for record in caplog.records if record.levelno == logging.ERROR]
    line = json.loads(observe.JsonFormatter().format(record))
    assert (answer.status_code, "secret" in answer.text, "Traceback" in answer.text) == (500, False, False)
    assert (line["request_id"], "RuntimeError: secret" in line["traceback"]) == ("mine", True)


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("abc-1.2_3", True),
        ("a" * 128, True),
        ("a" * 129, False),
        ("", False),
        ("a b", False),
        ('a"b', False),
        ("ä", False),
    ],
)
def test_request_id_is_kept_only_when_it_is_sane(given: str, kept: bool, client: FlaskClient) -> None:  # noqa: FBT001 - a parameter
    answer = client.get("/", headers={"X-Request-Id": given})

    told = answer.headers["X-Request-Id"]
    assert told == given if kept else re.fullmatch(r"[0-9a-f]{32}", told)


def test_log_has_one_line_without_query_or_body_when_a_request_is_refused(
    client: FlaskClient, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "app")

    client.post("/score?token=secret", data=b"secret-bytes", content_type="image/png", headers={"X-Request-Id": "mine"})

    (record,) = caplog.records
    line = json.loads(observe.JsonFormatter().format(record))
    assert line.pop("ms") >= 0
    assert {key: line[key] for key in line.keys() - {"time", "pid"}} == {
        "level": "info",
        "logger": "app",
        "message": "this is not a PNG or JPEG image",
        "method": "POST",
        "path": "/score",
        "status": 422,
        "request_id": "mine",
    }


def test_log_is_silent_when_a_probe_is_answered(client: FlaskClient, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "app")

    client.get("/readyz")

    assert caplog.records == []


def test_metrics_count_answers_by_route_and_status(client: FlaskClient) -> None:
    labels = {"route": "/score", "status": "415"}
    before = REGISTRY.get_sample_value("http_requests_total", labels) or 0

    client.post("/score", data=b"x", content_type="text/plain")
    client.post("/anything/users/type", data=b"x")

    assert REGISTRY.get_sample_value("http_requests_total", labels) == before + 1
    assert REGISTRY.get_sample_value("http_requests_total", {"route": "/anything/users/type", "status": "404"}) is None


def test_openapi_describes_every_route_and_names_only_schemas_it_has(app: Flask, client: FlaskClient) -> None:
    described = client.get("/openapi.json").get_json()

    routes = {rule.rule for rule in app.url_map.iter_rules()} - {"/", "/openapi.json"}
    named = set(re.findall(r"#/components/schemas/(\w+)", json.dumps(described)))
    assert set(described["paths"]) == routes
    assert named <= set(described["components"]["schemas"])
    assert described == openapi.document(title="image-classifier", version="a-build")


def test_contract_says_what_the_service_understands() -> None:
    contract = json.loads((ROOT / "app/contract.json").read_text("utf-8"))["preprocessing"]
    sample = {key: {"number": 1, "boolean": True}.get(str(value), value[0]) for key, value in contract.items()}

    understood = scoring.Preprocessing.model_validate(sample)

    assert understood.model_dump() == sample


def test_dockerfile_names_a_published_version_and_its_digest() -> None:
    text = (ROOT / "Dockerfile").read_text("utf-8")
    names, versions, digests = (
        set(re.findall(rf"ARG {name}=(\S+)", text)) for name in ("MODEL_NAME", "MODEL_VERSION", "MODEL_HEX")
    )

    (name,), (version,), (digest,) = names, versions, digests
    manifest = json.loads((ROOT / f"model/store/{name}/versions/{version}.json").read_text("utf-8"))

    assert manifest["digest"] == f"sha256:{digest}"
