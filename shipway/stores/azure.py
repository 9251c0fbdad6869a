"""A container of Azure Blob storage as a store: `az://ACCOUNT/CONTAINER/PREFIX`.

Owns the mapping of keys to blobs, conditional writes, and the words of Azure's failures. One
Entra credential, chosen by name, and never a key. Knows nothing of models. Azure's client
neither asks again nor goes parallel here: what is asked again, and how long, is `patience`'s
business, and a body that ends early is looked for, because the client does not notice one.
https://learn.microsoft.com/rest/api/storageservices/blob-service-rest-api
"""

from __future__ import annotations

import contextlib
import re
import ssl
import threading
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shipway import entra
from shipway.entra import Identity
from shipway.errors import (
    ModelMissing,
    NotConfigured,
    ShipwayError,
    StoreRefused,
    StoreUnreachable,
)
from shipway.stores import transfer
from shipway.stores.objects import Access, Found, Replaced, Stored, small
from shipway.stores.patience import TRANSIENT, Clock, Passing, persist, resumed, retry_after_s

if TYPE_CHECKING:
    from azure.core import PipelineClient
    from azure.storage.blob import BlobClient, ContainerClient

ROLE = "Storage Blob Data Contributor"
_ADDRESS = re.compile(r"az://([a-z0-9]{3,24})/([a-z0-9](?:-?[a-z0-9]){2,62})((?:/[A-Za-z0-9_][A-Za-z0-9_.-]*)*)/?")
_REQUEST_BYTES = 4 << 20  # what Azure's client sends, and holds in memory, at once
_MOST_BLOCKS = 50_000
_AT_ONCE = 8  # blocks on their way, which are in memory
_CONNECT_S, _READ_S = 10, 30
_BLOCK_BYTES = 1 << 18  # read of a connection at once
_VERSION = "2023-11-03"  # of the protocol, for the requests that are ours
_SCOPE = "https://storage.azure.com/.default"
_RANGE = re.compile(r"bytes \d+-\d+/(\d+)")
_RENEW_S = 300  # so long before its end a token is asked for anew
_NOT_ALLOWED = frozenset({HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN})
_TAKEN = {"BlobAlreadyExists", "UnauthorizedBlobOverwrite", "BlobImmutableDueToPolicy"}


def open_azure(
    address: str, access: Access, *, identity: Identity | None = None, clock: Clock | None = None
) -> AzureBlobs:
    """Name a container; nobody is asked yet. Raises `NotConfigured`.

    `identity` stands in for the one that `access` names.
    """
    match = _ADDRESS.fullmatch(address)
    if match is None:
        raise NotConfigured(
            f"[model] store = {address!r} is no container of Azure", advice="write az://ACCOUNT/CONTAINER/PREFIX"
        )
    account, container, prefix = match.groups()
    endpoint = access.endpoint or f"https://{account}.blob.core.windows.net"
    if not endpoint.startswith("https://"):
        raise NotConfigured(
            f"[model] endpoint = {endpoint!r} is no https address", advice="Azure's tokens travel over https alone"
        )
    try:
        from azure.core import PipelineClient  # noqa: PLC0415 - heavy, and needed only for Azure
        from azure.core.pipeline.policies import BearerTokenCredentialPolicy, UserAgentPolicy  # noqa: PLC0415 - as above
        from azure.storage.blob import ContainerClient  # noqa: PLC0415 - as above
    except ImportError as error:
        raise NotConfigured(
            f"{address} needs azure-storage-blob, which is not installed",
            advice="pip install '.[azure]' in a clone of shipway",
        ) from error
    who = identity or entra.identity(
        access.azure_credential, role=ROLE, setting=f"[model] store = {address!r}", environ=access.environ
    )
    tokens = _Tokens(who)
    transport = _transport(endpoint, access.authority)
    client = ContainerClient(
        endpoint,
        container,
        credential=tokens,
        transport=transport,
        retry_total=0,
        max_single_put_size=_REQUEST_BYTES,
    )
    pipeline: PipelineClient[Any, Any] = PipelineClient(
        endpoint, transport=transport, policies=[UserAgentPolicy(), BearerTokenCredentialPolicy(tokens, _SCOPE)]
    )
    return AzureBlobs(client, pipeline, prefix.strip("/"), address=address, who=who, clock=clock or Clock())


class AzureBlobs:
    """A `Store` in a container, which must exist."""

    def __init__(
        self,
        client: ContainerClient,
        pipeline: PipelineClient[Any, Any],
        prefix: str,
        *,
        address: str,
        who: Identity,
        clock: Clock,
    ) -> None:
        """Take the container's client, the pipeline that both use, and where in the container the keys begin."""
        self._client = client
        self._pipeline = pipeline
        self._prefix = f"{prefix}/" if prefix else ""
        self._address = address.rstrip("/")
        self._who = who
        self._clock = clock

    def __str__(self) -> str:
        return self._address

    def read(self, key: str) -> Stored | None:
        """See `Store.read`."""

        def once(_again: bool) -> Stored:  # noqa: FBT001 - of `persist`
            with self._opened(key) as answer:
                if answer.status_code != HTTPStatus.OK:
                    raise _refused(answer)
                data, said = small(answer.iter_raw(), f"{self}/{key}"), answer.headers.get("content-length")
                if str(len(data)) != said:
                    raise Passing(f"{self}/{key}: {len(data)} bytes came, and not {said}")
                return Stored(data=data, etag=str(answer.headers.get("etag")))

        try:
            return persist(self._clock, once)
        except ModelMissing:
            return None

    def create(self, key: str, data: bytes) -> bool:
        """See `Store.create`."""
        return self._write(key, data, overwrite=False)

    def replace(self, key: str, data: bytes, *, etag: str) -> bool:
        """See `Store.replace`."""
        from azure.core import MatchConditions  # noqa: PLC0415 - as in `open_azure`

        return self._write(key, data, overwrite=True, etag=etag, match_condition=MatchConditions.IfNotModified)

    def find(self, key: str) -> Found | None:
        """See `Store.find`."""

        def once(_again: bool) -> Found:  # noqa: FBT001 - of `persist`
            with self._translated(key):
                found = self._blob(key).get_blob_properties()
                return Found(size_bytes=found.size, etag=str(found.etag))

        try:
            return persist(self._clock, once)
        except ModelMissing:
            return None

    def put(self, key: str, pieces: Iterable[bytes], *, size_bytes: int) -> None:
        """See `Store.put`; blocks are staged several at a time, and become the blob at once."""
        from azure.storage.blob import BlobBlock  # noqa: PLC0415 - as in `open_azure`

        block_bytes = max(_REQUEST_BYTES, -(-size_bytes // _MOST_BLOCKS))
        if size_bytes <= block_bytes:
            data = b"".join(pieces)
            transfer.require_size(len(data), size_bytes)
            self._write(key, data, overwrite=True)
            return
        before = self.find(key)
        mine = uuid.uuid4().hex

        def stage(number: int, data: bytes) -> BlobBlock:
            name = f"{mine}-{number:05}"

            def once(_again: bool) -> None:  # noqa: FBT001 - of `persist`
                with self._translated(key):
                    self._blob(key).stage_block(name, data, len(data), validate_content=True)

            persist(self._clock, once)
            return BlobBlock(block_id=name)

        staged = transfer.send(pieces, size_bytes, block_bytes, stage, threads=_AT_ONCE)

        def commit(_again: bool) -> None:  # noqa: FBT001 - of `persist`
            with self._translated(key):
                self._blob(key).commit_block_list(staged)

        try:
            persist(self._clock, commit)
        except StoreRefused as error:
            # whoever commits the same blob meanwhile makes the service forget the blocks of all others
            now = self.find(key)
            if "InvalidBlockList" not in error.message or now is None or now == before:
                raise
            transfer.require_size(now.size_bytes, size_bytes)

    def stream(self, key: str, *, start: int, stop: int, etag: str | None = None) -> Iterator[bytes]:
        """See `Store.stream`."""
        return resumed(self._clock, partial(self._stream, key, stop, etag), start)

    def delete(self, key: str) -> None:
        """See `Store.delete`."""

        def once(_again: bool) -> None:  # noqa: FBT001 - of `persist`
            with self._translated(key):
                self._blob(key).delete_blob()

        with contextlib.suppress(ModelMissing):
            persist(self._clock, once)

    def children(self, folder: str) -> list[str]:
        """See `Store.children`."""
        prefix = self._prefix + (f"{folder}/" if folder else "")
        found: list[str] = []
        after: str | None = None
        while True:
            names, after = persist(self._clock, partial(self._page, prefix, after))
            found += names
            if not after:
                return found

    def _page(self, prefix: str, after: str | None, _again: bool) -> tuple[list[str], str | None]:  # noqa: FBT001 - of `persist`
        with self._translated(prefix):
            pages: Any = self._client.walk_blobs(name_starts_with=prefix or None, delimiter="/").by_page(after)
            names = [item.name.removeprefix(prefix).rstrip("/") for item in next(pages, ())]
            return names, pages.continuation_token

    def _stream(self, key: str, stop: int, etag: str | None, start: int) -> Iterator[bytes]:
        """Yield a range as it comes."""
        if start >= stop:
            return
        headers = {"x-ms-range": f"bytes={start}-{stop - 1}"} | ({"If-Match": etag} if etag else {})
        with self._opened(key, headers) as answer:
            if answer.status_code == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
                return
            left = min(stop, _total(answer)) - start
            for piece in answer.iter_raw():
                left -= len(piece)
                yield piece
        if left > 0:
            raise Passing(f"{self}/{key}: the last {left:,} bytes did not come")

    @contextlib.contextmanager
    def _opened(self, key: str, headers: Mapping[str, str] | None = None) -> Iterator[Any]:
        """Open what a GET answers: Azure's client for blobs would hold all that comes, so its pipeline is asked."""
        from azure.core.rest import HttpRequest  # noqa: PLC0415 - as in `open_azure`

        request = HttpRequest("GET", self._blob(key).url, headers={"x-ms-version": _VERSION, **(headers or {})})
        with self._translated(key, reading=True), self._pipeline.send_request(request, stream=True) as answer:
            yield answer

    def _write(self, key: str, data: bytes, **condition: Any) -> bool:
        def once(again: bool) -> bool:  # noqa: FBT001 - of `persist`
            try:
                with self._translated(key):
                    self._blob(key).upload_blob(data, length=len(data), validate_content=True, **condition)
            except (Replaced, ModelMissing):
                stored = self.read(key) if again else None  # the answer to an earlier try may have been lost
                return stored is not None and stored.data == data
            return True

        return persist(self._clock, once)

    def _blob(self, key: str) -> BlobClient:
        return self._client.get_blob_client(self._prefix + key)

    @contextlib.contextmanager
    def _translated(self, key: str, *, reading: bool = False) -> Iterator[None]:
        """Turn Azure's failures into ours, and tell those that may pass from those that stay."""
        from azure.core import exceptions  # noqa: PLC0415 - as in `open_azure`

        where = f"{self}/{key}"
        try:
            yield
        except exceptions.HttpResponseError as error:
            raise self._failure(where, error, reading=reading) from error
        except exceptions.AzureError as error:  # no answer, or not a whole one
            raise _unanswered(where, error) from error

    def _failure(self, where: str, error: Any, *, reading: bool) -> ShipwayError | Passing:
        status, code = error.status_code, getattr(error, "error_code", None) or ""
        code = str(getattr(code, "value", code))
        said = f"{where}: {status} {code or error.reason or ''}".rstrip()
        if status is None:
            return _unanswered(where, error)
        if status in TRANSIENT or code == "Md5Mismatch":
            headers: Mapping[str, str] = error.response.headers if error.response is not None else {}
            return Passing(said, after_s=retry_after_s({name.lower(): value for name, value in headers.items()}))
        if status == HTTPStatus.NOT_FOUND and code != "ContainerNotFound":
            return ModelMissing(f"there is no {where}")
        if status == HTTPStatus.PRECONDITION_FAILED or code in _TAKEN:
            return Replaced(f"{where} was replaced" if reading else f"{where} is another one")
        return StoreRefused(self._refusal(said, status, code), advice=self._advice(status, code))

    def _refusal(self, said: str, status: int, code: str) -> str:
        if code == "ContainerNotFound":
            return f"{self}: there is no such container"
        return f"{said}: {self._who} was refused" if status in _NOT_ALLOWED else said

    def _advice(self, status: int, code: str) -> str:
        if code == "ContainerNotFound":
            return "create it, or mend [model] store"
        if status in _NOT_ALLOWED:
            return (
                f"give it the role {ROLE} on the container (Storage Blob Data Reader, to read alone), "
                f"or choose another: [model] azure_credential; {self._who.advice}"
            )
        return ""


def _transport(endpoint: str, authority: Path | None) -> Any:
    """Return what carries the requests of all threads: as many connections, and the settings' authority."""
    from azure.core.pipeline.transport import RequestsTransport  # noqa: PLC0415 - as in `open_azure`
    from certifi import where  # noqa: PLC0415 - whom requests trusts
    from requests import Session  # noqa: PLC0415 - what Azure's transport is made of
    from requests.adapters import HTTPAdapter  # noqa: PLC0415 - as above

    session = Session()
    named = session.merge_environment_settings(endpoint, {}, None, str(authority) if authority else True, None)
    authorities = Path(where() if named["verify"] is True else named["verify"])
    try:
        if authorities.is_dir():
            context = ssl.create_default_context(capath=authorities)
        else:
            context = ssl.create_default_context(cafile=authorities)
    except OSError as error:
        raise NotConfigured(
            f"{authorities} is no file of certificates in PEM ({error})",
            advice="name one in [model] authority, or in REQUESTS_CA_BUNDLE",
        ) from error

    class Connections(HTTPAdapter):
        """With one context for all: to read the authorities anew for each takes longer than its handshake."""

        def init_poolmanager(self, *args: Any, **options: Any) -> None:
            super().init_poolmanager(*args, ssl_context=context, **options)

        def proxy_manager_for(self, proxy: Any, **options: Any) -> Any:
            return super().proxy_manager_for(proxy, ssl_context=context, **options)

        def get_connection_with_tls_context(
            self, request: Any, verify: Any, proxies: Any = None, cert: Any = None
        ) -> Any:
            del verify  # the context knows
            return super().get_connection_with_tls_context(request, verify=True, proxies=proxies, cert=cert)

        def cert_verify(self, conn: Any, *_: Any) -> None:
            conn.cert_reqs = "CERT_REQUIRED"

    session.mount("https://", Connections(pool_maxsize=2 * transfer.THREADS, max_retries=0))
    return RequestsTransport(
        session=session,
        connection_timeout=_CONNECT_S,
        read_timeout=_READ_S,
        connection_data_block_size=_BLOCK_BYTES,
    )


def _total(answer: Any) -> int:
    """Return the blob's length, which a range's answer tells; raises Azure's own error for any other answer."""
    ranged = _RANGE.fullmatch(answer.headers.get("content-range", ""))
    if answer.status_code == HTTPStatus.PARTIAL_CONTENT and ranged:
        return int(ranged[1])
    raise _refused(answer)


def _refused(answer: Any) -> Any:
    """Return Azure's own error for an answer, whose body nobody reads."""
    from azure.core.exceptions import HttpResponseError  # noqa: PLC0415 - as in `open_azure`

    error: Any = HttpResponseError(response=answer)
    error.error_code = answer.headers.get("x-ms-error-code")
    return error


class _Tokens:
    """What Azure's client asks for tokens: one identity, asked by one thread at a time, in time."""

    def __init__(self, who: Identity) -> None:
        self._who = who
        self._lock = threading.Lock()
        self._held: Any = None

    def get_token(self, *scopes: str, **asked: Any) -> Any:
        """Return a token that is still good; after a 401 the client asks with more, and gets a new one."""
        with self._lock:
            if asked.get("tenant_id") or asked.get("claims"):
                self._held = None
            if self._held is None or self._held.expires_on - _RENEW_S < time.time():
                self._held = self._who.token_in_time(scopes[0])
            return self._held


def _unanswered(where: str, error: BaseException) -> ShipwayError | Passing:
    for cause in _causes(error):
        if isinstance(cause, ssl.SSLCertVerificationError):
            return StoreUnreachable(
                f"{where}: the certificate is not trusted: {cause.verify_message}",
                advice="name the certificate authority's PEM file in [model] authority",
            )
    text = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
    return Passing(f"{where}: {text}")


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and all that led to it, wherever the libraries in between put it."""
    seen: set[int] = set()
    waiting: list[Any] = [error]
    while waiting:
        each = waiting.pop()
        if isinstance(each, BaseException) and id(each) not in seen:
            seen.add(id(each))
            yield each
            waiting += [each.__cause__, each.__context__, *each.args]
            waiting += [getattr(each, name, None) for name in ("reason", "inner_exception")]
