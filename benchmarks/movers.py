"""One move of one large object, in a process of its own: `python -m benchmarks.movers NAME`.

Takes what it needs as JSON on stdin, prints the seconds that the move alone took, and has
imported, logged in and connected before the clock starts. Each rival is called as its own
documentation says, eight at a time where it has such a setting; none but shipway hashes.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

_PIECE_BYTES = 1 << 20
_RANGE_BYTES = 8 << 20
_AT_ONCE = 8

Move = Callable[[], object]


def shipway_pull(given: dict[str, Any]) -> Move:
    """Into the cache: in ranges, hashed, synced, renamed."""
    from shipway.artifacts import Digest, ModelFile
    from shipway.stores.cache import Cache
    from shipway.stores.objects import Blob

    file = ModelFile(path="weights", digest=Digest(given["digest"]), size_bytes=given["size_bytes"])
    blob = Blob(_store(given), given["key"])
    return lambda: Cache(Path(given["folder"])).fetch(file, blob, lambda _count: None)


def shipway_publish(given: dict[str, Any]) -> Move:
    """From a file into the store."""
    store = _store(given)
    return lambda: store.put(given["to"], _pieces(given["source"]), size_bytes=given["size_bytes"])


def azure_pull(given: dict[str, Any]) -> Move:
    """Azure's own client."""
    blob = _azure(given, given["key"])

    def move() -> None:
        with Path(given["folder"], "azure").open("wb") as file:
            blob.download_blob(max_concurrency=_AT_ONCE).readinto(file)

    return move


def azure_publish(given: dict[str, Any]) -> Move:
    """Azure's own client."""
    blob = _azure(given, given["to"])

    def move() -> None:
        with Path(given["source"]).open("rb") as file:
            blob.upload_blob(file, overwrite=True, max_concurrency=_AT_ONCE)

    return move


def adlfs_pull(given: dict[str, Any]) -> Move:
    """The file system of fsspec for Azure; the account's key, since it takes no token for another endpoint."""
    system = _adlfs(given)
    system.info(_named(given, given["key"]))
    return lambda: system.get_file(_named(given, given["key"]), str(Path(given["folder"], "adlfs")))


def adlfs_publish(given: dict[str, Any]) -> Move:
    """The same, up."""
    system = _adlfs(given)
    system.info(_named(given, given["key"]))
    return lambda: system.put_file(given["source"], _named(given, given["to"]), overwrite=True)


def boto3_pull(given: dict[str, Any]) -> Move:
    """AWS's own client."""
    client = _boto3(given)
    where = str(Path(given["folder"], "boto3"))
    return lambda: client.download_file(given["container"], f"{given['prefix']}/{given['key']}", where)


def boto3_publish(given: dict[str, Any]) -> Move:
    """AWS's own client."""
    client = _boto3(given)
    return lambda: client.upload_file(given["source"], given["container"], f"{given['prefix']}/{given['to']}")


def obstore_pull(given: dict[str, Any]) -> Move:
    """What shipway could use for S3 in place of boto3: its ranges, in our threads, neither hashed nor synced."""
    import obstore
    from obstore.store import S3Store

    store = S3Store(
        given["container"],
        endpoint=given["endpoint"],
        region="eu-central-1",
        client_options={"allow_http": True},
        prefix=given["prefix"],
    )
    store.head(given["key"])

    def move() -> None:
        with Path(given["folder"], "obstore").open("wb") as file, ThreadPoolExecutor(16) as threads:
            file.truncate(given["size_bytes"])

            def fetch(start: int) -> None:
                end = min(given["size_bytes"], start + _RANGE_BYTES)
                os.pwrite(file.fileno(), obstore.get_range(store, given["key"], start=start, end=end), start)

            list(threads.map(fetch, range(0, given["size_bytes"], _RANGE_BYTES)))

    return move


MOVES: dict[str, Callable[[dict[str, Any]], Move]] = {
    "shipway pull": shipway_pull,
    "shipway publish": shipway_publish,
    "azure-storage-blob pull": azure_pull,
    "azure-storage-blob publish": azure_publish,
    "adlfs pull": adlfs_pull,
    "adlfs publish": adlfs_publish,
    "boto3 pull": boto3_pull,
    "boto3 publish": boto3_publish,
    "obstore pull": obstore_pull,
}


def _store(given: dict[str, Any]) -> Any:
    from shipway.stores.azure import open_azure
    from shipway.stores.objects import Access
    from shipway.stores.s3 import open_s3

    authority = Path(given["authority"]) if given["authority"] else None
    access = Access(
        azure_credential="managed_identity",
        endpoint=given["endpoint"],
        authority=authority,
        region="eu-central-1",
        environ=os.environ,
    )
    opened = open_azure(given["address"], access) if authority else open_s3(given["address"], access)
    opened.find(given["key"])
    return opened


def _azure(given: dict[str, Any], key: str) -> Any:
    from azure.identity import ManagedIdentityCredential
    from azure.storage.blob import ContainerClient

    client = ContainerClient(
        given["endpoint"],
        given["container"],
        credential=ManagedIdentityCredential(),
        connection_verify=given["authority"],
    )
    client.get_blob_client(f"{given['prefix']}/{given['key']}").get_blob_properties()
    return client.get_blob_client(f"{given['prefix']}/{key}")


def _adlfs(given: dict[str, Any]) -> Any:
    from adlfs import AzureBlobFileSystem

    return AzureBlobFileSystem(connection_string=given["connection"], max_concurrency=_AT_ONCE)


def _named(given: dict[str, Any], key: str) -> str:
    return f"{given['container']}/{given['prefix']}/{key}"


def _boto3(given: dict[str, Any]) -> Any:
    import boto3

    client = boto3.client("s3", endpoint_url=given["endpoint"], region_name="eu-central-1")
    client.head_object(Bucket=given["container"], Key=f"{given['prefix']}/{given['key']}")
    return client


def _pieces(path: str) -> Iterator[bytes]:
    with Path(path).open("rb") as file:
        while piece := file.read(_PIECE_BYTES):
            yield piece


def _peak_bytes() -> int:
    """Return what this program had in memory at most; `ru_maxrss` would count its parent's memory too."""
    status = Path("/proc/self/status").read_text("ascii")
    return 1024 * int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM:")))


if __name__ == "__main__":
    move = MOVES[sys.argv[1]](json.load(sys.stdin))
    began = time.perf_counter()
    move()
    seconds = time.perf_counter() - began
    print(json.dumps({"seconds": seconds, "peak_bytes": _peak_bytes()}))
