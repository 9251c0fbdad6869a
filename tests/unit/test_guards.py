"""The tests that guard the arrows and the generated pages fail when what they guard is broken on purpose."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]
ARROWS = "tests/unit/test_arrows.py"
PAGES = "tests/unit/test_pages.py"


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of what the guards look at, to be broken."""
    for folder in ("shipway", "app", "model", "loadtests"):
        for file in (ROOT / folder).rglob("*.py"):
            target = tmp_path / file.relative_to(ROOT)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, target)
    shutil.copytree(ROOT / "docs", tmp_path / "docs", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "tests/unit").mkdir(parents=True)
    for test in (ARROWS, PAGES):
        shutil.copy(ROOT / test, tmp_path / test)
    return tmp_path


@pytest.mark.parametrize(
    ("guard", "file", "line"),
    [
        ("test_imports_point_one_way", "shipway/stores/catalogue.py", "from shipway.oci import layout"),
        ("test_imports_point_one_way", "shipway/targets/local.py", "from shipway import flow"),
        ("test_imports_point_one_way", "shipway/errors.py", "import shipway.proc"),
        ("test_a_push_imports_nothing_for_other_commands", "shipway/oci/upload.py", "from shipway.oci import prune"),
        ("test_a_push_imports_nothing_for_other_commands", "shipway/oci/__init__.py", "import packaging.markers"),
        ("test_listing_the_tasks_imports_the_errors_alone", "shipway/errors.py", "import msgspec"),
        ("test_stages_do_not_import_stages", "shipway/stages/push.py", "from shipway.stages import image"),
        ("test_shipway_knows_nothing_of_the_service", "shipway/site.py", "def look(): import app"),
        ("test_the_service_the_model_and_the_load_know_nothing_of_shipway", "app/settings.py", "import shipway.proc"),
        (
            "test_the_service_the_model_and_the_load_know_nothing_of_shipway",
            "model/export.py",
            "from shipway import oci",
        ),
        ("test_processes_start_only_in_proc", "shipway/flow.py", "import subprocess"),
        ("test_printing_happens_only_in_console", "shipway/turn.py", "print('done')"),
        ("test_the_process_environment_is_read_only_at_the_top", "shipway/site.py", "HOME = os.environ['HOME']"),
        ("test_heavy_packages_are_imported_only_where_they_are_used", "shipway/stores/golden.py", "import onnxruntime"),
    ],
)
def test_arrow_test_fails_when_a_line_breaks_its_rule(copy: Path, guard: str, file: str, line: str) -> None:
    getattr(_loaded(copy / ARROWS), guard)()
    (copy / file).write_text(f"{(copy / file).read_text()}\n{line}\n")

    with pytest.raises(AssertionError):
        getattr(_loaded(copy / ARROWS), guard)()


@pytest.mark.parametrize(
    ("page", "old", "new"),
    [
        ("settings.md", "`8080`", "`8081`"),
        ("errors.md", "| 70 | `UndoFailed` |", "| 71 | `UndoFailed` |"),
        ("tasks.md", "## rollback", "## roll-back"),
    ],
)
def test_page_test_fails_when_its_page_says_something_else(copy: Path, page: str, old: str, new: str) -> None:
    guard = _loaded(copy / PAGES).test_page_equals_what_the_code_says
    guard(page)
    text = (copy / "docs" / page).read_text()
    (copy / "docs" / page).write_text(text.replace(old, new, 1))

    assert old in text
    with pytest.raises(AssertionError, match=r"python docs/generate\.py"):
        guard(page)


def _loaded(test: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("guard", test)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
