"""What git says of the checkout: the one module that runs git.

Owns the question "which bytes are released": the commit's, or, where tracked files were
changed, theirs as they stand. The checkout, its index and its branches are never changed;
a dirty tree leaves unreferenced objects, which git collects. Knows nothing of images.
Every failure is a `CheckoutError` with git's own last lines.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal

from msgspec import Struct

from shipway.artifacts import Commit, Snapshot
from shipway.errors import CheckoutError
from shipway.proc import Run

Kind = Literal["file", "executable", "symlink", "submodule"]

_KINDS: dict[str, Kind] = {"100644": "file", "100755": "executable", "120000": "symlink", "160000": "submodule"}
# A hook or an alias that starts us sets these; the checkout that was named is the one that is meant.
_FOREIGN = frozenset({"GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_OBJECT_DIRECTORY", "GIT_PREFIX"})
_OURS = {"LC_ALL": "C", "GIT_NO_REPLACE_OBJECTS": "1", "GIT_OPTIONAL_LOCKS": "0"}


class TreeFile(Struct, frozen=True, kw_only=True):
    """One file of a git tree; `path` is POSIX and relative to the checkout's root."""

    path: str
    kind: Kind
    object_id: str
    size_bytes: int


class Checkout:
    """A folder in a git working tree: the whole of it, or a project's folder inside."""

    def __init__(self, root: Path, proc: Run, environ: Mapping[str, str]) -> None:
        """Look at the checkout at `root`; `environ` is that of git, but for what would lead it elsewhere."""
        self.root = root
        self._proc = proc
        self._environ = {name: text for name, text in environ.items() if name not in _FOREIGN} | _OURS

    def snapshot(self, *, exclude: Sequence[str] = ()) -> Snapshot:
        """Return what is released: the commit, or the tracked files as they stand.

        Paths in `exclude` are taken as committed, whatever lies there now.
        """
        try:
            str(self.root).encode()
        except UnicodeEncodeError as error:
            message = f"the name of the folder {os.fsencode(self.root)!r} is not UTF-8, which uv needs"
            raise CheckoutError(message, advice="give it another name") from error
        head = self._text("log", "-1", "--no-show-signature", "--format=%H %T %ct")
        commit, committed, time_s = head.split()
        tree = committed if self._is_as_committed() else self._standing_tree(exclude)
        return Snapshot(commit=commit, tree=tree, dirty=tree != committed, time_s=int(time_s))

    def _is_as_committed(self) -> bool:
        """Say whether no tracked file is changed, anywhere in the working tree or its index."""
        words = ("--porcelain", "-z", "--untracked-files=no", "--ignore-submodules=dirty", "--no-renames")
        return not self._git("status", *words)

    def _standing_tree(self, exclude: Sequence[str]) -> str:
        index = self.root / self._text("rev-parse", "--git-path", "index")
        with tempfile.TemporaryDirectory(prefix="shipway-index-") as folder:
            copy = Path(folder, "index")
            if index.exists():
                # With its time: git takes files as unchanged that are older than their index.
                shutil.copy2(index, copy)
            self._git("add", "--update", "--", ".", *(f":(exclude){path}" for path in exclude), index=copy)
            return self._git("write-tree", index=copy).decode().strip()

    def history(self, most: int) -> tuple[tuple[Commit, ...], bool]:
        """Return the commits of the branch that is checked out, newest first, and whether these are all.

        What was merged counts as its merge. In a shallow clone, or beyond `most`, they are not all.
        """
        lines = self._text("log", "--first-parent", "--no-show-signature", f"--max-count={most}", "--format=%H %ct")
        pairs = [line.split() for line in lines.splitlines()]
        commits = tuple(Commit(id=commit, time_s=int(time_s)) for commit, time_s in pairs)
        return commits, len(commits) < most and self._text("rev-parse", "--is-shallow-repository") == "false"

    def untracked(self, folders: Sequence[str]) -> tuple[str, ...]:
        """Return files in `folders` that git neither tracks nor ignores."""
        listed = self._git("ls-files", "--others", "--exclude-standard", "-z", "--", *folders)
        return tuple(name.decode("utf-8", "replace") for name in listed.split(b"\0") if name)

    def files(self, tree: str, folder: str) -> tuple[TreeFile, ...]:
        """Return the files of `tree` in `folder` (or the file of that name), sorted by path."""
        listed = self._git("ls-tree", "-r", "-z", "--long", tree, "--", folder)
        return tuple(sorted((_tree_file(line) for line in listed.split(b"\0") if line), key=lambda file: file.path))

    def file(self, tree: str, path: str) -> bytes | None:
        """Return the bytes of one file of `tree`, or nothing where there is none of this path."""
        if "\n" in path:  # each line asks for a file of its own
            return None
        answer = self._git("cat-file", "--batch", stdin=f"{tree}:./{path}\n".encode())
        header, _, rest = answer.partition(b"\n")
        found = re.fullmatch(rb"[0-9a-f]+ blob ([0-9]+)", header)
        return rest[: int(found[1])] if found else None

    def read(self, files: Iterable[TreeFile]) -> Iterator[tuple[TreeFile, bytes]]:
        """Yield each file with its committed bytes: of a symlink, its target."""
        files = tuple(files)
        if not files:
            return
        answer = memoryview(self._git("cat-file", "--batch", stdin="".join(f"{f.object_id}\n" for f in files).encode()))
        start = 0
        for file in files:
            header = f"{file.object_id} blob {file.size_bytes}\n".encode()
            end = start + len(header) + file.size_bytes
            if answer[start : start + len(header)] != header:
                message = f"git cannot read {file.path} (object {file.object_id})"
                raise CheckoutError(message, advice="git fsck; a partial clone needs git fetch --refetch")
            yield file, bytes(answer[start + len(header) : end])
            start = end + 1

    def _text(self, *words: str) -> str:
        return self._git(*words).decode().strip()

    def _git(self, *words: str, index: Path | None = None, stdin: bytes | None = None) -> bytes:
        environ = self._environ | ({"GIT_INDEX_FILE": str(index)} if index else {})
        done = self._proc.run(["git", *words], cwd=self.root, env=environ, stdin=stdin)
        if done.code != 0:
            message = f"git {words[0]} failed in {self.root}"
            advice = "" if words[0] == "log" else "mend what git says, then run the same command again"
            raise CheckoutError(message, tail=done.tail, advice=advice)
        return done.stdout


def _tree_file(line: bytes) -> TreeFile:
    facts, _, name = line.partition(b"\t")
    mode, _, object_id, size = facts.decode().split()
    try:
        path = name.decode("utf-8")
    except UnicodeDecodeError as error:
        message = f"the committed file name {name!r} is not UTF-8"
        raise CheckoutError(message, advice="git mv it to another name and commit") from error
    return TreeFile(path=path, kind=_KINDS[mode], object_id=object_id, size_bytes=0 if size == "-" else int(size))
