"""What a Dockerfile's build reads, and the keys that stand for it."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import docker.utils.build  # noqa: F401 - urllib3 opens a socket when it is imported, which no test here may do
import pytest
from msgspec.structs import replace

from shipway.artifacts import Digest, Model, ModelLayer
from shipway.checkout import Checkout
from shipway.errors import ConfigError
from shipway.oci import dockerfile
from shipway.oci.dockerfile import Recipe
from shipway.oci.wheels import Target
from shipway.proc import Completed
from shipway.tarball import Entry

TARGET = Target(python="3.13", platform="linux/amd64")
BASE = """\
# what it stands on
ARG PYTHON_IMAGE=python
FROM ${PYTHON_IMAGE} AS tools
RUN apt-get install \\
    # a comment inside

    curl
FROM --platform=linux/amd64 tools as Base
COPY --from=tools /usr/bin/curl /usr/bin/
"""
WHOLE = BASE + "\n# the service\nFROM base\nCOPY app /srv/app\n"
MODEL = Model(
    name="net",
    version=7,
    digest=Digest.of(b"set"),
    files=(),
    layer=ModelLayer(digest=Digest.of(b"layer"), size_bytes=10),
)


class Git:
    """Git with some committed files; a name that ends in `*` is executable, in `@` a link."""

    def __init__(self, files: Mapping[str, str]) -> None:
        self.files = {name: text.encode() for name, text in files.items()}

    def run(self, argv: Sequence[str | Path], *, stdin: bytes | None = None, **_: Any) -> Completed:
        words = [str(word) for word in argv]
        answers = {"ls-tree": self._listed(words[-1]), "cat-file": self._read(stdin or b"")}
        return Completed(argv=(), code=0, stdout=answers[words[words.index("git") + 1]], tail="")

    def _listed(self, folder: str) -> bytes:
        modes = {"*": "100755", "@": "120000"}
        return b"".join(
            f"{modes.get(path[-1], '100644')} blob {Digest.of(data).hex} {len(data)}\t{path.rstrip('*@')}\0".encode()
            for path, data in self.files.items()
            if folder == "." or f"{path}/".startswith(f"{folder}/")
        )

    def _read(self, wanted: bytes) -> bytes:
        found = {Digest.of(data).hex: data for data in self.files.values()}
        found |= {f"tree:./{path.rstrip('*@')}": data for path, data in self.files.items()}
        return b"".join(_object(name, found.get(name)) for name in wanted.decode().split())


def _object(name: str, data: bytes | None) -> bytes:
    if data is None:
        return f"{name} missing\n".encode()
    return f"{Digest.of(data).hex} blob {len(data)}\n".encode() + data + b"\n"


def _checkout(**files: str) -> Checkout:
    return Checkout(Path(), Git({"Dockerfile": WHOLE} | files), {})


def _base(text: str = WHOLE, target: Target = TARGET, **build_args: str) -> Recipe:
    return dockerfile.base(Checkout(Path(), Git({"Dockerfile": text}), {}), "tree", target, build_args)


def _whole(checkout: Checkout, *, model: Model = MODEL, objects: Iterable[Entry] = ()) -> Recipe:
    return dockerfile.whole(checkout, "tree", TARGET, {}, model=model, objects=lambda _: objects)


def _context(recipe: Recipe) -> dict[str, tuple[int, str, bytes]]:
    found = {}
    with tarfile.open(fileobj=io.BytesIO(b"".join(recipe.context()))) as tar:
        for info in tar:
            content = tar.extractfile(info) if info.isreg() else None
            if not info.isdir():
                found[info.name] = (info.mode, info.linkname, content.read() if content else b"")
    return found


# -- the stage base ----------------------------------------------------------------------


def test_base_sees_the_dockerfile_until_its_end_and_nothing_else() -> None:
    recipe = _base()

    assert _context(recipe) == {"Dockerfile": (0o644, "", BASE.encode())}
    assert (recipe.stage, recipe.platform, recipe.build_args) == ("base", "linux/amd64", {"PYTHON": "3.13"})


@pytest.mark.parametrize(
    "text", [WHOLE.replace("/srv/app", "/srv/other"), WHOLE + "RUN true\n", BASE, BASE + "# more\n"]
)
def test_base_has_the_same_key_when_a_later_stage_changed(text: str) -> None:
    assert _base(text).key == _base().key


@pytest.mark.parametrize(
    "other",
    [
        _base(WHOLE.replace("curl", "wget")),
        _base(target=replace(TARGET, python="3.12")),
        _base(target=replace(TARGET, platform="linux/arm64")),
        _base(PYTHON_IMAGE="python:3.13"),
    ],
    ids=["text", "python", "platform", "argument"],
)
def test_base_has_another_key_when_its_inputs_changed(other: Recipe) -> None:
    assert other.key != _base().key


def test_python_is_the_images_when_the_arguments_say_another() -> None:
    assert _base(PYTHON="2.7").build_args == {"PYTHON": "3.13"}


@pytest.mark.parametrize(
    "line",
    [
        "COPY app /srv/app",
        "copy --chown=0:0 app /srv",
        "ADD x.tar /",
        "ADD https://example.invalid/x /x",
        "COPY \\\n  app /srv",
    ],
)
def test_base_is_refused_when_it_reads_the_checkout(line: str) -> None:
    with pytest.raises(ConfigError, match="line 10: the stage `base`, and what comes before it, cannot read"):
        _base(BASE + line + "\nFROM base\n")


def test_base_is_refused_when_there_is_no_such_stage() -> None:
    with pytest.raises(ConfigError, match="has no stage `base`"):
        _base("FROM scratch AS basement\nRUN true\n")


def test_base_is_refused_when_git_has_no_dockerfile() -> None:
    with pytest.raises(ConfigError, match="git has no file Dockerfile"):
        dockerfile.base(Checkout(Path(), Git({}), {}), "tree", TARGET, {})


# -- the whole ---------------------------------------------------------------------------


def test_whole_sees_what_git_holds_and_the_one_model_when_dockerignore_leaves_it() -> None:
    ignore = "# all but\n*\n!app\n!model/assemble.py\n!model/store\n**/.*\n"
    checkout = _checkout(
        **{
            ".dockerignore": ignore,
            "app/run*": "run",
            "app/link@": "run",
            "app/.env": "secret",
            "model/assemble.py": "assemble",
            "model/store/net/versions/6.json": "another",
            "README.md": "read me",
        }
    )

    context = _context(
        _whole(checkout, objects=[Entry(path="net/versions/7.json", size_bytes=2, read=lambda: [b"{}"])])
    )

    assert context == {
        ".dockerignore": (0o644, "", ignore.encode()),
        "Dockerfile": (0o644, "", WHOLE.encode()),
        "app/link": (0o777, "run", b""),
        "app/run": (0o755, "", b"run"),
        "model/assemble.py": (0o644, "", b"assemble"),
        "model/store/net/versions/7.json": (0o644, "", b"{}"),
    }


def test_whole_takes_the_model_by_argument() -> None:
    assert _whole(_checkout()).build_args == {
        "PYTHON": "3.13",
        "MODEL_NAME": "net",
        "MODEL_VERSION": "7",
        "MODEL_HEX": MODEL.digest.hex,
    }


@pytest.mark.parametrize(
    "changed",
    [{"app/a": "2"}, {"app/a*": "1"}, {"app/b": "1"}, {"Dockerfile": BASE}],
    ids=["text", "mode", "name", "file"],
)
def test_whole_has_another_key_when_what_it_sees_changed(changed: dict[str, str]) -> None:
    assert _whole(_checkout(**changed)).key != _whole(_checkout(**{"app/a": "1"})).key


def test_whole_has_the_same_key_when_only_what_it_does_not_see_changed() -> None:
    ignored = {".dockerignore": "docs\n", "docs/a": "1"}

    assert _whole(_checkout(**ignored)).key == _whole(_checkout(**{**ignored, "docs/a": "2"})).key


def test_whole_has_another_key_when_the_model_is_another() -> None:
    assert _whole(_checkout(), model=replace(MODEL, version=8)).key != _whole(_checkout()).key
