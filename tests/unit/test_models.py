"""The data scientists' runbooks: what the checkout's environments follow, and what they still need."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest

from shipway import documents, models
from shipway.artifacts import Digest, ModelRef, Version
from shipway.config import load
from shipway.console import Console
from shipway.errors import ModelUnfit, ToolMissing
from shipway.proc import Completed, Proc
from shipway.site import Site
from tests import model_folder
from tests.unit.test_catalogue import Child

RELEASE = """\
[project]
name = "adder"
[model]
name = "adds"
store = "store"
alias = "staging"
contract = "contract.json"
[service]
command = ["true"]
[env.live.model]
alias = "production"
contract = "live.json"
[env.elsewhere.model]
store = "other"
alias = "production"
contract = "other.json"
"""
TENSOR = {"name": "x", "type": "float32", "shape": [None, 2]}


class Script(Child):
    """Answers for the model, and has no git."""

    def run(self, argv: Sequence[str | Path], *, env: Mapping[str, str] | None = None, **options: object) -> Completed:
        if "git" in argv:
            raise ToolMissing(program="git")
        return super().run(argv, env=env, **options)


def contract(path: Path, *, output: str) -> None:
    path.write_text(json.dumps({"inputs": [TENSOR], "outputs": [{**TENSOR, "name": output}]}))


@pytest.fixture
def site(tmp_path: Path) -> Site:
    """A service that understands the model in staging, and another in production."""
    (tmp_path / "release.toml").write_text(RELEASE)
    contract(tmp_path / "contract.json", output="y")
    contract(tmp_path / "live.json", output="z")
    contract(tmp_path / "other.json", output="y")
    loaded = load(tmp_path, environment=None, environ={})
    return Site(root=tmp_path, loaded=loaded, environ={}, proc=cast("Proc", Script()), tell=Console())


def publish(site: Site, *aliases: str, weight: float = 1) -> int:
    folder = model_folder.make(site.root / "folder", weight=weight)
    return models.publish(site, folder, metrics={}, aliases=aliases).version.version


UNFIT = (
    "the environment live follows production of adds, and its service does not understand this model:\n"
    "  output z: the model has y only"
)


def test_publish_moves_an_alias_that_an_environment_follows_when_the_model_fits(site: Site) -> None:
    assert publish(site, "staging") == 1

    assert site.catalogue.aliases("adds") == {"latest": 1, "staging": 1}


def test_publish_writes_nothing_when_an_environment_would_not_understand_the_model(site: Site) -> None:
    with pytest.raises(ModelUnfit) as raised:
        publish(site, "production")

    assert raised.value.message == UNFIT
    assert not (site.root / "store").exists()


def test_promote_moves_nothing_when_an_environment_would_not_understand_the_model(site: Site) -> None:
    publish(site)

    with pytest.raises(ModelUnfit) as raised:
        models.promote(site, 1, "production", why="", expected=None)

    assert raised.value.message == UNFIT
    assert site.catalogue.aliases("adds") == {"latest": 1}


def test_promote_asks_nobody_who_follows_another_alias_or_store(site: Site) -> None:
    publish(site)
    contract(site.root / "live.json", output="y")
    contract(site.root / "other.json", output="z")

    moved = [models.promote(site, 1, alias, why="", expected=None) for alias in ("production", "canary")]

    assert [move.alias for move in moved if move] == ["production", "canary"]


def test_publish_warns_when_an_environment_cannot_be_asked(site: Site) -> None:
    (site.root / "release.toml").write_text(RELEASE + '[env.broken.model]\ntrusted = "x"\n')
    heard = io.StringIO()

    assert publish(replace(site, tell=Console(err=heard))) == 1

    assert "whether broken understands the model is not known" in heard.getvalue()


def test_copy_asks_the_environments_of_the_store_that_it_copies_into(site: Site) -> None:
    publish(site, "canary")
    contract(site.root / "live.json", output="y")
    models.promote(site, 1, "production", why="", expected=None)
    contract(site.root / "other.json", output="z")

    with pytest.raises(ModelUnfit, match="the environment elsewhere follows production"):
        models.copy(site, "env:elsewhere", versions=[], aliases=["production"])
    copied = models.copy(site, "other", versions=[], aliases=["canary"])

    assert copied.versions == (1,)
    assert {path.name for path in (site.root / "other/adds/aliases").iterdir()} == {"canary.json"}


def version(number: int) -> Version:
    model = ModelRef(name="adds", version=number, digest=Digest.of(b"%d" % number))
    return Version(digest=Digest.of(b"image %d" % number), build="b", commit="c", model=model)


def test_clean_keeps_what_an_environment_runs_or_may_go_back_to(site: Site) -> None:
    for weight in range(1, 5):
        publish(site, weight=weight)
    site.ledger.begin("release", who="ada", version=documents.plain(version(2))).close("released")

    swept = models.clean(site, days=0, apply=True)

    assert sorted(swept.going) == [1, 3]
    assert swept.staying[2] == "local runs it or may go back to it"
    assert [each.version for each in site.catalogue.versions("adds")] == [4, 2]


def test_clean_keeps_what_is_being_released(site: Site) -> None:
    for weight in range(1, 4):
        publish(site, weight=weight)
    site.ledger.begin("release", who="ada", version=documents.plain(version(1)))

    assert sorted(models.clean(site, days=0, apply=False).going) == [2]
