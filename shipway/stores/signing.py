"""Who vouches for a version: keys, what they sign, and whose word counts.

Owns the keys (Ed25519), the statement about a manifest (in-toto) and its envelope (DSSE). A
statement follows from the manifest's own bytes, so that to check one is to make it again and
compare. Knows nothing of stores. Nothing of a private key gets into a message or a `repr`;
`cryptography` is imported where a key is used. Wrong keys are `ConfigError`s; a signature
that does not hold is a `ValueError` with the reason.
https://github.com/secure-systems-lab/dsse/blob/master/protocol.md
https://github.com/in-toto/attestation/tree/main/spec/v1
"""

from __future__ import annotations

import base64
import binascii
import json
import os
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from msgspec import Struct

from shipway import documents
from shipway.artifacts import Digest
from shipway.config import ModelSettings
from shipway.documents import Document, Malformed
from shipway.errors import ConfigError
from shipway.stores.manifest import ModelVersion

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

PREDICATE = "https://shipway.dev/model/v1"
_STATEMENT = "https://in-toto.io/Statement/v1"
_PAYLOAD = "application/vnd.in-toto+json"
_PREFIX, _KEY_BYTES = "ed25519:", 32
_OTHERS = stat.S_IRWXG | stat.S_IRWXO
_HOW = "invoke model.keygen FILE makes a key and prints its public half"


class PublicKey(Struct, frozen=True, order=True):
    """Whose signature it is. `str()` is `ed25519:` and the key in base64, as release.toml holds it."""

    raw: bytes

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `ed25519:BASE64`; raises `ValueError`."""
        try:
            raw = base64.b64decode(text.removeprefix(_PREFIX), validate=True)
        except binascii.Error:
            raw = b""
        if not text.startswith(_PREFIX) or len(raw) != _KEY_BYTES:
            message = f"{text[:80]!r} is no public key: {_PREFIX} and 44 letters of base64"
            raise ValueError(message)
        return cls(raw)

    @property
    def id(self) -> str:
        """The key in hexadecimal: names its signatures in a store."""
        return self.raw.hex()

    def __str__(self) -> str:
        return _PREFIX + base64.b64encode(self.raw).decode()


class Signer:
    """A private key, which can sign and say its public half, and nothing else."""

    __slots__ = ("_key", "public")

    def __init__(self, key: Ed25519PrivateKey) -> None:
        """Take a key of `cryptography`."""
        self._key = key
        self.public = PublicKey(key.public_key().public_bytes_raw())

    @classmethod
    def parse(cls, pem: bytes, *, where: str) -> Self:
        """Read a private key in PEM; raises `ConfigError` that says where, and nothing of the key."""
        from cryptography.exceptions import UnsupportedAlgorithm  # noqa: PLC0415 - slow, and most commands sign nothing
        from cryptography.hazmat.primitives import serialization  # noqa: PLC0415 - as above
        from cryptography.hazmat.primitives.asymmetric import ed25519  # noqa: PLC0415 - as above

        try:
            key = serialization.load_pem_private_key(pem, password=None)
        except (ValueError, TypeError, UnsupportedAlgorithm):  # whose messages might quote the key
            key = None
        if not isinstance(key, ed25519.Ed25519PrivateKey):
            raise ConfigError(f"{where} holds no Ed25519 private key in PEM, without a passphrase", advice=_HOW)
        return cls(key)

    def sign(self, payload: bytes) -> bytes:
        """Return the signature of `payload`."""
        return self._key.sign(payload)

    def __repr__(self) -> str:
        return f"Signer({self.public})"


class Keys(Struct, frozen=True, kw_only=True):
    """Whose signature counts (nobody's: none is asked for), and what publishing signs with."""

    trusted: tuple[PublicKey, ...] = ()
    signer: Signer | None = None

    @classmethod
    def of(cls, settings: ModelSettings, *, root: Path, environ: Mapping[str, str], signs: bool = False) -> Self:
        """Read the trusted keys that `[model]` names and, with `signs`, the private one; raises `ConfigError`.

        That comes from the variable that the settings name, or else from the file.
        """
        pem = environ.get(settings.signing_key_variable) if signs else None
        keys = cls.read(None if pem or not signs else settings.signing_key, trusted=settings.trusted_keys, root=root)
        if not pem:
            return keys
        signer = Signer.parse(pem.encode(), where=f"the variable {settings.signing_key_variable}")
        return cls(trusted=keys.trusted, signer=signer)

    @classmethod
    def read(cls, signing_key: str | None = None, *, trusted: Sequence[str] = (), root: Path = Path()) -> Self:
        """Read a private key's file, and the keys that are trusted, each as `[model]` has it; raises `ConfigError`."""
        return cls(
            trusted=tuple(dict.fromkeys(_trusted(text, root) for text in trusted)),
            signer=None if signing_key is None else _signer(root / Path(signing_key).expanduser()),
        )


def keygen(path: Path) -> PublicKey:
    """Make a key: the private half goes into a new file that its owner alone may read; the other is returned."""
    from cryptography.hazmat.primitives import serialization  # noqa: PLC0415 - slow, and used here alone
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey  # noqa: PLC0415 - as above

    key = Ed25519PrivateKey.generate()
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600), "wb") as file:
            file.write(pem)
            os.fsync(file.fileno())
    except FileExistsError as error:
        raise ConfigError(
            f"{path} exists already", advice="name a file that does not: a key is never replaced"
        ) from error
    return Signer(key).public


# -- signing and checking ------------------------------------------------------------------


class _Signature(Document, frozen=True, kw_only=True):
    keyid: str = ""
    sig: str


class _Envelope(Document, frozen=True, kw_only=True):
    """https://github.com/secure-systems-lab/dsse/blob/master/envelope.md."""

    payloadType: str  # noqa: N815 - DSSE's name
    payload: str
    signatures: list[_Signature]


def signed(data: bytes, version: ModelVersion, signer: Signer) -> bytes:
    """Return the envelope of a statement about the manifest that these bytes are; the same each time."""
    payload = json.dumps(_statement(data, version), sort_keys=True, separators=(",", ":")).encode()
    signature = _Signature(keyid=signer.public.id, sig=_base64(signer.sign(_to_sign(_PAYLOAD, payload))))
    envelope = _Envelope(payloadType=_PAYLOAD, payload=_base64(payload), signatures=[signature])
    return documents.encoded(envelope)


def check(envelope: bytes, data: bytes, version: ModelVersion, key: PublicKey) -> None:
    """Raise `ValueError` unless `key` signed a statement about this very manifest."""
    try:
        read = documents.parse(_Envelope, envelope)
        payload = base64.b64decode(read.payload, validate=True)
        signatures = [base64.b64decode(each.sig, validate=True) for each in read.signatures]
    except (Malformed, binascii.Error) as error:
        message = "is damaged"
        raise ValueError(message) from error
    if not any(_is_by(key, signature, _to_sign(read.payloadType, payload)) for signature in signatures):
        message = "is wrong"
        raise ValueError(message)
    if read.payloadType != _PAYLOAD:
        message = f"is about {read.payloadType!a}, which is no statement"
        raise ValueError(message)
    _compare(payload, _statement(data, version))


def _statement(data: bytes, version: ModelVersion) -> dict[str, Any]:
    """Say which manifest it is by its hash, and of which model and version by name."""
    return {
        "_type": _STATEMENT,
        "subject": [
            {"name": f"{version.name}/versions/{version.version}.json", "digest": {"sha256": Digest.of(data).hex}}
        ],
        "predicateType": PREDICATE,
        "predicate": {
            "name": version.name,
            "version": version.version,
            "digest": version.digest,
            "layer": version.layer.digest,
        },
    }


def _compare(payload: bytes, expected: Mapping[str, Any]) -> None:
    try:
        said = json.loads(payload)
    except (ValueError, RecursionError) as error:
        message = "is about what is no JSON"
        raise ValueError(message) from error
    if said == expected:
        return
    predicate = said.get("predicate") if isinstance(said, dict) else None
    about = predicate if isinstance(predicate, dict) else {}
    message = "is about other content"
    if (about.get("name"), about.get("version")) != (expected["predicate"]["name"], expected["predicate"]["version"]):
        message = f"is about version {str(about.get('version'))[:20]!a} of {str(about.get('name'))[:100]!a}"
    raise ValueError(message)


def _to_sign(kind: str, payload: bytes) -> bytes:
    """DSSE's pre-authentication encoding."""
    return b"DSSEv1 %d %s %d %s" % (len(kind.encode()), kind.encode(), len(payload), payload)


def _is_by(key: PublicKey, signature: bytes, message: bytes) -> bool:
    from cryptography.exceptions import InvalidSignature  # noqa: PLC0415 - slow, and most commands check nothing
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey  # noqa: PLC0415 - as above

    try:
        Ed25519PublicKey.from_public_bytes(key.raw).verify(signature, message)
    except (InvalidSignature, ValueError):
        return False
    return True


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


# -- reading keys --------------------------------------------------------------------------


def _trusted(text: str, root: Path) -> PublicKey:
    """Read an entry of `trusted_keys`: the key itself, or a file that holds it."""
    try:
        return PublicKey.parse(text if text.startswith(_PREFIX) else (root / text).read_text("utf-8").strip())
    except (OSError, ValueError) as error:
        what = error.strerror if isinstance(error, OSError) else error
        raise ConfigError(f"[model] trusted_keys: {text[:80]}: {what}", advice=_HOW) from error


def _signer(path: Path) -> Signer:
    """Read a private key that nobody else may read."""
    try:
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_mode & _OTHERS:
                raise ConfigError(f"[model] signing_key: others may read {path}", advice=f"chmod 600 {path}")
            return Signer.parse(file.read(), where=str(path))
    except OSError as error:
        raise ConfigError(f"[model] signing_key: {path}: {error.strerror}", advice=_HOW) from error
