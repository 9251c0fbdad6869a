"""Where models are published: the catalogue, and the places it can live in."""

from __future__ import annotations

from pathlib import Path

from shipway.console import Console, Tell
from shipway.errors import NotConfigured
from shipway.proc import Proc, Run
from shipway.stores.catalogue import Catalogue
from shipway.stores.directory import Directory
from shipway.stores.objects import Access, Store
from shipway.stores.signing import Keys

__all__ = ["Access", "Catalogue", "Keys", "is_elsewhere", "open_catalogue"]


def open_catalogue(
    store: str,
    *,
    root: Path = Path(),
    access: Access | None = None,
    keys: Keys | None = None,
    run: Run | None = None,
    tell: Tell | None = None,
) -> Catalogue:
    """Open the store of this name: a folder, relative to `root`, or an address; nothing is asked yet.

    `access` says how a store elsewhere is reached, `keys` whose signature counts. Raises
    `NotConfigured` for a store that this version does not know.
    """
    run, access = run or Proc(), access or Access()
    if store.startswith(("mlflow+", "azureml:")):
        from shipway.stores import mlflow  # noqa: PLC0415 - brings an HTTP client

        opens = mlflow.open_mlflow
        if store.startswith("azureml:"):
            from shipway.stores.azureml import open_azureml as opens  # noqa: PLC0415 - as above
        registry = opens(store, access, cache=root / ".shipway" / "cache", run=run, tell=tell or Console())
        return Catalogue(
            registry,
            run=run,
            keys=keys,
            key_of=mlflow.key_of,
            holders=registry.holders,
            swaps=False,
            cache_bytes=access.cache_bytes,
        )
    return Catalogue(_open(store, root, access), run=run, keys=keys, cache_bytes=access.cache_bytes)


def is_elsewhere(store: str) -> bool:
    """Tell whether this names a store that is no folder."""
    return "://" in store


def _open(store: str, root: Path, access: Access) -> Store:
    scheme, _, _place = store.partition("://") if is_elsewhere(store) else ("", "", store)
    if scheme == "az":
        from shipway.stores.azure import open_azure  # noqa: PLC0415 - brings Azure's client

        return open_azure(store, access)
    if scheme == "s3":
        from shipway.stores.s3 import open_s3  # noqa: PLC0415 - brings boto3

        return open_s3(store, access)
    if scheme:
        raise NotConfigured(
            f"the model store {store!r} is not configured",
            advice="this version knows a folder, az://ACCOUNT/CONTAINER/PREFIX, s3://BUCKET/PREFIX, "
            "mlflow+https://HOST/PREFIX and azureml://HOST/…",
        )
    return Directory(root / store)
