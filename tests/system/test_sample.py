"""The sample service of this repository, released for real: what its users see, from clone to rollback."""

from __future__ import annotations

import base64
import http.client
import json
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from tests.system import project as projects
from tests.system.project import Project
from tests.system.referee import Referee, Request

JSON = {"Content-Type": "application/json"}


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    for project in projects.sample(tmp_path_factory.mktemp("sample")):
        project.invoke("release")
        yield project


@pytest.fixture(scope="module")
def chelsea(sample: Project) -> bytes:
    """The photograph of a cat, from the model's golden cases."""
    (found,) = (sample.root / ".shipway" / "versions").glob("*/srv/models/*/golden/images/chelsea.*")
    return found.read_bytes()


def test_sample_answers_tiger_cat_to_all_four_forms(sample: Project, chelsea: bytes) -> None:
    encoded = base64.b64encode(chelsea).decode()
    forms = [
        (json.dumps({"input": json.dumps([encoded])}).encode(), JSON),
        (json.dumps([f"data:image/png;base64,{encoded}"]).encode(), JSON),
        (chelsea, {"Content-Type": "image/png"}),
        _multipart(chelsea),
    ]

    answers = [_score(sample, body, headers) for body, headers in forms]

    live = sample.facts("status")
    for answer in answers:
        assert answer["predictions"][0]["labels"][0]["label"] == "tiger cat"
        assert len(answer["predictions"][0]["labels"]) == 3
        assert (answer["build"], answer["model"]) == (live["build"], live["model"])


def test_sample_loses_no_request_and_moves_kilobytes_when_a_line_changes(sample: Project, chelsea: bytes) -> None:
    before, layout = sample.facts("status"), sample.layout_bytes()
    _change(sample, "another docstring")

    with _referee(sample, chelsea) as referee:
        released = sample.facts("release")

    assert referee.failed() == []
    assert len(referee.answers) > 100
    assert referee.builds() == [before["build"], released["current"]["build"]]
    assert sample.layout_bytes() - layout < 100_000
    assert _layers(sample, before["digest"], "model") == _layers(sample, released["current"]["digest"], "model")


@pytest.mark.parametrize(
    ("fault", "code", "told"),
    [
        ("crash", 51, "no such weights"),
        ("errors", 60, "failures"),
        ("wrong labels", 53, "tiger cat"),
        ("slow", 60, "p95"),
    ],
)
def test_sample_refuses_a_broken_service_and_its_users_never_meet_it(
    sample: Project, chelsea: bytes, fault: str, code: int, told: str
) -> None:
    good = sample.facts("status")
    strict = replace(sample, environ=sample.environ | {"SHIPWAY_LOADCHECK_MAX_P95_MS": "500"})
    with _referee(sample, chelsea) as referee:
        _break(sample, fault)
        _, err = (strict if fault == "slow" else sample).invoke("release", exits=code)
        sample.git("revert", "--no-edit", "HEAD")
        fixed = sample.facts("release")["current"]

    assert told in err
    assert "Next:" in err
    assert referee.failed() == []
    assert set(referee.builds()) == {good["build"], fixed["build"]}


def test_sample_goes_back_by_part_without_losing_a_request(sample: Project, chelsea: bytes) -> None:
    _change(sample, "one more docstring")
    model = _publish_again(sample)
    newest = sample.facts("release")["current"]
    with _referee(sample, chelsea) as referee:
        steps = [sample.facts("rollback", *words)["current"] for words in (["--only", "model"], ["--only", "code"], [])]
        seen = sample.facts("status")

    assert newest["model"]["version"] == model
    assert steps[0]["model"]["version"] == model - 1
    assert steps[0]["commit"] == newest["commit"]
    assert steps[1]["commit"] != newest["commit"]
    assert steps[1]["model"] == steps[0]["model"]
    assert seen["digest"] == steps[2]["digest"]
    assert referee.failed() == []
    assert referee.builds() == list(dict.fromkeys(step["build"] for step in (newest, *steps)))


def test_sample_plan_names_the_bytes_and_the_way_back(sample: Project) -> None:
    _change(sample, "planned")
    live = sample.facts("status")

    planned = sample.facts("plan")

    assert planned["way_back"]["digest"] == live["digest"]
    assert 0 < planned["bytes"]["app"] < 100_000
    assert (planned["bytes"]["model"], planned["bytes"]["dependencies"]) == (0, 0)
    size = sample.layout_bytes()
    sample.invoke("build")
    evidence_bytes = sample.layout_bytes() - size - planned["bytes"]["total"]
    assert 0 < evidence_bytes < 15_000  # what is attached is made when all else is there


def _referee(sample: Project, photograph: bytes) -> Referee:
    request = Request(method="POST", path="/score", body=photograph, headers={"Content-Type": "image/png"})
    return Referee(sample.url, rate=20, request=request)


def _score(sample: Project, body: bytes, headers: dict[str, str]) -> Any:
    connection = http.client.HTTPConnection("127.0.0.1", sample.port, timeout=10)
    connection.request("POST", "/score", body, headers)
    answer = connection.getresponse()
    text = answer.read()
    connection.close()
    assert answer.status == 200, text
    return json.loads(text)


def _multipart(photograph: bytes) -> tuple[bytes, dict[str, str]]:
    head = (
        b'--line\r\nContent-Disposition: form-data; name="image"; filename="cat.png"\r\nContent-Type: image/png\r\n\r\n'
    )
    return head + photograph + b"\r\n--line--\r\n", {"Content-Type": "multipart/form-data; boundary=line"}


def _change(sample: Project, text: str) -> None:
    source = sample.root / "app" / "__init__.py"
    source.write_text(source.read_text() + f"# {text}\n")
    sample.commit(text)


def _break(sample: Project, fault: str) -> None:
    """Commit a fault in the service, in a wrapper around its application; its suite does not see it."""
    service = sample.root / "release.toml"
    service.write_text(service.read_text().replace("app:create_app()", "app.broken:create_app()"))
    sample.write("app/broken.py", _BROKEN.format(fault=fault))
    sample.commit(fault)


def _layers(sample: Project, digest: str, part: str) -> list[str]:
    manifest = json.loads((sample.images / "blobs" / "sha256" / digest[7:]).read_text())
    return [each["digest"] for each in manifest["layers"] if each["annotations"]["dev.shipway.part"] == part]


def _publish_again(sample: Project) -> int:
    """Publish the model's files with another card: another version with the same answers."""
    folder = sample.root.parent / "again"
    sample.invoke("model.pull", str(folder))
    subprocess.run(["chmod", "-R", "u+w", folder], check=True)
    (folder / "card.md").write_text((folder / "card.md").read_text() + "\nPublished again.\n")
    return int(sample.facts("model.publish", str(folder))["version"])


_BROKEN = '''\
"""The service, broken on purpose."""

import itertools
import time

from app import create_app as whole

COUNT = itertools.count(1)


def create_app():
    if "{fault}" == "crash":
        raise RuntimeError("no such weights")
    application = whole()
    score = application.wsgi_app

    def answer(environ, start_response):
        if environ["PATH_INFO"] != "/score":
            return score(environ, start_response)
        if "{fault}" == "errors" and next(COUNT) % 10 == 0:
            start_response("500 Internal Server Error", [("Content-Length", "0")])
            return []
        if "{fault}" == "slow":
            time.sleep(0.7)
        body = b"".join(score(environ, start_response))
        return [body.replace(b"tiger cat", b"house cat")] if "{fault}" == "wrong labels" else [body]

    application.wsgi_app = answer
    return application
'''
