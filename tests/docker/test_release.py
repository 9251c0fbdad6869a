"""Whole releases through a real registry: another machine takes part, and each moves what it must."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.docker.proxy import Proxy
from tests.docker.registries import Registry
from tests.system import project as projects
from tests.system.project import Project, free_port
from tests.system.referee import Referee

SMALL_BYTES = 20_000  # what a release may send besides the layer that changed


@pytest.fixture
def proxy(running: Callable[[str], Registry]) -> Iterator[Proxy]:
    with Proxy(running("debian-open").address) as proxy:
        yield proxy


@pytest.fixture
def adder(tmp_path: Path, proxy: Proxy) -> Iterator[Project]:
    for project in projects.adder(tmp_path):
        project.environ["SHIPWAY_PUSH_REPOSITORY"] = f"{proxy.address}/{tmp_path.name.lower()}/adder"
        yield project


@pytest.fixture
def elsewhere(adder: Project, tmp_path: Path) -> Iterator[Project]:
    """Give another machine's checkout of the same project: no state, no cache."""
    root, port = tmp_path / "elsewhere", str(free_port())
    adder.git("clone", "--quiet", ".", str(root))
    environ = {"SHIPWAY_ROLLOUT_PORT": port, "UV_CACHE_DIR": str(tmp_path / "uv")}
    project = replace(adder, root=root, port=int(port), environ={**adder.environ, **environ})
    yield project
    project.invoke("stop", "--wait")


def test_release_moves_only_the_app_when_code_changed(adder: Project, proxy: Proxy) -> None:
    adder.invoke("release")
    with Referee(adder.url, rate=30) as referee:
        proxy.forget()
        _touch(adder, "two")
        planned = adder.facts("plan")["bytes"]
        released = adder.facts("release")

    assert referee.failed() == []
    assert (released["outcome"], planned["model"], planned["dependencies"]) == ("released", 0, 0)
    assert proxy.received_bytes() < planned["app"] + SMALL_BYTES


def test_another_machine_builds_without_a_byte_of_the_model_when_the_registry_has_its_layer(
    adder: Project, elsewhere: Project, proxy: Proxy
) -> None:
    adder.invoke("build")
    _touch(elsewhere, "two")
    _spoil_models(adder)
    proxy.forget()

    elsewhere.invoke("push")

    assert proxy.received_bytes() < SMALL_BYTES
    assert not (elsewhere.root.parent / "uv").exists(), "no wheel was fetched to know the layers"


def test_another_machine_deploys_what_this_one_built(adder: Project, elsewhere: Project) -> None:
    built = adder.facts("build")

    deployed = elsewhere.facts("deploy")

    assert (deployed["outcome"], deployed["current"]["digest"]) == ("released", built["digest"])
    assert elsewhere.facts("status")["healthy"]


def test_image_is_the_same_when_it_goes_to_a_layout_and_to_a_registry(adder: Project) -> None:
    pushed = adder.facts("build")

    kept = adder.start("build", "--json", SHIPWAY_PUSH_REPOSITORY="layout")
    out, err = kept.communicate(timeout=120)

    assert kept.returncode == 0, err
    assert json.loads(out)["digest"] == pushed["digest"]


def test_release_of_an_earlier_model_sends_documents_alone(adder: Project, proxy: Proxy) -> None:
    adder.invoke("release")
    projects.publish(adder, weight=2)
    second = adder.facts("release")
    _spoil_models(adder)
    proxy.forget()

    built = adder.facts("build", "--model", "1")

    assert (second["current"]["model"]["version"], built["model"]["version"]) == (2, 1)
    assert built["sent_bytes"] < SMALL_BYTES
    assert proxy.received_bytes() < SMALL_BYTES


@pytest.mark.parametrize(("only", "model", "mark"), [("model", 1, "two"), ("code", 2, "one")])
def test_rollback_of_one_part_sends_documents_alone(
    adder: Project, proxy: Proxy, only: str, model: int, mark: str
) -> None:
    _touch(adder, "one")
    adder.invoke("release")
    projects.publish(adder, weight=2)
    _touch(adder, "two")
    adder.invoke("release")
    proxy.forget()

    back = adder.facts("rollback", "--only", only)

    assert (back["outcome"], back["current"]["model"]["version"]) == ("rolled back", model)
    assert proxy.received_bytes() < SMALL_BYTES
    code = adder.root / ".shipway" / "versions" / back["current"]["digest"][7:] / "srv" / "app" / "__init__.py"
    assert code.read_text().endswith(f"# {mark}\n")


def test_release_sends_nothing_when_nothing_changed(adder: Project, proxy: Proxy) -> None:
    adder.invoke("release")
    proxy.forget()

    again = adder.facts("release")

    assert again["outcome"] == "unchanged"
    assert proxy.received_bytes() == 0


def _spoil_models(project: Project) -> None:
    """Make every file of every model another one of its size: whoever reads one will be found out."""
    for blob in (project.root.parent / "store" / "adds" / "blobs" / "sha256").iterdir():
        blob.chmod(0o600)
        blob.write_bytes(b"?" * blob.stat().st_size)


def _touch(project: Project, word: str) -> None:
    """Commit another last line of the app."""
    text = (project.root / "app/__init__.py").read_text().partition("# ")[0]
    project.write("app/__init__.py", f"{text}# {word}\n")
    project.commit(word)
