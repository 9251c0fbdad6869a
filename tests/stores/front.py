"""A store behind a proxy that does harm, and the same store seen directly."""

from __future__ import annotations

import contextlib
import ssl
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from shipway.artifacts import Digest, ModelFile
from shipway.console import Console
from shipway.proc import Proc
from shipway.stores.azure import open_azure
from shipway.stores.cache import Cache
from shipway.stores.mlflow import open_mlflow
from shipway.stores.objects import Access, Blob, Store
from shipway.stores.patience import Clock
from shipway.stores.s3 import open_s3
from shipway.stores.transfer import THREAD_NAME
from tests.docker.proxy import Proxy, Secure
from tests.stores.parts import ACCOUNT, CONTAINER, Azurite, S3Server
from tests.stores.tracking import Tracking

READ = r"^GET .*/blob(\?|$)"
LOOK = r"^HEAD "
KEY = "blob"
_SETTLE_S = 20.0


@dataclass(frozen=True, kw_only=True)
class Front:
    """`store` goes through `proxy`, `direct` does not; nobody really waits, and `slept` says how long they would."""

    kind: str
    proxy: Proxy
    store: Store
    direct: Store
    key: str = KEY
    slept: list[float] = field(default_factory=list)

    def put(self, data: bytes) -> ModelFile:
        """Store one large object, with no harm done to it."""
        self.direct.put(self.key, [data], size_bytes=len(data))
        return ModelFile(path="model.onnx", digest=Digest.of(data), size_bytes=len(data))

    def settle(self) -> None:
        """Wait until no thread of a transfer that has failed asks for anything any more."""
        for thread in threading.enumerate():
            if thread.name == THREAD_NAME:
                thread.join(_SETTLE_S)
                assert not thread.is_alive()
        self.proxy.settle()

    def pull(self, file: ModelFile, folder: Path) -> bytes:
        """Fetch it through the proxy into a cache, and return what is there then."""
        return Cache(folder).fetch(file, Blob(self.store, self.key), lambda _count: None).read_bytes()


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


@contextlib.contextmanager
def mlflow(tracking: Tracking, prefix: str) -> Iterator[Front]:
    """Stand in front of the MLflow server."""
    with Proxy(tracking.host) as proxy:
        opened = partial(open_mlflow, access=Access(), cache=tracking.artifacts, run=Proc(), tell=Console())
        yield _front(
            "mlflow",
            proxy,
            lambda clock: opened(f"mlflow+http://{proxy.address}", clock=clock),
            opened(tracking.address),
            key=f"{prefix}/{KEY}",
        )


def _front(kind: str, proxy: Proxy, opened: Callable[[Clock], Store], direct: Store, *, key: str = KEY) -> Front:
    slept: list[float] = []
    store = opened(Clock(sleep=slept.append))
    return Front(kind=kind, proxy=proxy, store=store, direct=direct, key=key, slept=slept)


FRONTS: dict[str, tuple[Callable[..., contextlib.AbstractContextManager[Front]], str]] = {
    "azure": (azure, "azurite"),
    "s3": (s3, "s3"),
    "mlflow": (mlflow, "tracking"),
}
"""What stands in front of each store, and the fixture of the store itself."""
