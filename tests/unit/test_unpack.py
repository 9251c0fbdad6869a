"""Extraction: whole layers once, and nothing outside of the folder, whatever a tar says."""

from __future__ import annotations

import gzip
import io
import os
import tarfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest

from shipway.artifacts import Descriptor, Digest, Image, Layer, Part
from shipway.console import Console
from shipway.errors import ImageCorrupt, ImageMissing
from shipway.oci.compose import TAR, TAR_GZIP
from shipway.oci.layout import Layout
from shipway.oci.unpack import prune, unpack
from shipway.proc import Completed
from shipway.tarball import Entry, collect


class Compiler:
    """Compiles nothing, but leaves the files that `compileall` would."""

    def __init__(self) -> None:
        self.asked: list[list[str]] = []

    def run(
        self,
        argv: Sequence[str | Path],
        *,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
        stdin: bytes | None = None,
        on_line: Callable[[str], None] | None = None,
        timeout_s: float | None = None,
    ) -> Completed:
        assert (cwd, env, stdin, on_line, timeout_s) == (None, None, None, None, None)
        self.asked.append([str(word) for word in argv])
        for source in Path(argv[-1]).rglob("*.py"):
            compiled = source.parent / "__pycache__" / f"{source.stem}.pyc"
            compiled.parent.mkdir(exist_ok=True)
            compiled.write_bytes(b"compiled")
        return Completed(argv=(), code=1, stdout=b"", tail="a template is no Python")


class Shop:
    """A layout that images are put into by hand."""

    def __init__(self, folder: Path) -> None:
        self.state, self.layout, self.compiler = folder, Layout(folder / "images"), Compiler()

    def layer(self, data: bytes, part: Part = "app") -> Layer:
        stored = gzip.compress(data, mtime=0) if part == "app" else data
        media_type = TAR_GZIP if part == "app" else TAR
        descriptor = Descriptor(media_type=media_type, digest=Digest.of(stored), size_bytes=len(stored))
        self.layout.add(descriptor, lambda: [stored])
        return Layer(part=part, title=part, descriptor=descriptor, diff_id=Digest.of(data))

    def unpack(self, *layers: Layer) -> Path:
        image = _image(*layers)
        return unpack(self.layout, image, self.state, proc=self.compiler, tell=Console(err=io.StringIO()))

    def left_behind(self) -> list[str]:
        return sorted(
            path.name for place in ("layers", "versions") for path in (self.state / place).rglob("*") if path.is_file()
        )


def _image(*layers: Layer) -> Image:
    return Image(build="b", manifest=repr(layers).encode(), config=b"", layers=layers)


@pytest.fixture
def shop(tmp_path: Path) -> Shop:
    return Shop(tmp_path)


def _file(path: str, data: bytes = b"x", *, executable: bool = False) -> Entry:
    return Entry(path=path, size_bytes=len(data), read=lambda: [data], executable=executable)


def _tree(root: Path) -> dict[str, tuple[int, bytes | str]]:
    found: dict[str, tuple[int, bytes | str]] = {}
    for path in sorted(root.rglob("*")):
        if path.is_symlink():
            found[str(path.relative_to(root))] = (0, str(path.readlink()))
        elif path.is_file():
            found[str(path.relative_to(root))] = (path.stat().st_mode & 0o777, path.read_bytes())
    return found


def test_version_holds_the_files_read_only_when_its_layers_are_unpacked(shop: Shop) -> None:
    wheel = shop.layer(collect([_file("srv/site-packages/six.py", b"six")]), "dependencies")
    app = collect([_file("srv/app/run", b"#!", executable=True), Entry(path="srv/app/link", link="run")])

    version = shop.unpack(shop.layer(b"not ours", "base"), wheel, shop.layer(app))

    assert _tree(version) == {
        "srv/app/link": (0, "run"),
        "srv/app/run": (0o555, b"#!"),
        "srv/site-packages/__pycache__/six.pyc": (0o444, b"compiled"),
        "srv/site-packages/six.py": (0o444, b"six"),
    }
    assert (
        version == shop.state / "versions" / _image(shop.layer(b"not ours", "base"), wheel, shop.layer(app)).digest.hex
    )


def test_layer_is_unpacked_and_compiled_once_when_two_versions_share_it(shop: Shop) -> None:
    wheel = shop.layer(collect([_file("srv/site-packages/six.py")]), "dependencies")

    first = shop.unpack(wheel, shop.layer(collect([_file("srv/app/a.py")])))
    second = shop.unpack(wheel, shop.layer(collect([_file("srv/app/b.py")])))

    shared = "srv/site-packages/six.py"
    assert (first / shared).stat().st_ino == (second / shared).stat().st_ino
    assert len(shop.compiler.asked) == 1


def test_version_is_copied_when_links_cannot_be_made(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "link", refuse)  # a file system without links cannot be mounted in a test

    version = shop.unpack(shop.layer(collect([_file("srv/app/a.py", b"a")])))

    assert _tree(version) == {"srv/app/a.py": (0o444, b"a")}


def test_later_layer_wins_when_two_hold_the_same_file(shop: Shop) -> None:
    first, second = (shop.layer(collect([_file("srv/LICENCE", data)]), "dependencies") for data in (b"1", b"2"))

    assert _tree(shop.unpack(first, second)) == {"srv/LICENCE": (0o444, b"2")}


def _hostile(*members: tuple[str, bytes, str]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, kind, target in members:
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, target
            info.size = 1 if kind == tarfile.REGTYPE else 0
            archive.addfile(info, io.BytesIO(b"x"))
    return buffer.getvalue()


FILE, LINK, HARD, FOLDER = tarfile.REGTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE


@pytest.mark.parametrize(
    "members",
    [
        [("../evil", FILE, "")],
        [("srv/../../evil", FILE, "")],
        [("evil", FILE, "")],
        [("/etc/evil", FILE, "")],
        [("srv/a", LINK, "/etc")],
        [("srv/a", LINK, "../..")],
        [("srv/a", LINK, "b/../../..")],
        [("srv/a", LINK, "."), ("srv/a/evil", FILE, "")],
        [("srv/d/b", LINK, ".."), ("srv/d/b/evil", LINK, "..")],
        [("srv/a", FILE, ""), ("srv/a", FILE, "")],
        [("srv/a", FILE, ""), ("srv/a/b", FILE, "")],
        [("srv/a", FILE, ""), ("srv/a", LINK, "b")],
        [("srv/a", FILE, ""), ("srv/b", HARD, "srv/a")],
        [("srv/a", HARD, "../../etc/passwd")],
        [("srv/tty", tarfile.CHRTYPE, "")],
        [("srv/sda", tarfile.BLKTYPE, "")],
        [("srv/pipe", tarfile.FIFOTYPE, "")],
    ],
    ids=lambda members: "-".join(name for name, _, _ in members),
)
def test_layer_is_refused_and_nothing_is_written_when_it_is_hostile(
    shop: Shop, members: list[tuple[str, bytes, str]]
) -> None:
    layer = shop.layer(_hostile(*members))
    before = sorted(path for path in shop.state.rglob("*") if "layers" not in path.parts)

    with pytest.raises(ImageCorrupt, match=layer.descriptor.digest.hex):
        shop.unpack(layer)
    assert sorted(path for path in shop.state.rglob("*") if "layers" not in path.parts) == before
    assert shop.left_behind() == ["folders.lock"]


@pytest.mark.parametrize("part", ["app", "model"])
@pytest.mark.parametrize("damage", ["flipped", "short"])
def test_layer_is_refused_when_its_bytes_changed_on_disk(shop: Shop, part: Part, damage: str) -> None:
    layer = shop.layer(collect([_file("srv/app/a", os.urandom(4096))]), part)
    path = shop.layout.path(layer.descriptor.digest)
    data = bytearray(path.read_bytes())
    if damage == "flipped":
        data[len(data) // 2] ^= 1
    else:
        del data[len(data) // 2 :]
    path.write_bytes(data)

    with pytest.raises(ImageCorrupt) as caught:
        shop.unpack(layer)
    assert str(path) in caught.value.message
    assert shop.left_behind() == ["folders.lock"]


def test_layer_is_refused_when_it_is_not_the_one_that_the_config_says(shop: Shop) -> None:
    honest = shop.layer(collect([_file("srv/app/a")]))
    liar = Layer(part="app", title="app", descriptor=honest.descriptor, diff_id=Digest.of(b"another"))

    with pytest.raises(ImageCorrupt, match=r"said were .*" + liar.diff_id.short):
        shop.unpack(liar)


def test_header_is_refused_when_it_says_it_is_longer_than_memory(shop: Shop) -> None:
    info = tarfile.TarInfo("pax")
    info.type, info.size = tarfile.XHDTYPE, 1 << 36

    with pytest.raises(ImageCorrupt, match="a header of"):
        shop.unpack(shop.layer(info.tobuf(tarfile.GNU_FORMAT)))


def test_layer_is_refused_when_its_headers_announce_one_another_without_end(shop: Shop) -> None:
    info = tarfile.TarInfo("long")
    info.type = tarfile.GNUTYPE_LONGNAME

    with pytest.raises(ImageCorrupt, match="not a readable tar"):
        shop.unpack(shop.layer(info.tobuf(tarfile.GNU_FORMAT) * 2000))


def test_layer_is_refused_when_its_map_of_holes_is_none(shop: Shop) -> None:
    info = tarfile.TarInfo("srv/app/a")
    info.pax_headers = {"GNU.sparse.map": "x"}

    with pytest.raises(ImageCorrupt, match="not a readable tar"):
        shop.unpack(shop.layer(info.tobuf(tarfile.PAX_FORMAT)))


def test_layer_is_missing_when_the_layout_lacks_its_blob(shop: Shop) -> None:
    layer = shop.layer(collect([_file("srv/app/a")]))
    shop.layout.path(layer.descriptor.digest).unlink()

    with pytest.raises(ImageMissing):
        shop.unpack(layer)


def test_halves_of_the_dead_are_swept_when_the_next_one_unpacks(shop: Shop) -> None:
    for place in ("layers", "versions"):
        dead = shop.state / place / ".staging" / "tmpdead" / "srv"
        dead.mkdir(parents=True)
        (dead / "half").touch()

    version = shop.unpack(shop.layer(collect([_file("srv/app/a")])))

    assert _tree(version) == {"srv/app/a": (0o444, b"x")}
    assert [path.name for place in ("layers", "versions") for path in (shop.state / place / ".staging").iterdir()] == [
        "folders.lock",
        "folders.lock",
    ]


def test_prune_keeps_what_is_needed_when_others_are_not(shop: Shop) -> None:
    wheel = shop.layer(collect([_file("srv/site-packages/six.py")]), "dependencies")
    old, new = (shop.layer(collect([_file(f"srv/app/{name}")])) for name in ("old", "new"))
    gone, kept = shop.unpack(wheel, old), shop.unpack(wheel, new)

    prune([_image(wheel, new)], shop.state)

    assert (gone.exists(), kept.exists()) == (False, True)
    assert {path.name[:64] for path in (shop.state / "layers").glob("[!.]*")} == {wheel.diff_id.hex, new.diff_id.hex}


def test_version_that_is_half_deleted_is_never_met_when_deleting_was_cut_short(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer = shop.layer(collect([_file("srv/app/a"), _file("srv/app/b")]))
    version = shop.unpack(layer)
    whole = _tree(version)

    def cut_short(tree: Path, **_: object) -> None:
        next(path for path in sorted(Path(tree).rglob("*")) if path.is_file()).unlink()

    with monkeypatch.context() as killed:
        killed.setattr("shutil.rmtree", cut_short)
        prune([], shop.state)

    assert _tree(shop.unpack(layer)) == whole
