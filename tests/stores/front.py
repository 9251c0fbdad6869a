"""A store behind a proxy that does harm, and the same store seen directly."""

from __future__ import annotations

import contextlib
import ssl
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from shipway.artifacts import Digest, ModelFile
from shipway.stores.azure import open_azure
from shipway.stores.cache import Cache
from shipway.stores.objects import Blob, Store
from shipway.stores.patience import Clock
from shipway.stores.s3 import open_s3
from tests.docker.proxy import Proxy, Secure
from tests.stores.parts import ACCOUNT, CONTAINER, Azurite, S3Server

READ = r"^GET .*/blob(\?|$)"
LOOK = r"^HEAD "
KEY = "blob"


@dataclass(frozen=True, kw_only=True)
class Front:
    """`store` goes through `proxy`, `direct` does not; nobody really waits, and `slept` says how long they would."""

    kind: str
    proxy: Proxy
    store: Store
    direct: Store
    slept: list[float] = field(default_factory=list)

    def put(self, data: bytes) -> ModelFile:
        """Store one large object, with no harm done to it."""
        self.direct.put(KEY, [data], size_bytes=len(data))
        return ModelFile(path="model.onnx", digest=Digest.of(data), size_bytes=len(data))

    def pull(self, file: ModelFile, folder: Path) -> bytes:
        """Fetch it through the proxy into a cache, and return what is there then."""
        return Cache(folder).fetch(file, Blob(self.store, KEY), lambda _count: None).read_bytes()


@contextlib.contextmanager
def azure(azurite: Azurite, prefix: str) -> Iterator[Front]:
    """Stand in front of Azurite, with TLS on both sides."""
    upstream = ssl.create_default_context(cafile=azurite.authority)
    upstream.maximum_version = ssl.TLSVersion.TLSv1_2  # later ones send tickets, which look like an early answer
    secure = Secure(listening=azurite.issued.server_context(), asking=upstream)
    address = f"az://{ACCOUNT}/{CONTAINER}/{prefix}"
    with Proxy(f"127.0.0.1:{azurite.port}", secure=secure) as proxy:
        access = azurite.access(endpoint=f"https://{proxy.address}/{ACCOUNT}")
        yield _front(
            "azure",
            proxy,
            lambda clock: open_azure(address, access, clock=clock),
            open_azure(address, azurite.access()),
        )


@contextlib.contextmanager
def s3(server: S3Server, prefix: str) -> Iterator[Front]:
    """Stand in front of the S3 server."""
    address = f"s3://{CONTAINER}/{prefix}"
    with Proxy(f"127.0.0.1:{server.port}") as proxy:
        access = server.access(endpoint=f"http://{proxy.address}")
        yield _front(
            "s3", proxy, lambda clock: open_s3(address, access, clock=clock), open_s3(address, server.access())
        )


def _front(kind: str, proxy: Proxy, opened: Callable[[Clock], Store], direct: Store) -> Front:
    slept: list[float] = []
    return Front(kind=kind, proxy=proxy, store=opened(Clock(sleep=slept.append)), direct=direct, slept=slept)
