"""What is asked of git, and what its answers mean; `tests/system/test_image_checkout.py` asks the real one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest

from shipway.checkout import Checkout, TreeFile
from shipway.errors import CheckoutError
from shipway.proc import Completed


class Git:
    """Answers by git's subcommand, and raises on any other."""

    def __init__(self, answers: Mapping[str, Completed | bytes]) -> None:
        self.answers = answers
        self.asked: list[tuple[list[str], Mapping[str, str]]] = []

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
        assert (cwd, on_line, timeout_s) == (Path("root"), None, None)
        words = [str(word) for word in argv]
        assert (stdin is not None) == ("cat-file" in words)
        self.asked.append((words, env or {}))
        answer = self.answers[words[words.index("git") + 1]]
        if isinstance(answer, Completed):
            return answer
        return Completed(argv=tuple(words), code=0, stdout=answer, tail="")


def _failed(code: int, tail: str = "") -> Completed:
    return Completed(argv=("git",), code=code, stdout=b"", tail=tail)


def test_git_is_asked_of_the_named_folder_when_a_hook_has_set_variables() -> None:
    git = Git({"ls-tree": b""})

    foreign = {"GIT_DIR": "x", "GIT_WORK_TREE": "x", "GIT_INDEX_FILE": "x", "GIT_OBJECT_DIRECTORY": "x"}

    Checkout(Path("root"), git, {"HOME": "/home/ada", "LC_ALL": "de_DE", "GIT_PREFIX": "x", **foreign}).files(
        "abc", "app"
    )

    environ = {"HOME": "/home/ada", "LC_ALL": "C", "GIT_NO_REPLACE_OBJECTS": "1", "GIT_OPTIONAL_LOCKS": "0"}
    assert git.asked == [(["git", "ls-tree", "-r", "-z", "--long", "abc", "--", "app"], environ)]


def test_files_are_told_by_kind_when_the_tree_holds_every_kind() -> None:
    listed = (
        b"120000 blob aa       3\tapp/link\0"
        b"100755 blob bb      12\tapp/a b\0"
        b"160000 commit cc       -\tapp/sub\0"
        b"100644 blob dd       0\tapp/\xc3\xbc\0"
    )

    files = Checkout(Path("root"), Git({"ls-tree": listed}), {}).files("abc", "app")

    assert files == (
        TreeFile(path="app/a b", kind="executable", object_id="bb", size_bytes=12),
        TreeFile(path="app/link", kind="symlink", object_id="aa", size_bytes=3),
        TreeFile(path="app/sub", kind="submodule", object_id="cc", size_bytes=0),
        TreeFile(path="app/ü", kind="file", object_id="dd", size_bytes=0),
    )


def test_snapshot_is_refused_when_the_folder_s_name_is_not_utf8() -> None:
    with pytest.raises(CheckoutError, match="is not UTF-8, which uv needs"):
        Checkout(Path("/caf\udce9/root"), Git({}), {}).snapshot()


def test_files_are_refused_when_a_name_is_not_utf8() -> None:
    checkout = Checkout(Path("root"), Git({"ls-tree": b"100644 blob aa 0\tapp/\xff\0"}), {})

    with pytest.raises(CheckoutError, match="not UTF-8"):
        checkout.files("abc", "app")


def test_bytes_are_those_of_each_file_when_they_hold_newlines_and_nothing() -> None:
    files = [
        TreeFile(path=name, kind="file", object_id=name, size_bytes=size)
        for name, size in (("a", 3), ("b", 0), ("c", 1))
    ]
    checkout = Checkout(Path("root"), Git({"cat-file": b"a blob 3\n\n\nx\nb blob 0\n\nc blob 1\ny\n"}), {})

    assert list(checkout.read(files)) == list(zip(files, [b"\n\nx", b"", b"y"], strict=True))


def test_bytes_are_refused_when_git_lacks_the_object() -> None:
    file = TreeFile(path="app/x", kind="file", object_id="aa", size_bytes=3)
    checkout = Checkout(Path("root"), Git({"cat-file": b"aa missing\n"}), {})

    with pytest.raises(CheckoutError, match=r"cannot read app/x") as caught:
        list(checkout.read([file]))
    assert "git fsck" in caught.value.next


def test_failure_quotes_git_when_git_refuses() -> None:
    checkout = Checkout(Path("root"), Git({"log": _failed(128, "fatal: detected dubious ownership")}), {})

    with pytest.raises(CheckoutError) as caught:
        checkout.snapshot()
    assert caught.value.tail == "fatal: detected dubious ownership"
