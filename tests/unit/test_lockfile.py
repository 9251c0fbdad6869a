"""What a lock pins: what is installed for the image's Python and platform, and no address."""

from __future__ import annotations

from pathlib import Path

import pytest

from shipway.errors import ImageError
from shipway.oci import lockfile
from shipway.oci.lockfile import Pin
from shipway.oci.wheels import Target
from tests.attested import LOCK

OLD, NEW = Target(python="3.11", platform="linux/amd64"), Target(python="3.13", platform="darwin/arm64")


def test_pins_are_those_of_the_target_when_the_lock_has_markers() -> None:
    pins = lockfile.pinned(LOCK, OLD)

    assert [(pin.name, pin.version, [sha256[:6] for sha256 in pin.hashes]) for pin in pins] == [
        ("flask", "3.1.3", ["0ef0e5", "f4bcbe"]),
        ("numpy", "2.4.6", ["7634f5"]),
        ("torch", "2.9.0+cpu", ["8bb537"]),
    ]
    assert "2.5.5" in {pin.version for pin in lockfile.pinned(LOCK, NEW)}


@pytest.mark.parametrize(
    ("marker", "is_installed"),
    [
        ("sys_platform == 'linux'", True),
        ("platform_machine == 'x86_64'", True),
        ("platform_system == 'Darwin'", False),
        ("python_version < '3.11'", False),
        ("implementation_name == 'cpython' and os_name == 'posix'", True),
        ("platform_python_implementation == 'PyPy'", False),
        ("extra == 'dev'", False),
    ],
)
def test_package_is_listed_only_when_its_marker_is_true_in_the_image(marker: str, *, is_installed: bool) -> None:
    lines = [f"six==1.17.0 ; {marker}", f"six==1.17.0; {marker}", f"six==1.17.0;{marker}"]

    pins = [lockfile.pinned(line.encode(), OLD) for line in lines]

    assert pins == [(Pin(name="six", version="1.17.0", hashes=()),) if is_installed else ()] * 3


@pytest.mark.parametrize(
    "line",
    ["", "# six==1.0", "-r other.txt", "--index-url https://u:p@wheels.example/", "--hash=sha256:" + "0" * 64],
)
def test_nothing_is_listed_when_a_line_pins_nothing(line: str) -> None:
    assert lockfile.pinned(line.encode(), OLD) == ()


def test_wheel_is_listed_by_its_file_name_when_it_is_named_by_its_path() -> None:
    assert lockfile.pinned(b"./wheels/My_Shop-1.2-py3-none-any.whl ; python_version > '3'", OLD) == (
        Pin(name="my-shop", version="1.2", hashes=()),
    )


@pytest.mark.parametrize(
    "line",
    [
        "six",
        "six>=1,<2",
        "six>=1",
        "six==1 ; x == 2",
        "./six-1-py3-none-any.whl ; x",
        "git+https://u:hunter2@code.example/six",
        "./six.tar.gz",
        "?",
    ],
)
def test_lock_is_refused_without_its_passwords_when_a_line_pins_no_version(line: str) -> None:
    with pytest.raises(ImageError, match="pin") as caught:
        lockfile.pinned(line.encode(), OLD)
    assert "hunter2" not in str(caught.value)


def test_pins_are_read_once_when_the_lock_and_the_target_are_the_same(tmp_path: Path) -> None:
    first = lockfile.remembered(LOCK, OLD, tmp_path)
    (kept,) = (tmp_path / "pins").glob("[0-9a-f]*")
    kept.write_text('[{"name":"six","version":"1","hashes":["0"]}]')

    assert first == lockfile.pinned(LOCK, OLD)
    assert lockfile.remembered(LOCK, OLD, tmp_path) == (Pin(name="six", version="1", hashes=("0",)),)
    assert lockfile.remembered(LOCK, NEW, tmp_path) == lockfile.pinned(LOCK, NEW)
    assert lockfile.remembered(LOCK + b"\n", OLD, tmp_path) == first


@pytest.mark.parametrize("text", ["", "{", "[1]", '[{"name":"six"}]', "null"])
def test_pins_are_read_again_when_what_is_kept_of_them_is_damaged(tmp_path: Path, text: str) -> None:
    first = lockfile.remembered(LOCK, OLD, tmp_path)
    (kept,) = (tmp_path / "pins").glob("[0-9a-f]*")
    kept.write_text(text)

    assert lockfile.remembered(LOCK, OLD, tmp_path) == first
    assert lockfile.remembered(LOCK, OLD, tmp_path) == first
