"""A git checkout with an app and locked wheels, of which the driver makes images in processes of their own."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import random
import subprocess
import sys
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from shipway.oci.layout import Layout

REPOSITORY = Path(__file__).parents[2]
DRIVER = Path(__file__).with_name("image_driver.py")


@dataclass
class Shop:
    """A git checkout with an app and locked wheels; images are made of it by the driver."""

    home: Path
    environ: dict[str, str] = field(default_factory=dict)

    @property
    def root(self) -> Path:
        return self.home / "checkout"

    @property
    def state(self) -> Path:
        return self.home / "state"

    @property
    def layout(self) -> Layout:
        return Layout(self.state / "images")

    def git(self, *words: str) -> str:
        who = ("-c", "user.name=x", "-c", "user.email=x@example.org", "-c", "protocol.file.allow=always")
        return subprocess.run(
            ["git", "-C", self.root, *who, *words], check=True, capture_output=True, text=True, env=self._environ({})
        ).stdout

    def write(self, path: str, text: str) -> None:
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)

    def commit(self) -> None:
        self.git("add", "--all")
        self.git("commit", "--quiet", "--message", "change")

    def lock(self, **versions: str) -> None:
        """Make wheels, and lock them by hash."""
        wheels = [make_wheel(self.home / "wheels", name, version) for name, version in versions.items()]
        lines = [
            f"{name}=={version} --hash=sha256:{hashlib.sha256(wheel.read_bytes()).hexdigest()}\n"
            for (name, version), wheel in zip(versions.items(), wheels, strict=True)
        ]
        self.write("app/requirements.txt", "".join(lines))

    def make(self, *flags: str, state: Path | None = None, code: int = 0, **how: Any) -> dict[str, Any]:
        """Make and push an image; return what the driver says."""
        return self.end(self.start(*flags, state=state, **how), code=code)

    def start(
        self, *flags: str, state: Path | None = None, environ: Mapping[str, str] | None = None, **how: Any
    ) -> subprocess.Popen[str]:
        argv = [sys.executable, "-W", "error", str(DRIVER), str(self.root), str(state or self.state), *flags]
        pipe = subprocess.PIPE
        return subprocess.Popen(argv, stdout=pipe, stderr=pipe, text=True, env=self._environ(environ or {}), **how)

    def end(self, process: subprocess.Popen[str], *, code: int) -> dict[str, Any]:
        """Wait for the driver, which must end with this code."""
        out, err = process.communicate(timeout=300)
        assert process.returncode == code, out + err
        return dict(json.loads(out)) if out else {}

    def _environ(self, more: Mapping[str, str]) -> dict[str, str]:
        return {
            "PATH": os.environ["PATH"],
            "HOME": str(self.home),
            "PYTHONPATH": str(REPOSITORY),
            "UV_OFFLINE": "1",
            "UV_FIND_LINKS": str(self.home / "wheels"),
            "UV_CACHE_DIR": str(self.home / "uv"),
            "GIT_AUTHOR_DATE": "2026-01-02T03:04:05Z",
            "GIT_COMMITTER_DATE": "2026-01-02T03:04:05Z",
            **self.environ,
            **more,
        }


def _noise(seed: str, size_bytes: int) -> bytes:
    """Return the same bytes each time, which do not shrink: a layer of them is no small blob."""
    return random.Random(seed).randbytes(size_bytes)  # noqa: S311 - no secret


def make_wheel(folder: Path, name: str, version: str) -> Path:
    """Make a wheel with a module, a program and, when it is named `big…`, two megabytes."""
    files = {
        f"{name}/__init__.py": f"VERSION = {version!r}\n".encode(),
        f"{name}/data.bin": _noise(f"{name} {version}", 2_000_000 if name.startswith("big") else 5),
        f"{name}-{version}.dist-info/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n".encode(),
        f"{name}-{version}.dist-info/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{name}-{version}.dist-info/entry_points.txt": f"[console_scripts]\n{name} = {name}:main\n".encode(),
    }
    rows = [
        f"{path},sha256={base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b'=').decode()},{len(data)}"
        for path, data in files.items()
    ]
    record = f"{name}-{version}.dist-info/RECORD"
    folder.mkdir(parents=True, exist_ok=True)
    wheel = folder / f"{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for path, data in {**files, record: "\n".join([*rows, f"{record},,"]).encode()}.items():
            archive.writestr(zipfile.ZipInfo(path), data)
    return wheel


def open_shop(home: Path) -> Shop:
    """Return a shop with four wheels and a small app, committed."""
    shop = Shop(home)
    shop.root.mkdir(parents=True)
    shop.git("init", "--quiet", "--initial-branch", "main")
    shop.lock(bigone="1.0.0", bigtwo="1.0.0", small="1.0", tiny="1.0")
    shop.write("app/__init__.py", "")
    shop.write("app/run.sh", "#!/bin/sh\n")
    (shop.root / "app/run.sh").chmod(0o755)
    (shop.root / "app/latest").symlink_to("run.sh")
    shop.write("app/ü/deep/" + "n" * 120, "long name")
    shop.write(".gitignore", ".env\n*.pyc\n")
    shop.commit()
    return shop
