"""Other people's programs that tests need: registries, a store, and what reads images without us.

A Go program is built once, at a pinned version, into `~/.cache/shipway-tests/bin`, unless the
machine has that version already. What cannot be had is a skip that says how to get it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from functools import cache
from pathlib import Path

import pytest

from shipway.oci.staging import locked

PLACE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "shipway-tests"
CRANE = "github.com/google/go-containerregistry/cmd/crane@v0.22.1"
DISTRIBUTION = "github.com/distribution/distribution/v3/cmd/registry@v3.1.2"
ORAS = "oras.land/oras/cmd/oras@v1.3.6"
VERSITYGW = "github.com/versity/versitygw/cmd/versitygw@v1.8.0"
# Nobody debugs these programs: a twelfth of the compiler's work is for that. Whatever is built so shares what it has in
# common, the standard library above all.
GO_FLAGS = ("-gcflags=all=-dwarf=false", "-ldflags=-s")
# A fifth of what its compiler does, and a program such as kubectl, is to save memory that is there.
GO_GENEROUS = {"GOGC": "400"}
GO_ENVIRON = {"CGO_ENABLED": "0", **GO_GENEROUS}
_BUILD_S = 1800


def debian_registry() -> Path:
    """Return Debian's docker-registry: distribution 2.8."""
    return _packaged("docker-registry")


def distribution() -> Path:
    """Return the registry of distribution v3."""
    return _built(DISTRIBUTION)


def crane() -> Path:
    """Return crane, of go-containerregistry."""
    return _built(CRANE)


def oras() -> Path:
    """Return oras, which reads what is attached to an image."""
    return _built(ORAS)


def versitygw() -> Path:
    """Return Versity's server of S3's protocol."""
    return _built(VERSITYGW)


def skopeo() -> Path:
    """Return Debian's skopeo."""
    return _packaged("skopeo")


def umoci() -> Path:
    """Return Debian's umoci."""
    return _packaged("umoci")


def go(wanted: str) -> str:
    """Return Go, which builds what is wanted."""
    found = shutil.which("go") or shutil.which("go", path="/usr/local/go/bin")
    if not found:
        pytest.skip(f"there is no Go to build it with: install Go 1.26, or see to it yourself: {wanted}")
    return found


def _packaged(name: str) -> Path:
    found = shutil.which(name)
    if not found:
        pytest.skip(f"there is no {name}: apt-get install {name}")
    return Path(found)


@cache
def _built(module: str) -> Path:
    path, _, version = module.partition("@")
    folder = PLACE / "bin" / version
    program = folder / path.rpartition("/")[2]
    PLACE.mkdir(parents=True, exist_ok=True)
    with locked(PLACE / f"{program.name}.lock"):
        if not program.exists():
            _build(module, folder)
    return program


def _build(module: str, folder: Path) -> None:
    environ = {**os.environ, **GO_ENVIRON, "GOBIN": str(folder)}
    argv = [go(f"GOBIN={folder} go install {module}"), "install", *GO_FLAGS, module]
    done = subprocess.run(argv, env=environ, capture_output=True, timeout=_BUILD_S, check=False)
    if done.returncode != 0:
        pytest.skip(f"go install {module} failed: {done.stderr.decode()[-300:]}")
