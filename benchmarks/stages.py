"""A push without the start of Python: run in a project, prints the seconds of its stages as JSON.

A program of its own, so that nothing else runs in its interpreter while it is timed.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any
from unittest import mock

from shipway import flow
from shipway.artifacts import ImageRef
from shipway.oci import registry  # noqa: F401 - shipway imports it when it is needed, which is no stage's work
from shipway.oci.images import read_image
from shipway.site import Site
from shipway.stages import push as push_stage


def main() -> None:
    """Do what `invoke push` does, with a clock around the stage `push`."""
    site, stage, took = Site.open(Path.cwd(), environment=None, environ=os.environ), push_stage.push, {}

    def timed(*args: Any, **kwargs: Any) -> tuple[ImageRef, push_stage.Sent]:
        began = time.perf_counter()
        done = stage(*args, **kwargs)
        took["push_s"] = time.perf_counter() - began
        return done

    began = time.perf_counter()
    with mock.patch.object(push_stage, "push", timed):  # the spine has no clock, and needs none
        ref = flow.push(site)
    took["all_s"] = time.perf_counter() - began
    layers = read_image(site.images, ref.digest).layers
    sizes = {layer.title: layer.descriptor.size_bytes for layer in layers}
    print(json.dumps({**took, "image": str(ref), "layers": sizes}))


if __name__ == "__main__":
    main()
