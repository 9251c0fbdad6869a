"""A bucket of S3, or of any server that speaks its protocol, as a store: `s3://BUCKET/PREFIX`.

Owns the mapping of keys to objects, conditional writes, and the words of S3's failures. The
credential is found as AWS's own tools find it, or in the profile that the settings name.
Knows nothing of models. boto3 neither asks again nor goes parallel here: what is asked again,
and how long, is `patience`'s business, and a body that ends early is looked for.
https://docs.aws.amazon.com/AmazonS3/latest/API/API_Operations_Amazon_Simple_Storage_Service.html
"""

from __future__ import annotations

import contextlib
import io
import re
import threading
from collections.abc import Iterable, Iterator
from functools import partial
from http import HTTPStatus
from typing import Any

from shipway.entra import DEADLINE_S, within
from shipway.errors import (
    LoginMissing,
    ModelMissing,
    NotConfigured,
    ShipwayError,
    StoreRefused,
    StoreUnreachable,
)
from shipway.stores import transfer
from shipway.stores.objects import Access, Found, Replaced, Stored, small
from shipway.stores.patience import TRANSIENT, Clock, Passing, persist, resumed, retry_after_s

_ADDRESS = re.compile(r"s3://([a-z0-9][a-z0-9.-]{1,61}[a-z0-9])((?:/[A-Za-z0-9_][A-Za-z0-9_.-]*)*)/?")
_PART_BYTES = 5 << 20  # the least that S3 takes
_MOST_PARTS = 10_000
_AT_ONCE = 6  # parts on their way, which are in memory
_CONNECT_S, _READ_S = 10, 30
_BLOCK_BYTES = 1 << 18  # read of a connection at once: what came of one is lost when it is cut
_RANGE = re.compile(r"bytes \d+-\d+/(\d+)")
_LOGIN = {
    "InvalidAccessKeyId",
    "SignatureDoesNotMatch",
    "ExpiredToken",
    "InvalidToken",
    "AccessDenied",
    "TokenRefreshRequired",
}
_BUSY = {
    "SlowDown",
    "RequestTimeout",
    "RequestTimeTooSkewed",
    "BadDigest",
    "InternalError",
    "ConditionalRequestConflict",
    "OperationAborted",
}


def open_s3(address: str, access: Access, *, clock: Clock | None = None) -> Bucket:
    """Name a bucket; nobody is asked yet. Raises `NotConfigured`."""
    match = _ADDRESS.fullmatch(address)
    if match is None:
        raise NotConfigured(f"[model] store = {address!r} is no bucket of S3", advice="write s3://BUCKET/PREFIX")
    try:
        import boto3  # noqa: F401, PLC0415 - heavy, and needed only for S3
    except ImportError as error:
        raise NotConfigured(
            f"{address} needs boto3, which is not installed", advice="pip install '.[s3]' in a clone of shipway"
        ) from error
    bucket, prefix = match.groups()
    return Bucket(bucket, prefix.strip("/"), access=access, clock=clock or Clock())


class Bucket:
    """A `Store` in a bucket, which must exist."""

    def __init__(self, bucket: str, prefix: str, *, access: Access, clock: Clock) -> None:
        """Take the bucket, and where in it the keys begin."""
        self._bucket = bucket
        self._prefix = f"{prefix}/" if prefix else ""
        self._access = access
        self._clock = clock
        self._made = threading.Lock()
        self._held: Any = None
        self._who = "no credential"

    def __str__(self) -> str:
        return f"s3://{self._bucket}/{self._prefix}".rstrip("/")

    def read(self, key: str) -> Stored | None:
        """See `Store.read`."""

        def once(_again: bool) -> Stored:  # noqa: FBT001 - of `persist`
            with self._translated(key):
                got = self._client.get_object(**self._named(key))
                with contextlib.closing(got["Body"]) as body:
                    data = small(iter(partial(body.read, _BLOCK_BYTES), b""), f"{self}/{key}")
                return Stored(data=data, etag=got["ETag"])

        try:
            return persist(self._clock, once)
        except ModelMissing:
            return None

    def create(self, key: str, data: bytes) -> bool:
        """See `Store.create`."""
        return self._write(key, data, IfNoneMatch="*")

    def replace(self, key: str, data: bytes, *, etag: str) -> bool:
        """See `Store.replace`."""
        return self._write(key, data, IfMatch=etag)

    def find(self, key: str) -> Found | None:
        """See `Store.find`."""

        def once(_again: bool) -> Found:  # noqa: FBT001 - of `persist`
            with self._translated(key):
                found = self._client.head_object(**self._named(key))
                return Found(size_bytes=found["ContentLength"], etag=found["ETag"])

        try:
            return persist(self._clock, once)
        except ModelMissing:
            return None

    def put(self, key: str, pieces: Iterable[bytes], *, size_bytes: int) -> None:
        """See `Store.put`; parts are sent several at a time, and become the object at once."""
        part_bytes = max(_PART_BYTES, -(-size_bytes // _MOST_PARTS))
        if size_bytes <= part_bytes:
            data = b"".join(pieces)
            transfer.require_size(len(data), size_bytes)
            self._write(key, data)
            return
        upload: dict[str, Any] = {"UploadId": self._ask(key, "create_multipart_upload")["UploadId"]}
        try:

            def part(number: int, data: bytes) -> dict[str, Any]:
                done = self._ask(key, "upload_part", **upload, PartNumber=number, body=data)
                return {"PartNumber": number, "ETag": done["ETag"]}

            parts = transfer.send(pieces, size_bytes, part_bytes, part, threads=_AT_ONCE)
            self._complete(key, upload, parts, size_bytes)
        except BaseException:
            with contextlib.suppress(ShipwayError):  # a rule of the bucket's life cycle sweeps what is left
                self._ask(key, "abort_multipart_upload", **upload)
            raise

    def stream(self, key: str, *, start: int, stop: int, etag: str | None = None) -> Iterator[bytes]:
        """See `Store.stream`."""
        return resumed(self._clock, partial(self._stream, key, stop, etag), start)

    def delete(self, key: str) -> None:
        """See `Store.delete`."""
        self._ask(key, "delete_object")

    def children(self, folder: str) -> list[str]:
        """See `Store.children`."""
        prefix = self._prefix + (f"{folder}/" if folder else "")
        found: list[str] = []
        after: dict[str, str] = {}
        while True:
            page = persist(self._clock, partial(self._page, prefix, after))
            found += [each["Prefix"].removeprefix(prefix).rstrip("/") for each in page.get("CommonPrefixes", ())]
            found += [each["Key"].removeprefix(prefix) for each in page.get("Contents", ())]
            if not page.get("IsTruncated"):
                return [name for name in found if name]
            after = {"ContinuationToken": page["NextContinuationToken"]}

    def _page(self, prefix: str, after: dict[str, str], _again: bool) -> Any:  # noqa: FBT001 - of `persist`
        with self._translated(prefix):
            return self._client.list_objects_v2(Bucket=self._bucket, Prefix=prefix, Delimiter="/", **after)

    def _stream(self, key: str, stop: int, etag: str | None, start: int) -> Iterator[bytes]:
        if start >= stop:
            return
        condition = {"IfMatch": etag} if etag else {}
        with self._translated(key, reading=True):
            try:
                got = self._client.get_object(**self._named(key), Range=f"bytes={start}-{stop - 1}", **condition)
            except Exception as error:
                if _status(error) == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
                    return
                raise
            with contextlib.closing(got["Body"]) as body:
                ranged = _RANGE.fullmatch(got.get("ContentRange", ""))
                if ranged is None:
                    raise StoreRefused(f"{self}/{key}: the store does not send a part of an object")
                left = min(stop, int(ranged[1])) - start
                while piece := body.read(min(_BLOCK_BYTES, left)) if left else b"":
                    left -= len(piece)
                    yield piece
        if left:
            raise Passing(f"{self}/{key}: the last {left:,} bytes did not come")

    def _write(self, key: str, data: bytes, **condition: str) -> bool:
        def once(again: bool) -> bool:  # noqa: FBT001 - of `persist`
            try:
                with self._translated(key):
                    self._client.put_object(**self._named(key), Body=data, **condition)
            except (Replaced, ModelMissing):
                stored = self.read(key) if again else None  # the answer to an earlier try may have been lost
                return stored is not None and stored.data == data
            return True

        return persist(self._clock, once)

    def _complete(self, key: str, upload: dict[str, Any], parts: list[dict[str, Any]], size_bytes: int) -> None:
        try:
            self._ask(key, "complete_multipart_upload", **upload, MultipartUpload={"Parts": parts})
        except (
            ModelMissing
        ):  # the answer to an earlier try may have been lost: then the upload is gone, and the object is there
            found = self.find(key)
            if found is None or found.size_bytes != size_bytes:
                raise

    def _ask(self, key: str, operation: str, *, body: bytes | None = None, **more: Any) -> Any:
        def once(_again: bool) -> Any:  # noqa: FBT001 - of `persist`
            if body is not None:
                more["Body"] = io.BytesIO(body)  # anew for each try; bytes would be copied once more on their way
            with self._translated(key):
                return getattr(self._client, operation)(**self._named(key), **more)

        return persist(self._clock, once)

    def _named(self, key: str) -> dict[str, str]:
        return {"Bucket": self._bucket, "Key": self._prefix + key}

    @property
    def _client(self) -> Any:
        """boto3's client, made once there is a credential."""
        with self._made:
            if self._held is None:
                self._held = self._connected()
            return self._held

    def _connected(self) -> Any:
        import boto3  # noqa: PLC0415 - as in `open_s3`
        from botocore import exceptions  # noqa: PLC0415 - as in `open_s3`
        from botocore.config import Config  # noqa: PLC0415 - as in `open_s3`

        access = self._access
        asked = f"the profile {access.profile}" if access.profile else "AWS's usual chain"

        def find() -> tuple[Any, Any]:
            session = boto3.Session(profile_name=access.profile, region_name=access.region)
            credential = session.get_credentials()
            if credential is not None:
                credential.get_frozen_credentials()  # a role is assumed here
            return session, credential

        try:
            session, credential = within(DEADLINE_S, find)
        except TimeoutError as error:
            raise LoginMissing(f"{asked} gave no credential within {DEADLINE_S:g} s", advice=_ADVICE) from error
        except exceptions.BotoCoreError as error:
            why = (str(error) or repr(error)).splitlines()[0][:300]
            raise LoginMissing(f"{asked} gave no credential for {self}", tail=why, advice=_ADVICE) from error
        if credential is None:
            raise LoginMissing(f"{asked} has no credential for {self}", advice=_ADVICE)
        self._who = f"the credential from {asked} ({credential.method})"
        return session.client(
            "s3",
            endpoint_url=access.endpoint,
            verify=str(access.authority) if access.authority else None,
            config=Config(
                retries={"total_max_attempts": 1},
                connect_timeout=_CONNECT_S,
                read_timeout=_READ_S,
                max_pool_connections=2 * transfer.THREADS,
                s3={"addressing_style": "path" if access.endpoint else "auto"},
            ),
        )

    @contextlib.contextmanager
    def _translated(self, key: str, *, reading: bool = False) -> Iterator[None]:
        """Turn boto3's failures into ours, and tell those that may pass from those that stay."""
        from botocore import exceptions  # noqa: PLC0415 - as in `open_s3`
        from urllib3.exceptions import HTTPError  # noqa: PLC0415 - a body's, which boto3 lets through

        where = f"{self}/{key}"
        try:
            yield
        except exceptions.ClientError as error:
            raise self._failure(where, error, reading=reading) from error
        except exceptions.SSLError as error:
            raise StoreUnreachable(
                f"{where}: the certificate is not trusted: {error}",
                advice="name the certificate authority's PEM file in [model] authority",
            ) from error
        except (
            exceptions.NoCredentialsError,
            exceptions.CredentialRetrievalError,
            exceptions.TokenRetrievalError,
        ) as error:
            raise LoginMissing(f"{self._who} is none any more", tail=str(error), advice=_ADVICE) from error
        except exceptions.NoRegionError as error:
            raise NotConfigured(f"{self}: no region is known", advice="set [model] region") from error
        except (exceptions.BotoCoreError, HTTPError, OSError) as error:  # no answer, or not a whole one
            raise Passing(f"{where}: {str(error).splitlines()[0][:200] or type(error).__name__}") from error

    def _failure(self, where: str, error: Any, *, reading: bool) -> ShipwayError | Passing:
        status, code = _status(error), str(error.response.get("Error", {}).get("Code", ""))
        said = f"{where}: {status} {code}"
        if status in TRANSIENT or code in _BUSY:
            return Passing(said, after_s=retry_after_s(error.response["ResponseMetadata"].get("HTTPHeaders", {})))
        if code == "NoSuchBucket":
            return StoreRefused(f"{self}: there is no such bucket", advice="create it, or mend [model] store")
        if status == HTTPStatus.NOT_FOUND:
            return ModelMissing(f"there is no {where}")
        if status == HTTPStatus.PRECONDITION_FAILED:
            return Replaced(f"{where} was replaced" if reading else f"{where} is another one")
        if status in {HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN} or code in _LOGIN:
            return StoreRefused(
                f"{said}: {self._who} was refused",
                advice="docs/stores.md has the policy that it needs; or choose another: [model] profile, AWS_PROFILE",
            )
        return StoreRefused(said)


_ADVICE = "aws configure, aws sso login, or set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY; or name a [model] profile"


def _status(error: Any) -> int:
    response = getattr(error, "response", None) or {}
    return int(response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
