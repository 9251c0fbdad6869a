"""Whole releases through a real registry: another machine takes part, and each moves what it must."""

from __future__ import annotations

import json
import platform
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from shipway.artifacts import Digest
from shipway.oci.compose import CONFIG, MANIFEST, TAR, blob_entry, canonical
from shipway.oci.images import described, read_image
from shipway.tarball import Entry, collect
from tests.docker import client, walk
from tests.docker.proxy import Proxy
from tests.docker.registries import Registry
from tests.system import project as projects
from tests.system.project import Project, free_port
from tests.system.referee import Referee
from tests.system.shop import open_shop

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


def test_newest_tested_image_is_shown_when_none_is_named(adder: Project) -> None:
    built = adder.facts("build")

    shown = adder.facts("image.show")

    assert shown["digest"] == built["digest"]
    assert shown["made_for"] == f"Python {sys.version_info[0]}.{sys.version_info[1]} on linux/{_machine()}"


def test_base_is_mounted_when_it_is_in_the_same_registry(adder: Project, proxy: Proxy) -> None:
    base, layer = _base(proxy.address)
    proxy.forget()

    pushed = adder.facts("push", SHIPWAY_IMAGE_BASE=base)

    (mounted,) = proxy.found(rf"^POST .*mount={quote(layer, safe='')}")
    assert (mounted.status, proxy.found(rf"^PUT .*digest={quote(layer, safe='')}")) == (201, [])
    assert _layers(proxy.address, pushed)[0] == layer


def test_base_is_copied_when_it_is_in_another_registry(
    adder: Project, proxy: Proxy, running: Callable[[str], Registry]
) -> None:
    base, layer = _base(running("v3-open").address)
    proxy.forget()

    pushed = adder.facts("push", SHIPWAY_IMAGE_BASE=base)

    (copied,) = proxy.found(rf"^PUT .*digest={quote(layer, safe='')}")
    assert (copied.status, proxy.found("^POST .*mount=")) == (201, [])
    assert _layers(proxy.address, pushed)[0] == layer
    again = adder.facts("push", SHIPWAY_IMAGE_BASE=base)
    assert again == pushed


@pytest.mark.parametrize("kind", ["debian-token", "v3-token"])
def test_release_is_served_when_the_registry_has_tls_and_a_token_service(
    adder: Project, tmp_path: Path, running: Callable[[str], Registry], kind: str
) -> None:
    kept = adder.facts("build", SHIPWAY_PUSH_REPOSITORY="layout")  # with the index, which the way to *.test shuts off
    registry = running(kind)
    place = f"{registry.address}/{tmp_path.name.lower()}/adder"
    reach = {name: registry.environ[name] for name in ("DOCKER_CONFIG", "HTTPS_PROXY")} | {"UV_OFFLINE": "1"}
    settings = {"SHIPWAY_PUSH_REPOSITORY": place, "SHIPWAY_PUSH_AUTHORITY": str(registry.authority)}
    adder.environ.update(reach | settings)

    released = adder.facts("release")

    assert (released["outcome"], released["current"]["digest"]) == ("released", kept["digest"])
    assert adder.facts("status")["healthy"]
    assert adder.facts("image.show")["image"] == f"{place}@{kept['digest']}"
    assert adder.facts("build")["sent_bytes"] == 0
    shown = adder.facts("doctor")
    assert any("alice, from Docker's configuration" in str(finding) for finding in shown)


def test_image_in_the_registry_is_the_same_when_everything_else_differs(
    running: Callable[[str], Registry], tmp_path: Path
) -> None:
    shop, address = open_shop(tmp_path / "shop"), running("debian-open").address
    one = shop.make("--repository", f"{address}/same/one")
    odd = {"TZ": "Pacific/Auckland", "LC_ALL": "C", "PYTHONHASHSEED": "7", "UV_CACHE_DIR": str(tmp_path / "uv")}

    other = shop.make("--repository", f"{address}/same/two", state=tmp_path / "state", umask=0o077, environ=odd)

    assert walk.tags(address, "same/two")["tested"] == walk.tags(address, "same/one")["tested"] == one["digest"]
    assert (other["digest"], other["sent"]) == (one["digest"], one["sent"])


def _base(address: str) -> tuple[str, str]:
    """Store a base of one small layer; return its reference, and the layer's digest."""
    text = f"{address}\n".encode()
    layer = collect([Entry(path="etc/issue", size_bytes=len(text), read=lambda: [text])])
    config = canonical(
        {"architecture": _machine(), "os": "linux", "rootfs": {"type": "layers", "diff_ids": [Digest.of(layer)]}}
    )
    blob = described(layer, TAR)
    manifest = canonical(
        {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": blob_entry(described(config, CONFIG)),
            "layers": [blob_entry(blob)],
        }
    )
    registry = Registry(address=address, storage=Path(), log=Path())
    with client.opened(registry, "bases/small") as images:
        images.add(blob, lambda: [layer])
        images.add(described(config, CONFIG), lambda: [config])
        images.put(manifest, MANIFEST)
        return f"{images.repository}@{Digest.of(manifest)}", blob.digest


def _layers(address: str, pushed: Any) -> list[str]:
    registry = Registry(address=address, storage=Path(), log=Path())
    name = pushed["image"].partition("@")[0].partition("/")[2]
    with client.opened(registry, name) as images:
        return [layer.descriptor.digest for layer in read_image(images, Digest(pushed["digest"])).layers]


def _machine() -> str:
    return {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())


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
