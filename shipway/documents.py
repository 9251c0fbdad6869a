"""Documents: what was read, as the value that it should be, or everything that is wrong with it.

A `Document` has its form in its annotations (PEP 593), and only what is read is held against
it, not what code of ours puts together. Owns the words for what is wrong, which the library
that checks, msgspec, has not for everybody. Fails with `Malformed`.
https://jcristharif.com/msgspec/constraints.html
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
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
    "encoded",
    "field",  # a field that has another name in JSON
    "fields",
    "is_document",
    "keys",
    "parse",
    "plain",
]

_T = TypeVar("_T")
_AT = re.compile(r"(?P<what>.*?)(?: - at (?:`key` in )?`\$(?P<path>.*)`)?", re.DOTALL)
_MISSING = re.compile(r"Object missing required field `(.+)`")
_UNKNOWN = re.compile(r"Object contains unknown field `(.+)`")
_PATTERN = re.compile(r"Expected `str` matching regex '(.+)'")
_CHOICE = re.compile(r"Invalid enum value (.+)", re.DOTALL)


class Document(msgspec.Struct, frozen=True, kw_only=True):
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
        raise Malformed(_lowered(str(error))) from error


def convert(kind: type[_T], value: object, *, texts: bool = False) -> _T:
    """Make a value of what a parser gave, and tell every mistake at once.

    With `texts`, a text will do where a number or a truth value is wanted.
    """
    try:
        return msgspec.convert(value, kind, strict=not texts, dec_hook=_made)
    except (msgspec.ValidationError, RecursionError) as error:
        mistakes = tuple(_mistakes(kind, value, "", texts=texts)) or (_told(str(error)),)
        raise Malformed("; ".join(map(str, mistakes)), mistakes) from error


def plain(value: object) -> Any:
    """Return a document as JSON has it: objects, arrays, texts, numbers."""
    return msgspec.json.decode(msgspec.json.encode(value, enc_hook=_unmade))


def encoded(value: object) -> bytes:
    """Return a document as the bytes that are stored: JSON for people too."""
    return msgspec.json.format(msgspec.json.encode(value, enc_hook=_unmade), indent=1) + b"\n"


def keys(kind: type[Document]) -> tuple[str, ...]:
    """Return the keys that a kind of document may have."""
    return kind.__struct_encode_fields__


def fields(kind: type[Document]) -> Mapping[str, msgspec.structs.FieldInfo]:
    """Return what a kind of document may hold, by its key; slower than `keys`."""
    return {field.encode_name: field for field in msgspec.structs.fields(kind)}


def is_document(kind: object) -> bool:
    """Whether it is a kind of document."""
    return isinstance(kind, type) and issubclass(kind, Document)


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
    """Yield what is wrong, key by key; nothing where each is right by itself."""
    bare = get_args(kind)[0] if get_origin(kind) is Annotated else kind
    if is_document(bare) and isinstance(value, Mapping):
        known = fields(bare)
        for name, each in known.items():
            if name in value:
                yield from _mistakes(each.type, value[name], _joined(path, name), texts=texts)
            elif each.required:
                yield Mistake(path=_joined(path, name), what="is missing", is_missing=True)
        if bare.__struct_config__.forbid_unknown_fields:
            unknown = [str(name) for name in value if name not in known]
            yield from (Mistake(path=_joined(path, name), what="no such key", is_unknown=True) for name in unknown)
    elif get_origin(bare) in {dict, Mapping} and isinstance(value, Mapping):
        for name, each in value.items():
            for part, given in zip(get_args(bare), (name, each), strict=True):
                yield from _mistakes(part, given, _joined(path, str(name)), texts=texts)
    else:
        try:
            msgspec.convert(value, kind, strict=not texts, dec_hook=_made)
        except (msgspec.ValidationError, RecursionError) as error:
            yield _told(str(error), path, value, choices=_choices(kind))


def _choices(kind: Any) -> tuple[Any, ...]:
    """Return what may stand there, where only some values may."""
    arguments = get_args(kind)
    return arguments if get_origin(kind) is Literal else tuple(each for inner in arguments for each in _choices(inner))


def _told(text: str, path: str = "", given: object = None, choices: tuple[Any, ...] = ()) -> Mistake:
    """Say in our words what msgspec says in its own."""
    found = _AT.fullmatch(text)
    what, inner = (found["what"], found["path"] or "") if found else (text, "")
    words = [path, *re.findall(r"[^.\[\]]+", inner.replace("[...]", ""))]
    if missing := _MISSING.fullmatch(what):
        return Mistake(path=_joined(*words, missing[1]), what="is missing", is_missing=True)
    if unknown := _UNKNOWN.fullmatch(what):
        return Mistake(path=_joined(*words, unknown[1]), what="no such key", is_unknown=True)
    if pattern := _PATTERN.fullmatch(what):
        what = f"must match {pattern[1].replace(chr(92) * 2, chr(92)).removesuffix(chr(92) + 'Z')}$"
    elif choice := _CHOICE.fullmatch(what):
        what = f"is none of {', '.join(map(str, choices))}" if choices else f"{choice[1][:60]} is not known"
    return Mistake(path=_joined(*words), what=_lowered(what), given=given)


def _joined(*words: str) -> str:
    return ".".join(word for word in words if word)


def _lowered(text: str) -> str:
    return text[:1].lower() + text[1:]
