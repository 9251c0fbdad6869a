"""Turn an image's own layers into a folder that this machine can run from.

Owns `layers/`, each layer fetched and unpacked once, and `versions/`, each image's layers linked
together. Unpacks no base, follows no link, writes nothing outside of its folders, whatever
a tar says. A folder appears by one rename, so one that is there is whole. Knows nothing of
how versions are started.
"""

from __future__ import annotations

import os
import shutil
import stat
import sys
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO

from shipway.artifacts import Image, Layer
from shipway.console import Tell, size
from shipway.errors import ImageCorrupt
from shipway.oci.archive import CHUNK, NotAsSaid, members
from shipway.oci.compose import CONFIG, MANIFEST
from shipway.oci.images import Images, described
from shipway.oci.layout import Layout
from shipway.oci.staging import staging, writing
from shipway.proc import Run
from shipway.tarball import link_stays_inside

_ROOT = "srv"


def fetch(image: Image, images: Images, layout: Layout, tell: Tell) -> None:
    """Copy what of an image's own layers the layout lacks, and its documents last; the base is not needed here.

    Raises `ImageMissing`, `ImageCorrupt`, and `PushError` when the disk is full.
    """
    config = described(image.config, CONFIG)
    with layout.pushing():
        for layer in (layer for layer in image.layers if layer.part != "base"):
            blob = layer.descriptor
            if not layout.has(blob):
                tell.say("rollout", f"fetching {layer.part} {layer.title}, {size(blob.size_bytes)}")
            with tell.progress("rollout", layer.title, blob.size_bytes) as advance:
                layout.add(blob, partial(images.pieces, blob), advance=advance)
        layout.add(config, lambda: [image.config])
        layout.put(image.manifest, MANIFEST)


def unpack(layout: Layout, image: Image, state: Path, *, proc: Run, tell: Tell) -> Path:
    """Return the folder below `state` that holds the image's `srv`, read-only; made unless it is there.

    Dependencies are compiled for this interpreter. Raises `ImageMissing`, `ImageCorrupt`,
    and `PushError` when the disk is full.
    """
    layers, version = state / "layers", state / "versions" / image.digest.hex
    if version.is_dir():
        return version
    ours = [layer for layer in image.layers if layer.part != "base"]
    if missing := [layer for layer in ours if not _folder(layers, layer).is_dir()]:
        tell.say("rollout", f"unpacking {', '.join(layer.title for layer in missing)}")
        with writing(layers, _size(missing)), staging(layers) as folder:
            _unpack_layers(missing, layout, layers, folder, proc)
    with writing(version, _size(ours)), staging(version.parent) as folder:
        for layer in ours:
            place = _folder(layers, layer)
            shutil.copytree(place, folder / "version", symlinks=True, copy_function=_link_file, dirs_exist_ok=True)
        _appear(folder / "version", version)
    return version


def prune(keep: Collection[Image], state: Path) -> None:
    """Delete the versions and the unpacked layers that `keep` does not need, each by one rename, as it appeared."""
    versions, layers = state / "versions", state / "layers"
    wanted = {versions / image.digest.hex for image in keep}
    wanted |= {_folder(layers, layer) for image in keep for layer in image.layers}
    for place in (versions, layers):
        with staging(place) as folder:
            for tree in set(place.glob("[!.]*")) - wanted:
                tree.rename(folder / tree.name)


def _size(layers: Iterable[Layer]) -> int:
    return sum(layer.descriptor.size_bytes for layer in layers)


def _folder(layers: Path, layer: Layer) -> Path:
    """Return a layer's place: compiled files are one interpreter's."""
    return layers / f"{layer.diff_id.hex}-{sys.implementation.cache_tag}"


def _unpack_layers(missing: Sequence[Layer], layout: Layout, layers: Path, folder: Path, proc: Run) -> None:
    trees = {layer: folder / layer.diff_id.hex for layer in missing}
    for layer, tree in trees.items():
        tree.mkdir()
        _extract(layer, layout, tree)
    _compile([tree for layer, tree in trees.items() if layer.part in {"dependencies", "dockerfile"}], proc)
    for layer, tree in trees.items():
        _appear(tree, _folder(layers, layer))


def _compile(trees: Sequence[Path], proc: Run) -> None:
    """Compile wheels; the compiled files are never compared with their sources, which are read-only."""
    if trees:
        how = ("-I", "-m", "compileall", "-q", "-q", "-j", "0", "--invalidation-mode", "unchecked-hash")
        # Its exit code is no verdict: some wheels hold templates that are no Python at all.
        proc.run([sys.executable, *how, *trees])
    for compiled in (file for tree in trees for file in tree.rglob("__pycache__/*.pyc")):
        compiled.chmod(0o444)


def _extract(layer: Layer, layout: Layout, tree: Path) -> None:
    links: dict[PurePosixPath, str] = {}
    try:
        with layout.open(layer.descriptor.digest) as blob:
            for path, info, content in members(blob, layer):
                if path.parts[:1] != (_ROOT,):
                    if layer.part == "dockerfile":
                        continue  # it holds its base too
                    raise _refused(path, "lies outside of /srv")
                if path.name.startswith(".wh."):
                    raise _refused(path, "deletes what a layer below it holds, which is followed in a container alone")
                if info.isdir():
                    (tree / path).mkdir(parents=True, exist_ok=True)
                elif content and not info.issparse():
                    _write(tree / path, content, mode=0o555 if info.mode & stat.S_IXUSR else 0o444)
                elif info.issym() and link_stays_inside(str(path), info.linkname, _ROOT):
                    links[path] = info.linkname
                else:
                    raise _refused(path, "is no file, folder or link within /srv")
        _make_links(tree, links)
    except (NotAsSaid, FileExistsError, NotADirectoryError) as error:
        message = f"{layout.path(layer.descriptor.digest)} ({layer.part}, {layer.title}) is damaged: {error}"
        raise ImageCorrupt(message) from error


def _make_links(tree: Path, links: Mapping[PurePosixPath, str]) -> None:
    """Make the links last, and none below another, so that nothing was written through one."""
    for path, target in links.items():
        if links.keys() & set(path.parents):
            raise _refused(path, "lies below a link")
        (tree / path).parent.mkdir(parents=True, exist_ok=True)
        (tree / path).symlink_to(target)


def _refused(path: PurePosixPath, why: str) -> NotAsSaid:
    return NotAsSaid(f"/{path} {why}")


def _write(path: Path, content: IO[bytes], *, mode: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("xb") as file:
        shutil.copyfileobj(content, file, CHUNK)
        os.fchmod(file.fileno(), mode)


def _appear(tree: Path, final: Path) -> None:
    try:
        tree.rename(final)
    except OSError:
        if not final.is_dir():  # else another process made the same
            raise


def _link_file(source: str, target: str) -> None:
    """Add a layer's file to a version; of two layers' the later one's stays."""
    Path(target).unlink(missing_ok=True)
    try:
        Path(target).hardlink_to(source)
    except OSError:  # another file system, one without links, or too many of them
        with writing(Path(target), Path(source).stat().st_size):
            shutil.copy2(source, target)
