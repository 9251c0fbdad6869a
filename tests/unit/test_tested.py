"""Which tested image is the newest: by the order of commits, whatever the clock says, and with few questions."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from msgspec import structs

from shipway import upkeep
from shipway.artifacts import Commit, Digest, Snapshot
from shipway.console import Console
from shipway.errors import ImageMissing
from shipway.oci import prune, tested
from shipway.oci.images import Images
from shipway.oci.layout import Layout
from shipway.oci.prune import GRACE_S
from shipway.oci.tested import Newest
from shipway.proc import Completed, Proc
from tests.attested import NOW_S, pushed, site_here, snapshot
from tests.fake_registry import FakeRegistry, repository

DAY_S = 86_400


def commit(number: int) -> Commit:
    """Return one of a branch's commits, each a day younger than the one before."""
    return Commit(id=f"{number:040x}", time_s=1_700_000_000 + number * DAY_S)


def at(number: int) -> Snapshot:
    each = commit(number)
    return structs.replace(snapshot(), commit=each.id, time_s=each.time_s)


def build(images: Images, number: int, *, now_s: float = NOW_S) -> Digest:
    """Push the tested image of a commit, as `flow` does."""
    return pushed(images, str(number), *tested.names(images, at(number)), now_s=now_s).digest


BRANCH = tuple(commit(number) for number in range(30, 0, -1))


@pytest.fixture
def fake() -> FakeRegistry:
    return FakeRegistry()


@pytest.fixture
def images(fake: FakeRegistry) -> Iterator[Images]:
    with closing(repository(fake)) as images:
        yield images


def test_newest_is_that_of_the_newest_commit_when_an_older_one_was_pushed_last(images: Images) -> None:
    newer, older = build(images, 29), build(images, 27)

    found = tested.newest(images, BRANCH, whole=True)

    assert found == Newest(digest=newer, commit=commit(29), behind=1)
    assert images.tagged("tested") == older


def test_newest_is_that_of_the_branch_when_another_branch_has_a_newer_commit(images: Images) -> None:
    ours = build(images, 3)
    build(images, 99)

    assert tested.newest(images, BRANCH, whole=True) == Newest(digest=ours, commit=commit(3), behind=27)


def test_one_question_is_enough_when_the_newest_commit_has_an_image(images: Images, fake: FakeRegistry) -> None:
    build(images, 30)
    before = len(fake.calls)

    tested.newest(images, BRANCH, whole=True)

    assert len(fake.calls) - before == 1


def test_names_are_listed_once_when_many_commits_have_no_image(images: Images, fake: FakeRegistry) -> None:
    build(images, 5)
    before = len(fake.calls)

    tested.newest(images, BRANCH, whole=True)

    assert len(fake.calls) - before == 13  # ten commits, the list in two pages, the one that is found


def test_newest_is_that_of_the_youngest_commit_when_the_history_is_cut_off(images: Images) -> None:
    build(images, 7)
    younger = build(images, 9)
    build(images, 8)

    found = tested.newest(images, BRANCH[:3], whole=False)

    assert found == Newest(digest=younger, commit=commit(9), behind=None)


def test_image_is_missing_when_only_other_branches_have_tested_ones(images: Images) -> None:
    build(images, 99)

    with pytest.raises(ImageMissing, match="1 of commits that the checked-out branch has not got") as caught:
        tested.newest(images, BRANCH, whole=True)
    assert "check out the branch" in caught.value.next


def test_image_is_missing_when_no_suite_passed(images: Images) -> None:
    pushed(images, "1")

    with pytest.raises(ImageMissing, match="no image that was built from a passing suite") as caught:
        tested.newest(images, BRANCH, whole=False)
    assert caught.value.next == "invoke build makes one"


def test_last_pushed_is_taken_when_no_image_says_its_commit(images: Images) -> None:
    image = pushed(images, "1", "tested")

    assert tested.newest(images, BRANCH, whole=True) == Newest(digest=image.digest, commit=None, behind=None)


def test_changed_tree_gets_no_commits_name_when_others_build_too(images: Images, tmp_path: Path) -> None:
    dirty = structs.replace(at(3), dirty=True)

    assert tested.names(images, dirty) == ("tested",)
    assert tested.names(Layout(tmp_path), dirty) == ("tested", f"tested-{commit(3).time_s}-{commit(3).id}")


def test_commits_name_protects_no_image_from_pruning(images: Images) -> None:
    old, last = build(images, 1), build(images, 2)

    verdict = prune.examine(images, in_use={}, newest=0, now_s=NOW_S + GRACE_S + 1)

    assert [each.digest for each in verdict.going if each.image] == [old]
    assert [(each.digest, each.why) for each in verdict.staying if each.image] == [(last, "tagged tested")]


# -- what is said of it ------------------------------------------------------------------


@dataclass
class Git(Proc):
    """Answers what `Checkout.history` asks; without commits it is no checkout."""

    commits: Sequence[Commit]
    shallow: bool = False

    def run(self, argv: Sequence[str | Path], **_: Any) -> Completed:
        words = [str(word) for word in argv]
        words = words[words.index("git") + 1 :]
        said = "true" if self.shallow else "false"
        if words[0] == "log":
            assert "--first-parent" in words
            said = "\n".join(f"{each.id} {each.time_s}" for each in self.commits)
        else:
            assert words == ["rev-parse", "--is-shallow-repository"]
        code, tail = (0, "") if self.commits else (128, "fatal: not a git repository")
        return Completed(argv=tuple(words), code=code, stdout=said.encode(), tail=tail)


def _told(folder: Path, git: Git, *built: int) -> tuple[Digest, list[str]]:
    """Return what is chosen of the images of these commits, and what is said."""
    said = io.StringIO()
    site = replace(site_here(folder), proc=git, tell=Console(err=said))
    for number in built:
        build(site.images, number)
    digest = upkeep.newest_tested(site)
    return digest, [" ".join(line.split()) for line in said.getvalue().splitlines()]


def test_nothing_is_behind_when_the_newest_commit_has_an_image(tmp_path: Path) -> None:
    digest, lines = _told(tmp_path, Git(BRANCH), 30)

    assert lines == [f"deploy the newest tested image is {digest.short}, of commit {commit(30).id[:12]}"]


def test_commits_and_days_behind_are_said_when_the_newest_have_no_image(tmp_path: Path) -> None:
    digest, lines = _told(tmp_path, Git(BRANCH), 27, 26)

    what = f"{digest.short}, of commit {commit(27).id[:12]}: 3 commits, 3 days behind {commit(30).id[:12]}"
    assert lines == [f"deploy the newest tested image is {what}"]


def test_it_is_said_that_times_decide_when_the_clone_is_shallow(tmp_path: Path) -> None:
    digest, lines = _told(tmp_path, Git(BRANCH[:1], shallow=True), 27, 26)

    why = "this clone has not got all commits, so that the order of commits cannot be told"
    what = f"{digest.short}, of commit {commit(27).id[:12]}: 3 days behind {commit(30).id[:12]}"
    assert lines == [f"warning {why}: taking the newest by its time", f"deploy the newest tested image is {what}"]


def test_it_is_said_that_times_decide_when_there_is_no_checkout(tmp_path: Path) -> None:
    digest, lines = _told(tmp_path, Git(()), 26, 27)

    assert lines[0].startswith("warning no history to go by (git log failed in ")
    assert lines[1:] == [f"deploy the newest tested image is {digest.short}, of commit {commit(27).id[:12]}"]
