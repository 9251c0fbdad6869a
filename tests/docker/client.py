"""Our own client, and other people's, at one of the registries."""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from shipway import documents
from shipway.config import PushSettings
from shipway.console import Console
from shipway.oci.registry import Repository, open_repository
from shipway.proc import Proc
from tests.docker.registries import Registry

QUIET = Console(err=io.StringIO())
_ELSE_S = 60


@contextlib.contextmanager
def opened(
    registry: Registry, name: str, *, environ: Mapping[str, str] | None = None, **settings: Any
) -> Iterator[Repository]:
    """Open a repository as a command would; `environ` and `settings`, those of `[push]`, go before the registry's."""
    place = f"{registry.address}/{name}"
    pushed = {"repository": place, "authority": registry.authority and str(registry.authority)} | settings
    with pytest.MonkeyPatch.context() as patch:
        for variable in registry.environ.keys() & {"HTTPS_PROXY"}:  # Python's own urllib reads it there
            patch.setenv(variable, registry.environ[variable])
        images = open_repository(
            place,
            settings=documents.convert(PushSettings, pushed),
            root=Path(),
            environ={**os.environ, **registry.environ, **(environ or {})},
            proc=Proc(),
            tell=Console(err=io.StringIO()),
        )
        with contextlib.closing(images):
            yield images


def run(registry: Registry, program: Path, *words: str | Path) -> bytes:
    """Run another client, which has the registry's login and trusts it; return its stdout."""
    environ = {**os.environ, **registry.environ}
    done = subprocess.run([program, *words], env=environ, capture_output=True, timeout=_ELSE_S, check=False)
    assert done.returncode == 0, f"{program.name} {words}\n{done.stdout.decode()}{done.stderr.decode()}"
    return done.stdout
