"""What one stage hands to the next when they run alone, in separate steps of a CI system.

A small JSON file for each stage, good for one tree only: a receipt for another tree, a torn
one and a missing one are the same. Keep `.shipway/receipts/` between the steps.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from shipway import documents
from shipway.ledger import write


def save(state: Path, stage: str, *, tree: str, facts: Mapping[str, Any]) -> None:
    """Replace the stage's receipt; raises `MachineRefused` when it cannot be written."""
    write(_path(state, stage), json.dumps({"tree": tree, "facts": facts}, indent=1) + "\n")


def load(state: Path, stage: str, *, tree: str) -> dict[str, Any] | None:
    """Return what the stage handed on for this tree, if it did."""
    try:
        receipt = documents.decoded(_path(state, stage).read_bytes())
        return dict(receipt["facts"]) if receipt["tree"] == tree else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _path(state: Path, stage: str) -> Path:
    return state / "receipts" / f"{stage}.json"
