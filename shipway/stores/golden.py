"""Golden tensor cases: asked of the model in a child process, because the model is untrusted.

Owns both sides: `ask` starts `python -m shipway.stores.golden FOLDER` and reads its one JSON
document; the child bounds its own memory, time and files before it opens anything, and gets
no environment but what it needs. A model that crashes, hangs or grows takes the child alone
with it. Raises `ModelRefused` when the model cannot be opened or run, and `GoldenFailed` with
the case and its figures.
"""

from __future__ import annotations

import contextlib
import json
import resource
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, Field, ValidationError

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


class _Told(BaseModel):
    """What the child says on stdout."""

    refused: str = ""
    failed: Annotated[tuple[str, ...], Field(strict=False)] = ()
    signature: Signature | None = None


def ask(folder: Path, *, run: Run) -> Signature:
    """Run every golden tensor case through the model; return its inputs and outputs."""
    model = folder / MODEL
    if not list((folder / TENSORS).glob("*.npz")):
        raise ModelRefused(f"{folder / TENSORS} holds no golden case", advice=_HOW)
    told = _told(model, run)
    if told.failed:
        raise GoldenFailed(
            f"{model} does not give its golden answers:\n" + "\n".join(f"  {each}" for each in told.failed)
        )
    if told.signature is None:
        raise ModelRefused(f"{model}: {told.refused}")
    return told.signature


def _told(model: Path, run: Run) -> _Told:
    package = Path(__file__).parents[2]
    path = ":".join(dict.fromkeys([str(package), *(entry for entry in sys.path if entry)]))
    try:
        done = run.run(
            # -P: the folder, where the child works, is no place to import from
            [sys.executable, "-P", "-m", "shipway.stores.golden", model.parent.resolve()],
            cwd=model.parent,
            env={"PYTHONPATH": path, "ORT_DISABLE_TELEMETRY": "1", "OPENBLAS_NUM_THREADS": "1"},
            timeout_s=_DEADLINE_S,
        ).check()
        return _Told.model_validate_json(done.stdout)
    except ToolFailed as error:
        raise ModelRefused(f"{model}: onnxruntime did not survive it ({error.message})", tail=error.tail) from error
    except ValidationError as error:
        raise ModelRefused(f"{model}: the process that opened it talked nonsense") from error


# -- the child ---------------------------------------------------------------------------


def main(folder: Path) -> None:
    """Open the model, ask every case, and print what came of it."""
    _bound(_MEMORY_BYTES + _MEMORY_PER_MODEL_BYTE * sum(path.stat().st_size for path in folder.rglob("*")))
    try:
        session = _session(folder / MODEL)
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

    with np.load(path, allow_pickle=False) as archive:
        arrays = {name: archive[name] for name in archive.files}
    wanted = {name.removeprefix("output/"): array for name, array in arrays.items() if name.startswith("output/")}
    inputs = {name.removeprefix("input/"): array for name, array in arrays.items() if name.startswith("input/")}
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
    main(Path(sys.argv[1]))
