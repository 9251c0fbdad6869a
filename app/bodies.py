"""A request's body to the bytes of its images, whatever form it came in.

Owns the four forms of `POST /score` (the original's JSON, a JSON list, a raw image,
multipart) and their limits. Knows nothing of what the bytes show. What is wrong is raised as
`Problem` that points at every wrong place: 400 if the form cannot be read at all, 415 if it
is none of ours, 422 if what it holds is not what we take.
"""

from __future__ import annotations

import binascii
from dataclasses import dataclass
from typing import Any

import pydantic_core
from werkzeug.sansio.multipart import Data, Epilogue, Field, File, MultipartDecoder, NeedData
from werkzeug.wrappers import Request

from app.problems import Problem
from app.schemas import Fault

IMAGE_TYPES = ("image/png", "image/jpeg", "application/octet-stream")
MEDIA_TYPES = ("application/json", "multipart/form-data", *IMAGE_TYPES)

# A million keys are 10 MB that take 0.4 s to parse, and an object each; counting brackets and
# commas first takes 8 ms. Base64 holds none: an honest image costs two, and these are to spare,
# so that somewhat too many images are still counted and named.
_SPARE_MARKS = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Upload:
    """One image as it was sent, and where in the request it stood (a JSON pointer)."""

    pointer: str
    data: bytes


def read(request: Request, *, max_images: int) -> list[Upload]:
    """Return the request's images in their order; at least one, at most `max_images`."""
    if request.headers.get("Content-Encoding", "identity").lower() != "identity":
        raise Problem(415, "compressed bodies are not taken", headers={"Accept-Encoding": "identity"})
    form = request.mimetype
    if form not in MEDIA_TYPES:
        accepted = ", ".join(MEDIA_TYPES)
        raise Problem(415, f"send one of {accepted}", headers={"Accept-Post": accepted})
    body = request.get_data(cache=False)
    if not body:
        raise _wrong(422, "", "the body is empty")
    if form == "application/json":
        return _from_json(body, max_images)
    if form == "multipart/form-data":
        return _from_multipart(body, request.mimetype_params.get("boundary", ""), max_images)
    return [Upload(pointer="", data=body)]


def _from_json(body: bytes, max_images: int) -> list[Upload]:
    if sum(map(body.count, (b",", b"[", b"{"))) > _SPARE_MARKS + 2 * max_images:
        raise _wrong(422, "", f"more values than {max_images} images need")
    document = _parsed(body, "")
    where = ""
    if isinstance(document, dict):
        if "input" not in document:
            raise _wrong(422, "", 'the object has no "input"')
        document, where = document["input"], "/input"
        if isinstance(document, str):
            document = _parsed(document.encode(), where)
    if not isinstance(document, list):
        raise _wrong(422, where, "this is not a list of images")
    _check_count(len(document), max_images, where)
    return _decoded(document, where)


def _parsed(text: bytes, where: str) -> Any:
    try:
        return pydantic_core.from_json(text, allow_inf_nan=False)
    except ValueError as error:
        raise _wrong(400, where, f"this is not JSON: {error}") from error


def _decoded(items: list[Any], where: str) -> list[Upload]:
    uploads, faults = [], []
    for position, item in enumerate(items):
        pointer = f"{where}/{position}"
        try:
            uploads.append(Upload(pointer=pointer, data=_from_base64(item)))
        except ValueError as error:
            faults.append(Fault(pointer=pointer, detail=str(error)))
    if faults:
        raise Problem(422, faults[0].detail, errors=faults)
    return uploads


def _from_base64(item: Any) -> bytes:
    """Decode base64 or a base64 `data:` URL; line breaks are let through, as encoders make them."""
    if not isinstance(item, str):
        raise ValueError("this is not a string")  # noqa: TRY004 - one exception for every fault
    if item[:5].lower() == "data:":
        head, _, item = item.partition(",")
        if not head.lower().endswith(";base64"):
            raise ValueError("only data: URLs in base64 are taken")
    try:
        return binascii.a2b_base64("".join(item.split()), strict_mode=True)
    except ValueError as error:
        raise ValueError("this is not base64") from error


def _from_multipart(body: bytes, boundary: str, max_images: int) -> list[Upload]:
    # Decoded here rather than by `request.files`, which writes temporary files and loses the
    # order of parts that have different names.
    decoder = MultipartDecoder(boundary.encode(), max_parts=max_images + 1)
    parts: list[bytearray] = []
    try:
        decoder.receive_data(body)
        decoder.receive_data(None)
        while not isinstance(event := decoder.next_event(), (Epilogue, NeedData)):
            if isinstance(event, Field):
                raise _wrong(422, f"/{len(parts)}", "this part is not a file; give it a file name")
            if isinstance(event, File):
                parts.append(bytearray())
            elif isinstance(event, Data):
                parts[-1] += event.data
    except ValueError as error:
        raise _wrong(400, "", "the multipart body cannot be read") from error
    _check_count(len(parts), max_images, "")
    return [Upload(pointer=f"/{position}", data=bytes(part)) for position, part in enumerate(parts)]


def _check_count(count: int, max_images: int, where: str) -> None:
    if not count:
        raise _wrong(422, where, "there is no image")
    if count > max_images:
        raise _wrong(422, f"{where}/{max_images}", f"{count} images are more than the {max_images} allowed")


def _wrong(status: int, pointer: str, detail: str) -> Problem:
    return Problem(status, detail, errors=[Fault(pointer=pointer, detail=detail)])
