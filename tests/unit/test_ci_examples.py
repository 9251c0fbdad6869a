"""docs/ci.md and docs/aks.md: the examples are well-formed, and call tasks and flags that there are."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from invoke import Collection

from shipway.config import PREFIX, load
from shipway.tasks import namespace

DOCS = Path(__file__).parents[2] / "docs"
PAGES = ("ci.md", "aks.md")
_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_CALL = re.compile(r"(?<![\w./-])(?:\S*/)?invoke ([a-z.]+)((?: +(?:--[a-z-]+|[\w./:=-]+))*)")


def blocks(page: str, *languages: str) -> list[str]:
    return [text for language, text in _BLOCK.findall((DOCS / page).read_text("utf-8")) if language in languages]


def examples() -> dict[str, Any]:
    """Return the YAML examples by the section that they stand in."""
    parts = re.split(r"^## (.+)$", (DOCS / "ci.md").read_text("utf-8"), flags=re.MULTILINE)
    sections = zip(parts[1::2], parts[2::2], strict=True)
    return {
        title: yaml.safe_load(text)
        for title, part in sections
        for language, text in _BLOCK.findall(part)
        if language == "yaml"
    }


def test_every_example_is_yaml() -> None:
    found = examples()

    assert set(found) == {"GitHub Actions", "Azure Pipelines", "GitLab"}
    assert all(isinstance(each, dict) for each in found.values())


@pytest.mark.parametrize("title", ["GitHub Actions", "Azure Pipelines", "GitLab"])
def test_example_builds_commits_and_deploys_with_the_whole_history(title: str) -> None:
    text = yaml.safe_dump(examples()[title])

    assert "invoke build --env aks" in text
    assert "invoke deploy --env aks --wait" in text
    assert re.search(r"(fetch-depth|fetchDepth|GIT_DEPTH): '?0", text)


def test_example_deploys_at_night_where_the_file_says_when() -> None:
    found = examples()

    assert found["GitHub Actions"][True]["schedule"] == [{"cron": "0 3 * * *"}]  # YAML's `on` is true
    assert found["Azure Pipelines"]["schedules"][0]["cron"] == "0 3 * * *"
    assert "cron('0 3 * * *')" in "".join(blocks("ci.md", "groovy"))


@pytest.mark.parametrize("page", PAGES)
def test_pages_call_tasks_and_flags_that_there_are(page: str) -> None:
    tasks = dict(_tasks(namespace()))
    wrong = [
        f"invoke {task} {flag}"
        for task, words in _CALL.findall((DOCS / page).read_text("utf-8"))
        for flag in [*re.findall(r"--[a-z-]+", words), None]
        if task not in tasks or (flag and flag not in tasks[task])
    ]

    assert wrong == []


@pytest.mark.parametrize("page", PAGES)
def test_pages_hold_no_secret(page: str) -> None:
    text = (DOCS / page).read_text("utf-8")

    assert not re.search(
        r"(?i)(client-secret|--password[ =]|AZURE_CLIENT_SECRET|--enable-admin|admin-enabled true)", text
    )


def _tasks(collection: Collection, prefix: str = "") -> Iterator[tuple[str, set[str]]]:
    for name, task in collection.tasks.items():
        words = dict(task.help)
        flags = {f"--{argument.name.replace('_', '-')}" for argument in task.get_arguments()}
        task.help = words  # Invoke takes each word out as it reads it
        yield (prefix.removesuffix(".") if name == collection.default else prefix + name), flags
    for name, inner in collection.collections.items():
        yield from _tasks(inner, f"{prefix}{name}.")


def test_nightly_sets_only_settings_that_there_are() -> None:
    (generated, _) = yaml.safe_load((DOCS.parent / "k8s/nightly/kustomization.yaml").read_text("utf-8"))[
        "configMapGenerator"
    ]
    variables = dict(literal.split("=", 1) for literal in generated["literals"])
    ours = {name: value for name, value in variables.items() if name.startswith(PREFIX)}

    loaded = load(DOCS.parent, environment="test", environ=ours)

    assert len(ours) == 4
    assert (loaded.settings.rollout.context, loaded.settings.push.azure_credential) == (
        "in-cluster",
        "workload_identity",
    )


def test_nightly_points_kubectl_to_the_server_that_it_says() -> None:
    kubeconfig = yaml.safe_load((DOCS.parent / "k8s/nightly/kubeconfig.yaml").read_text("utf-8"))
    said = (DOCS.parent / "k8s/nightly/kustomization.yaml").read_text("utf-8")

    assert f"SHIPWAY_ROLLOUT_SERVER={kubeconfig['clusters'][0]['cluster']['server']}\n" in said
    assert f"SHIPWAY_ROLLOUT_CONTEXT={kubeconfig['contexts'][0]['name']}\n" in said
    assert set(kubeconfig["users"][0]["user"]) == {"tokenFile"}
