"""Wheels to layers: the same on every machine, split by wheel, installed only when they must be."""

from __future__ import annotations

import base64
import gzip
import hashlib
import io
import shutil
import tarfile
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from shipway.artifacts import Digest, Layer
from shipway.config import ImageSettings
from shipway.errors import DependenciesFailed, ImageError
from shipway.oci.compose import Source
from shipway.oci.layers import Known
from shipway.oci.wheels import Dependencies, Target
from shipway.proc import Completed

LOCK = b"numpy==2.0 --hash=sha256:00\n"
METADATA = b"Name: x\n"
TARGET = Target(python="3.13", platform="linux/arm64")


class Uv:
    """Installs wheels (files by path, by `name-version`) as uv does; nothing else."""

    def __init__(
        self, wheels: Mapping[str, Mapping[str, bytes]], *, host: str = "/usr/bin/python3", code: int = 0
    ) -> None:
        self.wheels, self.host, self.code = wheels, host, code
        self.asked: list[list[str]] = []
        self.lock = b""
        self.stray = ""

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
        assert (cwd, env, stdin, on_line, timeout_s) == (None, None, None, None, 1800)
        words = [str(word) for word in argv]
        assert words[1:3] == ["pip", "install"]
        self.asked.append(words)
        self.lock = Path(words[words.index("--requirements") + 1]).read_bytes()
        for name, files in self.wheels.items():
            _install(Path(words[words.index("--target") + 1]), name, files, self.host)
        if self.stray:
            Path(words[words.index("--target") + 1], self.stray).touch()
        tail = "error: 401 from https://user:s3cret@index.test/simple/\n  no wheel"
        return Completed(argv=tuple(words), code=self.code, stdout=b"", tail=tail)


def _install(site: Path, name: str, files: Mapping[str, bytes], host: str) -> None:
    info = f"{name}.dist-info"
    written = {
        **files,
        "bin/run": f"#!{host}\n".encode(),
        f"{info}/METADATA": METADATA,
        f"{info}/INSTALLER": b"uv",
        f"{info}/REQUESTED": b"",
        f"{info}/direct_url.json": f'{{"url": "https://user:s3cret@{host}"}}'.encode(),
        f"{info}/uv_cache.json": host.encode(),
    }
    rows = [f"{path},{_checksum(data)},{len(data)}" for path, data in written.items()]
    for path, data in {**written, f"{info}/RECORD": "\n".join([*rows, f"{info}/RECORD,,"]).encode()}.items():
        file = site / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)
    (site / ".lock").touch()


def _checksum(data: bytes) -> str:
    return "sha256=" + base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()


def _dependencies(folder: Path, uv: Uv) -> Dependencies:
    return Dependencies(LOCK, TARGET, scratch=folder, known=Known(folder / "known"), proc=uv)


def _members(data: bytes) -> dict[str, bytes]:
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        return {member.name: opened.read() for member in archive if (opened := archive.extractfile(member))}


def test_layers_hold_each_big_wheel_alone_when_others_are_small(tmp_path: Path) -> None:
    big = {"numpy/core.so": b"\0" * 2_000_000}
    uv = Uv({"numpy-2.0": big, "flask-3.1": {"flask/a.py": b"f"}, "six-1.17": {"six.py": b"s"}})

    dependencies = _dependencies(tmp_path, uv)

    layers = dependencies.layers()
    assert [(layer.title, layer.part) for layer in layers] == [
        ("numpy 2.0", "dependencies"),
        ("2 small packages", "dependencies"),
    ]
    small = b"".join(dependencies.source(layers[1])())
    assert (len(small), Digest.of(small)) == (layers[1].descriptor.size_bytes, layers[1].descriptor.digest)
    assert Digest.of(gzip.decompress(small)) == layers[1].diff_id
    assert sorted(_members(small)) == [
        "srv/site-packages/flask-3.1.dist-info/METADATA",
        "srv/site-packages/flask-3.1.dist-info/RECORD",
        "srv/site-packages/flask/a.py",
        "srv/site-packages/six-1.17.dist-info/METADATA",
        "srv/site-packages/six-1.17.dist-info/RECORD",
        "srv/site-packages/six.py",
    ]


def test_layer_is_ready_with_its_bytes_while_the_next_is_made(tmp_path: Path) -> None:
    six, flask = {"six.py": b"s" * 2_000_000}, {"flask/a.py": b"f"}
    dependencies = _dependencies(tmp_path, Uv({"six-1.17": six, "flask-3.1": flask}))
    seen: list[tuple[str, int]] = []

    def ready(layer: Layer, source: Source) -> None:
        assert Digest.of(b"".join(source())) == layer.descriptor.digest
        seen.append((layer.title, len(list(tmp_path.glob(".staging/tmp*/*.tar.gz")))))

    layers = dependencies.layers(ready)

    assert seen == [(layer.title, count) for count, layer in enumerate(layers, start=1)]


def test_bytes_stay_as_long_as_somebody_may_ask_for_them(tmp_path: Path) -> None:
    dependencies = _dependencies(tmp_path, Uv({"six-1.17": {"six.py": b"s"}}))
    (layer,) = dependencies.layers()
    source = dependencies.source(layer)
    del dependencies

    assert Digest.of(b"".join(source())) == layer.descriptor.digest
    assert list(tmp_path.glob(".staging/tmp*"))

    del source
    assert list(tmp_path.glob(".staging/tmp*")) == []


def test_bytes_are_not_made_twice_when_the_layers_were_not_known(tmp_path: Path) -> None:
    dependencies = _dependencies(tmp_path, Uv({"six-1.17": {"six.py": b"s"}}))
    (layer,) = dependencies.layers()
    for site in tmp_path.glob(".staging/tmp*/site-packages"):
        shutil.rmtree(site)

    assert Digest.of(b"".join(dependencies.source(layer)())) == layer.descriptor.digest


def test_layers_are_the_same_when_the_host_and_the_installer_differ(tmp_path: Path) -> None:
    wheels = {"six-1.17": {"six.py": b"s"}, "flask-3.1": {"flask/a.py": b"f"}}
    here = _dependencies(tmp_path / "here", Uv(wheels))
    there = _dependencies(tmp_path / "there", Uv(dict(reversed(wheels.items())), host="/home/ü/.venv/bin/python"))

    assert here.layers() == there.layers()


def test_record_names_what_the_layer_holds_when_files_were_left_out(tmp_path: Path) -> None:
    dependencies = _dependencies(tmp_path, Uv({"six-1.17": {"six.py": b"s"}}))

    (layer,) = dependencies.layers()

    record = _members(b"".join(dependencies.source(layer)()))["srv/site-packages/six-1.17.dist-info/RECORD"]
    assert record.decode().splitlines() == [
        f"six-1.17.dist-info/METADATA,{_checksum(METADATA)},{len(METADATA)}",
        f"six.py,{_checksum(b's')},1",
        "six-1.17.dist-info/RECORD,,",
    ]


def test_only_one_layer_differs_when_one_big_wheel_is_bumped(tmp_path: Path) -> None:
    def wheels(version: str) -> Uv:
        big = {"numpy/core.so": version.encode() * 1_000_000}
        return Uv({f"numpy-{version}": big, "pillow-1.0": {"PIL.so": b"p" * 2_000_000}, "six-1.17": {"six.py": b"s"}})

    before = _dependencies(tmp_path / "a", wheels("2.0")).layers()
    after = _dependencies(tmp_path / "b", wheels("2.1")).layers()

    assert [layer.title for layer in after if layer not in before] == ["numpy 2.1"]
    assert len(after) == len(before) == 3


def test_uv_is_asked_for_the_image_python_when_the_layers_are_not_known(tmp_path: Path) -> None:
    uv = Uv({})

    assert _dependencies(tmp_path, uv).layers() == ()

    (words,) = uv.asked
    assert words[words.index("--require-hashes") :][:7] == [
        *("--require-hashes", "--only-binary", ":all:", "--no-deps"),
        *("--no-compile-bytecode", "--link-mode", "hardlink"),
    ]
    assert words[-4:] == ["--python-version", "3.13", "--python-platform", "aarch64-unknown-linux-gnu"]
    assert uv.lock == LOCK


def test_uv_is_not_started_when_the_layers_are_known(tmp_path: Path) -> None:
    layers = _dependencies(tmp_path, Uv({"six-1.17": {"six.py": b"s"}})).layers()
    idle = Uv({})

    assert _dependencies(tmp_path, idle).layers() == layers
    assert idle.asked == []


@pytest.mark.parametrize("damage", [b"", b"{", b"[{}]", b'[{"descriptor": {}}]', b"\xff", b"[" * 9999])
def test_layers_are_made_anew_when_what_is_known_is_damaged(tmp_path: Path, damage: bytes) -> None:
    layers = _dependencies(tmp_path, Uv({"six-1.17": {"six.py": b"s"}})).layers()
    for file in (tmp_path / "known").glob("[!.]*"):
        file.write_bytes(damage)

    assert _dependencies(tmp_path, Uv({"six-1.17": {"six.py": b"s"}})).layers() == layers


@pytest.mark.parametrize("code", [0, 1])
def test_uv_is_started_once_when_several_threads_need_its_bytes(tmp_path: Path, code: int) -> None:
    wheels = {"six-1.17": {"six.py": b"s"}}
    _dependencies(tmp_path, Uv(wheels)).layers()

    class Slow(Uv):
        def run(self, argv: Sequence[str | Path], **more: Any) -> Completed:
            threading.Event().wait(0.1)
            return super().run(argv, **more)

    uv = Slow(wheels, code=code)
    dependencies = _dependencies(tmp_path, uv)
    (layer,) = dependencies.layers()

    with ThreadPoolExecutor(4) as pool:
        made = [pool.submit(lambda: b"".join(dependencies.source(layer)())) for _ in range(4)]

    assert {type(each.exception()) for each in made} == {DependenciesFailed if code else type(None)}
    assert len(uv.asked) == 1


def test_source_fails_and_forgets_when_the_wheels_are_not_those_of_the_last_time(tmp_path: Path) -> None:
    _dependencies(tmp_path, Uv({"six-1.17": {"six.py": b"s"}})).layers()
    changed = Uv({"six-1.17": {"six.py": b"other"}})
    dependencies = _dependencies(tmp_path, changed)
    (layer,) = dependencies.layers()

    with pytest.raises(DependenciesFailed, match="not those of the last time"):
        list(dependencies.source(layer)())
    (anew,) = _dependencies(tmp_path, changed).layers()
    assert anew != layer


def test_failure_quotes_uv_without_secrets_when_uv_fails(tmp_path: Path) -> None:
    with pytest.raises(DependenciesFailed, match=r"uv ended with 1.*Python 3\.13 on linux/arm64") as caught:
        _dependencies(tmp_path, Uv({}, code=1)).layers()

    assert caught.value.tail == "error: 401 from https://***@index.test/simple/\n  no wheel"


def test_nothing_is_left_behind_when_the_dependencies_are_gone(tmp_path: Path) -> None:
    dependencies = _dependencies(tmp_path, Uv({"six-1.17": {"six.py": b"s"}}))
    dependencies.layers()
    assert len(list((tmp_path / ".staging").glob("tmp*"))) == 1

    del dependencies

    assert list((tmp_path / ".staging").glob("tmp*")) == []


def test_wheels_are_refused_when_two_hold_different_files_of_one_name(tmp_path: Path) -> None:
    uv = Uv({"a-1": {"tests/__init__.py": b"", "LICENCE": b"a"}, "b-1": {"tests/__init__.py": b"", "LICENCE": b"b"}})

    with pytest.raises(DependenciesFailed, match="a 1 and b 1 both hold LICENCE"):
        _dependencies(tmp_path, uv).layers()


def test_wheels_are_refused_when_a_file_is_in_no_record(tmp_path: Path) -> None:
    uv = Uv({"a-1": {"a.py": b""}})
    uv.stray = "b.py"

    with pytest.raises(DependenciesFailed, match=r"b\.py was installed, but no wheel names it"):
        _dependencies(tmp_path, uv).layers()


@pytest.mark.parametrize("path", ["../evil.py", "a/../../evil.py"])
def test_wheel_is_refused_when_it_writes_outside_of_its_folder(tmp_path: Path, path: str) -> None:
    with pytest.raises(DependenciesFailed, match="outside of its folder"):
        _dependencies(tmp_path, Uv({"a-1": {path: b""}})).layers()


def test_target_is_the_named_one_when_settings_name_it() -> None:
    assert Target.of(ImageSettings(python="3.13", platform="linux/arm64")) == TARGET


def test_platform_is_refused_when_wheels_are_not_made_for_it(tmp_path: Path) -> None:
    target = Target(python="3.13", platform="sunos5/sparc")

    with pytest.raises(ImageError, match="sunos5/sparc"):
        Dependencies(LOCK, target, scratch=tmp_path, known=Known(tmp_path), proc=Uv({}))
