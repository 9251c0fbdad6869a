"""Documents: the value, or every mistake by its path."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import pytest

from shipway import documents
from shipway.artifacts import Digest
from shipway.documents import UNSET, Document, Form, Malformed, Meta, Mistake, UnsetType, field

DIGEST = Digest.of(b"")


class Part(Form, frozen=True, kw_only=True):
    count: Annotated[int, Meta(ge=1)]
    name: Annotated[str, Meta(pattern=r"^[a-z]+\Z")] = "x"

    def __post_init__(self) -> None:
        if self.count == 13:
            message = "is unlucky"
            raise ValueError(message)


class Whole(Form, frozen=True, kw_only=True):
    part: Part
    parts: tuple[Part, ...] = ()
    named: Mapping[Annotated[str, Meta(pattern=r"^[A-Z]+\Z")], int] = {}
    kind: Annotated[Literal["one", "two"], Meta(description="Which.")] = "one"
    digest: Digest = DIGEST
    anything: Any = field(default=UNSET, name="any")
    text: str | UnsetType = UNSET
    size: float | None = None


class Loose(Document, frozen=True, kw_only=True):
    part: Part | None = None


GOOD = {
    "part": {"count": 3},
    "parts": [{"count": 1, "name": "a"}, {"count": 2}],
    "named": {"A": 1},
    "digest": str(Digest.of(b"other")),
    "any": None,
}
WRONG: list[tuple[Any, list[str]]] = [
    ([], ["expected `object`, got `array`"]),
    ({}, ["part: is missing"]),
    ({"part": {}}, ["part.count: is missing"]),
    ({"part": {"count": 0}}, ["part.count: expected `int` >= 1"]),
    ({"part": {"count": "3"}}, ["part.count: expected `int`, got `str`"]),
    ({"part": {"count": True}}, ["part.count: expected `int`, got `bool`"]),
    ({"part": {"count": 13}}, ["part: is unlucky"]),
    ({"part": {"count": 1, "name": "a\n"}}, ["part.name: must match ^[a-z]+$"]),
    ({"part": {"count": 1, "cuont": 1}}, ["part.cuont: no such key"]),
    ({"part": {"count": 1}, "parts": [{"count": 1}, {"count": None}]}, ["parts.1.count: expected `int`, got `null`"]),
    ({"part": {"count": 1}, "named": {"a": 1}}, ["named.a: must match ^[A-Z]+$"]),
    ({"part": {"count": 1}, "named": {"A": "1"}}, ["named.A: expected `int`, got `str`"]),
    ({"part": {"count": 1}, "kind": "three"}, ["kind: is none of one, two"]),
    ({"part": {"count": 1}, "digest": "sha256:../etc"}, ["digest: not a sha256 digest: 'sha256:../etc'"]),
    ({"part": {"count": 1}, "digest": 3}, ["digest: not a sha256 digest: '3'"]),
    (
        {"part": {"count": "x", "nmae": 1}, "kind": "3", "extra": 1},
        [
            "part.count: expected `int`, got `str`",
            "part.nmae: no such key",
            "kind: is none of one, two",
            "extra: no such key",
        ],
    ),
    ({"part": {"count": 13}, "kind": 3}, ["part: is unlucky", "kind: is none of one, two"]),
    ({"part": {"count": 1}, "size": "x"}, ["size: expected `float`, got `str`"]),
    ({"part": {"count": 1}, "text": 3}, ["text: expected `str`, got `int`"]),
]


def test_convert_and_parse_give_the_same_value() -> None:
    made = documents.convert(Whole, GOOD)

    assert made == documents.parse(Whole, json.dumps(GOOD))
    assert (made.parts, made.digest, made.anything, made.text) == (
        (Part(count=1, name="a"), Part(count=2)),
        Digest.of(b"other"),
        None,
        UNSET,
    )
    assert isinstance(made.digest, Digest)


@pytest.mark.parametrize(("value", "told"), WRONG)
def test_convert_tells_every_mistake_by_its_path(value: object, told: list[str]) -> None:
    with pytest.raises(Malformed) as caught:
        documents.convert(Whole, value)

    assert list(map(str, caught.value.mistakes)) == told
    assert str(caught.value) == "; ".join(told)


@pytest.mark.parametrize("value", [value for value, _ in WRONG])
def test_parse_refuses_what_convert_refuses(value: object) -> None:
    with pytest.raises(Malformed) as caught:
        documents.parse(Whole, json.dumps(value))

    (mistake,) = caught.value.mistakes
    assert mistake.path.split(".")[0] in {"", *documents.fields(Whole), "extra"}


def test_mistake_says_what_was_given_and_of_which_kind_it_is() -> None:
    with pytest.raises(Malformed) as caught:
        documents.convert(Whole, {"part": {"count": "x"}, "parts": [{"count": 1, "name": 3}], "extra": 1})

    assert caught.value.mistakes == (
        Mistake(path="part.count", what="expected `int`, got `str`", given="x"),
        Mistake(path="parts.0.name", what="expected `str`, got `int`", given=3),
        Mistake(path="extra", what="no such key", is_unknown=True),
    )


@pytest.mark.parametrize(
    "data", ["", "{", b"\xff", "[" * 200_000, '{"part": NaN}', '{"part": {"count": 1}} x', "\ud800"]
)
def test_parse_says_so_when_it_is_no_json(data: str | bytes) -> None:
    with pytest.raises(Malformed) as caught:
        documents.parse(Loose, data)

    assert len(caught.value.mistakes) == (1 if data == "[" * 200_000 else 0)


@pytest.mark.parametrize(
    "value", [{"part": {"count": "\ud800"}}, {"part": {"count": 1}, "\ud800": 1}, {"kind": "\ud800"}]
)
def test_convert_bears_half_a_surrogate_pair(value: object) -> None:
    with pytest.raises(Malformed):
        documents.convert(Whole, value, texts=True)


def test_text_can_be_read_back_whatever_it_holds() -> None:
    data = documents.text(Part(count=1, name="a\ud800é"))

    assert json.loads(data.encode()) == {"count": 1, "name": "a?é"}


def test_parse_bears_any_depth() -> None:
    with pytest.raises(Malformed):
        documents.parse(Whole, '{"part": {"count": 1}, "any": ' + "[" * 200_000)


@pytest.mark.parametrize(
    "data", ['"\\ud800"', b'{"\\udc00x": 1}', "NaN", b"[Infinity]", "1e999", "[" * 100_000, "", b"\xff"]
)
def test_decoded_refuses_what_cannot_be_written_again(data: bytes | str) -> None:
    with pytest.raises(Malformed):
        documents.decoded(data)


def test_a_document_passes_over_what_it_does_not_know() -> None:
    assert documents.parse(Loose, '{"newer": 1}') == Loose()


@pytest.mark.parametrize("text", ["3", "3.0"])
def test_convert_takes_texts_for_numbers_where_it_is_told_to(text: str) -> None:
    assert documents.convert(Part, {"count": text}, texts=True) == Part(count=3)
    with pytest.raises(Malformed):
        documents.convert(Part, {"count": text})


def test_encoded_is_read_back_and_is_for_people_too() -> None:
    made = documents.convert(Whole, GOOD)

    data = documents.encoded(made)

    assert documents.parse(Whole, data) == made
    assert json.loads(json.dumps(documents.plain(made))) == json.loads(documents.text(made)) == json.loads(data)
    assert data.startswith(b'{\n "part": {\n  "count": 3,\n')
    assert data.endswith(b"}\n")
    assert b"text" not in data
