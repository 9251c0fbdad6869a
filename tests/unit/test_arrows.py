"""The direction of imports, as docs/design.md draws it."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

LEAVES = {
    "artifacts",
    "errors",
    "console",
    "proc",
    "config",
    "tarball",
    "gzipped",
    "checkout",
    "exchanges",
    "ledger",
    "receipts",
    "entra",
    "documents",
}
MAY_IMPORT = {
    "tasks": LEAVES | {"flow", "load", "models", "upkeep", "doctor", "results", "site"},
    "flow": LEAVES | {"stages", "stores", "oci", "targets", "results", "site", "turn", "upkeep"},
    "upkeep": LEAVES | {"oci", "results", "site", "turn"},
    "load": LEAVES | {"stages", "oci", "targets", "site"},
    "models": LEAVES | {"stages", "stores", "results", "site", "turn"},
    "doctor": LEAVES | {"oci", "site", "turn"},
    "site": LEAVES | {"stores", "oci", "targets"},
    "turn": LEAVES | {"targets"},
    "results": LEAVES | {"stores", "oci", "targets"},
    "stages": LEAVES | {"stores", "oci", "targets"},
    "stores": LEAVES | {"stores"},
    "oci": LEAVES | {"oci"},
    "targets": LEAVES | {"targets"},
    "config": {"errors", "documents"},
    "proc": {"errors"},
    "ledger": {"artifacts", "errors", "console", "proc", "documents"},
    "loadmeter": set(),  # runs inside of Locust
    "receipts": {"ledger", "documents"},
    "checkout": {"artifacts", "errors", "proc"},
    "exchanges": {"errors", "documents"},
    "entra": {"errors"},
    "documents": set(),
    "console": set(),
    "tarball": set(),
    "gzipped": set(),
    "artifacts": set(),
    "errors": set(),
    "__init__": set(),
}
STARTS_PROCESSES = {"subprocess", "multiprocessing", "pty"}
HEAVY_AT_THE_TOP = {
    "onnxruntime",
    "numpy",
    "rich",
    "locust",
    "circus",
    "gevent",
    "docker",
    "azure",
    "uv",
    "deflate",
    "cryptography",
    "boto3",
    "botocore",
}


# What only other commands need: every module, and every pattern that is compiled, takes a push its time.
NOT_FOR_A_PUSH = {
    "httpx",
    "packaging.markers",
    "packaging.requirements",
    "pydantic",
    "shipway.exchanges",
    "shipway.load",
    "shipway.models",
    "shipway.oci.prune",
    "shipway.oci.unpack",
    "shipway.stores.drafting",
    "shipway.stores.golden",
    "shipway.stores.review",
    "shipway.stores.safety",
    "shipway.stores.sweep",
    "shipway.targets.daemon",
    "shipway.targets.kubectl",
    "shipway.targets.kubernetes",
    "shipway.targets.local",
    "shipway.upkeep",
}


def test_imports_point_one_way() -> None:
    wrong = [
        f"{path.relative_to(ROOT)}: {imported}"
        for path in _modules("shipway")
        for imported in _imports(path)
        if imported.startswith("shipway.") and imported.split(".")[1] not in MAY_IMPORT[_place(path)]
    ]

    assert wrong == []


def test_stages_do_not_import_stages() -> None:
    wrong = [
        f"{path.name}: {imported}"
        for path in _modules("shipway/stages")
        for imported in _imports(path)
        if imported.startswith("shipway.stages")
    ]

    assert wrong == []


def test_shipway_knows_nothing_of_the_service() -> None:
    wrong = [
        f"{path.relative_to(ROOT)}: {imported}"
        for path in _modules("shipway")
        for imported in _imports(path)
        if imported.split(".")[0] in {"app", "model", "tasks", "loadtests"}
    ]

    assert wrong == []


def test_the_service_the_model_and_the_load_know_nothing_of_shipway() -> None:
    wrong = [
        f"{path.relative_to(ROOT)}: {imported}"
        for folder in ("app", "model", "loadtests")
        for path in _modules(folder)
        for imported in _imports(path)
        if imported.split(".")[0] == "shipway"
    ]

    assert wrong == []


def test_processes_start_only_in_proc() -> None:
    wrong = [
        f"{path.relative_to(ROOT)}: {imported}"
        for path in _modules("shipway")
        for imported in _imports(path)
        if imported.split(".")[0] in STARTS_PROCESSES and path.name != "proc.py"
    ]

    assert wrong == []


def test_printing_happens_only_in_console() -> None:
    wrong = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in _modules("shipway")
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id == "print"
        and path.name != "console.py"
    ]

    assert wrong == []


def test_the_process_environment_is_read_only_at_the_top() -> None:
    wrong = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in _modules("shipway")
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Attribute) and node.attr in {"environ", "getenv"} and ast.unparse(node.value) == "os"
        if path.name not in {"tasks.py", "proc.py"}
    ]

    assert wrong == []


@pytest.mark.parametrize(
    ("package", "modules"),
    [("azure", {"entra.py", "stores/azure.py"}), ("boto3", {"stores/s3.py"}), ("botocore", {"stores/s3.py"})],
)
def test_clouds_are_imported_only_where_their_answers_are_translated(package: str, modules: set[str]) -> None:
    found = {
        str(path.relative_to(ROOT / "shipway"))
        for path in _modules("shipway")
        for imported in _imports(path)
        if imported.split(".")[0] == package
    }

    assert found == modules


def test_heavy_packages_are_imported_only_where_they_are_used() -> None:
    wrong = [
        f"{path.relative_to(ROOT)}: {imported}"
        for path in _modules("shipway")
        for imported in _imports(path, top_only=True)
        if imported.split(".")[0] in HEAVY_AT_THE_TOP and path.name != "loadmeter.py"  # runs inside Locust
    ]

    assert wrong == []


def test_a_push_imports_nothing_for_other_commands() -> None:
    assert _reached("shipway.flow", "shipway.oci.registry") & NOT_FOR_A_PUSH == set()


def test_listing_the_tasks_imports_the_errors_alone() -> None:
    reached = _reached("shipway.tasks")

    assert {name for name in reached if name.startswith("shipway.")} == {"shipway.tasks", "shipway.errors"}
    assert {name.split(".")[0] for name in reached} - sys.stdlib_module_names == {"shipway", "invoke"}


def _reached(*names: str) -> set[str]:
    """Return these modules of ours, and all that importing them imports."""
    reached: set[str] = set()
    waiting = list(names)
    while waiting:
        name = waiting.pop()
        path = _source(name)
        if name in reached or (path is None and name.startswith("shipway.")):
            continue  # seen before, or what a module of ours defines
        reached.add(name)
        if path:
            waiting += [*_imported_at_once(path), *filter(None, [name.rpartition(".")[0]])]
    return reached


def _source(name: str) -> Path | None:
    place = ROOT / Path(*name.split("."))
    return next((path for path in (place / "__init__.py", place.with_suffix(".py")) if path.exists()), None)


def _imported_at_once(path: Path) -> Iterator[str]:
    yield from _imports(path, top_only=True)
    for node in ast.parse(path.read_text("utf-8")).body:
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("shipway"):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _modules(folder: str) -> Iterator[Path]:
    paths = sorted((ROOT / folder).rglob("*.py"))
    assert paths, f"no module in {folder}"
    yield from paths


def _place(path: Path) -> str:
    parts = path.relative_to(ROOT / "shipway").with_suffix("").parts
    return parts[0]


def _imports(path: Path, *, top_only: bool = False) -> Iterator[str]:
    tree = ast.parse(path.read_text("utf-8"))
    nodes: list[ast.stmt] = tree.body if top_only else [node for node in ast.walk(tree) if isinstance(node, ast.stmt)]
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            if node.module in {"shipway", "shipway.stages"}:
                yield from (f"{node.module}.{alias.name}" for alias in node.names if alias.name != "__version__")
            else:
                yield node.module
