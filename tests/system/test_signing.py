"""Signed models in whole releases: what is refused, and what a store's keeper cannot do."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from shipway import flow
from shipway.artifacts import Digest
from shipway.errors import ModelDowngrade
from shipway.site import Site
from tests.system import project
from tests.system.project import ROOT, Project


@pytest.fixture
def adder(tmp_path: Path) -> Iterator[Project]:
    yield from project.adder(tmp_path)


def _trust(adder: Project, *keys: str) -> None:
    adder.change("release.toml", "[service]", f"trusted_keys = {json.dumps(keys)}\n[service]")
    adder.commit("Trust keys")


def test_an_alias_that_goes_back_needs_a_word_from_a_person(adder: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """An old alias, put back by whoever can write the store, names a version that is signed well."""
    store, key = adder.root.parent / "store", adder.root.parent / "ada.key"
    _trust(adder, public := adder.invoke("model.keygen", str(key))[0].strip())
    folder = str(adder.root.parent / "model")
    adder.environ["SHIPWAY_MODEL_SIGNING_KEY"] = str(key)
    adder.invoke("model.publish", folder)  # what was published unsigned
    before = (store / "adds/aliases/latest.json").read_bytes()
    Path(folder, "card.md").write_text("# Adds one, again\n")
    Path(folder, "golden/exchanges/one.json").unlink()
    Path(folder, "golden/exchanges/two.json").write_text(
        json.dumps(
            {
                "request": {"method": "POST", "path": "/score", "json": [2, 2]},
                "response": {"status": 200, "json": {"sum": 4}},
            }
        )
    )
    assert adder.facts("model.publish", folder)["version"] == 2
    assert adder.facts("release")["current"]["model"]["version"] == 2
    (store / "adds/aliases/latest.json").write_bytes(before)

    told = [adder.invoke(task, exits=28)[1] for task in ("release", "build", "image")]
    plan = adder.facts("plan")
    monkeypatch.setattr(flow, "_refuse_early", lambda *_: None)  # as where whoever builds cannot see the environment
    site = Site.open(adder.root, environment=None, environ=os.environ | adder.environ)
    with contextlib.closing(site), pytest.raises(ModelDowngrade, match="older than 2"):
        flow.release(site)
    adder.invoke("build", "--allow-downgrade")
    deployed = adder.invoke("deploy", exits=28)[1]

    assert all(
        "adds 1 would be released, and it is older than 2, which was released here last" in line for line in told
    )
    assert plan["downgrade"] == "is older than 2, which was released here last"
    assert "adds 1 would be released" in deployed
    assert adder.facts("status")["model"]["version"] == 2
    assert adder.facts("deploy", "--allow-downgrade")["current"]["model"]["version"] == 1
    assert public in adder.invoke("model.show", "--version", "1")[0]


def test_whoever_builds_need_not_see_the_cluster_that_is_released_to(adder: Project) -> None:
    """What deploys looks again, and a release does: what it builds is deployed by its digest."""
    _, told = adder.invoke(
        "build",
        SHIPWAY_ROLLOUT_TARGET="kubernetes",
        SHIPWAY_ROLLOUT_CONTEXT="nobody-knows",
        SHIPWAY_ROLLOUT_NAMESPACE="web",
    )

    assert "deploy looks whether adds 1 is a step back" in told


def test_a_release_takes_nothing_that_no_trusted_key_signed(adder: Project) -> None:
    keys = [adder.root.parent / name for name in ("ada.key", "eve.key")]
    ada, eve = (adder.invoke("model.keygen", str(key))[0].strip() for key in keys)
    assert (keys[0].stat().st_mode & 0o777, "PRIVATE" in ada + eve) == (0o600, False)
    _trust(adder, ada)
    folder, store = adder.root.parent / "model", adder.root.parent / "store/adds"

    unsigned = json.loads(adder.invoke("build", "--json", exits=27)[0])["error"]
    no_key = adder.invoke("model.publish", str(folder), exits=27)[1]
    wrong_key = adder.invoke("model.publish", str(folder), exits=27, MODEL_SIGNING_KEY=keys[1].read_text())[1]
    adder.invoke("model.publish", str(folder), MODEL_SIGNING_KEY=keys[0].read_text())
    model = adder.facts("build")["model"]
    published = json.loads((store / "versions/1.json").read_text())
    forged = json.dumps({**published, "metrics": {"accuracy": 1.0}}).encode()
    (store / "versions/1.json").write_bytes(forged)
    altered = adder.invoke("build", exits=27)[1]
    (signature,) = (store / "signatures/1").iterdir()
    os.link(signature, signature.with_name(f"{Digest.of(forged).hex}-{signature.name.partition('-')[2]}"))
    replayed = adder.invoke("build", exits=27)[1]

    assert unsigned["kind"] == "ModelUntrusted"
    assert "is refused: it is not signed" in unsigned["message"]
    assert "there is no signing key" in no_key
    assert f"the signing key is {eve}, which is none of them" in wrong_key
    assert model["version"] == 1
    assert "its manifest was altered or exchanged" in altered
    assert "is about other content" in replayed
    assert not any(keys[0].read_text().splitlines()[1] in text for text in (no_key, altered, replayed))


def test_publish_is_finished_by_the_next_run_when_it_is_killed_at_any_write_to_a_folder(tmp_path: Path) -> None:
    program = [sys.executable, "-m", "tests.system.killed_publish", str(tmp_path)]

    done = subprocess.run(
        program, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False
    )

    assert done.returncode == 0, done.stderr[-3000:]
    assert int(done.stdout) > 40
