"""How a version is started on this machine, computed from its image's configuration.

Owns the mapping of the container's world onto a folder: `/srv`, `python`, ports, and an
environment that is the same whoever runs the release. Pure: touches nothing. Raises
`RolloutError` when the configuration lacks what every image of shipway has.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from msgspec import Struct

from shipway import documents
from shipway.config import ServiceSettings
from shipway.errors import RolloutError

LABEL = "dev.shipway.service"
MARK = "SHIPWAY_SET"
_TEMPORARY = "/tmp"  # noqa: S108 - as in a container, whoever runs the release
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class Start(Struct, frozen=True, kw_only=True):
    """A command with all it needs; `listen` are words in which `{fd}` is the shared socket."""

    argv: tuple[str, ...]
    listen: tuple[str, ...]
    cwd: str
    env: Mapping[str, str]


def service(config: bytes) -> ServiceSettings:
    """Read from an image's configuration how its service is asked and how long it may take."""
    try:
        return documents.parse(ServiceSettings, json.loads(config)["config"]["Labels"][LABEL])
    except (ValueError, KeyError, TypeError) as error:
        raise RolloutError(f"the image has no readable label {LABEL}, so nobody knows how to start it") from error


def start(
    config: bytes,
    *,
    root: Path,
    python: str,
    ports: Mapping[str, int],
    listen: tuple[str, ...] = (),
    home: Path,
    mark: str,
) -> Start:
    """Map the image's command and environment onto the folder `root`, which holds `srv`.

    `python` runs with `-S`: it sees the standard library and the version's own packages,
    and nothing of the environment that it was installed in. `$HOST` asks the service to stay
    on this machine. `mark` names the set in the environment of every process it will have.
    """
    image = json.loads(config)["config"]
    own = dict(entry.partition("=")[::2] for entry in image.get("Env", ()))
    argv = tuple(_mapped(word, root) for word in image["Cmd"])
    if argv[0] in ("python", "python3"):
        argv = (python, "-S", *argv[1:])
    return Start(
        argv=argv,
        listen=listen,
        cwd=_mapped(image.get("WorkingDir") or "/srv", root),
        env={"PATH": _PATH, "LANG": "C.UTF-8"}
        | {name: ":".join(_mapped(part, root) for part in value.split(":")) for name, value in own.items()}
        | {"HOME": str(home), "TMPDIR": _TEMPORARY, "HOST": "127.0.0.1", MARK: mark}
        | {name: str(port) for name, port in ports.items()},
    )


def _mapped(word: str, root: Path) -> str:
    return f"{root}{word}" if word == "/srv" or word.startswith("/srv/") else word
