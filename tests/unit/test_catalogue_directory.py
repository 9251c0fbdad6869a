"""What is the directory store's own: keys, names, what a killed writer left behind."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from shipway.errors import ModelError
from shipway.stores.directory import Directory


@pytest.mark.parametrize("key", ["", "..", "../a", "a/../b", "/etc/passwd", "a//b", "a/", "a\0b", "./a"])
def test_every_call_refuses_when_a_key_would_leave_the_directory(key: str, tmp_path: Path) -> None:
    store = Directory(tmp_path / "store")

    for call in (
        store.read,
        store.find,
        lambda key: list(store.stream(key, start=0, stop=1)),
        lambda key: store.create(key, b""),
    ):
        with pytest.raises(ValueError, match="not a key"):
            call(key)

    assert not (tmp_path / "store").exists()


def test_children_leave_out_what_a_killed_writer_left(tmp_path: Path) -> None:
    store = Directory(tmp_path)
    store.create("a/1.json", b"{}")
    (tmp_path / "a/.new-0123456789abcdef").write_bytes(b"half")

    assert store.children("a") == ["1.json"]


def test_create_sweeps_what_was_left_long_ago(tmp_path: Path) -> None:
    store = Directory(tmp_path)
    store.create("a/1.json", b"{}")
    for name, age_s in (("old", 90_000), ("young", 60)):
        (tmp_path / f"a/.new-{name}").write_bytes(b"half")
        os.utime(tmp_path / f"a/.new-{name}", (time.time() - age_s,) * 2)

    store.create("a/2.json", b"{}")

    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == [".new-young", "1.json", "2.json"]


def test_read_refuses_when_the_object_is_a_symbolic_link(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    (tmp_path / "store").mkdir()
    (tmp_path / "store/a").symlink_to(tmp_path / "secret")

    with pytest.raises(ModelError, match="is a symbolic link, which a store may not hold"):
        Directory(tmp_path / "store").read("a")


def test_write_names_path_and_bytes_when_a_folder_is_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "a/blob").mkdir(parents=True)

    with pytest.raises(ModelError) as raised:
        Directory(tmp_path).put("a/blob", [b"1234"], size_bytes=4)

    assert raised.value.message == f"cannot write {tmp_path / 'a/blob'} (4 bytes): Is a directory"
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["blob"]
