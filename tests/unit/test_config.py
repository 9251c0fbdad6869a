"""Settings: every mistake at once, each value with its source."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from shipway import documents
from shipway.config import load
from shipway.errors import ConfigError

SMALLEST = """
[project]
name = "thing"
[model]
name = "net"
store = "models"
[service]
command = ["serve"]
"""


def _project(folder: Path, text: str = SMALLEST) -> Path:
    (folder / "release.toml").write_text(text)
    return folder


def test_load_fills_in_defaults_when_the_file_is_the_smallest(tmp_path: Path) -> None:
    loaded = load(_project(tmp_path), environment=None, environ={})

    assert loaded.environment == "local"
    assert loaded.settings.rollout.port == 8080
    assert loaded.settings.model.alias == "latest"


def test_load_prefers_flag_to_variable_to_environment_table_to_file(tmp_path: Path) -> None:
    root = _project(
        tmp_path,
        SMALLEST
        + "[loadcheck]\nusers=1\nseconds=1\nrate=1\nmin_rate=1\n"
        + "[env.test.loadcheck]\nusers=2\nseconds=2\nrate=2\n",
    )

    loaded = load(
        root,
        environment="test",
        environ={"SHIPWAY_LOADCHECK_USERS": "3", "SHIPWAY_LOADCHECK_SECONDS": "3"},
        flags={"loadcheck": {"users": "4"}},
    )

    found = {path: (value, source) for path, value, source in loaded.rows() if source != "default"}
    assert {path: found[path] for path in found if path.startswith("loadcheck")} == {
        "loadcheck.users": (4, "command line"),
        "loadcheck.seconds": (3.0, "environment"),
        "loadcheck.rate": (2.0, "release.toml [env.test]"),
        "loadcheck.min_rate": (1.0, "release.toml"),
    }


def test_load_tells_every_mistake_at_once(tmp_path: Path) -> None:
    root = _project(
        tmp_path,
        '[project]\nname = "Bad Name"\n[model]\nname = "net"\nalais = "x"\n[servce]\n[rollout]\nport = 70000\n'
        "[env.test.rollout]\nprot = 1\n",
    )

    with pytest.raises(ConfigError) as caught:
        load(root, environment=None, environ={"SHIPWAY_LOADCHEK_USERS": "1"})

    message = str(caught.value)
    for expected in (
        "project.name = 'Bad Name'",
        "model.store: is missing",
        "model.alais: no such key; did you mean model.alias?",
        "servce: no such table; did you mean service?",
        "service: is missing",
        "rollout.port = 70000",
        "env.test.rollout.prot: no such key; did you mean rollout.port?",
        "SHIPWAY_LOADCHEK_USERS: no such variable; did you mean SHIPWAY_LOADCHECK_USERS?",
    ):
        assert expected in message


def test_load_names_the_known_environments_when_it_is_unknown(tmp_path: Path) -> None:
    root = _project(tmp_path, SMALLEST + "[env.staging.rollout]\nport = 1\n")

    with pytest.raises(ConfigError, match="no environment 'prod'; known are local, staging"):
        load(root, environment="prod", environ={})


@pytest.mark.parametrize("text", ["[project", "\x00", "project = 3", "env = 3", "[env]\nx = 1"])
def test_load_raises_a_clear_error_when_the_file_is_broken(tmp_path: Path, text: str) -> None:
    root = _project(tmp_path, text)

    with pytest.raises(ConfigError):
        load(root, environment=None, environ={})


def test_load_says_so_when_the_file_is_nested_without_end(tmp_path: Path) -> None:
    root = _project(tmp_path, "a = " + "[" * 100_000)

    with pytest.raises(ConfigError, match=r"release\.toml cannot be read"):
        load(root, environment=None, environ={})


def test_load_says_so_when_there_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"there is no release\.toml"):
        load(tmp_path, environment=None, environ={})


@pytest.mark.parametrize(
    ("path", "text", "value"),
    [
        ("image.python", "3.13", "3.13"),
        ("loadcheck.seconds", "2.5", 2.5),
        ("test.command", '["pytest", "-q"]', ("pytest", "-q")),
        ("image.build_args", '{ PYTHON_IMAGE = "mine" }', {"PYTHON_IMAGE": "mine"}),
    ],
)
def test_variable_has_the_type_of_its_setting_when_it_is_text_or_toml(
    tmp_path: Path, path: str, text: str, value: object
) -> None:
    variable = f"SHIPWAY_{path.replace('.', '_').upper()}"

    loaded = load(_project(tmp_path), environment=None, environ={variable: text})

    assert [found for key, found, _ in loaded.rows() if key == path] == [value]


@pytest.mark.parametrize("text", ["\udcff", "/srv/\udce9"])
def test_load_bears_a_variable_that_is_no_utf8(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError, match=r"rollout\.port = .*\(from environment\)"):
        load(_project(tmp_path), environment=None, environ={"SHIPWAY_ROLLOUT_PORT": text})

    loaded = load(_project(tmp_path), environment=None, environ={"SHIPWAY_MODEL_STORE": text})
    assert ("model.store", text, "environment") in list(loaded.rows())


def test_a_default_is_the_same_as_its_value_when_somebody_writes_it(tmp_path: Path) -> None:
    plain = load(_project(tmp_path), environment=None, environ={})
    written = {
        f"SHIPWAY_{path.replace('.', '_').upper()}": str(value)
        for path, value, _ in plain.rows()
        if isinstance(value, int | float)
    }

    again = load(tmp_path, environment=None, environ=written)

    assert written
    assert json.dumps(documents.plain(again.settings)) == json.dumps(documents.plain(plain.settings))
