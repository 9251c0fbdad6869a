"""Images of the sample service, run by Docker: composed for another Python, and built by Docker.

Packages come from where this machine's pip and uv find them. Docker pulls by digest from a
real registry; containers run as they would in production: read-only, and as the user 65532.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from model.assemble import assemble
from shipway import exchanges
from shipway.artifacts import Digest
from shipway.config import PushSettings
from shipway.console import Console
from shipway.oci.images import read_image
from shipway.oci.registry import Repository, open_repository
from shipway.proc import Proc
from tests.docker import machine
from tests.docker.machine import Daemon
from tests.docker.registries import Registry
from tests.system import project as projects
from tests.system.project import ROOT, Project

_READY_S = 60.0
PYTHONS = pytest.mark.parametrize("python", list(machine.SUITES))


@pytest.fixture(scope="module")
def registry(running: Callable[[str], Registry]) -> Registry:
    return running("v3-open")


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory, registry: Registry, docker: Daemon) -> Iterator[Project]:
    """Give a checkout of this repository that pushes to the registry."""
    for project in projects.sample(tmp_path_factory.mktemp("sample")):
        project.environ.update(docker.environ, SHIPWAY_PUSH_REPOSITORY=f"{registry.address}/sample")
        yield project


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    assemble(ROOT / "model" / "store", "efficientnet-lite0", "latest", folder)
    return folder


@pytest.fixture(scope="module")
def composed(sample: Project, registry: Registry) -> Callable[[str], str]:
    """Push the image for a Python, on a base from the same registry; return its reference."""

    def push(python: str) -> str:
        with _repository(f"{registry.address}/python") as images:
            base = f"{images.repository}@{machine.base(python, images)}"
        return sample.invoke("push", SHIPWAY_IMAGE_PYTHON=f'"{python}"', SHIPWAY_IMAGE_BASE=base)[0].strip()

    return push


@PYTHONS
def test_image_answers_right_in_docker_when_it_is_made_for_another_python(
    composed: Callable[[str], str], docker: Daemon, model: Path, python: str
) -> None:
    ref = composed(python)

    with _running(docker, ref) as (url, container):
        wrong = exchanges.play(url, exchanges.load(model), _READY_S)
        version = _get(f"{url}/version")
        said = container.exec_run(["python", "-c", "import sys, os; print(sys.version_info[:2], os.getuid())"]).output

    assert wrong == ()
    assert version["build"] == _image(ref).build
    assert said.decode().strip() == f"({python.replace('.', ', ')}) 65532"


@PYTHONS
@pytest.mark.parametrize("buildkit", [False, True], ids=["classic", "buildkit"])
def test_docker_build_makes_the_same_srv_and_answers_when_the_image_is_composed(
    sample: Project, composed: Callable[[str], str], docker: Daemon, model: Path, python: str, *, buildkit: bool
) -> None:
    ref, name = composed(python), f"shipway-test/built:{python}"

    arguments = {"PYTHON": python, "PYTHON_IMAGE": machine.python_image(python, docker.client)}
    words = [word for name, text in arguments.items() for word in ("--build-arg", f"{name}={text}")]
    docker.cli("build", "--quiet", *words, "--tag", name, sample.root, buildkit=buildkit)

    assert _srv(docker, name) == _srv(docker, ref)
    with _running(docker, name) as (url, _):
        assert exchanges.play(url, exchanges.load(model), _READY_S) == ()


def test_base_of_the_dockerfile_is_built_once_when_several_machines_use_it(
    sample: Project, docker: Daemon, model: Path
) -> None:
    project = _with_dockerfile(sample, docker, "3.13", SHIPWAY_IMAGE_BASE="Dockerfile")
    first, told = project.invoke("push")

    again, told_again = project.invoke("push", DOCKER_HOST="unix:///nowhere")

    assert "docker: Step" in told
    assert (again, "docker" in told_again) == (first, False)
    with _running(docker, first.strip()) as (url, container):
        assert exchanges.play(url, exchanges.load(model), _READY_S) == ()
        assert container.exec_run(["id", "-un"]).output == b"service\n"


def test_plan_builds_nothing_when_docker_would_have_to_build(sample: Project, docker: Daemon) -> None:
    nowhere = {"SHIPWAY_IMAGE_BASE": "Dockerfile", "DOCKER_HOST": "unix:///nowhere"}
    project = _with_dockerfile(sample, docker, "3.11", **nowhere)

    planned, told = project.invoke("plan", SHIPWAY_IMAGE_BUILD_ARGS='{PYTHON_IMAGE = "nobody/built:this"}')

    assert "image     Dockerfile, stage base: would be built by Docker, since" in planned
    assert "docker" not in told


def test_push_says_what_to_do_when_no_docker_answers(sample: Project, docker: Daemon) -> None:
    project = _with_dockerfile(sample, docker, "3.11", SHIPWAY_IMAGE_BASE="Dockerfile", DOCKER_HOST="unix:///nowhere")

    _, told = project.invoke("push", exits=3)

    assert "no Docker daemon answers" in told
    assert "DOCKER_HOST" in told


def test_push_shows_dockers_last_lines_when_the_dockerfile_cannot_be_built(sample: Project, docker: Daemon) -> None:
    project = _with_dockerfile(sample, docker, "3.13", SHIPWAY_IMAGE_BASE="Dockerfile")
    project.change("Dockerfile", "WORKDIR /srv\nUSER", "RUN echo so it goes && exit 3\nWORKDIR /srv\nUSER")

    _, told = project.invoke("push", exits=34)

    project.git("checkout", "--", "Dockerfile")
    assert "  | so it goes\n" in told
    assert "returned a non-zero code: 3" in told


def test_whole_dockerfile_answers_right_in_docker_when_docker_is_the_builder(
    sample: Project, docker: Daemon, model: Path
) -> None:
    ref = _with_dockerfile(sample, docker, "3.13", SHIPWAY_IMAGE_BUILDER="docker").invoke("push")[0].strip()

    image = _image(ref)
    assert {layer.part for layer in image.layers} == {"dockerfile"}
    with _running(docker, ref) as (url, _):
        assert exchanges.play(url, exchanges.load(model), _READY_S) == ()
        assert _get(f"{url}/version")["build"] == image.build


@pytest.mark.parametrize("repository", ["layout", "registry"])
def test_whole_dockerfile_is_released_on_this_machine_when_docker_is_the_builder(
    sample: Project, docker: Daemon, repository: str
) -> None:
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    if python not in machine.SUITES:
        pytest.skip(f"there is no base with this machine's Python {python}; run with one of {list(machine.SUITES)}")
    project = _with_dockerfile(sample, docker, python, SHIPWAY_IMAGE_BUILDER="docker")
    if repository == "layout":
        project.environ["SHIPWAY_PUSH_REPOSITORY"] = "layout"
    _mark(project, f"{repository} one")
    first = project.facts("release")
    _mark(project, f"{repository} two")
    second = project.facts("release")

    _, refused = project.invoke("rollback", "--only", "code", exits=30)
    back = project.facts("rollback")

    assert "of one piece" in refused
    assert [each["outcome"] for each in (first, second, back)] == ["released", "released", "rolled back"]
    assert project.facts("status")["digest"] == first["current"]["digest"]
    project.invoke("stop")


# -- looking -----------------------------------------------------------------------------


def _mark(project: Project, text: str) -> None:
    project.write("app/mark.txt", text)
    project.commit(text)


def _with_dockerfile(project: Project, docker: Daemon, python: str, **more: str) -> Project:
    """Return the project with what makes shipway use the Dockerfile, on a base that this machine has."""
    image = machine.python_image(python, docker.client)
    build_args = f'{{PYTHON_IMAGE = "{image}"}}'
    environ = {"SHIPWAY_IMAGE_PYTHON": f'"{python}"', "SHIPWAY_IMAGE_BUILD_ARGS": build_args, **more}
    return replace(project, environ={**project.environ, **environ})


@contextlib.contextmanager
def _repository(name: str) -> Iterator[Repository]:
    tell = Console(err=io.StringIO())
    settings = PushSettings(repository=name)
    images = open_repository(name, settings=settings, root=Path(), environ={}, proc=Proc(), tell=tell)
    with contextlib.closing(images):
        yield images


def _image(ref: str) -> Any:
    name, _, digest = ref.partition("@")
    with _repository(name) as images:
        return read_image(images, Digest(digest))


@contextlib.contextmanager
def _running(docker: Daemon, ref: str) -> Iterator[tuple[str, Any]]:
    """Run an image as in production until the body ends; give its address once it is ready."""
    container = docker.client.containers.run(
        ref, detach=True, read_only=True, user="65532:65532", ports={"8080/tcp": ("127.0.0.1", None)}, shm_size="64m"
    )
    try:
        container.reload()
        url = f"http://127.0.0.1:{container.ports['8080/tcp'][0]['HostPort']}"
        deadline = time.monotonic() + _READY_S
        while not _is_ready(url):
            container.reload()
            assert (container.status, time.monotonic() < deadline) == ("running", True), container.logs().decode()
            time.sleep(0.1)
        yield url, container
    finally:
        container.remove(force=True)


def _is_ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/readyz", timeout=5, trust_env=False).status_code == 200
    except httpx.TransportError:
        return False


def _get(url: str) -> Any:
    return httpx.get(url, trust_env=False).raise_for_status().json()


def _srv(docker: Daemon, name: str) -> dict[str, tuple[int, int, int, str, str]]:
    """Return all below /srv: kind, mode, owner, link and content by path."""
    if "@" in name:
        docker.client.images.pull(name)
    container = docker.client.containers.create(name)
    try:
        pieces, _ = container.get_archive("/srv")
        data = io.BytesIO(b"".join(pieces))
    finally:
        container.remove()
    found = {}
    with tarfile.open(fileobj=data) as tar:
        for info in tar:
            content = tar.extractfile(info) if info.isreg() else None
            digest = hashlib.sha256(content.read()).hexdigest() if content else ""
            found[info.name] = (int(info.type), info.mode, info.uid, info.linkname, digest)
    return found
