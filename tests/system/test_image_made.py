"""Images made by the real git and the real uv, in processes of their own, and read by other people's tools."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

from shipway.artifacts import Digest
from shipway.oci.layout import Layout
from tests.system.shop import DRIVER, Shop, make_wheel, open_shop

SECRET = "hunter2-do-not-ship"  # noqa: S105 - planted, to be found nowhere


@pytest.fixture
def shop(tmp_path: Path) -> Shop:
    return open_shop(tmp_path / "shop")


# -- the same everywhere -----------------------------------------------------------------


def test_digest_is_the_same_when_machine_user_umask_zone_locale_and_order_differ(shop: Shop) -> None:
    here = shop.make(umask=0o022, environ={"PYTHONHASHSEED": "1", "TZ": "UTC", "LC_ALL": "C"})

    # Not below pytest's own folder, which no other user may enter.
    with tempfile.TemporaryDirectory(prefix="another machine ") as home:
        there = Shop(Path(home))
        subprocess.run(["git", "clone", "--quiet", shop.root, there.root], check=True, umask=0o077)
        (there.home / "wheels").mkdir()
        for file in sorted((shop.home / "wheels").iterdir(), reverse=True):
            (there.home / "wheels" / file.name).write_bytes(file.read_bytes())
        for file in (there.root / "app").rglob("*"):
            os.utime(file, (0, 2_000_000_000), follow_symlinks=False)
        environ = {"PYTHONHASHSEED": "2", "TZ": "Asia/Kathmandu", "LC_ALL": "tr_TR.UTF-8"}
        elsewhere = there.make(umask=0o077, environ=environ, **_another_user(there.home))

    assert elsewhere["digest"] == here["digest"]


def _another_user(home: Path) -> dict[str, Any]:
    """Give `home` to another user, where we are root and this interpreter is not root's alone."""
    user: dict[str, Any] = {"user": 12345, "group": 12345, "extra_groups": []}
    try:
        subprocess.run([sys.executable, "-c", f"open({str(DRIVER)!r}).close()"], check=True, **user)
    except (PermissionError, subprocess.CalledProcessError):
        return {}
    subprocess.run(["chown", "--recursive", "12345:12345", home], check=True)
    return user


def test_layers_are_the_same_when_made_again_without_any_cache(shop: Shop, tmp_path: Path) -> None:
    first = shop.make()
    second = shop.make(state=tmp_path / "other", environ={"UV_CACHE_DIR": str(tmp_path / "uv")})

    assert {**first, "version": ""} == {**second, "version": ""}


# -- only what changed moves -------------------------------------------------------------


def test_nothing_moves_when_nothing_changed(shop: Shop) -> None:
    first = shop.make()

    again = shop.make(environ={"UV_FIND_LINKS": "/nowhere", "UV_CACHE_DIR": "/proc/nowhere"})

    assert (again["digest"], again["sent"]) == (first["digest"], 0)


def _new_bytes(shop: Shop, before: dict[str, Any], after: dict[str, Any]) -> int:
    """Return what a push must write: the documents and the layers that were not there before."""
    new = {digest for digest in after["layers"].values() if digest not in before["layers"].values()}
    return int(after["documents"]) + sum(shop.layout.path(Digest(digest)).stat().st_size for digest in new)


def _changed(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    return [title for title, digest in after["layers"].items() if digest not in before["layers"].values()]


def test_only_the_app_moves_when_only_code_changed(shop: Shop) -> None:
    before = shop.make()
    shop.write("app/__init__.py", "print()\n")
    shop.commit()

    planned, after = shop.make("--plan"), shop.make()

    assert _changed(before, after) == ["app"]
    assert after["sent"] == _new_bytes(shop, before, after) == sum(planned.values())
    assert after["sent"] < 10_000


def test_only_the_model_moves_when_only_the_model_changed(shop: Shop) -> None:
    before = shop.make()

    after = shop.make("--model", "better weights")

    assert _changed(before, after) == ["net version 1"]
    assert after["sent"] == _new_bytes(shop, before, after)
    assert after["build"] != before["build"]


def test_only_one_wheel_moves_when_one_was_bumped(shop: Shop) -> None:
    before = shop.make()
    shop.lock(bigone="1.0.1", bigtwo="1.0.0", small="1.0", tiny="1.0")
    shop.commit()

    after = shop.make()

    assert _changed(before, after) == ["bigone 1.0.1", "app"]  # the lock file lies in app/
    assert after["sent"] == _new_bytes(shop, before, after)


def test_only_documents_move_when_a_commit_changed_nothing_that_is_shipped(shop: Shop) -> None:
    before = shop.make()
    shop.write("README.md", "hello")
    shop.commit()

    after = shop.make(environ={"UV_FIND_LINKS": "/nowhere"})

    assert (after["build"], after["layers"]) == (before["build"], before["layers"])
    assert after["sent"] == after["documents"]


# -- what must not get in ----------------------------------------------------------------


def _everything(folder: Path) -> bytes:
    """Return all that a state folder holds of images, unpacked."""
    found = b""
    for file in sorted(file for file in folder.rglob("*") if file.is_file()):
        data = file.read_bytes()
        found += gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data
    return found


def test_secrets_are_in_no_layer_label_history_or_log_when_they_lie_around(shop: Shop) -> None:
    wheel = make_wheel(shop.home / "direct", "direct", "1.0")
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    shop.write("app/requirements.txt", f"direct @ {wheel.as_uri()} --hash=sha256:{digest}\n")
    shop.write("app/.env", f"TOKEN={SECRET}")
    shop.write("app/untracked.py", f"TOKEN = {SECRET!r}")
    shop.git("config", "remote.origin.url", f"https://user:{SECRET}@git.example.org/x.git")
    (shop.home / ".config/pip").mkdir(parents=True)
    (shop.home / ".config/pip/pip.conf").write_text(f"[global]\nindex-url = https://user:{SECRET}@pip.example.org/\n")
    (shop.home / ".config/uv").mkdir()
    (shop.home / ".config/uv/uv.toml").write_text(f'[[index]]\nurl = "https://user:{SECRET}@uv.example.org/simple"\n')
    shop.git("add", "app/requirements.txt")
    shop.git("commit", "--quiet", "--message", f"the password is {SECRET}")

    answer = shop.make(environ={"DATABASE_PASSWORD": SECRET, "UV_INDEX_X_PASSWORD": SECRET})

    assert answer["layers"].keys() == {"1 small packages", "net version 1", "app"}
    everything = _everything(shop.state)
    assert b"VERSION = '1.0'" in everything, "the search itself finds what is there"
    assert SECRET.encode() not in everything
    assert str(shop.home).encode() not in _everything(shop.state / "images").replace(
        (shop.root / "app/requirements.txt").read_bytes(), b""
    ), "no path of this machine either"


def test_uv_failure_tells_no_secret_when_an_index_with_a_password_fails(shop: Shop) -> None:
    index = f"http://user:{SECRET}@127.0.0.1:9/simple"

    failed = shop.make(
        environ={"UV_OFFLINE": "0", "UV_DEFAULT_INDEX": index, "UV_FIND_LINKS": "", "UV_HTTP_RETRIES": "0"}, code=32
    )

    assert failed["error"] == "DependenciesFailed"
    assert SECRET not in failed["message"]


def test_dependencies_fail_with_advice_when_a_hash_does_not_match(shop: Shop) -> None:
    shop.write("app/requirements.txt", f"small==1.0 --hash=sha256:{'0' * 64}\n")

    failed = shop.make(code=32)

    assert "Hash mismatch" in failed["message"]
    assert "Next: " in failed["message"]


def test_dependencies_fail_when_there_is_no_wheel(shop: Shop) -> None:
    shop.write("app/requirements.txt", f"absent==1.0 --hash=sha256:{'0' * 64}\n")

    assert "absent" in shop.make(code=32)["message"]


@pytest.mark.parametrize("target", ["../.gitignore", "/etc/passwd", "run.sh/../../x"])
def test_app_is_refused_when_a_link_leads_out_of_its_folder(shop: Shop, target: str) -> None:
    (shop.root / "app/out").symlink_to(target)
    shop.commit()

    assert "app/out is a symbolic link that leads out of app/" in shop.make(code=30)["message"]


def test_app_is_refused_when_it_holds_a_submodule(shop: Shop) -> None:
    shop.git("submodule", "--quiet", "add", str(shop.root), "app/module")
    shop.commit()

    assert "app/module is a git submodule" in shop.make(code=30)["message"]


# -- whatever kills it -------------------------------------------------------------------


def test_next_run_finishes_with_the_same_digest_when_killed_at_every_line(shop: Shop, tmp_path: Path) -> None:
    whole = shop.make(state=tmp_path / "whole")
    for line in range(1, whole["lines"] + 1):
        state = tmp_path / f"killed at {line}"
        shop.make("--die-at", str(line), state=state, code=-9)

        finished = shop.make(state=state)

        assert finished["digest"] == whole["digest"], line
        assert Layout(state / "images").tags() == {"tested": whole["digest"]}
        assert [path for place in state.rglob(".staging") for path in place.glob("tmp*")] == []
        blobs = state / "images/blobs/sha256"
        assert all(hashlib.sha256(blob.read_bytes()).hexdigest() == blob.name for blob in blobs.iterdir())


def test_full_disk_is_told_with_path_and_bytes_and_leaves_no_half_when_a_blob_does_not_fit(shop: Shop) -> None:
    def small_disk() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4_000_000, 4_000_000))

    failed = shop.make("--model-size", "5000000", code=40, preexec_fn=small_disk)

    assert failed["error"] == "PushError"
    assert str(shop.state / "images/blobs/sha256") in failed["message"]
    assert "bytes" in failed["message"]
    assert [path for place in shop.state.rglob(".staging") for path in place.glob("tmp*")] == []
    assert shop.make()["sent"] > 0


# -- other people's tools ----------------------------------------------------------------


def _tool(name: str) -> str:
    found = shutil.which(name)
    if not found:
        pytest.skip(f"there is no {name}; get it with: apt-get install {name}")
    return found


def test_skopeo_accepts_the_layout_when_an_image_was_pushed(shop: Shop, tmp_path: Path) -> None:
    skopeo, made = _tool("skopeo"), shop.make()

    image = f"oci:{shop.layout.folder}:tested"
    inspected = subprocess.run([skopeo, "inspect", image], check=True, capture_output=True).stdout
    subprocess.run([skopeo, "copy", "--quiet", image, f"dir:{tmp_path / 'copied'}"], check=True)

    assert json.loads(inspected)["Digest"] == made["digest"]
    assert json.loads(inspected)["Layers"] == list(made["layers"].values())


def test_umoci_unpacks_the_same_files_when_an_image_was_pushed(shop: Shop, tmp_path: Path) -> None:
    umoci, made = _tool("umoci"), shop.make()

    image = f"{shop.layout.folder}:tested"
    subprocess.run([umoci, "unpack", "--rootless", "--image", image, tmp_path / "bundle"], check=True)

    theirs, ours = _files(tmp_path / "bundle/rootfs"), _files(Path(made["version"]))
    compiled = {path for path in ours if "__pycache__" in path}
    assert {path: data for path, data in ours.items() if path not in compiled} == theirs
    assert any(path.startswith("srv/site-packages/small/") for path in compiled)
    assert theirs["srv/app/run.sh"] == (True, b"#!/bin/sh\n")
    assert theirs["srv/app/latest"] == (False, b"-> run.sh")


def test_umoci_unpacks_base_and_ours_when_the_image_stands_on_a_base_of_its_own_making(
    shop: Shop, tmp_path: Path
) -> None:
    umoci, base = _tool("umoci"), shop.root / "base"
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/os-release").write_text("ID=tiny\n")
    image = ["--image", f"{base}:tiny"]
    for words in (
        ["init", "--layout", base],
        ["new", *image],
        ["insert", "--rootless", *image, tmp_path / "etc", "/etc"],
        ["config", *image, "--config.env", "PATH=/opt/bin", "--config.entrypoint", "/bin/false"],
    ):
        subprocess.run([umoci, *words], check=True)
    (digest,) = (entry["digest"] for entry in json.loads((base / "index.json").read_bytes())["manifests"])

    made = shop.make("--base", f"layout:base@{digest}")

    image = ["--image", f"{shop.layout.folder}:tested"]
    subprocess.run([umoci, "unpack", "--rootless", *image, tmp_path / "bundle"], check=True)
    theirs = _files(tmp_path / "bundle/rootfs")
    assert theirs["etc/os-release"] == (False, b"ID=tiny\n")
    assert "srv/app/run.sh" in theirs
    process = json.loads((tmp_path / "bundle/config.json").read_bytes())["process"]
    assert process["args"] == ["python", "-m", "app"]
    assert "PATH=/opt/bin" in process["env"]
    assert "etc/os-release" not in _files(Path(made["version"]))


def _files(root: Path) -> dict[str, tuple[bool, bytes]]:
    found = {}
    for path in root.rglob("*"):
        if path.is_symlink():
            found[str(path.relative_to(root))] = (False, b"-> " + os.fsencode(path.readlink()))
        elif path.is_file():
            found[str(path.relative_to(root))] = (bool(path.stat().st_mode & 0o100), path.read_bytes())
    return found
