"""The form of exchanges, and what counts as the right answer."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shipway.errors import ModelRefused
from shipway.exchanges import Exchange, differences, load

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(max_size=3), children, max_size=3),
    max_leaves=10,
)


def exchange(expected: Any = None, *, tolerance: float = 0.0) -> Exchange:
    return Exchange(
        name="cat",
        method="POST",
        path="/score",
        headers={},
        body=b"",
        status=200,
        expected=(expected,),
        tolerance=tolerance,
    )


def model(folder: Path, case: object, *, name: str = "cat.json") -> Path:
    (folder / "golden/exchanges").mkdir(parents=True)
    text = case if isinstance(case, str) else json.dumps(case)
    (folder / "golden/exchanges" / name).write_text(text)
    return folder


# -- the form ----------------------------------------------------------------------------


def test_load_returns_every_exchange_by_name(tmp_path: Path) -> None:
    folder = model(
        tmp_path,
        {
            "request": {"method": "POST", "path": "/score", "headers": {"X-A": "1"}, "body_file": "../images/cat.png"},
            "response": {"status": 200, "json": {"label": "cat"}, "tolerance": 0.5},
        },
    )
    (folder / "golden/images").mkdir()
    (folder / "golden/images/cat.png").write_bytes(b"\x89PNG")
    (folder / "golden/exchanges/alive.json").write_text('{"request": {"path": "/healthz"}, "response": {}}')

    loaded = load(folder)

    assert loaded == (
        Exchange(
            name="alive",
            method="GET",
            path="/healthz",
            headers={},
            body=b"",
            status=200,
            expected=None,
            tolerance=0.0,
        ),
        Exchange(
            name="cat",
            method="POST",
            path="/score",
            headers={"X-A": "1"},
            body=b"\x89PNG",
            status=200,
            expected=({"label": "cat"},),
            tolerance=0.5,
        ),
    )


def test_load_returns_nothing_when_the_model_has_no_exchanges(tmp_path: Path) -> None:
    assert load(tmp_path) == ()


@pytest.mark.parametrize(
    ("headers", "sent"),
    [
        ({}, {"Content-Type": "application/json"}),
        ({"content-type": "application/x"}, {"content-type": "application/x"}),
    ],
)
def test_load_names_the_media_type_when_the_body_is_json(
    tmp_path: Path, headers: dict[str, str], sent: dict[str, str]
) -> None:
    folder = model(tmp_path, {"request": {"path": "/", "headers": headers, "json": None}, "response": {}})

    (loaded,) = load(folder)

    assert (loaded.body, loaded.headers) == (b"null", sent)


@pytest.mark.parametrize(
    ("case", "told"),
    [
        ("", "not JSON: "),
        ("[" * 100_000, "not JSON: "),
        ([], "expected `object`, got `array`"),
        ({"request": {"path": "/"}}, "response: is missing"),
        ({"request": {}, "response": {}}, "request.path: is missing"),
        ({"request": {"path": "score"}, "response": {}}, "request.path: must match ^/"),
        ({"request": {"path": "/a\r\nHost: b"}, "response": {}}, "request.path: must match ^/"),
        ({"request": {"path": "/", "headers": {"A": "b\nC: d"}}, "response": {}}, "request.headers.A: "),
        ({"request": {"path": "/", "headers": {"A b": "c"}}, "response": {}}, "request.headers.A b"),
        ({"request": {"path": "/", "method": "get"}, "response": {}}, "request.method: "),
        ({"request": {"path": "/", "boddy": "x"}, "response": {}}, "request.boddy: no such key"),
        ({"request": {"path": "/", "body": "x", "json": 1}, "response": {}}, "body, json and body_file exclude"),
        ({"request": {"path": "/"}, "response": {"status": "200"}}, "response.status: "),
        ({"request": {"path": "/"}, "response": {"status": 700}}, "response.status: "),
        ({"request": {"path": "/"}, "response": {"tolerance": -1}}, "response.tolerance: "),
        ({"request": {"path": "/"}, "response": {"tolerance": math.nan}}, "response.tolerance: "),
        ({"request": {"path": "/", "body_file": "none.jpg"}, "response": {}}, "request.body_file: 'none.jpg' cannot"),
        ({"request": {"path": "/", "body_file": "\0"}, "response": {}}, "request.body_file: "),
    ],
)
def test_load_names_file_and_key_when_the_form_is_wrong(tmp_path: Path, case: object, told: str) -> None:
    folder = model(tmp_path, case)

    with pytest.raises(ModelRefused) as caught:
        load(folder)

    assert caught.value.message.startswith("golden/exchanges/cat.json: ")
    assert told in caught.value.message


@pytest.mark.parametrize("outside", ["../../../secret", "/etc/hostname", "link"])
def test_load_refuses_the_body_file_when_it_is_outside_the_model(tmp_path: Path, outside: str) -> None:
    (tmp_path / "secret").write_text("secret")
    (tmp_path / "model").mkdir()
    folder = model(tmp_path / "model", {"request": {"path": "/", "body_file": outside}, "response": {}})
    (folder / "golden/exchanges/link").symlink_to("../../../secret")

    with pytest.raises(ModelRefused, match=r"request\.body_file: .* is outside the model's folder"):
        load(folder)


# -- the right answer --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("expected", "got"),
    [
        ({"a": 1}, {"a": 1, "b": 2}),
        ({"a": [1]}, {"a": [1, 2, 3]}),
        ([], [1]),
        ({}, {"a": 1}),
        (0.50, 0.51),
        (1, 1.01),
        (math.nan, math.nan),
        (None, None),
        (10**400, 10**400),
    ],
)
def test_differences_finds_none_when_all_that_matters_is_there(expected: object, got: object) -> None:
    assert differences(exchange(expected, tolerance=0.02), 200, json.dumps(got).encode()) == ()


@pytest.mark.parametrize(
    ("expected", "got", "told"),
    [
        ({"a": {"b": 1}}, {"a": {}}, "$.a.b: expected 1, got nothing"),
        ({"a": [{"l": "cat"}]}, {"a": [{"l": "dog"}]}, '$.a[0].l: expected "cat", got "dog"'),
        ([1, 2], [1], "$[1]: expected 2, got nothing"),
        ({"a": 1}, [1], '$: expected {"a": 1}, got [1]'),
        (0.50, 0.53, "$: expected 0.5, got 0.53"),
        (0.50, math.nan, "$: expected 0.5, got NaN"),
        (math.nan, 0.5, "$: expected NaN, got 0.5"),
        (math.inf, -math.inf, "$: expected Infinity, got -Infinity"),
        (1, True, "$: expected 1, got true"),
        (True, 1, "$: expected true, got 1"),
        (0, None, "$: expected 0, got null"),
        ("1", 1, '$: expected "1", got 1'),
        (0.5, 10**400, "$: expected 0.5, got 1000"),
        (10**400, 0.5, "$: expected 1000"),
    ],
)
def test_differences_names_place_expected_and_got_when_it_differs(expected: object, got: object, told: str) -> None:
    (found,) = differences(exchange(expected, tolerance=0.02), 200, json.dumps(got).encode())

    assert found.startswith(f"cat: {told}")


def test_differences_tells_every_place() -> None:
    assert differences(exchange({"a": 1, "b": 2}), 200, b'{"a": 2, "b": 1}') == (
        "cat: $.a: expected 1, got 2",
        "cat: $.b: expected 2, got 1",
    )


@pytest.mark.parametrize("body", [b"", b"<html>", b"\xff", b"[" * 100_000])
def test_differences_tells_what_came_when_it_is_not_json(body: bytes) -> None:
    (found,) = differences(exchange({}), 200, body)

    assert found.startswith("cat: expected JSON, got ")
    assert len(found) < 200


def test_differences_shows_the_body_when_the_status_is_wrong() -> None:
    assert differences(exchange({"a": 1}), 500, b"out of memory") == (
        'cat: status: expected 200, got 500 "out of memory"',
    )


@given(JSON)
def test_differences_finds_none_when_the_answer_is_the_expected_one(document: Any) -> None:
    assert differences(exchange(document), 200, json.dumps(document).encode()) == ()


@given(st.dictionaries(st.text(max_size=3), JSON, min_size=1, max_size=3), st.data())
def test_differences_names_the_field_when_one_is_missing(document: dict[str, Any], data: st.DataObject) -> None:
    key = data.draw(st.sampled_from(sorted(document)))
    got = {each: value for each, value in document.items() if each != key}

    (found,) = differences(exchange(document), 200, json.dumps(got).encode())

    assert found.startswith(f"cat: $.{key}: expected ")
    assert found.endswith(", got nothing")
