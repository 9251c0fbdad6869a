"""What an ONNX file refers to outside itself, found without opening it.

Owns just enough of protobuf and of `onnx.proto` to visit every tensor of a model: in
initializers, attributes, subgraphs, sparse tensors, functions and training graphs
(https://github.com/onnx/onnx/blob/main/onnx/onnx.proto). onnxruntime would open whatever a
tensor names, so the names are looked at first. Reads the file alone; raises `ValueError` with
a reason when it is no ONNX model, or is cut short.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from msgspec import Struct

_MAX_BYTES = 2**31 - 1
_MAX_TAG = 2**32 - 1
_MAX_DEPTH = 64
_NOT_ONNX = "it is no ONNX model, or cut short"
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_IR_VERSION, _GRAPH = 1, 7  # fields of ModelProto that every model has
_EXTERNAL_DATA, _KEY, _VALUE = 13, 1, 2  # of TensorProto, and of its entries

# message -> field number -> the message in that field; fields that lead to no tensor are left out
_LEADS: Mapping[str, Mapping[int, str]] = {
    "Model": {7: "Graph", 20: "Training", 25: "Function"},
    "Graph": {1: "Node", 5: "Tensor", 15: "Sparse"},
    "Node": {5: "Attribute"},
    "Attribute": {5: "Tensor", 6: "Graph", 10: "Tensor", 11: "Graph", 22: "Sparse", 23: "Sparse"},
    "Sparse": {1: "Tensor", 2: "Tensor"},
    "Training": {1: "Graph", 2: "Graph"},
    "Function": {7: "Node", 11: "Attribute"},
    "Tensor": {13: "External"},
    "External": {},
}


class External(Struct, frozen=True, kw_only=True):
    """Where a tensor's bytes are, when they are not in the ONNX file."""

    location: str
    offset: int
    length: int


def external_data(path: Path) -> frozenset[External]:
    """Return every place outside the file that a tensor's bytes are taken from."""
    if path.stat().st_size > _MAX_BYTES:
        message = f"it is larger than {_MAX_BYTES:,} bytes, which no protobuf can be; keep the weights as external data"
        raise ValueError(message)
    return frozenset(_visit(memoryview(path.read_bytes())))


def _visit(model: memoryview) -> Iterator[External]:
    present = {number for number, _ in _fields(model)}
    if not {_IR_VERSION, _GRAPH} <= present:
        message = "it is no ONNX model: there is no graph in it"
        raise ValueError(message)
    waiting = [("Model", model, 0)]
    while waiting:
        kind, message_bytes, depth = waiting.pop()
        if depth > _MAX_DEPTH:
            message = f"its graphs are nested more than {_MAX_DEPTH} deep"
            raise ValueError(message)
        for number, value in _fields(message_bytes):
            if number in _LEADS[kind] and value is not None:
                waiting.append((_LEADS[kind][number], value, depth + 1))
        if kind == "Tensor" and (entries := _entries(message_bytes)):
            yield _external(entries)


def _entries(tensor: memoryview) -> dict[str, str]:
    """Return a tensor's `external_data`, whatever its `data_location` says."""
    entries = {}
    for number, value in _fields(tensor):
        if number == _EXTERNAL_DATA and value is not None:
            texts = {
                field: bytes(text).decode("utf-8", "replace") for field, text in _fields(value) if text is not None
            }
            if (key := texts.get(_KEY, "")) in entries:
                message = f"a tensor says the {key} of its external data twice"
                raise ValueError(message)
            entries[key] = texts.get(_VALUE, "")
    return entries


def _external(entries: Mapping[str, str]) -> External:
    try:
        offset, length = int(entries.get("offset", "0")), int(entries.get("length", "0"))
    except ValueError as error:
        message = "the offset or length of its external data is no number"
        raise ValueError(message) from error
    return External(location=entries.get("location", ""), offset=offset, length=length)


def _fields(message_bytes: memoryview) -> Iterator[tuple[int, memoryview | None]]:
    """Yield each field's number and, when it holds bytes, those.

    https://protobuf.dev/programming-guides/encoding/
    """
    at, end = 0, len(message_bytes)
    while at < end:
        tag, at = _varint(message_bytes, at)
        if tag > _MAX_TAG:  # other readers would cut it to 32 bits, and see another field
            raise ValueError(_NOT_ONNX)
        number, wire = tag >> 3, tag & 7
        value = None
        if wire == _VARINT:
            _, at = _varint(message_bytes, at)
        elif wire == _BYTES:
            size, at = _varint(message_bytes, at)
            value = message_bytes[at : at + size]
            at += size
        elif wire in {_FIXED64, _FIXED32}:
            at += 8 if wire == _FIXED64 else 4
        else:
            raise ValueError(_NOT_ONNX)
        if at > end or number == 0:
            raise ValueError(_NOT_ONNX)
        yield number, value


def _varint(message_bytes: memoryview, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(message_bytes):
            break
        byte = message_bytes[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:  # noqa: PLR2004 - the high bit says that more follows
            return value, at
    raise ValueError(_NOT_ONNX)
