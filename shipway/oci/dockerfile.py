"""What of a checkout a Dockerfile's build reads, known before Docker is asked.

Owns two recipes: the stage `base`, which sees nothing of the checkout but the Dockerfile up
to there, and the whole, which sees what git holds and `.dockerignore` leaves, and the model.
A recipe's key stands for all of its inputs; what a Dockerfile takes from elsewhere, such as
the image that a tag means today, is looked at once, when it is built. Starts nothing.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial

from msgspec import Struct

from shipway.artifacts import Digest, Model
from shipway.checkout import Checkout, TreeFile
from shipway.errors import ConfigError
from shipway.oci.layers import fingerprint
from shipway.oci.wheels import Target
from shipway.tarball import Entry, stream

NAME = "Dockerfile"
_IGNORE = ".dockerignore"
_STORE = "model/store"  # where the Dockerfile's stage `model` looks for a version
_FROM = re.compile(r"FROM\s+(?:--\S+\s+)*\S+(?:\s+AS\s+(?P<stage>\S+))?", re.IGNORECASE)
_READS_CHECKOUT = re.compile(r"(?:ADD\b|COPY\s+(?!(?:--\S+\s+)*--from=))", re.IGNORECASE)


class Recipe(Struct, frozen=True, kw_only=True):
    """One build: `key` stands for its inputs, `context` makes the tar that Docker reads."""

    key: str
    stage: str | None
    build_args: Mapping[str, str]
    platform: str
    context: Callable[[], Iterator[bytes]]


def base(checkout: Checkout, tree: str, target: Target, build_args: Mapping[str, str]) -> Recipe:
    """Return how to build the stage `base`; raises `ConfigError` when there is none, or it reads the checkout."""
    text = until_base(_read(checkout, tree, NAME).decode("utf-8", "replace")).encode()
    build_args = {**build_args, "PYTHON": target.python}
    return Recipe(
        key=fingerprint("dockerfile base", Digest.of(text), *_words(build_args), target.platform),
        stage="base",
        build_args=build_args,
        platform=target.platform,
        context=partial(stream, [Entry(path=NAME, size_bytes=len(text), read=lambda: [text])]),
    )


def whole(
    checkout: Checkout,
    tree: str,
    target: Target,
    build_args: Mapping[str, str],
    *,
    model: Model,
    objects: Callable[[Model], Iterable[Entry]],
) -> Recipe:
    """Return how to build the whole Dockerfile with this model; `objects` are its files, as its store has them."""
    _read(checkout, tree, NAME)
    files = _sent(checkout, tree)
    build_args = {
        **build_args,
        "PYTHON": target.python,
        "MODEL_NAME": model.name,
        "MODEL_VERSION": str(model.version),
        "MODEL_HEX": model.digest.hex,
    }
    listed = (word for file in files for word in (file.path, file.kind, file.object_id))
    return Recipe(
        key=fingerprint("dockerfile", *listed, *_words(build_args), target.platform),
        stage=None,
        build_args=build_args,
        platform=target.platform,
        context=lambda: stream([*_committed(checkout, files), *_stored(objects(model))]),
    )


def until_base(text: str) -> str:
    """Return a Dockerfile up to the end of its stage `base`."""
    lines = text.splitlines(keepends=True)
    inside, end = False, 0
    for first, last, instruction in _instructions(lines):
        if found := _FROM.match(instruction):
            if inside:
                break
            inside = (found["stage"] or "").lower() == "base"
        elif _READS_CHECKOUT.match(instruction):
            raise ConfigError(
                f"{NAME}, line {first + 1}: the stage `base`, and what comes before it, cannot read the checkout: "
                f"{instruction[:60]}",
                advice="copy it in a later stage, or from an image: COPY --from=…",
            )
        end = last + 1
    if not inside:
        raise ConfigError(f'[image] base = "{NAME}", but {NAME} has no stage `base`', advice="FROM … AS base")
    return "".join(lines[:end])


def _instructions(lines: Iterable[str]) -> Iterator[tuple[int, int, str]]:
    """Yield each instruction in one line, with the numbers of its first and last."""
    first, words = None, ""
    for number, raw in enumerate(lines):
        line = raw.strip()
        if not line or line.startswith("#"):
            continue
        first = number if first is None else first
        words += line.removesuffix("\\") + " "
        if not line.endswith("\\"):
            yield first, number, words.strip()
            first, words = None, ""


def _read(checkout: Checkout, tree: str, name: str) -> bytes:
    if (data := checkout.file(tree, name)) is None:
        raise ConfigError(f"git has no file {name}, which [image] names", advice=f"git add {name}; git commit")
    return data


def _words(build_args: Mapping[str, str]) -> list[str]:
    return [word for item in sorted(build_args.items()) for word in item]


def _sent(checkout: Checkout, tree: str) -> list[TreeFile]:
    """Return the committed files that Docker gets to see, but for the models."""
    from docker.utils.build import PatternMatcher  # noqa: PLC0415 - needed for the whole Dockerfile alone

    files = checkout.files(tree, ".")
    ignore = b"".join(data for _, data in checkout.read(file for file in files if file.path == _IGNORE))
    lines = (line.strip() for line in ignore.decode("utf-8", "replace").splitlines())
    matcher = PatternMatcher([line for line in lines if line and not line.startswith("#")])
    return [
        file
        for file in files
        if file.path == NAME or not (matcher.matches(file.path) or file.path.startswith(f"{_STORE}/"))
    ]


def _committed(checkout: Checkout, files: Iterable[TreeFile]) -> Iterator[Entry]:
    for file, data in checkout.read(files):
        if file.kind == "symlink":
            yield Entry(path=file.path, link=data.decode("utf-8", "replace"))
        else:
            read = partial(_once, data)
            yield Entry(path=file.path, size_bytes=len(data), read=read, executable=file.kind == "executable")


def _once(data: bytes) -> Iterator[bytes]:
    yield data


def _stored(objects: Iterable[Entry]) -> Iterator[Entry]:
    for each in objects:
        yield Entry(path=f"{_STORE}/{each.path}", size_bytes=each.size_bytes, read=each.read)
