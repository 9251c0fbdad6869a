"""Golden tensor cases: asked of the model in a child process, because the model is untrusted.

Owns both sides: `ask` starts `python -m shipway.stores.golden FOLDER`, `compare` the same with
two folders, and both read its one JSON document; the child bounds its own memory, time and
files before it opens anything, and gets no environment but what it needs. A model that
crashes, hangs or grows takes the child alone with it. Raises `ModelRefused` when the model
cannot be opened or run, and `GoldenFailed` with the case and its figures.
"""

from __future__ import annotations

import contextlib
import json
import resource
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from shipway import documents
from shipway.documents import Document, Malformed
from shipway.errors import GoldenFailed, ModelRefused, ToolFailed
from shipway.proc import Run
from shipway.stores.manifest import Signature
from shipway.stores.safety import MODEL

TENSORS = "golden/tensors"
_DEADLINE_S = 600
_MEMORY_BYTES = 4 << 30
_MEMORY_PER_MODEL_BYTE = 8
_HOW = (
    f"write at least one {TENSORS}/CASE.npz with numpy.savez_compressed: arrays input/NAME and output/NAME, "
    "and the numbers rtol and atol"
)


_Document = TypeVar("_Document", bound=Document)


class _Told(Document, frozen=True, kw_only=True):
    """What the child says on stdout."""

    refused: str = ""
    failed: tuple[str, ...] = ()
    signature: Signature | None = None


class Answer(Document, frozen=True, kw_only=True):
    """How two models differ in one output for one golden case.

    `largest` and `mean` are of the absolute differences; `None` where there is no such number,
    and then `problem` says why. In `changed` of `rows` the largest value stands elsewhere.
    """

    case: str
    output: str = ""
    largest: float | None = None
    mean: float | None = None
    changed: int = 0
    rows: int = 0
    problem: str = ""


class _Compared(Document, frozen=True, kw_only=True):
    """What the child says on stdout of two models."""

    refused: str = ""
    answers: tuple[Answer, ...] = ()


def ask(folder: Path, *, run: Run, required: bool = True) -> Signature:
    """Run every golden tensor case through the model; return its inputs and outputs."""
    model = folder / MODEL
    if required and not list((folder / TENSORS).glob("*.npz")):
        raise ModelRefused(f"{folder / TENSORS} holds no golden case", advice=_HOW)
    told = _told(_Told, [folder], run)
    if told.failed:
        raise GoldenFailed(
            f"{model} does not give its golden answers:\n" + "\n".join(f"  {each}" for each in told.failed)
        )
    if told.signature is None:
        raise ModelRefused(f"{model}: {told.refused}")
    return told.signature


def compare(folder: Path, other: Path, *, run: Run) -> tuple[Answer, ...]:
    """Ask two models the golden cases of both; return how their answers differ, case by case."""
    told = _told(_Compared, [folder, other], run)
    if told.refused:
        raise ModelRefused(f"{folder / MODEL} and {other / MODEL}: {told.refused}")
    return told.answers


def _told(kind: type[_Document], folders: Sequence[Path], run: Run) -> _Document:
    package, named = Path(__file__).parents[2], " and ".join(str(folder / MODEL) for folder in folders)
    path = ":".join(dict.fromkeys([str(package), *(entry for entry in sys.path if entry)]))
    try:
        done = run.run(
            # -P: the folder, where the child works, is no place to import from
            [sys.executable, "-P", "-m", "shipway.stores.golden", *(folder.resolve() for folder in folders)],
            cwd=folders[0],
            env={"PYTHONPATH": path, "ORT_DISABLE_TELEMETRY": "1", "OPENBLAS_NUM_THREADS": "1"},
            timeout_s=_DEADLINE_S,
        ).check()
        return documents.parse(kind, done.stdout)
    except ToolFailed as error:
        raise ModelRefused(f"{named}: onnxruntime did not survive it ({error.message})", tail=error.tail) from error
    except Malformed as error:
        raise ModelRefused(f"{named}: the process that opened it talked nonsense") from error


# -- the child ---------------------------------------------------------------------------


def main(folder: Path, other: Path | None = None) -> None:
    """Open the model, or both, ask every case, and print what came of it."""
    held = [path.stat().st_size for each in (folder, other) if each for path in each.rglob("*")]
    _bound(_MEMORY_BYTES + _MEMORY_PER_MODEL_BYTE * sum(held))
    told: dict[str, Any]
    try:
        session = _session(folder / MODEL)
        if other:
            told = {"answers": list(_answers(session, _session(other / MODEL), _cases(folder, other)))}
        else:
            failed = [each for path in sorted((folder / TENSORS).glob("*.npz")) for each in _differences(session, path)]
            told = {"failed": failed, "signature": _signature(session)}
    except Exception as error:  # noqa: BLE001 - onnxruntime's errors have no common class
        told = {"refused": f"{type(error).__name__}: {str(error)[:2000]}"}
    json.dump(told, sys.stdout)


def _bound(memory_bytes: int) -> None:
    for limit, value in (
        (resource.RLIMIT_AS, memory_bytes),
        (resource.RLIMIT_CPU, _DEADLINE_S),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
    ):
        with contextlib.suppress(ValueError, OSError):  # not every system knows every limit
            resource.setrlimit(limit, (value, value))


def _session(model: Path) -> Any:
    import onnxruntime  # noqa: PLC0415 - heavy, and the child's alone

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def _differences(session: Any, path: Path) -> Iterator[str]:
    import numpy as np  # noqa: PLC0415 - heavy, and the child's alone

    arrays = _arrays(path)
    wanted, inputs = _under(arrays, "output/"), _under(arrays, "input/")
    rtol, atol = (float(arrays[name]) if name in arrays else np.nan for name in ("rtol", "atol"))
    if not (wanted and inputs and np.isfinite([rtol, atol]).all()):
        yield f"{path.stem}: has no inputs, no outputs or no finite tolerances; {_HOW}"
        return
    for (name, expected), got in zip(wanted.items(), session.run(list(wanted), inputs), strict=True):
        if got.shape != expected.shape:
            yield f"{path.stem}: {name} has the shape {got.shape}, expected {expected.shape}"
        elif not (close := np.isclose(got, expected, rtol=rtol, atol=atol, equal_nan=True)).all():
            difference = np.where(close, 0, np.abs(got.astype(np.float64) - expected))
            at = np.unravel_index(np.argmax(np.where(np.isnan(difference), np.inf, difference)), expected.shape)
            yield (
                f"{path.stem}: {name}[{', '.join(map(str, at))}] is {got[at]:.6g}, expected {expected[at]:.6g} "
                f"(allowed ±{atol + rtol * abs(expected[at]):.3g}; {np.sum(~close)} of {close.size} values are off)"
            )


def _cases(folder: Path, other: Path) -> Iterator[tuple[str, Path]]:
    """Yield the golden cases of both folders by name: a case that both have alike is one."""
    for at, place in enumerate((folder, other)):
        for path in sorted((place / TENSORS).glob("*.npz")):
            twin = (other, folder)[at] / TENSORS / path.name
            if not twin.exists():
                yield path.stem, path
            elif twin.read_bytes() != path.read_bytes():
                yield f"{path.stem} ({('before', 'after')[at]})", path
            elif at == 0:
                yield path.stem, path


def _answers(one: Any, other: Any, cases: Iterable[tuple[str, Path]]) -> Iterator[dict[str, Any]]:
    known = {node.name for node in other.get_outputs()}
    shared = [node.name for node in one.get_outputs() if node.name in known]
    for case, path in cases:
        inputs = _under(_arrays(path), "input/")
        try:
            pairs = zip(shared, *(session.run(shared, inputs) for session in (one, other)), strict=True)
        except Exception as error:  # noqa: BLE001 - onnxruntime's errors have no common class
            yield {"case": case, "problem": f"cannot be asked of both: {str(error)[:200]}"}
            continue
        yield from ({"case": case, "output": name, **_figures(before, after)} for name, before, after in pairs)
    if not shared:
        yield {"case": "every case", "problem": "the models have no output in common"}


def _figures(before: Any, after: Any) -> dict[str, Any]:
    """Compare one output: https://numpy.org/doc/stable/reference/generated/numpy.argmax.html along the last axis."""
    import numpy as np  # noqa: PLC0415 - heavy, and the child's alone

    if before.shape != after.shape:
        return {"problem": f"the shapes are {before.shape} and {after.shape}"}
    if not all(np.issubdtype(each.dtype, np.number) or each.dtype == np.bool_ for each in (before, after)):
        return {"problem": f"no numbers: {np.sum(before != after)} of {before.size} differ"}
    with np.errstate(invalid="ignore"):
        difference = np.abs(before.astype(np.float64) - after.astype(np.float64))
    difference[(before == after) | (np.isnan(before) & np.isnan(after))] = 0
    told: dict[str, Any] = {}
    if before.ndim and before.shape[-1] > 1:
        moved = np.argmax(before, axis=-1) != np.argmax(after, axis=-1)
        told = {"changed": int(np.sum(moved)), "rows": int(np.size(moved))}
    if not np.isfinite(difference).all():
        return {**told, "problem": "one of them answers no finite number where the other does"}
    largest, mean = (difference.max(), difference.mean()) if difference.size else (0, 0)
    return {**told, "largest": float(largest), "mean": float(mean)}


def _arrays(path: Path) -> dict[str, Any]:
    import numpy as np  # noqa: PLC0415 - heavy, and the child's alone

    with np.load(path, allow_pickle=False) as archive:
        return {name: archive[name] for name in archive.files}


def _under(arrays: dict[str, Any], prefix: str) -> dict[str, Any]:
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}


def _signature(session: Any) -> dict[str, Any]:
    return {
        "inputs": [_tensor(node) for node in session.get_inputs()],
        "outputs": [_tensor(node) for node in session.get_outputs()],
    }


def _tensor(node: Any) -> dict[str, Any]:
    plain = {"tensor(float)": "float32", "tensor(double)": "float64"}
    kind = plain.get(node.type, node.type.removeprefix("tensor(").removesuffix(")"))
    return {
        "name": node.name,
        "type": kind,
        "shape": [size if isinstance(size, int) else None for size in node.shape or []],
    }


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:3]))
