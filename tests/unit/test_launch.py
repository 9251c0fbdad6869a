"""How an image's configuration becomes a command on this machine."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from shipway.errors import RolloutError
from shipway.targets.launch import Start, service, start

ROOT = Path("/state/versions/abc")


def config(**image: object) -> bytes:
    return json.dumps({"config": image}).encode()


def test_container_world_is_mapped_onto_the_folder() -> None:
    image = config(
        Cmd=["python", "-m", "gunicorn", "--config", "/srv/app/conf.py", "app:create_app()"],
        WorkingDir="/srv",
        Env=["PYTHONPATH=/srv/site-packages:/srv", "MODEL_DIR=/srv/models/1f", "A=b=c", "OTHER=/srvice", "PORT=8080"],
    )
    mapped = start(
        image,
        root=ROOT,
        python="/usr/bin/python3.11",
        ports={"PORT": 4711, "METRICS_PORT": 4712},
        listen=("--bind", "fd://{fd}"),
        home=Path("/state/home"),
        mark="/state/set",
    )
    assert mapped == Start(
        argv=(
            *("/usr/bin/python3.11", "-S", "-m", "gunicorn", "--config"),
            *("/state/versions/abc/srv/app/conf.py", "app:create_app()"),
        ),
        listen=("--bind", "fd://{fd}"),
        cwd="/state/versions/abc/srv",
        env={
            "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "LANG": "C.UTF-8",
            "PYTHONPATH": "/state/versions/abc/srv/site-packages:/state/versions/abc/srv",
            "MODEL_DIR": "/state/versions/abc/srv/models/1f",
            "A": "b=c",
            "OTHER": "/srvice",
            "PORT": "4711",
            "METRICS_PORT": "4712",
            "HOME": "/state/home",
            "HOST": "127.0.0.1",
            "TMPDIR": "/tmp",  # noqa: S108 - expected, not used
            "SHIPWAY_SET": "/state/set",
        },
    )


def test_other_program_than_python_is_run_as_it_is() -> None:
    mapped = start(
        config(Cmd=["uvicorn", "app:app"], Env=["LANG=de_DE.UTF-8"]),
        root=ROOT,
        python="/usr/bin/python3.11",
        ports={},
        home=Path("/state/home"),
        mark="/state/set",
    )
    assert (mapped.argv, mapped.cwd, mapped.env["LANG"]) == (("uvicorn", "app:app"), f"{ROOT}/srv", "de_DE.UTF-8")


@pytest.mark.parametrize(
    "broken",
    [b"", b"{}", config(Labels=None), config(Labels={"dev.shipway.service": "{}"}), config(Labels={})],
)
def test_image_is_refused_when_it_does_not_say_how_its_service_is_asked(broken: bytes) -> None:
    with pytest.raises(RolloutError, match=r"dev\.shipway\.service"):
        service(broken)
