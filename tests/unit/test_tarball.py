"""The tar streams are the same on every machine, and hold nothing that leads elsewhere."""

from __future__ import annotations

import io
import tarfile

import pytest

from shipway.artifacts import Digest
from shipway.tarball import Entry, collect, link_stays_inside


def _file(path: str, data: bytes = b"x", *, executable: bool = False) -> Entry:
    return Entry(path=path, size_bytes=len(data), read=lambda: [data], executable=executable)


def test_tar_has_these_very_bytes_when_its_entries_are_these() -> None:
    """With another digest here, no published model's layer would be found again."""
    entries = [_file("b/c.txt", b"hello"), Entry(path="b/link", link="c.txt"), _file("a", b"#!", executable=True)]

    digest = Digest.of(collect(entries))

    assert digest == "sha256:d2336503dfc9866a7b9729a99098e85304049fb983b1526fc30e2f2ce299f94b"


def test_tar_is_the_same_when_entries_come_in_another_order() -> None:
    entries = [_file("b/c"), _file("a"), _file("b-c"), _file("ü/" + "n" * 120)]

    assert collect(entries) == collect(reversed(entries))


def test_tar_holds_folders_first_and_fixed_facts_when_read_by_others() -> None:
    data = collect([_file("d/x", b"data", executable=True), _file("d/a")])

    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        facts = [(m.name, m.type, m.mode, m.uid, m.gid, m.uname, m.mtime) for m in archive]

    assert facts == [
        ("d", tarfile.DIRTYPE, 0o755, 0, 0, "", 315_532_800),
        ("d/a", tarfile.REGTYPE, 0o644, 0, 0, "", 315_532_800),
        ("d/x", tarfile.REGTYPE, 0o755, 0, 0, "", 315_532_800),
    ]


@pytest.mark.parametrize("path", ["/a", "../a", "a/../b", "a//b", "./a", ".", "a\0b", "a/"])
def test_tar_refuses_an_entry_when_its_path_is_not_plain(path: str) -> None:
    with pytest.raises(ValueError, match="not a plain relative path"):
        collect([_file(path)])


@pytest.mark.parametrize(("size", "gave"), [(1, "gave more"), (3, "gave more"), (5, "gave 4")])
def test_tar_refuses_an_entry_when_its_bytes_are_not_as_many_as_said(size: int, gave: str) -> None:
    entry = Entry(path="a", size_bytes=size, read=lambda: [b"ab", b"cd"])

    with pytest.raises(ValueError, match=gave):
        collect([entry])


@pytest.mark.parametrize("paths", [["a", "a"], ["a", "a/b"]])
def test_tar_refuses_entries_when_one_is_in_the_way_of_another(paths: list[str]) -> None:
    with pytest.raises(ValueError, match=r"stands twice|is a file and a folder"):
        collect([_file(path) for path in paths])


@pytest.mark.parametrize(
    ("path", "target", "inside"),
    [
        ("app/a", "b", True),
        ("app/a", "./b/c", True),
        ("app/d/a", "../b", True),
        ("app/d/a", "..", True),
        ("app/a", "../b", False),
        ("app/a", "/app/b", False),
        ("app/a", "b/../c", False),
        ("app/d/a", "../../other", False),
        ("app/a", "b\0", False),
        ("app", "b", False),
    ],
)
def test_link_stays_inside_is_told_when_its_target_is_this(path: str, target: str, inside: bool) -> None:  # noqa: FBT001 - a table's column
    assert link_stays_inside(path, target, "app") is inside
