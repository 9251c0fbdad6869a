"""The pages that are generated say what the code says."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

DOCS = Path(__file__).parents[2] / "docs"


def _generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate", DOCS / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("page", ["settings.md", "errors.md", "tasks.md"])
def test_page_equals_what_the_code_says(page: str) -> None:
    expected = _generator().PAGES[page]()

    written = (DOCS / page).read_text("utf-8")

    assert written == expected, "run: python docs/generate.py"


def test_every_error_says_what_to_do_next() -> None:
    generator = _generator()

    silent = [error.__name__ for error in generator.all_errors(generator.errors.ShipwayError) if not error.advice]

    assert silent == []
