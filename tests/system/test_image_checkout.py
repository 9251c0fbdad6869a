"""What the real git says of real checkouts."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from shipway.artifacts import Commit, Snapshot
from shipway.checkout import Checkout
from shipway.errors import CheckoutError, ToolMissing
from shipway.proc import Completed, Proc

COMMITTED_S = 1_767_323_045


def _git(root: Path, *words: str) -> str:
    who = ("-c", "user.name=x", "-c", "user.email=x@example.org")
    dates = {"GIT_AUTHOR_DATE": f"@{COMMITTED_S} +0545", "GIT_COMMITTER_DATE": f"@{COMMITTED_S} +0545"}
    argv = ["env", *(f"{name}={value}" for name, value in dates.items()), "git", "-C", str(root), *who, *words]
    return subprocess.run(argv, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "checkout"
    for path, text in {"app/a.py": "a", "app/b.py": "b", "store/model": "m", "README": "r"}.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)
    _git(root, "init", "--quiet")
    _git(root, "add", "--all")
    _git(root, "commit", "--quiet", "--message", "first")
    return root


class _Counting(Proc):
    """Remembers what git was asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def run(self, argv: Sequence[str | Path], **how: Any) -> Completed:
        self.asked.append(str(argv[[*argv].index("git") + 1]))
        return super().run(argv, **how)


def _committed(root: Path) -> Snapshot:
    commit, tree = _git(root, "rev-parse", "HEAD", "HEAD^{tree}").split()
    return Snapshot(commit=commit, tree=tree, dirty=False, time_s=COMMITTED_S)


def _contents(checkout: Checkout, tree: str, folder: str = "app") -> dict[str, bytes]:
    return {file.path: data for file, data in checkout.read(checkout.files(tree, folder))}


def test_snapshot_is_the_commit_when_nothing_changed(root: Path) -> None:
    (root / "app/a.py").touch()
    (root / "app/untracked.py").write_text("u")

    assert Checkout(root, Proc(), os.environ).snapshot() == _committed(root)


def test_snapshot_asks_git_twice_when_nothing_changed(root: Path) -> None:
    proc = _Counting()

    Checkout(root, proc, os.environ).snapshot()

    assert proc.asked == ["log", "status"]


@pytest.mark.parametrize("what", ["another commit", "another file"])
def test_snapshot_is_dirty_when_a_submodule_stands_at_another_commit(root: Path, tmp_path: Path, what: str) -> None:
    other = tmp_path / "other"
    other.mkdir()
    _git(other, "init", "--quiet")
    _git(other, "commit", "--quiet", "--allow-empty", "--message", "one")
    _git(root, "-c", "protocol.file.allow=always", "submodule", "--quiet", "add", str(other), "part")
    _git(root, "config", "--file", ".gitmodules", "submodule.part.ignore", "all")
    _git(root, "add", "--all")
    _git(root, "commit", "--quiet", "--message", "with a part")
    (root / "part/scratch").touch()
    if what == "another commit":
        _git(root / "part", "commit", "--quiet", "--allow-empty", "--message", "two")

    assert Checkout(root, Proc(), os.environ).snapshot().dirty == (what == "another commit")


def test_snapshot_holds_a_new_file_when_it_is_staged(root: Path) -> None:
    (root / "app/new.py").write_text("n")
    _git(root, "add", "app/new.py")
    checkout = Checkout(root, Proc(), os.environ)

    snapshot = checkout.snapshot()

    assert snapshot.dirty
    assert _contents(checkout, snapshot.tree)["app/new.py"] == b"n"


def test_snapshot_holds_files_as_they_stand_when_tracked_ones_changed(root: Path) -> None:
    (root / "app/a.py").write_text("c")  # as long as before, and in the same second
    (root / "app/b.py").unlink()
    checkout = Checkout(root, Proc(), os.environ)

    snapshot = checkout.snapshot()

    assert (snapshot.commit, snapshot.dirty) == (_committed(root).commit, True)
    assert _contents(checkout, snapshot.tree) == {"app/a.py": b"c"}
    assert snapshot.label.endswith("-dirty")


@pytest.mark.parametrize("path", ["app", "app/c.py", "README/a", "README\nx"])
def test_file_is_nothing_when_git_has_none_of_this_path(root: Path, path: str) -> None:
    checkout = Checkout(root, Proc(), os.environ)

    assert checkout.file("HEAD", path) is None


def test_file_is_the_committed_one_below_the_root_when_the_root_is_a_folder_of_the_checkout(root: Path) -> None:
    (root / "app/a.py").write_text("changed")

    assert Checkout(root / "app", Proc(), os.environ).file("HEAD", "a.py") == b"a"


def test_snapshot_takes_excluded_paths_as_committed_when_they_changed(root: Path) -> None:
    (root / "store/model").write_text("a new version")

    assert Checkout(root, Proc(), os.environ).snapshot(exclude=["store"]) == _committed(root)


def test_index_and_checkout_are_untouched_when_a_snapshot_is_taken(root: Path) -> None:
    (root / "app/a.py").write_text("changed")
    before = (_git(root, "status", "--porcelain=v2"), (root / ".git/index").read_bytes())

    Checkout(root, Proc(), os.environ).snapshot()

    assert ((_git(root, "status", "--porcelain=v2")), (root / ".git/index").read_bytes()) == before


def test_snapshot_is_of_this_checkout_when_a_hook_of_another_starts_us(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "other.git"))
    monkeypatch.setenv("GIT_INDEX_FILE", str(tmp_path / "other.index"))
    expected = Checkout(root, Proc(), os.environ).snapshot()
    monkeypatch.undo()

    assert expected == _committed(root)


def test_files_are_those_of_the_folder_when_the_project_is_a_part_of_the_checkout(root: Path) -> None:
    (root / "README").write_text("changed outside of the project")
    checkout = Checkout(root / "app", Proc(), os.environ)

    snapshot = checkout.snapshot()

    assert not snapshot.dirty
    assert _contents(checkout, snapshot.tree, ".") == {"a.py": b"a", "b.py": b"b"}


def test_bytes_are_the_committed_ones_when_git_would_convert_them(root: Path) -> None:
    (root / ".gitattributes").write_text("*.py text eol=crlf ident\n")
    (root / "app/a.py").write_text("$Id$\n")
    _git(root, "add", "--all")
    _git(root, "commit", "--quiet", "--message", "attributes")
    checkout = Checkout(root, Proc(), os.environ)

    assert _contents(checkout, checkout.snapshot().tree)["app/a.py"] == b"$Id$\n"


def test_untracked_are_named_when_git_neither_tracks_nor_ignores_them(root: Path) -> None:
    (root / ".gitignore").write_text("*.log\n")
    for name in ("app/new.py", "app/x.log", "outside.py"):
        (root / name).touch()

    assert Checkout(root, Proc(), os.environ).untracked(["app"]) == ("app/new.py",)


@pytest.mark.parametrize("prepare", [lambda _: None, lambda root: _git(root, "init", "--quiet")], ids=["none", "empty"])
def test_checkout_is_refused_when_there_is_no_commit(tmp_path: Path, prepare: object) -> None:
    if callable(prepare):
        prepare(tmp_path)

    with pytest.raises(CheckoutError) as caught:
        Checkout(tmp_path, Proc(), os.environ).snapshot()
    assert "at least one commit" in caught.value.next
    assert caught.value.tail.startswith("fatal: ")


def test_history_has_merges_for_what_was_merged_newest_first(root: Path) -> None:
    first = _git(root, "rev-parse", "HEAD")
    _git(root, "checkout", "--quiet", "-b", "side")
    _git(root, "commit", "--quiet", "--allow-empty", "--message", "on the side")
    _git(root, "checkout", "--quiet", "-")
    _git(root, "merge", "--quiet", "--no-ff", "--message", "merged", "side")
    merged = _git(root, "rev-parse", "HEAD")

    commits, whole = Checkout(root, Proc(), os.environ).history(10)

    assert (commits, whole) == ((Commit(id=merged, time_s=COMMITTED_S), Commit(id=first, time_s=COMMITTED_S)), True)


def test_history_is_not_whole_when_the_clone_is_shallow_or_more_was_not_asked_for(root: Path, tmp_path: Path) -> None:
    _git(root, "commit", "--quiet", "--allow-empty", "--message", "second")
    _git(tmp_path, "clone", "--quiet", "--depth=1", f"file://{root}", "shallow")

    assert Checkout(root, Proc(), os.environ).history(1)[1] is False
    commits, whole = Checkout(tmp_path / "shallow", Proc(), os.environ).history(10)
    assert (len(commits), whole) == (1, False)


def test_tool_is_missing_when_there_is_no_git(tmp_path: Path) -> None:
    with pytest.raises(ToolMissing, match="'git'"):
        Checkout(tmp_path, Proc(), {"PATH": str(tmp_path)}).snapshot()
