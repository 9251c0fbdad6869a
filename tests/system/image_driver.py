"""Compose and push the image of a checkout, in a process of its own; prints one JSON line.

Usage: `image_driver.py CHECKOUT STATE [--flags]`; with `--die-at N` the process kills itself
at the N-th line that the stages tell; with `--repository HOST/NAME` it pushes to a registry;
with `--plan` it only says how many bytes it would send.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import signal
from functools import partial
from pathlib import Path

from shipway.artifacts import Digest, Model, ModelFile
from shipway.checkout import Checkout
from shipway.config import ImageSettings, ModelSettings, ProjectSettings, PushSettings, ServiceSettings, Settings
from shipway.console import Console
from shipway.errors import ShipwayError
from shipway.oci.images import Images, read_image
from shipway.oci.layout import Layout
from shipway.oci.unpack import unpack
from shipway.proc import Proc, signals_as_errors
from shipway.stages import image as image_stage
from shipway.stages import push as push_stage
from shipway.stores.manifest import described
from shipway.tarball import Entry, collect


class Mortal(Console):
    """Kills its own process at the N-th line."""

    def __init__(self, die_at: int) -> None:
        """Live for `die_at` lines."""
        super().__init__(err=io.StringIO())
        self._left = die_at
        self.lines = 0

    def say(self, stage: str, text: str) -> None:
        """Count, and die when it is time."""
        super().say(stage, text)
        self.lines += 1
        if self.lines == self._left:
            os.kill(os.getpid(), signal.SIGKILL)


def settings(base: str) -> Settings:
    """Return what a small service would say."""
    return Settings(
        project=ProjectSettings(name="small"),
        model=ModelSettings(name="net", store="model/store"),
        image=ImageSettings(base=base, requirements="app/requirements.txt", include=("app",)),
        service=ServiceSettings(command=("python", "-m", "app")),
    )


def model(text: str, size: int) -> tuple[Model, bytes]:
    """Return a model whose one file holds `text` and is `size` long, and its layer's bytes."""
    data = text.encode().ljust(size)
    file = ModelFile(path="model.onnx", digest=Digest.of(data), size_bytes=len(data))
    digest = Digest.of(f"{file.digest.hex}  {file.path}\n".encode())
    path = f"srv/models/{digest.hex}/{file.path}"
    layer = collect([Entry(path=path, size_bytes=len(data), read=lambda: [data])])
    return Model(name="net", version=1, digest=digest, files=(file,), layer=described([layer])), layer


def main() -> int:
    """Run once; exit with the code of the error, which is printed too."""
    options = argparse.ArgumentParser()
    options.add_argument("checkout", type=Path)
    options.add_argument("state", type=Path)
    options.add_argument("--model", default="weights")
    options.add_argument("--model-size", type=int, default=100)
    options.add_argument("--base", default="scratch")
    options.add_argument("--plan", action="store_true")
    options.add_argument("--die-at", type=int, default=0)
    options.add_argument("--repository", default="layout")
    asked = options.parse_args()
    try:
        with signals_as_errors():
            answer = run(asked)
    except ShipwayError as error:
        print(json.dumps({"error": type(error).__name__, "message": str(error)}))  # noqa: T201 - its result
        return error.code
    print(json.dumps(answer))  # noqa: T201 - its result
    return 0


def run(asked: argparse.Namespace) -> dict[str, object]:
    """Compose, push, unpack; return what came out."""
    proc, tell = Proc(), Mortal(asked.die_at)
    open_images = partial(_open_images, root=asked.checkout, proc=proc, tell=tell)
    images = Layout(asked.state / "images") if asked.repository == "layout" else open_images(asked.repository)
    checkout = Checkout(asked.checkout, proc, os.environ)
    chosen, layer = model(asked.model, asked.model_size)
    compose = partial(
        image_stage.compose,
        settings(asked.base),
        checkout=checkout,
        snapshot=checkout.snapshot(),
        model=chosen,
        model_bytes=lambda _: [layer],
        model_objects=lambda _: [],
        images=images,
        open_images=open_images,
        cache=asked.state / "cache",
        environ=os.environ,
        proc=proc,
        tell=tell,
        allow_dirty=True,
    )
    if asked.plan:
        return dict(push_stage.plan(compose(), images=images))
    with push_stage.at_work(images, tell) as crew:
        composed = compose(ready=crew.send)
        ref, sent = push_stage.push(composed, images=images, tags=["tested"], tell=tell, begun=crew)
    version = ""
    if isinstance(images, Layout):
        version = str(unpack(images, read_image(images, ref.digest), asked.state, proc=proc, tell=tell))
    return {
        "digest": ref.digest,
        "build": composed.image.build,
        "sent": sent.bytes_sent,
        "layers": {layer.title: layer.descriptor.digest for layer in composed.image.layers},
        "documents": len(composed.image.manifest) + len(composed.image.config),
        "version": version,
        "lines": tell.lines,
    }


def _open_images(name: str, *, root: Path, proc: Proc, tell: Mortal) -> Images:
    from shipway.oci.registry import open_repository  # noqa: PLC0415 - brings an HTTP client, which a layout needs not

    return open_repository(
        name, settings=PushSettings(repository=name), root=root, environ=os.environ, proc=proc, tell=tell
    )


if __name__ == "__main__":
    raise SystemExit(main())
