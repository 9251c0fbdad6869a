"""Documents: what was read, as the value that it should be, or everything that is wrong with it.

A `Document` has its form in its annotations (PEP 593), and what is read is held against it;
of what code of ours puts together only `__post_init__` is asked. Owns the words for what is
wrong, since those of the library that checks, msgspec, are not for everybody. Fails with
`Malformed`.
https://jcristharif.com/msgspec/constraints.html
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType, field

__all__ = [
    "UNSET",  # a field that was not there, where that is not the same as `null`
    "Document",
    "Form",
    "Malformed",
    "Meta",  # limits and description of a field, in its annotation
    "Mistake",
    "UnsetType",
    "convert",
    "decoded",
    "encoded",
    "field",  # a field that has another name in JSON
    "fields",
    "keys",
    "parse",
    "plain",
    "text",
]

_T = TypeVar("_T")
_AT = re.compile(r"(?P<what>.*?)(?: - at (?:`key` in )?`\$(?P<path>.*)`)?", re.DOTALL)
_MISSING = re.compile(r"Object missing required field `(.+)`")
_UNKNOWN = re.compile(r"Object contains unknown field `(.+)`")
_PATTERN = re.compile(r"Expected `str` matching regex '(.+)'")
_REFUSALS = (msgspec.ValidationError, RecursionError, UnicodeEncodeError)  # the last, of half a surrogate pair


class Document(Struct, frozen=True, kw_only=True):
    """A value that is read from JSON or TOML; keys that it does not know are passed over."""


class Form(Document, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A document that people write, so that a key it does not know is a mistake."""


class Mistake(Struct, frozen=True, kw_only=True):
    """What is wrong at `path`, such as `rollout.port`; the whole is the empty path."""

    path: str
    what: str
    given: Any = None
    is_unknown: bool = False
    is_missing: bool = False

    def __str__(self) -> str:
        return f"{self.path}: {self.what}" if self.path else self.what


class Malformed(ValueError):
    """A document that is not of its form; without mistakes, one that is no JSON at all."""

    def __init__(self, message: str, mistakes: tuple[Mistake, ...] = ()) -> None:
        """Take what is wrong, one by one."""
        super().__init__(message)
        self.mistakes = mistakes


def parse(kind: type[_T], data: bytes | str) -> _T:
    """Read JSON."""
    try:
        return msgspec.json.decode(data, type=kind, dec_hook=_made)
    except msgspec.ValidationError as error:
        mistake = _told(str(error))
        raise Malformed(str(mistake), (mistake,)) from error
    except (msgspec.DecodeError, RecursionError, UnicodeEncodeError) as error:
        raise Malformed(str(error)) from error


def decoded(data: bytes | str) -> Any:
    """Read JSON of whatever form, from whomever: not nested too deep, without NaN and halves of surrogate pairs."""
    return parse(Any, data)


def convert(kind: type[_T], value: object, *, texts: bool = False) -> _T:
    """Make a value of what a parser gave, and tell every mistake at once.

    With `texts`, a text will do where a number or a truth value is wanted.
    """
    try:
        return msgspec.convert(value, kind, strict=not texts, dec_hook=_made)
    except _REFUSALS as error:
        mistakes = tuple(_mistakes(kind, value, "", texts=texts))
        raise Malformed("; ".join(map(str, mistakes)), mistakes) from error


def plain(value: object) -> Any:
    """Return a value as what `json.dumps` takes."""
    return msgspec.to_builtins(value, enc_hook=_unmade)


def text(value: object) -> str:
    """Return a value as JSON for people too; what no UTF-8 can hold becomes a question mark."""
    return json.dumps(plain(value), indent=1, ensure_ascii=False).encode("utf-8", "replace").decode() + "\n"


def encoded(document: Document) -> bytes:
    """Return a document as the bytes that are stored, the same each time: JSON for people too."""
    return msgspec.json.format(msgspec.json.encode(document, enc_hook=_unmade), indent=1) + b"\n"


def keys(kind: type[Document]) -> tuple[str, ...]:
    """Return the keys that a kind of document may have."""
    return kind.__struct_encode_fields__


@cache
def fields(kind: type[Document]) -> Mapping[str, msgspec.structs.FieldInfo]:
    """Return what a kind of document may hold, by its key; slower than `keys`."""
    return {each.encode_name: each for each in msgspec.structs.fields(kind)}


def _made(kind: type[Any], value: Any) -> Any:
    """Make what msgspec does not know: texts of a type of their own, such as `Digest`."""
    if not issubclass(kind, str):
        raise NotImplementedError(kind)
    return kind(str(value))


def _unmade(value: Any) -> str:
    """Give back what `_made` made."""
    if not isinstance(value, str):
        raise NotImplementedError(type(value))
    return str(value)


def _mistakes(kind: Any, value: object, path: str, *, texts: bool) -> Iterator[Mistake]:
    """Yield what is wrong, key by key; of the whole, where each key is right by itself."""
    bare = get_args(kind)[0] if get_origin(kind) is Annotated else kind
    inside: list[Mistake] = []
    if isinstance(bare, type) and issubclass(bare, Document) and isinstance(value, Mapping):
        inside = list(_in_document(bare, value, path, texts=texts))
    elif get_origin(bare) in {dict, Mapping} and isinstance(value, Mapping):
        for name, each in value.items():
            for part, given in zip(get_args(bare), (name, each), strict=True):
                inside += _mistakes(part, given, _joined(path, str(name)), texts=texts)
    yield from inside
    if inside:
        return
    try:
        msgspec.convert(value, kind, strict=not texts, dec_hook=_made)
    except _REFUSALS as error:
        yield _told(str(error), path, value, choices=_choices(bare))


def _in_document(kind: type[Document], value: Mapping[str, object], path: str, *, texts: bool) -> Iterator[Mistake]:
    known = fields(kind)
    for name, each in known.items():
        if name in value:
            yield from _mistakes(each.type, value[name], _joined(path, name), texts=texts)
        elif each.required:
            yield Mistake(path=_joined(path, name), what="is missing", is_missing=True)
    for name in value:
        if kind.__struct_config__.forbid_unknown_fields and name not in known:
            yield Mistake(path=_joined(path, str(name)), what="no such key", is_unknown=True)


def _choices(kind: Any) -> tuple[Any, ...]:
    """Return what may stand there, where only some values may."""
    return get_args(kind) if get_origin(kind) is Literal else ()


def _told(text: str, path: str = "", given: Any = None, choices: tuple[Any, ...] = ()) -> Mistake:
    """Say in our words what msgspec says in its own."""
    found = _AT.fullmatch(text)
    what, inner = (found["what"], found["path"] or "") if found else (text, "")
    words = re.findall(r"[^.\[\]]+", inner.replace("[...]", ""))
    if missing := _MISSING.fullmatch(what):
        return Mistake(path=_joined(path, *words, missing[1]), what="is missing", is_missing=True)
    if unknown := _UNKNOWN.fullmatch(what):
        return Mistake(path=_joined(path, *words, unknown[1]), what="no such key", is_unknown=True)
    for word in words:
        given = _inside(given, word)
    if pattern := _PATTERN.fullmatch(what):
        what = f"must match {pattern[1].replace(chr(92) * 2, chr(92)).removesuffix(chr(92) + 'Z')}$"
    elif choices:
        what = f"is none of {', '.join(map(str, choices))}"
    elif what.startswith("Expected "):
        what = f"expected {what.removeprefix('Expected ').replace(' | null`', '`')}"
    return Mistake(path=_joined(path, *words), what=what, given=given)


def _inside(given: Any, word: str) -> Any:
    """Return what stands at a key or an index of what was given; nothing where that cannot be said."""
    if isinstance(given, list | tuple):
        return given[int(word)]
    return given[word] if isinstance(given, dict) else None


def _joined(*words: str) -> str:
    return ".".join(word for word in words if word)
