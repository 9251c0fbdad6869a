"""A model folder of a given size, its weights noise: `python -m benchmarks.weights FOLDER BYTES SEED`.

A valid ONNX model that fits the service's contract and gives its golden answers: the mean
colour of an image through a chain of matrices, which lie in one file beside `model.onnx`.
Noise compresses as badly as trained weights do. A program of its own, because what a process
weighs counts as the peak of every child that it starts, and the children are measured.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.model_folder import FLOAT, nested, number, text

_MODEL = Path(__file__).parents[1] / "model"
_SOURCES = ("card.md", "labels.txt", "preprocessing.json")
_WEIGHTS = "weights.bin"
_WIDTH = 500  # a matrix between two layers is 1 MB
_INPUT, _OUTPUT = (3, 224, 224), 1000
_FLOAT_BYTES = 4
_TOLERANCE = 1e-2  # of the largest logit: a deep chain adds up a little differently on every machine


def make(folder: Path, size_bytes: int, seed: int) -> None:
    """Write the folder, its weights `size_bytes` long or up to half a matrix more or less."""
    (folder / "golden" / "tensors").mkdir(parents=True)
    for name in _SOURCES:
        shutil.copyfile(_MODEL / name, folder / name)
    random = np.random.default_rng(seed)
    colour = random.standard_normal((1, _INPUT[0], 1, 1), dtype=np.float32)
    image = colour + random.standard_normal((1, *_INPUT), dtype=np.float32)
    flowing = image.mean(axis=(2, 3))
    shapes = list(_shapes(size_bytes))
    with (folder / _WEIGHTS).open("wb") as file:
        for rows, columns in shapes:
            matrix = random.standard_normal((rows, columns), dtype=np.float32) / np.sqrt(np.float32(rows))
            file.write(matrix.tobytes())
            flowing = flowing @ matrix
    (folder / "model.onnx").write_bytes(_onnx(shapes))
    _write_case(folder / "golden" / "tensors" / "noise.npz", image, flowing)


def _shapes(size_bytes: int) -> Iterator[tuple[int, int]]:
    """Yield the matrices' shapes, first to last."""
    ends = _INPUT[0] * _WIDTH + _WIDTH * _OUTPUT
    between = round((size_bytes / _FLOAT_BYTES - ends) / _WIDTH**2)
    yield _INPUT[0], _WIDTH
    yield from [(_WIDTH, _WIDTH)] * between
    yield _WIDTH, _OUTPUT


def _onnx(shapes: list[tuple[int, int]]) -> bytes:
    """Write the graph by hand, see `tests.model_folder`: mean over the pixels, then a matrix after another."""
    last = len(shapes) - 1
    flow = ["colour", *(f"hidden{layer}" for layer in range(last)), "logits"]
    offset, tensors = 0, []
    for layer, shape in enumerate(shapes):
        length = _FLOAT_BYTES * shape[0] * shape[1]
        tensors.append(nested(5, _tensor(f"weights{layer}", shape, offset, length)))
        offset += length
    graph = [
        _node("GlobalAveragePool", ["image"], "pooled"),
        _node("Flatten", ["pooled"], "colour"),
        *(_node("MatMul", [flow[layer], f"weights{layer}"], flow[layer + 1]) for layer in range(len(shapes))),
        text(2, "noise"),
        *tensors,
        nested(11, _value("image", _INPUT)),
        nested(12, _value("logits", (_OUTPUT,))),
    ]
    return number(1, 8) + nested(8, number(2, 17)) + nested(7, *graph)


def _node(kind: str, inputs: list[str], output: str) -> bytes:
    return nested(1, *(text(1, name) for name in inputs), text(2, output), text(4, kind))


def _tensor(name: str, shape: tuple[int, ...], offset: int, length: int) -> bytes:
    where = {"location": _WEIGHTS, "offset": str(offset), "length": str(length)}
    told = (nested(13, text(1, key), text(2, value)) for key, value in where.items())
    return b"".join([*(number(1, size) for size in shape), number(2, FLOAT), text(8, name), *told, number(14, 1)])


def _value(name: str, shape: tuple[int, ...]) -> bytes:
    """An input or an output; its first dimension is free."""
    sizes = (nested(1, text(2, "batch")), *(nested(1, number(1, size)) for size in shape))
    return text(1, name) + nested(2, nested(1, number(1, FLOAT), nested(2, *sizes)))


def _write_case(path: Path, image: NDArray[np.float32], logits: NDArray[np.float32]) -> None:
    arrays: dict[str, Any] = {
        "input/image": image,
        "output/logits": logits,
        "rtol": np.float64(0),
        "atol": np.float64(_TOLERANCE * np.abs(logits).max()),
    }
    np.savez_compressed(path, allow_pickle=False, **arrays)


if __name__ == "__main__":
    make(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
