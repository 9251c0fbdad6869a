"""Stage `image`: what the image is made of, decided to the byte, before any byte is made.

Brings the four parts together: base, dependencies, model, app. Whatever was made before on
this machine is known by its inputs, so that a release where nothing changed reads nothing,
and starts neither uv nor a download. Writes nothing but its cache.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path, PurePosixPath
from typing import TypeVar

from shipway.artifacts import Image, Layer, Model, Snapshot
from shipway.checkout import Checkout
from shipway.config import Settings
from shipway.console import Tell, size
from shipway.errors import DirtyTree, ImageError, Interrupted, NotConfigured
from shipway.gzipped import stored
from shipway.oci import compose as parts
from shipway.oci import docker, dockerfile
from shipway.oci import generator as load_generator
from shipway.oci.base import OpenImages, read_base
from shipway.oci.compose import Composed, Source
from shipway.oci.images import Images
from shipway.oci.layers import Known, app, fingerprint, pack, recall
from shipway.oci.staging import sweep
from shipway.oci.wheels import Dependencies, Target
from shipway.proc import Run
from shipway.tarball import Entry

STAGE = "image"

_T = TypeVar("_T")


def compose(
    settings: Settings,
    *,
    checkout: Checkout,
    snapshot: Snapshot,
    model: Model,
    model_bytes: Callable[[Model], Iterable[bytes]],
    model_objects: Callable[[Model], Iterable[Entry]],
    images: Images,
    open_images: OpenImages,
    cache: Path,
    environ: Mapping[str, str],
    proc: Run,
    tell: Tell,
    allow_dirty: bool,
    may_build: bool = True,
    ready: parts.Ready = parts.ignore,
) -> Composed:
    """Compose the image of a snapshot and a model.

    Each of our own layers is given to `ready` as soon as it is known.
    Raises `NotBuilt` where Docker would have to build something, and `may_build` says no.
    Raises `DirtyTree` unless `allow_dirty`, `BaseRefused`, `DependenciesFailed`, `ImageError`;
    where a Dockerfile is to be built, `DockerMissing` and what `images` raises.
    """
    _require_clean(snapshot, allow_dirty=allow_dirty)
    _warn_of_untracked(settings.image.include, checkout, tell)
    sweep(cache)
    known, target = Known(cache / "layers", partial(recall, images)), Target.of(settings.image)
    places = _Places(images, open_images)
    read = partial(
        read_base,
        target=target,
        root=checkout.root,
        known=known,
        images=images,
        open_images=places.open,
        advance=places.unless_left,
    )
    build = partial(
        docker.built,
        connect=partial(docker.daemon, environ),
        images=images,
        cache=cache,
        tell=tell,
        may_build=may_build,
    )
    lock = _lock(settings.image.requirements, checkout, snapshot, "[image] requirements")
    if settings.image.builder == "docker":
        recipe = dockerfile.whole(
            checkout, snapshot.tree, target, settings.image.build_args, model=model, objects=model_objects
        )
        ground = read(str(build(recipe)), is_whole=True)
        image = parts.adopt(ground.base, model=model, settings=settings, snapshot=snapshot, python=target.python)
        tell.say(STAGE, _summary(image))
        return Composed(image=image, lock=lock, sources=ground.sources, known=ground.known)
    base = settings.image.base
    if base == dockerfile.NAME:
        base = str(build(dockerfile.base(checkout, snapshot.tree, target, settings.image.build_args)))
    dependencies = Dependencies(lock, target, scratch=cache, known=known, proc=proc)
    plain = partial(model_bytes, model)
    model_source: Source = partial(_stored, plain)
    with _meanwhile(partial(read, base), places) as looked_at:
        weights, remembered = _weights(model, plain, known)
        ready(weights, model_source)
        wheels = dependencies.layers(ready)
        app_layer, app_source = app(checkout, snapshot.tree, settings.image.include, known)
        ready(app_layer, app_source)
        ground = looked_at()
    image = parts.compose(
        ground.base,
        dependencies=wheels,
        model=model,
        app=app_layer,
        settings=settings,
        snapshot=snapshot,
        weights=weights,
        python=target.python,
    )
    tell.say(STAGE, _summary(image))
    return Composed(
        image=image,
        sources={
            **ground.sources,
            **{layer.descriptor.digest: dependencies.source(layer) for layer in wheels},
            weights.descriptor.digest: model_source,
            app_layer.descriptor.digest: app_source,
        },
        origins=ground.origins,
        known={**ground.known, dependencies.key: wheels, **remembered},
        lock=lock,
    )


def generator(
    settings: Settings,
    *,
    checkout: Checkout,
    snapshot: Snapshot,
    meter: Path,
    model: Path,
    images: Images,
    open_images: OpenImages,
    cache: Path,
    environ: Mapping[str, str],
    proc: Run,
    tell: Tell,
    allow_dirty: bool,
) -> Composed:
    """Compose the load generator's image: the base, its own lock, the users, our meter and a model's exchanges.

    Raises `NotConfigured` where the environment's images stand on nothing, and as `compose` does.
    """
    _require_clean(snapshot, allow_dirty=allow_dirty)
    if settings.image.base == "scratch":
        raise NotConfigured(
            "[image] base is scratch, so a load generator in the cluster would have no Python",
            advice="name a base with Python in [image] base (docs/registries.md), or leave --in-cluster out",
        )
    users = PurePosixPath(settings.loadcheck.locustfile)
    folder = str(users if users.parent == PurePosixPath() else users.parent)
    _warn_of_untracked([folder], checkout, tell)
    sweep(cache)
    known, target = Known(cache / "layers", partial(recall, images)), Target.of(settings.image)
    base = settings.image.base
    if base == dockerfile.NAME:
        recipe = dockerfile.base(checkout, snapshot.tree, target, settings.image.build_args)
        connect = partial(docker.daemon, environ)
        base = str(docker.built(recipe, connect=connect, images=images, cache=cache, tell=tell))
    ground = read_base(base, target, root=checkout.root, known=known, images=images, open_images=open_images)
    lock = _lock(settings.loadcheck.requirements, checkout, snapshot, "[loadcheck] requirements")
    dependencies = Dependencies(lock, target, scratch=cache, known=known, proc=proc)
    app_layer, app_source = app(checkout, snapshot.tree, [folder], known)
    tool_layer, tool_source = load_generator.tools(meter, model)
    layers = (*dependencies.layers(), app_layer, tool_layer)
    image = parts.generator(ground.base, layers=layers, settings=settings, snapshot=snapshot)
    return Composed(
        image=image,
        sources={
            **ground.sources,
            **{layer.descriptor.digest: dependencies.source(layer) for layer in dependencies.layers()},
            app_layer.descriptor.digest: app_source,
            tool_layer.descriptor.digest: tool_source,
        },
        origins=ground.origins,
        known={**ground.known, dependencies.key: dependencies.layers()},
        lock=lock,
    )


def _weights(model: Model, source: Source, known: Known) -> tuple[Layer, Mapping[str, tuple[Layer, ...]]]:
    """Return the model's layer, and what is worth remembering of it.

    Its manifest tells its digest. Of an older one that does not, the first machine reads the
    model. What is remembered but does not say that it holds this tar is not believed: whoever
    may push can have others remember anything.
    """
    if model.layer.gzip:
        return parts.model_layer(model, model.layer.gzip), {}
    key = fingerprint("stored", model.layer.digest)
    found = known.load(key) or ()
    if [layer.diff_id for layer in found] != [model.layer.digest]:
        found = (pack("model", model.name, source(), stored),)
        known.save(key, found)
    weights = parts.model_layer(model, found[0].descriptor.digest)  # the same model can have another name elsewhere
    return weights, {key: (weights,)}


def _stored(source: Source) -> Iterator[bytes]:
    return stored(source())


def recombine(code: Image, model: Image) -> Composed:
    """Return `code` with the model of another image: only its documents are new.

    Raises `ImageError` where one of them is of one piece.
    """
    if any(layer.part == "dockerfile" for layer in (*code.layers, *model.layers)):
        raise ImageError(
            "an image that a whole Dockerfile made is of one piece: its model cannot be exchanged",
            advice="invoke rollback goes back with code and model",
        )
    layer = next(layer for layer in model.layers if layer.part == "model")
    return Composed(image=parts.with_model(code, parts.model(model), layer))


class _Places:
    """Where the base may live, so that whoever reads it in another thread can be made to stop."""

    def __init__(self, images: Images, open_images: OpenImages) -> None:
        self._open_images = open_images
        self._all = [images]
        self._left = threading.Event()

    def open(self, name: str) -> Images:
        place = self._open_images(name)
        self._all.append(place)
        return place

    def unless_left(self, _count: int) -> None:
        if self._left.is_set():
            raise Interrupted("another part failed, or a signal came")

    def leave(self) -> None:
        self._left.set()
        for each in self._all:
            each.abandon()


@contextlib.contextmanager
def _meanwhile(work: Callable[[], _T], places: _Places) -> Iterator[Callable[[], _T]]:
    """Do it in another thread; give what waits for the end of it."""
    with ThreadPoolExecutor(1, thread_name_prefix=STAGE) as pool:
        try:
            yield pool.submit(work).result
        except BaseException:
            places.leave()
            raise


def _require_clean(snapshot: Snapshot, *, allow_dirty: bool) -> None:
    if snapshot.dirty and not allow_dirty:
        raise DirtyTree("tracked files are changed, so nobody could make this image again")


def _warn_of_untracked(folders: Sequence[str], checkout: Checkout, tell: Tell) -> None:
    if names := checkout.untracked(folders):
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        tell.warn(f"{names[0]}{more} not in the image: git does not track it")


def _lock(name: str, checkout: Checkout, snapshot: Snapshot, setting: str) -> bytes:
    if (data := checkout.file(snapshot.tree, name)) is None:
        raise ImageError(f"git has no file {name}, which {setting} names", advice=f"git add {name}; git commit")
    return data


def _summary(image: Image) -> str:
    ours = dict.fromkeys(layer.part for layer in image.layers if layer.part != "base")
    named = ", ".join(f"{part} {size(image.size_bytes(part))}" for part in ours)
    return f"build {image.build}: {named}"
