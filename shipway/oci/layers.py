"""The app's layer, made from git, and the memory of layers that were made before.

Owns what may go into the app's layer: committed bytes, their modes, and links that stay
inside. A layer made before is known by its inputs; its bytes are made again only when
somebody lacks them. Fails with `ImageError`.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from importlib.metadata import version as installed_version
from pathlib import Path

from shipway import documents
from shipway.artifacts import Descriptor, Digest, Layer, Part
from shipway.checkout import Checkout, TreeFile
from shipway.errors import ImageError, ImageMissing
from shipway.gzipped import compressed
from shipway.oci.compose import MANIFEST, TAR_GZIP, Source, blob_entry, canonical, layer_entry, read_layer
from shipway.oci.images import EMPTY, EMPTY_TYPE, Images, described
from shipway.oci.staging import write_whole
from shipway.tarball import Entry, collect, link_stays_inside

_NAME = "layers-{}"
_DIFF_ID = "dev.shipway.diff-id"
FAST = partial(compressed, level=1)  # of wheels it makes 5 % more than level 3, in two thirds of the time
_SMALL = partial(compressed, level=6)  # an app's layer is sent with every release
_FORMAT = 1  # goes into every key: raise it when the same inputs shall give other bytes

Press = Callable[[Iterable[bytes]], Iterable[bytes]]  # makes the gzip file of a tar


class Known:
    """Layers that were made before, by what they were made from, and documents: one small file each.

    What this machine does not know, `recall` may: another machine made it.
    """

    def __init__(self, folder: Path, recall: Callable[[str], tuple[Layer, ...] | None] = lambda _: None) -> None:
        """Keep the files in `folder`."""
        self._folder = folder
        self._recall = recall

    def load(self, key: str) -> tuple[Layer, ...] | None:
        """Return the layers, or nothing where they are not known or the file is damaged."""
        try:
            return tuple(read_layer(*pair) for pair in documents.decoded((self._folder / key).read_bytes()))
        except (OSError, ValueError, KeyError, TypeError):
            pass
        if (layers := self._recall(key)) is not None:
            self.save(key, layers)
        return layers

    def save(self, key: str, layers: Sequence[Layer]) -> None:
        """Remember the layers."""
        pairs = [(layer_entry(layer), layer.diff_id) for layer in layers]
        write_whole(self._folder / key, canonical(pairs), ImageError)

    def forget(self, key: str) -> None:
        """Make them anew next time."""
        (self._folder / key).unlink(missing_ok=True)

    def document(self, digest: Digest, fetch: Callable[[], bytes]) -> bytes:
        """Return the bytes with this digest, fetched the first time."""
        path = self._folder / digest.hex
        with contextlib.suppress(OSError):
            if Digest.of(data := path.read_bytes()) == digest:
                return data
        data = fetch()
        write_whole(path, data, ImageError)
        return data


def fingerprint(*inputs: str) -> str:
    """Return a key for `Known`."""
    return hashlib.sha256("\0".join((str(_FORMAT), *inputs)).encode()).hexdigest()


def pack(part: Part, title: str, tar: Iterable[bytes], press: Press, keep: Callable[[bytes], object] = len) -> Layer:
    """Return the layer that a tar makes as gzip; its bytes are given to `keep` as they are made."""
    plain, pressed, size_bytes = hashlib.sha256(), hashlib.sha256(), 0
    for piece in press(_hashed(tar, plain)):
        pressed.update(piece)
        size_bytes += len(piece)
        keep(piece)
    digest = Digest(f"sha256:{pressed.hexdigest()}")
    return Layer(
        part=part,
        title=title,
        descriptor=Descriptor(media_type=TAR_GZIP, digest=digest, size_bytes=size_bytes),
        diff_id=Digest(f"sha256:{plain.hexdigest()}"),
    )


def _hashed(pieces: Iterable[bytes], into: hashlib._Hash) -> Iterator[bytes]:
    for piece in pieces:
        into.update(piece)
        yield piece


def app(checkout: Checkout, tree: str, include: Sequence[str], known: Known) -> tuple[Layer, Source]:
    """Return the layer of the committed files in `include`, below `/srv`.

    Raises `ImageError` for a folder without committed files, for a submodule, and for a
    symbolic link that leads out of its folder.
    """
    key = fingerprint("app", tree, *include, installed_version("deflate"))
    if (layers := known.load(key)) is not None:
        return layers[0], lambda: _SMALL([_app_archive(checkout, tree, include)])
    layer, source = packed("app", ", ".join(include), _app_archive(checkout, tree, include))
    known.save(key, [layer])
    return layer, source


def packed(part: Part, title: str, plain: bytes) -> tuple[Layer, Source]:
    """Return the compressed layer that holds this tar."""
    pieces: list[bytes] = []
    return pack(part, title, [plain], _SMALL, pieces.append), lambda: pieces


def _app_archive(checkout: Checkout, tree: str, include: Sequence[str]) -> bytes:
    try:
        return collect(_app_entries(checkout, tree, include))
    except ValueError as error:
        raise ImageError(f"[image] include cannot be packed: {error}") from error


def _app_entries(checkout: Checkout, tree: str, include: Sequence[str]) -> Iterator[Entry]:
    folders: dict[TreeFile, str] = {}
    for folder in include:
        found = checkout.files(tree, folder)
        if not found:
            raise ImageError(f"[image] include names {folder!r}, where git has no file", advice="git add and commit it")
        folders |= dict.fromkeys(found, folder)
    if submodule := next((file.path for file in folders if file.kind == "submodule"), None):
        raise ImageError(f"{submodule} is a git submodule, whose files this checkout does not hold")
    for file, data in checkout.read(folders):
        yield _app_entry(file, data, folders[file])


def _app_entry(file: TreeFile, data: bytes, folder: str) -> Entry:
    path = f"srv/{file.path}"
    if file.kind != "symlink":
        executable = file.kind == "executable"
        return Entry(path=path, size_bytes=len(data), read=lambda: [data], executable=executable)
    target = data.decode("utf-8", "replace")
    if not link_stays_inside(file.path, target, folder):
        raise ImageError(f"{file.path} is a symbolic link that leads out of {folder}/: {target}")
    return Entry(path=path, link=target)


# -- what other machines know ------------------------------------------------------------


def recall(images: Images, key: str) -> tuple[Layer, ...] | None:
    """Return the layers that somebody pushed and remembered under this key, if there are any."""
    digest = images.tagged(_NAME.format(key))
    if digest is None:
        return None
    try:
        entries = documents.decoded(images.read(digest))["layers"]
        return tuple(read_layer(entry, entry["annotations"][_DIFF_ID]) for entry in entries)
    except (ImageMissing, ValueError, KeyError, TypeError):
        return None


def remember(images: Images, key: str, layers: Sequence[Layer]) -> None:
    """Let `recall` find layers that are there; naming them also keeps the registry from collecting them."""
    if images.tagged(_NAME.format(key)):
        return
    entries = [layer_entry(layer) for layer in layers]
    for entry, layer in zip(entries, layers, strict=True):
        entry["annotations"][_DIFF_ID] = layer.diff_id
    empty = described(EMPTY, EMPTY_TYPE)
    images.add(empty, lambda: [EMPTY])
    manifest = canonical(
        {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "artifactType": "application/vnd.shipway.layers.v1",
            "config": blob_entry(empty),
            "layers": entries,
        }
    )
    images.tag(_NAME.format(key), manifest, MANIFEST)
