"""Settings come from the environment, and every mistake in it is told at once."""

from __future__ import annotations

from pathlib import Path

import pytest

from app.settings import Settings, SettingsError


def test_settings_are_those_of_the_environment() -> None:
    settings = Settings.from_environ(
        {"MODEL_DIR": "/srv/m", "PORT": "81", "SHIPWAY_BUILD": "b1", "HOME": "/", "QUEUE": ""}
    )

    assert settings == Settings(model_dir=Path("/srv/m"), port=81, build="b1")


def test_settings_name_every_variable_when_several_are_wrong() -> None:
    wrong = {"PORT": "http", "THREADS": "0", "MODEL_DIGEST": "md5:1"}

    with pytest.raises(SettingsError) as raised:
        Settings.from_environ(wrong)

    named = [line.split(":")[0] for line in str(raised.value).splitlines()[1:]]
    assert named == ["PORT", "MODEL_DIR", "MODEL_DIGEST", "THREADS"]
