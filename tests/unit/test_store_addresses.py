"""What names a store, and what does not: told before anybody is asked."""

from __future__ import annotations

from pathlib import Path

import pytest

from shipway.errors import NotConfigured
from shipway.stores import Access, is_elsewhere, open_catalogue


@pytest.mark.parametrize(
    "address",
    [
        "az://account",
        "az://account/",
        "az://Account/models",
        "az://account/mo--dels/a",
        "az://account/models/../other",
        "az://account/models/a b",
        "az://user@account/models",
        "s3://",
        "s3://Bucket/models",
        "s3://bucket/../other",
        "s3://key:secret@bucket/models",
    ],
)
def test_open_refuses_when_an_address_is_none(address: str) -> None:
    with pytest.raises(NotConfigured, match=r"\[model\] store = .* is no ") as caught:
        open_catalogue(address, root=Path("/"))

    assert caught.value.code == 2
    assert "write " in caught.value.next


def test_open_refuses_when_tokens_would_travel_over_plain_http() -> None:
    with pytest.raises(NotConfigured, match="is no https address"):
        open_catalogue("az://account/models", access=Access(endpoint="http://127.0.0.1:10000/account"))


def test_a_folder_is_not_elsewhere() -> None:
    assert [is_elsewhere(store) for store in ("model/store", "az://account/models", "s3://bucket")] == [
        False,
        True,
        True,
    ]
