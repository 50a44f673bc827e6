"""Signatures over manifests: made with a private key in PEM, checked with the public key that they carry.

    signed bytes = "loraplex adapter manifest v1\\n" + Manifest.canonical_json()

A valid signature says that its key's owner signed these files; whether that key is wanted is for others to say. Ed25519
keys sign, and EC keys (P-256, P-384, P-521), which are those of OpenSSF's `model_signing sign key`. That package itself
signs a statement in a format of its own, and brings sigstore's network clients with it; we sign 200 bytes of JSON.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from pathlib import Path

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric.ec import (
    ECDSA,
    SECP256R1,
    SECP384R1,
    SECP521R1,
    EllipticCurvePrivateKey,
    EllipticCurvePublicKey,
)
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from adapter.manifest import Manifest
from registry.errors import InvalidKey, SignatureInvalid
from registry.resources import Signature

PREFIX = b"loraplex adapter manifest v1\n"
# The longest signature is about 140 bytes and the longest key 300, both as text.
MAX_BUNDLE_CHARS = 4096
MAX_KEY_CHARS = 2048
_HASHES: dict[str, hashes.HashAlgorithm] = {
    SECP256R1.name: hashes.SHA256(),
    SECP384R1.name: hashes.SHA384(),
    SECP521R1.name: hashes.SHA512(),
}

PrivateKey = Ed25519PrivateKey | EllipticCurvePrivateKey
PublicKey = Ed25519PublicKey | EllipticCurvePublicKey


def load_private_key(path: Path, password: str | None = None) -> PrivateKey:
    """A private key in PEM. Raises InvalidKey, and OSError when the file cannot be read."""
    try:
        key = serialization.load_pem_private_key(path.read_bytes(), password.encode() if password else None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise InvalidKey(f"{path}: expected a private key in PEM, found none that can be read: {error}") from error
    if isinstance(key, Ed25519PrivateKey) or (isinstance(key, EllipticCurvePrivateKey) and key.curve.name in _HASHES):
        return key
    raise InvalidKey(f"{path}: expected an Ed25519 key or one on P-256, P-384 or P-521, found another kind")


def read_public_key(text: str) -> PublicKey:
    """A public key in PEM. Raises InvalidKey."""
    try:
        if len(text) > MAX_KEY_CHARS:
            raise ValueError(f"{len(text)} characters")
        key = serialization.load_pem_public_key(text.encode())
    except (ValueError, UnsupportedAlgorithm) as error:
        raise InvalidKey(f"expected a public key in PEM, found none that can be read: {error}") from error
    if isinstance(key, Ed25519PublicKey) or (isinstance(key, EllipticCurvePublicKey) and key.curve.name in _HASHES):
        return key
    raise InvalidKey("expected an Ed25519 key or one on P-256, P-384 or P-521, found another kind")


def write_public_key(key: PublicKey) -> str:
    """In PEM; the same key has one form."""
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    return key.public_bytes(serialization.Encoding.PEM, form).decode()


def key_id(key: PublicKey) -> str:
    """`sha256:` and the digest of the key's DER form."""
    der = key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return f"sha256:{hashlib.sha256(der).hexdigest()}"


def sign(manifest: Manifest, key: PrivateKey) -> Signature:
    """The signature of a manifest by a key."""
    data = PREFIX + manifest.canonical_json()
    if isinstance(key, Ed25519PrivateKey):
        algorithm, signature = "ed25519", key.sign(data)
    else:
        algorithm, signature = "ecdsa", key.sign(data, ECDSA(_HASHES[key.curve.name]))
    public = key.public_key()
    bundle = {
        "algorithm": algorithm,
        "public_key": write_public_key(public),
        "signature": base64.b64encode(signature).decode(),
    }
    return Signature(key_id(public), json.dumps(bundle))


def check_signature(manifest: Manifest, signature: Signature) -> None:
    """Raises SignatureInvalid unless the key of the signature's id signed the manifest."""
    data = PREFIX + manifest.canonical_json()
    try:
        bundle = json.loads(signature.bundle[: MAX_BUNDLE_CHARS + 1])
        algorithm, value = bundle["algorithm"], base64.b64decode(bundle["signature"], validate=True)
        key = read_public_key(bundle["public_key"])
    except (ValueError, KeyError, TypeError, AttributeError, binascii.Error, InvalidKey) as error:
        raise SignatureInvalid(f"the bundle cannot be read: {error}", field="signature.bundle") from error
    if key_id(key) != signature.key_id:
        raise SignatureInvalid(
            f"expected a signature by the key {signature.key_id}, found {key_id(key)}", field="signature.key_id"
        )
    try:
        if isinstance(key, Ed25519PublicKey) and algorithm == "ed25519":
            key.verify(value, data)
            return
        if isinstance(key, EllipticCurvePublicKey) and algorithm == "ecdsa":
            key.verify(value, data, ECDSA(_HASHES[key.curve.name]))
            return
    except InvalidSignature as error:
        raise SignatureInvalid(f"it is not of the manifest {manifest.digest}", field="signature") from error
    raise SignatureInvalid(f"expected the algorithm of its key, found {algorithm!r}", field="signature.bundle")
