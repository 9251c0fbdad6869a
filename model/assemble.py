"""Lay out a model's folder from a store on disk: `python model/assemble.py STORE NAME VERSION FOLDER`.

For the Dockerfile and the service's tests, which must not need shipway: nothing but the
standard library. Every file is checked against the manifest. On failure FOLDER is half-made.
VERSION is a number or an alias.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from pathlib import Path
from typing import Any


def assemble(store: Path, name: str, version: str, folder: Path) -> dict[str, Any]:
    """Copy the version's files to `folder` and return its manifest. Raises `ValueError` for a wrong blob."""
    model = store / name
    if not version.isdecimal():
        version = json.loads((model / "aliases" / f"{version}.json").read_text("utf-8"))["version"]
    manifest: dict[str, Any] = json.loads((model / "versions" / f"{version}.json").read_text("utf-8"))
    for file in manifest["files"]:
        algorithm, _, hexadecimal = file["digest"].partition(":")
        target = folder / file["path"]
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(model / "blobs" / algorithm / hexadecimal, target)
        if hashlib.sha256(target.read_bytes()).hexdigest() != hexadecimal:
            message = f"the blob of {file['path']} is not {file['digest']}"
            raise ValueError(message)
    return manifest


if __name__ == "__main__":
    assemble(Path(sys.argv[1]), sys.argv[2], sys.argv[3], Path(sys.argv[4]))
