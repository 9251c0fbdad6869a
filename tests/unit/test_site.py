"""A site: what this version does not know yet is said, not guessed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from shipway.errors import ConfigError, NotConfigured
from shipway.site import Site

SETTINGS = """
[project]
name = "thing"
[model]
name = "net"
store = "models"
[service]
command = ["serve"]
[env.cloud.model]
store = "gs://bucket/models"
[env.cloud.push]
repository = "registry.example/thing"
[env.cloud.rollout]
target = "swarm"
[env.cluster.push]
repository = "registry.example/thing"
[env.cluster.image]
base = "Dockerfile"
python = "3.13"
[env.cluster.rollout]
target = "kubernetes"
context = "there"
namespace = "shop"
"""


@pytest.mark.parametrize(
    ("part", "named"),
    [
        (lambda site: site.catalogue, "gs://bucket/models"),
        (lambda site: site.target, "swarm"),
    ],
)
def test_part_is_not_configured_when_it_is_in_a_cloud(
    tmp_path: Path, part: Callable[[Site], object], named: str
) -> None:
    (tmp_path / "release.toml").write_text(SETTINGS)
    site = Site.open(tmp_path, environment="cloud", environ={})

    with pytest.raises(NotConfigured, match=named) as caught:
        part(site)

    assert "this version" in caught.value.next


def test_open_finds_the_project_from_a_folder_inside(tmp_path: Path) -> None:
    (tmp_path / "release.toml").write_text(SETTINGS)
    inside = tmp_path / "app" / "deep"
    inside.mkdir(parents=True)

    site = Site.open(inside, environment=None, environ={})

    assert site.root == tmp_path


@pytest.mark.parametrize(("key", "value"), [("PYTHON", '"3.99"'), ("PLATFORM", "linux/arm64")])
def test_local_target_is_refused_when_the_image_is_for_another_machine(tmp_path: Path, key: str, value: str) -> None:
    (tmp_path / "release.toml").write_text(SETTINGS)
    site = Site.open(tmp_path, environment=None, environ={f"SHIPWAY_IMAGE_{key}": value})

    with pytest.raises(ConfigError, match=f"this machine's Python .* asks for .*{value.strip(chr(34))}"):
        site.require_runnable()


def test_local_target_is_accepted_when_the_image_is_for_this_machine(tmp_path: Path) -> None:
    (tmp_path / "release.toml").write_text(SETTINGS)

    Site.open(tmp_path, environment=None, environ={}).require_runnable()


def test_cluster_is_accepted_when_all_is_said(tmp_path: Path) -> None:
    (tmp_path / "release.toml").write_text(SETTINGS)

    Site.open(tmp_path, environment="cluster", environ={}).require_runnable()


@pytest.mark.parametrize(
    ("variable", "value", "told"),
    [
        ("SHIPWAY_IMAGE_BASE", "scratch", "needs a base with Python"),
        ("SHIPWAY_IMAGE_PYTHON", "host", "says nothing of the base's"),
        ("SHIPWAY_PUSH_REPOSITORY", "layout", "nodes pull images from a registry"),
    ],
)
def test_cluster_is_refused_when_its_nodes_could_not_run_the_image(
    tmp_path: Path, variable: str, value: str, told: str
) -> None:
    (tmp_path / "release.toml").write_text(SETTINGS)
    site = Site.open(tmp_path, environment="cluster", environ={variable: value})

    with pytest.raises(ConfigError, match=told) as caught:
        site.require_runnable()

    assert "[env.cluster." in caught.value.next


def test_cluster_is_not_configured_when_nothing_says_which(tmp_path: Path) -> None:
    (tmp_path / "release.toml").write_text(SETTINGS.replace('context = "there"', ""))

    with pytest.raises(NotConfigured, match="which cluster"):
        _ = Site.open(tmp_path, environment="cluster", environ={}).target


def test_every_cluster_is_a_neighbour_with_its_own_settings(tmp_path: Path) -> None:
    (tmp_path / "release.toml").write_text(SETTINGS.replace('target = "swarm"', ""))
    (tmp_path / ".shipway" / "environments" / "gone").mkdir(parents=True)
    site = Site.open(tmp_path, environment=None, environ={})

    found = {each.environment: each.settings.rollout.target for each in site.neighbours}

    assert found == {"cluster": "kubernetes", "gone": "local"}
