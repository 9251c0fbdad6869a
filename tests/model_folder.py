"""Small model folders for tests: `y = x + weight` over rows of two, as real ONNX.

ONNX is written by hand (https://protobuf.dev/programming-guides/encoding/), so that hostile
files can be made that no library would write.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

FLOAT = 1


def varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def number(field: int, value: int) -> bytes:
    return varint(field << 3) + varint(value)


def nested(field: int, *parts: bytes) -> bytes:
    data = b"".join(parts)
    return varint(field << 3 | 2) + varint(len(data)) + data


def text(field: int, value: str) -> bytes:
    return nested(field, value.encode())


def tensor(name: str, weight: float, width: int = 2) -> bytes:
    raw = np.full(width, weight, np.float32).tobytes()
    return number(1, width) + number(2, FLOAT) + text(8, name) + nested(9, raw)


def external_tensor(name: str, **entries: str) -> bytes:
    """A tensor whose bytes are elsewhere: `location`, `offset`, `length`."""
    told = (nested(13, text(1, key), text(2, value)) for key, value in entries.items())
    return number(1, 2) + number(2, FLOAT) + text(8, name) + b"".join(told) + number(14, 1)


def graph(initializer: bytes, *more: bytes, width: int = 2) -> bytes:
    shape = nested(2, nested(1, text(2, "rows")), nested(1, number(1, width)))
    kind = nested(2, nested(1, number(1, FLOAT), shape))
    add = text(1, "x") + text(1, "weight") + text(2, "y") + text(4, "Add")
    return b"".join(
        (
            nested(1, add),
            text(2, "graph"),
            nested(5, initializer),
            nested(11, text(1, "x"), kind),
            nested(12, text(1, "y"), kind),
            *more,
        )
    )


def onnx(
    weight: float = 1.0, *, initializer: bytes | None = None, more: tuple[bytes, ...] = (), width: int = 2
) -> bytes:
    """An ONNX model; `more` are further fields of its graph."""
    body = graph(tensor("weight", weight, width) if initializer is None else initializer, *more, width=width)
    return number(1, 8) + nested(8, number(2, 17)) + nested(7, body)


def make(folder: Path, *, weight: float = 1.0, answer: float | None = None) -> Path:
    """A whole folder that may be published; `answer` is what its golden case takes the weight for."""
    for part in ("golden/tensors", "golden/exchanges"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    (folder / "model.onnx").write_bytes(onnx(weight))
    (folder / "card.md").write_text("# Adds\n")
    write_case(folder / "golden/tensors/one.npz", weight=weight if answer is None else answer)
    exchange = {
        "request": {"method": "POST", "path": "/score", "headers": {}, "json": [1, 2]},
        "response": {"status": 200, "json": {"sum": 3}},
    }
    (folder / "golden/exchanges/one.json").write_text(json.dumps(exchange))
    return folder


def write_case(path: Path, *, weight: float, rows: tuple[tuple[float, ...], ...] = ((1, 2),)) -> None:
    given = np.array(rows, np.float32)
    arrays: dict[str, Any] = {
        "input/x": given,
        "output/y": given + np.float32(weight),
        "rtol": np.float64(1e-4),
        "atol": np.float64(1e-4),
    }
    np.savez_compressed(path, allow_pickle=False, **arrays)
