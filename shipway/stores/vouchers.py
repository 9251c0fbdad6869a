"""The signatures in a store: written before the manifest that they are about, and asked for before it is believed.

Owns where they lie, and whose word is enough: `Keys` says who signs here and who is trusted.
What signing is, `signing` knows. Raises `ModelUntrusted`, which says what there is in place of
a trusted signature.
"""

from __future__ import annotations

import contextlib
import re

from shipway import documents
from shipway.artifacts import Digest
from shipway.errors import ModelUntrusted
from shipway.stores import places, signing
from shipway.stores.manifest import ModelVersion
from shipway.stores.objects import Store
from shipway.stores.signing import Keys, PublicKey

_SIGNATURE = re.compile(r"([0-9a-f]{64})-([0-9a-f]{64})\.json")
_CLAIMED = {"version", "publisher", "commit", "created"}  # what two publishers of one content may say differently


class Vouchers:
    """Who vouches for the versions of one store. A version is given as its manifest's bytes and what they say."""

    def __init__(self, store: Store, keys: Keys) -> None:
        """Look into a store with these keys."""
        self._store = store
        self._keys = keys

    # -- signing -------------------------------------------------------------------------

    def require_signer(self) -> None:
        """Raise `ModelUntrusted` before anything is written that nobody here would take."""
        signer, trusted = self._keys.signer, self._keys.trusted
        if trusted and not (signer and signer.public in trusted):
            who = f"the signing key is {signer.public}, which is none of them" if signer else "there is no signing key"
            raise ModelUntrusted(
                f"this environment takes what [model] trusted_keys signed, and {who}",
                advice="name the file of a trusted private key in [model] signing_key",
            )

    def sign(self, data: bytes, version: ModelVersion) -> str | None:
        """Store the signature of a manifest, which may be yet to come; return where, if anything signs here."""
        if self._keys.signer is None:
            return None
        key = _place(data, version, self._keys.signer.public)
        self._keep(key, signing.signed(data, version, self._keys.signer))
        return key

    def sign_known(self, data: bytes, known: ModelVersion, measured: ModelVersion) -> None:
        """Sign what somebody published before, if it is what this publisher measured of the same content.

        Raises `ModelUntrusted` if it is not, and nobody vouches for it either.
        """
        signer = self._keys.signer
        if signer is None or self._holds(data, known, signer.public):
            return
        told = [name for name in documents.keys(ModelVersion) if name not in _CLAIMED]
        differs = [name for name in told if getattr(known, name) != getattr(measured, name)]
        if not differs:
            self.sign(data, known)
        elif not self._is_vouched_for(data, known):
            raise ModelUntrusted(
                f"version {known.version} of {known.name} holds this content already, but with other "
                f"{', '.join(differs)}, and {signer.public} does not vouch for that",
                advice="publish with the same --metric as then to sign it",
            )

    def copy(self, source: Vouchers, data: bytes, version: ModelVersion) -> None:
        """Bring the signatures that hold from another store."""
        for public in source.signers(data, version):
            key = _place(data, version, public)
            if stored := source._store.read(key):
                self._keep(key, stored.data)

    def _keep(self, key: str, envelope: bytes) -> None:
        """Store a signature; one that is damaged is replaced."""
        while not self._store.create(key, envelope):
            stored = self._store.read(key)
            if stored and (stored.data == envelope or self._store.replace(key, envelope, etag=stored.etag)):
                return

    # -- checking ------------------------------------------------------------------------

    def signers(self, data: bytes, version: ModelVersion) -> tuple[PublicKey, ...]:
        """Return whose signatures hold, trusted or not."""
        found = [key for signed, key in self._found(version) if signed == Digest.of(data)]
        return tuple(key for key in found if self._holds(data, version, key))

    def require_trust(self, data: bytes, version: ModelVersion) -> None:
        """Raise `ModelUntrusted` where keys are trusted and none of them signed this manifest."""
        reasons = []
        for key in self._keys.trusted:
            stored = self._store.read(_place(data, version, key))
            try:
                if stored:
                    signing.check(stored.data, data, version, key)
                    return
            except ValueError as error:
                reasons.append(f"its signature by {key} {error}")
        if self._keys.trusted:
            why = "; ".join(reasons) or self._instead(data, version)
            raise ModelUntrusted(f"version {version.version} of {version.name} in {self._store} is refused: {why}")

    def _instead(self, data: bytes, version: ModelVersion) -> str:
        """Say what there is in place of a trusted signature."""
        found, digest = self._found(version), Digest.of(data)
        if altered := [key for signed, key in found if signed != digest and key in self._keys.trusted]:
            return f"it is not what {altered[0]} signed: its manifest was altered or exchanged"
        if others := [str(key) for signed, key in found if signed == digest]:
            return f"it is signed by {', '.join(others)}, and [model] trusted_keys has none of them"
        return "it is not signed"

    def _is_vouched_for(self, data: bytes, version: ModelVersion) -> bool:
        """Whether somebody's signature holds: a trusted one's where any are trusted."""
        signers = self.signers(data, version)
        return any(key in self._keys.trusted for key in signers) if self._keys.trusted else bool(signers)

    def _holds(self, data: bytes, version: ModelVersion, key: PublicKey) -> bool:
        stored = self._store.read(_place(data, version, key))
        with contextlib.suppress(ValueError):
            if stored:
                signing.check(stored.data, data, version, key)
                return True
        return False

    def _found(self, version: ModelVersion) -> list[tuple[Digest, PublicKey]]:
        """Return what lies under a version's number: of which manifest, by whom."""
        names = self._store.children(f"{version.name}/signatures/{version.version}")
        found = (_SIGNATURE.fullmatch(name) for name in sorted(names))
        return [(Digest(f"sha256:{match[1]}"), PublicKey(bytes.fromhex(match[2]))) for match in found if match]


def _place(data: bytes, version: ModelVersion, key: PublicKey) -> str:
    return places.signature(version.name, version.version, Digest.of(data), key.id)
