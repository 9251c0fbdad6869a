"""Bytes from strangers to pixels: PNG and JPEG, told by their content, within limits.

Owns every decision about hostile images. Knows nothing of HTTP or of the model. Whatever is
wrong with the bytes raises `ImageRefused` with a reason for the sender; size is checked from
the header, before a pixel is decoded.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from io import BytesIO

from PIL import Image, ImageOps, JpegImagePlugin, PngImagePlugin

# Both plug-ins are imported above, once, and Pillow's own limit (which warns only, up to
# twice its figure: a 160 KB PNG took 822 MB) gives way to ours.
FORMATS = (PngImagePlugin.PngImageFile.format, JpegImagePlugin.JpegImageFile.format)
Image.MAX_IMAGE_PIXELS = None

_LARGE_PIXELS = 4_000_000
_one_large_at_a_time = threading.Lock()


class ImageRefused(Exception):
    """The bytes are not an image that the service takes."""


def decode(data: bytes, *, max_pixels: int, draft_side: int | None = None, upright: bool = True) -> Image.Image:
    """Return the image as 8-bit RGB.

    `draft_side` lets a JPEG be decoded at 1/2, 1/4 or 1/8 of its size, never below that short
    side; `upright` turns it as its EXIF orientation says. Images of many pixels are decoded
    one at a time, so that a burst of them does not multiply memory. Raises `ImageRefused`.
    """
    image = _open(data)
    _check(image, max_pixels)
    if draft_side:
        image.draft(None, (draft_side, draft_side))
    try:
        with _room_for(image):
            return _rgb(ImageOps.exif_transpose(image) if upright else image)
    except Exception as error:  # Pillow names no closed set; whatever it raises, these bytes are the cause
        raise ImageRefused("the image is truncated or damaged") from error


def _open(data: bytes) -> Image.Image:
    try:
        return Image.open(BytesIO(data), formats=FORMATS)
    except Exception as error:  # as above; anything that is neither PNG nor JPEG ends here too
        raise ImageRefused("this is not a PNG or JPEG image") from error


def _check(image: Image.Image, max_pixels: int) -> None:
    pixels = image.width * image.height
    if pixels > max_pixels:
        raise ImageRefused(f"{image.width} x {image.height} pixels are more than the {max_pixels:,} allowed")
    if image.format == "PNG" and getattr(image, "is_animated", False):
        raise ImageRefused("the image is animated; send one frame")


@contextlib.contextmanager
def _room_for(image: Image.Image) -> Iterator[None]:
    if image.width * image.height <= _LARGE_PIXELS:
        yield
        return
    with _one_large_at_a_time:
        yield


def _rgb(image: Image.Image) -> Image.Image:
    """Convert to 8-bit RGB; Pillow would clip 16-bit grey to white instead of scaling it."""
    if image.mode.startswith("I"):
        image = image.point(lambda value: value * (1 / 256)).convert("L")
    return image.convert("RGB")
