"""The model: checked, warmed up, and asked for the three best labels of an image.

Owns the model's folder, its preprocessing (which is data, in `preprocessing.json`) and the one
onnxruntime session, which threads and forked workers share. Knows nothing of HTTP. A folder
that is not what was promised, or does not give its own golden answers, raises `ModelUnfit`
when it is loaded; so a `Classifier` that exists answers right.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from app import images
from app.schemas import Label, Prediction

# onnxruntime 1.29 and later starts a telemetry thread when it is imported; after a fork
# gunicorn's threaded workers abort on it at shutdown. Only the environment can stop it.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
import onnxruntime

TOP = 3

Tensor = NDArray[np.float32]


class ModelUnfit(Exception):
    """The model folder is not what was promised, or this service cannot serve it."""


class Preprocessing(BaseModel):
    """What the model's publisher says about its input; an unknown key or value is refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    input: str
    output: str
    color: Literal["RGB"]
    layout: Literal["NCHW"]
    resample: Literal["bicubic"]
    resize_short_side: int = Field(ge=1)
    crop: int = Field(ge=1)
    mean: float
    scale: float = Field(gt=0)
    exif_transpose: bool
    jpeg_draft: bool

    def tensor(self, image: Image.Image) -> Tensor:
        """Return an RGB image as float32 [1, 3, crop, crop].

        Only the crop's box is resized. That is what resizing all and then cropping gives, but
        for rounding (0.2 of 255 levels on average); it makes a request 6 % cheaper, and an image
        that is one pixel high no memory bomb.
        """
        width, height = (side * self.resize_short_side // min(image.size) for side in image.size)
        left, top = (width - self.crop) // 2, (height - self.crop) // 2
        across, down = image.width / width, image.height / height
        box = (left * across, top * down, (left + self.crop) * across, (top + self.crop) * down)
        cropped = image.resize((self.crop, self.crop), Image.Resampling.BICUBIC, box=box)
        pixels = np.asarray(cropped, dtype=np.float32)
        return np.ascontiguousarray(((pixels - self.mean) / self.scale).transpose(2, 0, 1)[None])


class Classifier:
    """A model that was verified and warmed up. Safe to share among threads and across a fork."""

    def __init__(self, folder: Path, *, digest: str | None, max_pixels: int) -> None:
        """Load and check `folder`; `digest` is what it must hold, `None` trusts it. Raises `ModelUnfit`."""
        self.digest = set_digest(folder)
        if digest not in (None, self.digest):
            raise ModelUnfit(f"{folder} holds {self.digest}, not {digest}")
        self._max_pixels = max_pixels
        try:
            self._preprocessing = Preprocessing.model_validate_json((folder / "preprocessing.json").read_bytes())
            self._labels = (folder / "labels.txt").read_text("utf-8").splitlines()
            self._session = _session(folder / "model.onnx")
        except (OSError, ValidationError) as error:
            raise ModelUnfit(f"{folder}: {error}") from error
        self._check_shapes()
        self._check_golden(folder / "golden" / "tensors")

    def tensor(self, data: bytes) -> Tensor:
        """Turn an image's bytes into the model's input. Raises `images.ImageRefused`."""
        image = images.decode(
            data,
            max_pixels=self._max_pixels,
            draft_side=self._preprocessing.resize_short_side if self._preprocessing.jpeg_draft else None,
            upright=self._preprocessing.exif_transpose,
        )
        return self._preprocessing.tensor(image)

    def predict(self, tensor: Tensor) -> Prediction:
        """Return the best labels for one input of shape [1, 3, crop, crop]."""
        logits = self._infer(tensor)[0].astype(np.float64)
        weights = np.exp(logits - logits.max())
        probabilities = weights / weights.sum()
        best = np.argsort(probabilities)[: -TOP - 1 : -1]
        return Prediction(
            labels=[
                Label(label=self._labels[index], index=index, probability=round(float(probabilities[index]), 6))
                for index in best.tolist()
            ]
        )

    def _infer(self, tensor: Tensor) -> Tensor:
        (logits,) = self._session.run([self._preprocessing.output], {self._preprocessing.input: tensor})
        return np.asarray(logits, dtype=np.float32)

    def _check_shapes(self) -> None:
        crop = self._preprocessing.crop
        inputs = {item.name: (item.type, item.shape[1:]) for item in self._session.get_inputs()}
        if inputs != {self._preprocessing.input: ("tensor(float)", [3, crop, crop])}:
            raise ModelUnfit(f"the model's inputs are {inputs}, not as preprocessing.json says")
        outputs = {item.name: (item.type, item.shape[1:]) for item in self._session.get_outputs()}
        if outputs.get(self._preprocessing.output) != ("tensor(float)", [len(self._labels)]):
            raise ModelUnfit(f"the model's outputs are {outputs}, not {len(self._labels)} labels")

    def _check_golden(self, folder: Path) -> None:
        """Compare with every golden answer; this warms the session up as well."""
        cases = sorted(folder.glob("*.npz"))
        if not cases:
            raise ModelUnfit(f"{folder} holds no golden case")
        for path in cases:
            with np.load(path, allow_pickle=False) as case:
                answer = self._infer(case[f"input/{self._preprocessing.input}"])
                expected = case[f"output/{self._preprocessing.output}"]
                if not np.allclose(answer, expected, rtol=case["rtol"], atol=case["atol"]):
                    raise ModelUnfit(f"the model does not give the golden answer {path.name}")


def set_digest(folder: Path) -> str:
    """Return the SHA-256 over the sorted lines that `sha256sum` prints for the folder's files."""
    files = sorted((path.relative_to(folder).as_posix(), path) for path in folder.rglob("*") if path.is_file())
    lines = (f"{_sha256(path)}  {name}\n" for name, path in files)
    return f"sha256:{hashlib.sha256(''.join(lines).encode()).hexdigest()}"


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _session(path: Path) -> onnxruntime.InferenceSession:
    """Open the model for one thread a request, without threads of its own.

    A session with threads, made before a fork, silently falls back to one; and threads that
    spin halve what two workers get done. Requests are the parallelism.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    try:
        return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's own exceptions have no public base
        raise ModelUnfit(str(error)) from error
