"""The load test's own idea of the right answer is the release machinery's."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import example, given
from hypothesis import strategies as st

from loadtests.answers import mistake
from shipway.exchanges import Exchange, differences

NUMBERS = st.sampled_from([0, 1, 1.0, 1.01, 1.5, -1, float("nan"), float("inf"), 10**400])
JSON = st.recursive(
    NUMBERS | st.none() | st.booleans() | st.sampled_from(["", "a"]),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.sampled_from("ab"), children, max_size=2),
    max_leaves=6,
)
BODIES = JSON.map(lambda document: json.dumps(document).encode()) | st.sampled_from([b"", b"{", b"\xff"])


@given(JSON, BODIES, st.sampled_from([200, 500]), st.sampled_from([0, 0.1, 2]))
@example({"a": [1]}, b'{"a": [1.05, 2], "b": 0}', 200, 0.1)
@example(10**400, b"0.5", 200, 0.1)
@example(True, b"1", 200, 0.1)
def test_both_agree_whether_an_answer_is_right(expected: Any, body: bytes, status: int, tolerance: float) -> None:
    exchange = Exchange(
        name="case",
        method="GET",
        path="/",
        headers={},
        body=b"",
        status=200,
        expected=(expected,),
        tolerance=tolerance,
    )

    told = mistake({"json": expected, "tolerance": tolerance}, status, body)

    assert bool(told) == bool(differences(exchange, status, body))
