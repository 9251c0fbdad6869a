"""Where models are published: the catalogue, and the places it can live in."""

from __future__ import annotations

from pathlib import Path

from shipway.errors import NotConfigured
from shipway.proc import Proc, Run
from shipway.stores.catalogue import Catalogue
from shipway.stores.directory import Directory
from shipway.stores.signing import Keys

__all__ = ["Catalogue", "Keys", "open_catalogue"]


def open_catalogue(store: str, *, root: Path, run: Run | None = None, keys: Keys | None = None) -> Catalogue:
    """Open the store that `[model] store` names: a folder, relative to `root`; `keys` say whose signature counts.

    Raises `NotConfigured` for a store elsewhere, which this version does not know yet.
    """
    if "://" in store:
        raise NotConfigured(
            f"the model store {store!r} is not configured", advice="this version reads models from a folder"
        )
    return Catalogue(Directory(root / store), run=run or Proc(), keys=keys)
