"""`POST /score`: every form of request gets the model's own answers."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

TIGER_CAT = {"label": "tiger cat", "index": 282}
ESPRESSO = {"label": "espresso", "index": 967}


@pytest.fixture(scope="session")
def cat(model_dir: Path) -> bytes:
    return (model_dir / "golden/images/chelsea.png").read_bytes()


@pytest.fixture(scope="session")
def coffee(model_dir: Path) -> bytes:
    return (model_dir / "golden/images/coffee.jpg").read_bytes()


def test_score_gives_the_golden_answers_when_asked_for_the_golden_exchanges(
    client: FlaskClient, model_dir: Path
) -> None:
    exchanges = sorted((model_dir / "golden/exchanges").glob("*.json"))
    wrong = {}

    for path in exchanges:
        exchange = json.loads(path.read_text("utf-8"))
        request, (expected,) = exchange["request"], exchange["response"]["json"]["predictions"]
        body = (path.parent / request["body_file"]).read_bytes()
        answer = client.open(request["path"], method=request["method"], headers=request["headers"], data=body)
        first = answer.get_json()["predictions"][0]["labels"][0]
        if first != expected["labels"][0] | {"probability": pytest.approx(expected["labels"][0]["probability"], 0.02)}:
            wrong[path.name] = first

    assert len(exchanges) > 0
    assert wrong == {}


def test_score_says_model_build_and_three_labels_best_first(client: FlaskClient, coffee: bytes) -> None:
    answer = client.post("/score", data=coffee, content_type="image/jpeg")

    body = answer.get_json()
    labels = body["predictions"][0].pop("labels")
    digest = body["model"].pop("digest")
    assert body == {"model": {"name": "classifier", "version": 3}, "build": "a-build", "predictions": [{}]}
    assert digest.startswith("sha256:")
    assert [label.keys() for label in labels] == [{"label", "index", "probability"}] * 3
    assert [label["probability"] for label in labels] == sorted((x["probability"] for x in labels), reverse=True)
    assert labels[0]["label"] == "espresso"


def _original(images: list[bytes]) -> dict[str, Any]:
    return {"json": {"input": json.dumps([_text(image) for image in images])}}


def _input_list(images: list[bytes]) -> dict[str, Any]:
    return {"json": {"input": [_text(image) for image in images]}}


def _bare_list(images: list[bytes]) -> dict[str, Any]:
    return {"json": [_text(image) for image in images]}


def _data_urls(images: list[bytes]) -> dict[str, Any]:
    return {"json": [f"data:image/png;base64,{_text(image)}" for image in images]}


def _wrapped(images: list[bytes]) -> dict[str, Any]:
    return {"json": [base64.encodebytes(image).decode() for image in images]}


def _multipart(images: list[bytes]) -> dict[str, Any]:
    # Names in no order, and one twice: the order of the parts is what counts.
    parts = [
        b'--x\r\nContent-Disposition: form-data; name="%s"; filename="f"\r\n\r\n%s\r\n' % (name, image)
        for name, image in zip((b"b", b"a", b"b"), images, strict=False)
    ]
    return {"data": b"".join(parts) + b"--x--\r\n", "content_type": "multipart/form-data; boundary=x"}


def _text(image: bytes) -> str:
    return base64.b64encode(image).decode()


@pytest.mark.parametrize("form", [_original, _input_list, _bare_list, _data_urls, _wrapped, _multipart])
def test_score_answers_each_image_in_order_when_sent_as(
    form: Callable[[list[bytes]], dict[str, Any]], client: FlaskClient, cat: bytes, coffee: bytes
) -> None:
    answer = client.post("/score", **form([cat, coffee, cat]))

    assert [_first(prediction) for prediction in answer.get_json()["predictions"]] == [TIGER_CAT, ESPRESSO, TIGER_CAT]


@pytest.mark.parametrize("content_type", ["image/png", "image/jpeg", "application/octet-stream"])
def test_score_goes_by_content_when_the_body_is_an_image(content_type: str, client: FlaskClient, cat: bytes) -> None:
    answer = client.post("/score", data=cat, content_type=content_type)

    assert [_first(prediction) for prediction in answer.get_json()["predictions"]] == [TIGER_CAT]


def test_score_gives_the_same_answer_when_asked_twice(client: FlaskClient, cat: bytes) -> None:
    first, second = (client.post("/score", data=cat, content_type="image/png").get_json() for _ in range(2))

    assert first == second


def _faults(answer: TestResponse) -> tuple[int, list[tuple[str, str]]]:
    return answer.status_code, [(fault["pointer"], fault["detail"]) for fault in answer.get_json()["errors"]]


def _first(prediction: dict[str, Any]) -> dict[str, Any]:
    return {key: prediction["labels"][0][key] for key in ("label", "index")}


JSON_FAULTS = {
    "empty": (b"", 422, "", "the body is empty"),
    "cut": (b'["aa', 400, "", "this is not JSON: EOF while parsing a string at line 1 column 4"),
    "not utf-8": (b'["\xff"]', 400, "", "this is not JSON: invalid unicode code point at line 1 column 3"),
    "nan": (b'{"input": NaN}', 400, "", "this is not JSON: expected value at line 1 column 11"),
    "deep": (b"[" * 900, 400, "", "this is not JSON: recursion limit exceeded at line 1 column 202"),
    "100,000 deep": (b"[" * 100_000, 422, "", "more values than 16 images need"),
    "a million keys": (
        b"{" + b",".join(b'"%d":0' % n for n in range(900_000)) + b"}",
        422,
        "",
        "more values than 16 images need",
    ),
    "a number": (b"3", 422, "", "this is not a list of images"),
    "null": (b"null", 422, "", "this is not a list of images"),
    "another key": (b'{"inputs": []}', 422, "", 'the object has no "input"'),
    "input is a number": (b'{"input": 3}', 422, "/input", "this is not a list of images"),
    "input is no json": (
        b'{"input": "iVBO"}',
        400,
        "/input",
        "this is not JSON: expected value at line 1 column 1",
    ),
    "input is a string of a string": (b'{"input": "\\"aa\\""}', 422, "/input", "this is not a list of images"),
    "no image": (b"[]", 422, "", "there is no image"),
    "no image in input": (b'{"input": []}', 422, "/input", "there is no image"),
    "100 images": (
        json.dumps(["aaaa"] * 100).encode(),
        422,
        "/16",
        "100 images are more than the 16 allowed",
    ),
    "a number among them": (b'{"input": [3]}', 422, "/input/0", "this is not a string"),
    "not base64": (b'["a?=="]', 422, "/0", "this is not base64"),
    "not ascii": ('["ä"]'.encode(), 422, "/0", "this is not base64"),
    "a link": (b'["https://example.org/cat.png"]', 422, "/0", "this is not base64"),
    "an unencoded data url": (b'["data:image/png,abc"]', 422, "/0", "only data: URLs in base64 are taken"),
    "not an image": (b'["aaaa"]', 422, "/0", "this is not a PNG or JPEG image"),
    "an empty image": (b'[""]', 422, "/0", "this is not a PNG or JPEG image"),
}


@pytest.mark.parametrize("case", JSON_FAULTS)
def test_score_names_the_place_when_the_json_is_wrong(case: str, client: FlaskClient) -> None:
    body, status, pointer, detail = JSON_FAULTS[case]

    answer = client.post("/score", data=body, content_type="application/json")

    assert _faults(answer) == (status, [(pointer, detail)])


def test_score_names_each_bad_image_and_scores_none_when_some_are_bad(client: FlaskClient, cat: bytes) -> None:
    answer = client.post("/score", json=[_text(cat), _text(b"no"), _text(cat), _text(cat[:-5000])])

    assert _faults(answer) == (
        422,
        [("/1", "this is not a PNG or JPEG image"), ("/3", "the image is truncated or damaged")],
    )


def test_score_names_the_part_when_a_file_is_bad(client: FlaskClient, cat: bytes) -> None:
    answer = client.post("/score", **_multipart([cat, b"no"]))

    assert _faults(answer) == (422, [("/1", "this is not a PNG or JPEG image")])


def test_score_refuses_when_a_part_is_not_a_file(client: FlaskClient) -> None:
    answer = client.post("/score", data={"name": "value"}, content_type="multipart/form-data")

    assert _faults(answer) == (422, [("/0", "this part is not a file; give it a file name")])


def test_score_refuses_when_there_are_10000_parts(client: FlaskClient) -> None:
    part = b'--b\r\nContent-Disposition: form-data; name="f"; filename="f"\r\n\r\nx\r\n'

    answer = client.post("/score", data=part * 10_000 + b"--b--\r\n", content_type="multipart/form-data; boundary=b")

    assert answer.status_code == 413


@pytest.mark.parametrize("body", [b"--b\r\nnonsense", b"nonsense", b"--b--\r\n"])
def test_score_refuses_when_the_multipart_body_is_broken(body: bytes, client: FlaskClient) -> None:
    answer = client.post("/score", data=body, content_type="multipart/form-data; boundary=b")

    assert answer.status_code in {400, 422}


def test_score_refuses_when_multipart_has_no_boundary(client: FlaskClient) -> None:
    answer = client.post("/score", data=b"--b--\r\n", content_type="multipart/form-data")

    assert answer.status_code in {400, 422}
