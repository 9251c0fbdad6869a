"""What may be in a model folder: data that cannot do anything.

Owns the walk over the folder and the check of each file, by its content: a name only says
which check a file must pass. Reads nothing outside the folder, follows no link, opens no
model, decodes no image. Raises `ModelRefused`, which names the file.
"""

from __future__ import annotations

import json
import mmap
import os
import pickletools
import stat
import threading
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import IO, TypeVar, cast

from shipway import documents
from shipway.artifacts import ModelFile
from shipway.errors import ModelRefused
from shipway.stores import durable, onnxfile
from shipway.stores.manifest import check_path, measured

MODEL = "model.onnx"
_MAX_TEXT_BYTES = 16 << 20
_MAX_ARRAYS_BYTES = 1 << 30
_CALLS = frozenset({"GLOBAL", "STACK_GLOBAL", "INST", "OBJ", "NEWOBJ", "NEWOBJ_EX", "REDUCE", "BUILD"})
_Found = TypeVar("_Found")
_PICKLE = b"\x80"  # the opcode PROTO, which text cannot begin with
_ARRAYS, _ZIP = ".npz", b"PK\x03\x04"
_PARSING = threading.Lock()  # numpy parses a header as Python, which fails in two threads: python/cpython#106905
_PNG = b"\x89PNG\r\n\x1a\n"
_JPEG, _JPEG_END = b"\xff\xd8\xff", b"\xff\xd9"


def inspect(folder: Path) -> tuple[ModelFile, ...]:
    """Return the files of a model folder, sorted by path, once all of them are found harmless."""
    if not (folder / MODEL).is_file():
        raise ModelRefused(f"{folder / MODEL}: there is no such file, and every model has one")
    paths = sorted(_walk(folder, ""))
    files = tuple(_file(folder, path) for path in paths)
    for path in paths:
        if not path.endswith(_ARRAYS):  # an archive itself, looked into below
            _check(folder / path, _not_executable)
    tensor_data = {path for model in paths if model.endswith(".onnx") for path in _tensor_data(folder, model, paths)}
    for path in paths:
        if path not in tensor_data:
            _check(folder / path, _check_for(folder / path))
    return files


def _walk(folder: Path, prefix: str) -> Iterator[str]:
    with os.scandir(folder / prefix) as found:
        entries = list(found)
    for entry in entries:
        path = f"{prefix}{entry.name}"
        try:
            check_path(path)
        except ValueError as error:
            raise ModelRefused(f"{folder}: {error}") from error
        kind = entry.stat(follow_symlinks=False).st_mode
        if stat.S_ISDIR(kind):
            yield from _walk(folder, f"{path}/")
        elif stat.S_ISREG(kind):
            yield path
        else:
            what = "a symbolic link" if stat.S_ISLNK(kind) else "no regular file"
            raise ModelRefused(f"{folder / path} is {what}; put the file itself into the folder")


def _file(folder: Path, path: str) -> ModelFile:
    try:
        digest, size_bytes = measured(durable.read(folder / path))
    except OSError as error:
        raise ModelRefused(f"{folder / path} cannot be read: {error.strerror}") from error
    if size_bytes == 0:
        raise ModelRefused(f"{folder / path} is empty")
    return ModelFile(path=path, digest=digest, size_bytes=size_bytes)


def _tensor_data(folder: Path, model: str, paths: list[str]) -> Iterator[str]:
    """Yield the files that a model takes tensors from; each must be in the folder, and long enough."""
    for external in _check(folder / model, onnxfile.external_data):
        path = str(PurePosixPath(model).parent / external.location)
        if path not in paths or path == model:
            raise ModelRefused(
                f"{folder / model} takes a tensor from {external.location!a}, which is no file of the folder"
            )
        if not 0 <= external.offset <= external.offset + external.length <= (folder / path).stat().st_size:
            raise ModelRefused(f"{folder / model} takes a tensor from beyond the end of {path}")
        yield path


def _check(path: Path, check: Callable[[Path], _Found]) -> _Found:
    try:
        return check(path)
    except (ValueError, RecursionError, MemoryError) as error:
        raise ModelRefused(f"{path} is refused: {str(error) or type(error).__name__}") from error


def _check_for(path: Path) -> Callable[[Path], object]:
    check = _CHECKS.get(path.suffix.lower())
    if check is None:
        known = " ".join(sorted(_CHECKS))
        raise ModelRefused(f"{path} is refused: {path.suffix or 'no ending'} is none of the safe formats ({known})")
    return check


def _not_executable(path: Path) -> None:
    """Refuse what Python or a loader would run: pickles, and archives that may hold them."""
    if _is_pickle(path):
        message = "it is a pickle, which can run any program when it is loaded"
        raise ValueError(message)
    if _zip_names(path):
        message = "it is, or holds, a zip archive, which may hold pickles"
        raise ValueError(message)


def _is_pickle(path: Path) -> bool:
    calls = False
    # mapped, because a plain file would make room for whatever length the bytes claim
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        marked = data[:1] == _PICKLE
        try:
            with warnings.catch_warnings(action="ignore"):  # about escapes in what is no pickle at all
                for opcode, _, _ in pickletools.genops(cast("IO[bytes]", data)):
                    calls |= opcode.name in _CALLS
        except (ValueError, OverflowError):
            return False
    return calls or marked


def _zip_names(path: Path) -> list[str]:
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.namelist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError):
        return []


def _onnx(path: Path) -> None:
    onnxfile.external_data(path)


def _text(path: Path) -> str:
    if path.stat().st_size > _MAX_TEXT_BYTES:
        message = f"it is text of more than {_MAX_TEXT_BYTES:,} bytes"
        raise ValueError(message)
    text = path.read_bytes().decode("utf-8")
    if any(ord(letter) < ord(" ") and letter not in "\t\r\n" for letter in text):
        message = "it is no plain text"
        raise ValueError(message)
    return text


def _json(path: Path) -> None:
    text = _text(path)
    json.loads(text, parse_constant=_refuse_constant)
    documents.decoded(text)  # and what else no manifest could hold


def _refuse_constant(name: str) -> None:
    message = f"{name} is not JSON"
    raise ValueError(message)


def _png(path: Path) -> None:
    """Walk the chunks of https://www.w3.org/TR/png/: all whole, and nothing after the end."""
    data = path.read_bytes()
    at, kind = len(_PNG), b""
    while data.startswith(_PNG) and kind != b"IEND" and at + 12 <= len(data):
        size, kind = int.from_bytes(data[at : at + 4]), data[at + 4 : at + 8]
        body, check = data[at + 4 : at + 8 + size], data[at + 8 + size : at + 12 + size]
        if zlib.crc32(body) != int.from_bytes(check):
            break
        at += 12 + size
    if kind != b"IEND" or at != len(data):
        message = "it is no PNG, or not a whole one"
        raise ValueError(message)


def _jpeg(path: Path) -> None:
    data = path.read_bytes()
    if not (data.startswith(_JPEG) and data.endswith(_JPEG_END)):
        message = "it is no JPEG, or not a whole one"
        raise ValueError(message)


def _arrays(path: Path) -> None:
    """Look into an `.npz` without loading it: every member an array of plain numbers or text."""
    from numpy.lib import format as npy  # noqa: PLC0415 - numpy is slow to import, and most commands publish nothing

    try:
        with path.open("rb") as file, zipfile.ZipFile(file) as archive:
            members = archive.infolist()
            if file.seek(0) or file.read(len(_ZIP)) != _ZIP:
                message = "it does not begin as an archive does"
                raise ValueError(message)
            if not members or sum(member.file_size for member in members) > _MAX_ARRAYS_BYTES:
                message = f"it holds no arrays, or more than {_MAX_ARRAYS_BYTES:,} bytes"
                raise ValueError(message)
            for member in members:
                with archive.open(member) as array:
                    read = npy.read_array_header_1_0 if npy.read_magic(array) == (1, 0) else npy.read_array_header_2_0
                    with _PARSING:
                        dtype = read(array)[2]
                if dtype.hasobject:
                    message = f"{member.filename} in it holds Python objects, which are pickles"
                    raise ValueError(message)
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, zlib.error) as error:
        message = f"it is no archive of arrays ({error})"
        raise ValueError(message) from error


_CHECKS: Mapping[str, Callable[[Path], object]] = {
    ".onnx": _onnx,
    ".json": _json,
    ".txt": _text,
    ".md": _text,
    ".csv": _text,
    ".png": _png,
    ".jpg": _jpeg,
    ".jpeg": _jpeg,
    _ARRAYS: _arrays,
}
