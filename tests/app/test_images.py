"""Images from strangers: scored right, or refused quickly and with a reason."""

from __future__ import annotations

import base64
import gc
import struct
import time
import tracemalloc
import zlib
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from flask.testing import FlaskClient
from PIL import Image

from app import images
from app.images import ImageRefused
from app.scoring import Preprocessing

MAX_PIXELS = 24_000_000


@pytest.fixture(scope="session")
def photograph(model_dir: Path) -> Image.Image:
    with Image.open(model_dir / "golden/images/coffee.jpg") as image:
        return image.convert("RGB")


def _encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def _grey_16(image: Image.Image) -> bytes:
    return _encoded(Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257), "PNG")


def _lying(image: Image.Image) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return _encoded(image.transpose(Image.Transpose.ROTATE_90), "JPEG", exif=exif, quality=95)


SCORED: dict[str, Callable[[Image.Image], bytes]] = {
    "png": lambda image: _encoded(image, "PNG"),
    "jpeg": lambda image: _encoded(image, "JPEG"),
    "progressive jpeg": lambda image: _encoded(image, "JPEG", progressive=True),
    "cmyk jpeg": lambda image: _encoded(image.convert("CMYK"), "JPEG"),
    "grey jpeg": lambda image: _encoded(image.convert("L"), "JPEG"),
    "rgba png": lambda image: _encoded(image.convert("RGBA"), "PNG"),
    "palette png": lambda image: _encoded(image.quantize(), "PNG"),
    "palette png with transparency": lambda image: _encoded(image.quantize(), "PNG", transparency=0),
    "grey png": lambda image: _encoded(image.convert("L"), "PNG"),
    "grey and alpha png": lambda image: _encoded(image.convert("LA"), "PNG"),
    "16-bit grey png": _grey_16,
    "exif-rotated jpeg": _lying,
    "large jpeg": lambda image: _encoded(image.resize((2400, 1600)), "JPEG"),
    "two pictures in a jpeg": lambda image: _encoded(image, "MPO", save_all=True, append_images=[image]),
}


@pytest.mark.parametrize("kind", SCORED)
def test_score_knows_the_photograph_when_sent_as(kind: str, photograph: Image.Image, client: FlaskClient) -> None:
    answer = client.post("/score", data=SCORED[kind](photograph), content_type="application/octet-stream")

    labels = [label["label"] for label in answer.get_json()["predictions"][0]["labels"]]
    assert "espresso" in labels


def _png(width: int, height: int, idat: bytes) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", idat) + chunk(b"IEND", b"")


def _bomb() -> bytes:
    """Make 160 KB that decode to 500 MB."""
    squeeze = zlib.compressobj(9)
    line = b"\0" * (1 + 13_000 * 3)
    return _png(13_000, 13_000, b"".join(squeeze.compress(line) for _ in range(4000)) + squeeze.flush())


def _animated() -> bytes:
    frames = [Image.new("RGB", (32, 32), colour) for colour in ("red", "blue")]
    return _encoded(frames[0], "PNG", save_all=True, append_images=frames[1:])


NOT_OURS = "this is not a PNG or JPEG image"
DAMAGED = "the image is truncated or damaged"
REFUSED: dict[str, tuple[Callable[[], bytes], str]] = {
    "bomb": (_bomb, "13000 x 13000 pixels are more than the 24,000,000 allowed"),
    "huge by its header": (
        lambda: _png(2**31 - 1, 1, b""),
        "2147483647 x 1 pixels are more than the 24,000,000 allowed",
    ),
    "truncated png": (lambda: _encoded(Image.effect_noise((300, 300), 99), "PNG")[:-2000], DAMAGED),
    "truncated jpeg": (lambda: _encoded(Image.effect_noise((300, 300), 99), "JPEG")[:-2000], DAMAGED),
    "damaged png": (lambda: _png(64, 64, b"not zlib"), DAMAGED),
    "png without pixels": (lambda: _png(64, 64, zlib.compress(b"")), DAMAGED),
    "zero pixels": (lambda: _png(0, 0, b""), NOT_OURS),
    "animated png": (_animated, "the image is animated; send one frame"),
    "gif": (lambda: _encoded(Image.new("P", (9, 9)), "GIF"), NOT_OURS),
    "tiff": (lambda: _encoded(Image.new("RGB", (9, 9)), "TIFF"), NOT_OURS),
    "bmp": (lambda: _encoded(Image.new("RGB", (9, 9)), "BMP"), NOT_OURS),
    "svg": (lambda: b'<svg xmlns="http://www.w3.org/2000/svg"/>', NOT_OURS),
    "eps": (lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", NOT_OURS),
    "text": (lambda: b"hello", NOT_OURS),
    "a png's first bytes": (lambda: b"\x89PNG\r\n\x1a\n", NOT_OURS),
}


@pytest.mark.parametrize("case", REFUSED)
def test_score_refuses_quickly_with_a_reason_when_the_image_is(case: str, client: FlaskClient) -> None:
    make, reason = REFUSED[case]
    body = make()

    began = time.perf_counter()
    answer = client.post("/score", data=body, content_type="application/octet-stream")
    seconds = time.perf_counter() - began

    assert (answer.status_code, answer.get_json()["errors"]) == (422, [{"pointer": "", "detail": reason}])
    assert seconds < 0.2


def test_decode_takes_no_memory_when_an_image_is_a_bomb() -> None:
    bomb = _bomb()
    tracemalloc.start()

    with pytest.raises(ImageRefused):
        images.decode(bomb, max_pixels=MAX_PIXELS)

    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2_000_000


def test_decode_scales_when_grey_has_16_bits(photograph: Image.Image) -> None:
    decoded = images.decode(_grey_16(photograph), max_pixels=MAX_PIXELS)

    assert np.array_equal(np.asarray(decoded), np.asarray(photograph.convert("L").convert("RGB")))


def test_decode_turns_the_image_upright_when_exif_says_so(photograph: Image.Image) -> None:
    decoded = images.decode(_lying(photograph), max_pixels=MAX_PIXELS)

    assert decoded.size == photograph.size
    assert np.abs(np.asarray(decoded, float) - np.asarray(photograph, float)).mean() < 5


def test_decode_ignores_exif_when_the_model_was_trained_so(photograph: Image.Image) -> None:
    decoded = images.decode(_lying(photograph), max_pixels=MAX_PIXELS, upright=False)

    assert decoded.size == (photograph.height, photograph.width)


@pytest.mark.parametrize("draft_side", [None, 256])
def test_decode_heeds_the_draft_only_when_told(draft_side: int | None, photograph: Image.Image) -> None:
    large = _encoded(photograph.resize((1200, 800)), "JPEG")

    decoded = images.decode(large, max_pixels=MAX_PIXELS, draft_side=draft_side)

    assert decoded.size == ((1200, 800) if draft_side is None else (600, 400))


@pytest.mark.parametrize("size", [(600, 400), (400, 600), (257, 301), (224, 224), (50, 900), (1000, 1)])
def test_tensor_is_but_for_rounding_what_resizing_all_and_then_cropping_gives(
    size: tuple[int, int], photograph: Image.Image, model_dir: Path
) -> None:
    preprocessing = Preprocessing.model_validate_json((model_dir / "preprocessing.json").read_bytes())
    image = photograph.resize(size)

    tensor = preprocessing.tensor(image)

    side = preprocessing.resize_short_side
    resized = image.resize(
        (image.width * side // min(size), image.height * side // min(size)), Image.Resampling.BICUBIC
    )
    left, top = (resized.width - 224) // 2, (resized.height - 224) // 2
    pixels = np.asarray(resized.crop((left, top, left + 224, top + 224)), dtype=np.float32)
    levels = np.abs(tensor[0].transpose(1, 2, 0) * preprocessing.scale + preprocessing.mean - pixels)
    assert (levels.max() <= 4, levels.mean() < 0.2) == (True, True)


def test_tensor_takes_no_memory_when_an_image_is_one_pixel_high(model_dir: Path) -> None:
    preprocessing = Preprocessing.model_validate_json((model_dir / "preprocessing.json").read_bytes())
    image = Image.new("RGB", (2_000_000, 1))  # 256 high, it would be 131 GB

    tensor = preprocessing.tensor(image)

    assert tensor.shape == (1, 3, 224, 224)


def test_score_is_flat_in_memory_when_hostile_requests_repeat(client: FlaskClient) -> None:
    bodies = [base64.b64encode(make()).decode() for make, _ in REFUSED.values()]
    client.post("/score", json=bodies)
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]

    for _ in range(10):
        client.post("/score", json=bodies)

    gc.collect()
    grown = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert grown < 500_000
