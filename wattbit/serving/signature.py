"""Ed25519 signatures (RFC 8032) of a bundle's manifest; needs the extra ``sign``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from wattbit.errors import BundleError
from wattbit.storage.regular_file import read_regular

_SIGNATURE_BYTES = 64
_KEY_BYTES = 32


def sign(content: bytes, private_key: Any) -> bytes:
    """The signature of ``content``, 64 bytes.

    Args:
        content: What to sign.
        private_key: 32 bytes, a PEM text without a password, or an ``Ed25519PrivateKey``.

    Raises:
        BundleError: If it is no such key, or the extra is not installed.
    """
    signature: bytes = _key(private_key, private=True).sign(content)
    return signature


def require_signature(path: Path, content: bytes, public_key: Any) -> None:
    """Make sure that the file at ``path`` signs ``content``.

    Args:
        path: The signature's file.
        content: What must be signed.
        public_key: 32 bytes, a PEM text, or an ``Ed25519PublicKey``.

    Raises:
        BundleError: If it does not, is missing, or the key is none.
    """
    key = _key(public_key, private=False)
    try:
        signature = read_regular(path, _SIGNATURE_BYTES, follow_links=False)
    except OSError as error:
        raise BundleError(
            f"cannot read signature {path}: {error.strerror}; export the bundle with signing_key"
        ) from None
    from cryptography.exceptions import InvalidSignature

    try:
        key.verify(signature, content)
    except InvalidSignature:
        raise BundleError(
            f"{path} is not the signature of this manifest by the public key given; "
            "ask whoever signs your bundles"
        ) from None


def _key(given: Any, *, private: bool) -> Any:
    try:
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import ed25519
    except ImportError:
        raise BundleError(
            "signatures need the package cryptography; install it with pip install 'wattbit[sign]'"
        ) from None
    kind: Any = ed25519.Ed25519PrivateKey if private else ed25519.Ed25519PublicKey
    key = given.encode() if isinstance(given, str) else given
    try:
        if isinstance(key, bytes) and len(key) == _KEY_BYTES:
            key = kind.from_private_bytes(key) if private else kind.from_public_bytes(key)
        elif isinstance(key, bytes):
            load = serialization.load_pem_public_key
            key = serialization.load_pem_private_key(key, None) if private else load(key)
    except (TypeError, ValueError) as error:
        key = error
    if not isinstance(key, kind):
        raise BundleError(
            f"the {'signing' if private else 'public'} key is no Ed25519 key; give its 32 bytes or PEM text"
        )
    return key
