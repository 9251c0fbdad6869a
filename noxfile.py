"""The developers' checks; CI runs these and nothing else.

`nox` runs what needs neither root nor Docker. Arguments after `--` go to pytest:
`nox -s unit -- -k ledger`, `nox -- --no-skips`.
"""

from __future__ import annotations

import os
import subprocess
from functools import partial
from pathlib import Path

import nox
from uv import find_uv_bin

PYTHONS = ["3.11", "3.12", "3.13", "3.14"]
LOCKED = ["--require-hashes", "--no-deps", "-r", "app/requirements.txt"]
_STOPPING_S = 60
# What takes half of the time of its folder, as measured, and needs nothing of the other half.
HALVES = {
    "tests/cluster": ["test_rollout.py"],
    "tests/docker": ["test_images.py", "test_release.py"],
    "tests/system": ["test_release.py", "test_sample.py"],
}
# pyenv keeps its versions off the PATH, where nobody else looks
PYENV = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
os.environ["PATH"] = os.pathsep.join([os.environ["PATH"], *map(str, sorted(PYENV.glob("versions/3.*/bin")))])

# Hundreds of commands are started, and each would compile every module anew.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

nox.needs_version = ">=2026.0"
nox.options.default_venv_backend = "uv"
nox.options.reuse_venv = "yes"
nox.options.sessions = ["lint", "types", "unit", "contract", "app", "system"]
nox.options.stop_on_first_error = False


def found(versions: list[str]) -> list[str]:
    """Return the Python versions that this machine has."""
    look = [find_uv_bin(), "python", "find", "--no-python-downloads", "--system"]
    return [
        version
        for version in versions
        if subprocess.run([*look, version], capture_output=True, check=False).returncode == 0  # noqa: S603 - uv's own path
    ]


def install_all(session: nox.Session) -> None:
    """Install shipway, the developers' tools, and the service's locked dependencies."""
    session.install("-e", ".[dev]")
    session.install(*LOCKED)


def run_tests(session: nox.Session, folder: str) -> None:
    """Run the tests of this folder; one that is interrupted has time to stop what it started."""
    run = partial(session.run, interrupt_timeout=_STOPPING_S)
    if folder in HALVES and not session.posargs:
        run("python", "-m", "tests.halves", folder, *HALVES[folder])
    else:
        run("pytest", folder, *session.posargs)


@nox.session
def lint(session: nox.Session) -> None:
    """Check style and format."""
    session.install("-e", ".[dev]")
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")


@nox.session
def types(session: nox.Session) -> None:
    """Check types, strictly, everywhere."""
    install_all(session)
    session.run("mypy")


@nox.session(python=found(PYTHONS))
def unit(session: nox.Session) -> None:
    """Run the tests that start no process and open no socket, on every Python found."""
    install_all(session)
    run_tests(session, "tests/unit")


@nox.session
def contract(session: nox.Session) -> None:
    """Run the same assertions on fakes and on the real parts."""
    install_all(session)
    run_tests(session, "tests/contract")


@nox.session
def app(session: nox.Session) -> None:
    """Test the service with its locked dependencies alone."""
    session.install(*LOCKED, "-r", "tests/app/requirements.txt")
    run_tests(session, "tests/app")


@nox.session
def system(session: nox.Session) -> None:
    """Run real releases with real servers, as any user."""
    install_all(session)
    run_tests(session, "tests/system")


@nox.session
def parts(session: nox.Session) -> None:
    """Build or install other people's programs that the following sessions want, once; they do it themselves, else."""
    install_all(session)
    session.run("python", "-m", "tests.parts")


@nox.session
def docker(session: nox.Session) -> None:
    """Push to real registries and run images by Docker, as root; CONTRIBUTING.md says what it needs."""
    install_all(session)
    run_tests(session, "tests/docker")


@nox.session
def cluster(session: nox.Session) -> None:
    """Boot a Kubernetes of two nodes, or two for all tests, and run releases there, as root; see CONTRIBUTING.md."""
    install_all(session)
    run_tests(session, "tests/cluster")


@nox.session
def stores(session: nox.Session) -> None:
    """Keep models in real stores: Azurite and an S3 server, with faults; CONTRIBUTING.md says what it needs."""
    install_all(session)
    run_tests(session, "tests/stores")


@nox.session
def bench(session: nox.Session) -> None:
    """Measure side by side, and write the ratios to .shipway/benchmarks.json."""
    install_all(session)
    session.run("python", "-m", "benchmarks", *session.posargs)


@nox.session(name="bench-images")
def bench_images(session: nox.Session) -> None:
    """Measure pushes beside Docker's and crane's, as root, and write them to .shipway/benchmarks-images.json."""
    # As a user has it, whom a checkout's own way to be found would cost a part of each start.
    session.install("--compile-bytecode", "--reinstall-package", "shipway", ".[dev]")
    session.install(*LOCKED)
    session.run("python", "-m", "benchmarks.images", *session.posargs)


@nox.session(name="bench-cluster")
def bench_cluster(session: nox.Session) -> None:
    """Measure releases beside docker and kubectl on a cluster, as root: .shipway/benchmarks-cluster.json."""
    install_all(session)
    session.run("python", "-m", "benchmarks.kubernetes", *session.posargs)


@nox.session(name="bench-stores")
def bench_stores(session: nox.Session) -> None:
    """Measure pulls and publishing beside Azure's client, adlfs and boto3: .shipway/benchmarks-stores.json."""
    install_all(session)
    session.install("adlfs", "obstore")
    session.run("python", "-m", "benchmarks.stores", *session.posargs)


@nox.session
def build(session: nox.Session) -> None:
    """Build the wheel, install it into a clean environment, import it."""
    wheels = session.create_tmp()
    session.run("uv", "build", "--quiet", "--wheel", "--out-dir", wheels, ".")
    session.install("--find-links", wheels, "--reinstall-package", "shipway", "shipway")
    session.cd(wheels)
    session.run("python", "-c", "import shipway.flow, shipway.tasks; print(shipway.tasks.namespace().task_names)")
