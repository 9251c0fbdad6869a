"""Is this the answer that the exchange expects? Says so in one line, or says what is wrong.

Part of the black box: the same rules as the release machinery's, told by nobody but the
exchanges themselves (tests/contract/test_answers.py holds the two together).
"""

from __future__ import annotations

import json
import math
from typing import Any


def mistake(expected: dict[str, Any], status: int, body: bytes) -> str:
    """Return what is wrong with an answer, or nothing; `expected` is an exchange's `response`."""
    if status != expected.get("status", 200):
        return f"status {status}, not {expected.get('status', 200)}"
    if "json" not in expected:
        return ""
    try:
        got = json.loads(body)
    except (ValueError, RecursionError):
        return "not JSON"
    return _differs("$", expected["json"], got, expected.get("tolerance", 0))


def _differs(where: str, expected: Any, got: Any, tolerance: float) -> str:
    """Return the first place where `got` lacks something of `expected`, or has something else."""
    if isinstance(expected, dict | list) and type(expected) is type(got):
        items = expected.items() if isinstance(expected, dict) else enumerate(expected)
        for key, value in items:
            place = f"{where}[{key}]" if isinstance(key, int) else f"{where}.{key}"
            if (key not in got) if isinstance(got, dict) else (key >= len(got)):
                return f"{place} is missing"
            if wrong := _differs(place, value, got[key], tolerance):
                return wrong
        return ""
    return "" if _same(expected, got, tolerance) else f"{where} is {_shown(got)}, not {_shown(expected)}"


def _same(expected: Any, got: Any, tolerance: float) -> bool:
    if not {type(expected), type(got)} <= {int, float}:
        return type(expected) is type(got) and bool(expected == got)
    if expected == got:
        return True
    try:
        return abs(expected - got) <= tolerance or (math.isnan(expected) and math.isnan(got))
    except OverflowError:  # an integer beyond every float
        return False


def _shown(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)[:80]
