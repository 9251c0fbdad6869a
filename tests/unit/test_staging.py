"""Halves are swept when their owner is dead, and never while it lives."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from shipway.errors import ImageError, PushError
from shipway.oci.staging import locked, staging, sweep, write_whole, writing


def _folders(parent: Path) -> list[Path]:
    return sorted((parent / ".staging").glob("tmp*"))


def test_staging_is_gone_when_its_work_ends_or_fails(tmp_path: Path) -> None:
    def work() -> None:
        with staging(tmp_path) as folder:
            (folder / "half").mkdir()
            assert _folders(tmp_path) == [folder]
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        work()
    assert _folders(tmp_path) == []


def test_sweep_removes_the_dead_and_spares_the_living_when_both_are_there(tmp_path: Path) -> None:
    (tmp_path / ".staging/tmpdead/deep").mkdir(parents=True)

    with staging(tmp_path) as living:
        (tmp_path / ".staging/tmpdead2").mkdir()
        sweep(tmp_path)
        assert _folders(tmp_path) == [living]


def test_lock_makes_no_file_when_the_folder_is_gone(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), locked(tmp_path / "tmpgone", wait=False):
        pytest.fail("locked what is not there")

    assert list(tmp_path.iterdir()) == []


def test_lock_is_refused_when_another_holds_it_and_none_may_wait(tmp_path: Path) -> None:
    path = tmp_path / "x.lock"
    with locked(path, shared=True), locked(path, shared=True), pytest.raises(BlockingIOError), locked(path, wait=False):
        pytest.fail("two hold it")

    with locked(path, wait=False):
        pass


def test_file_is_replaced_whole_when_it_was_there(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "file"
    for data in (b"first", b"second"):
        write_whole(path, data)

    assert path.read_bytes() == b"second"


@pytest.mark.parametrize(
    ("number", "advice"),
    [(errno.ENOSPC, "make room on that disk, then run again"), (errno.EACCES, ImageError.advice)],
)
def test_failed_write_names_path_bytes_and_advice_when_the_system_refuses(
    tmp_path: Path, number: int, advice: str
) -> None:
    with (
        pytest.raises(ImageError, match=r"blob \(7 bytes\): no way") as caught,
        writing(tmp_path / "blob", 7, ImageError),
    ):
        raise OSError(number, "no way")

    assert caught.value.next == advice


def test_file_cannot_be_written_when_a_file_stands_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    with pytest.raises(PushError, match="cannot write"):
        write_whole(tmp_path / "file" / "below", b"")
