"""Who released a bundle: an Ed25519 signature over manifest.json, which holds the SHA-256 of every other file.

    openssl genpkey -algorithm ed25519 -out release.pem             stays with whoever releases
    openssl pkey -in release.pem -pubout -out release.pub.pem       goes onto the devices, as `model.trust_key`

signature.json lies beside the manifest: {"algorithm": "ed25519", "key_id": …, "signature": base64}.
Ed25519 as in RFC 8032; `key_id` is what `openssl pkey -pubin -in release.pub.pem -outform DER | sha256sum` prints.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from runtime.bundle import MANIFEST, Bundle
from runtime.errors import MissingPackageError, SignatureError
from runtime.files import write_atomically

if TYPE_CHECKING:  # an extra: only devices that check signatures need it
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
    from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes, PublicKeyTypes

SIGNATURE = "signature.json"
# So that a signature made for something else with the same key is none for a bundle.
_PURPOSE = b"edgeloop bundle manifest 1\n"
_FILE_BYTES = 64 << 10  # a signature file has 230 bytes and a key file 120; anything far larger is neither


class SignatureFile(BaseModel):
    """`signature.json`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    algorithm: Literal["ed25519"]
    key_id: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    signature: Annotated[str, Field(pattern=r"^[A-Za-z0-9+/]{86}==$")]  # 64 bytes


def sign_bundle(bundle: str | Path, key_pem_path: str | Path) -> SignatureFile:
    """Signs a bundle folder, or the one that a `current` link points at; an older signature is replaced.

    Raises:
        BundleError: the bundle is damaged; nothing is signed.
        SignatureError: the key cannot be used, or the signature cannot be written.
        MissingPackageError: cryptography is not installed.
    """
    key = _private_key(Path(key_pem_path))
    opened = Bundle.open(bundle)
    manifest = _read(opened.path / MANIFEST, "fetch the bundle again", 1 << 32)
    if hashlib.sha256(manifest).hexdigest() != opened.digest:
        raise SignatureError(f"{opened.path} changed while it was signed; start again")
    signature = base64.b64encode(key.sign(_PURPOSE + manifest)).decode()
    signed = SignatureFile(algorithm="ed25519", key_id=_key_id(key.public_key()), signature=signature)
    try:
        write_atomically(opened.path / SIGNATURE, signed.model_dump_json(indent=2).encode() + b"\n")
    except OSError as error:
        raise SignatureError(f"{opened.path} cannot be signed: {error.strerror}; sign a copy that can be written") from error
    return signed


def verify_bundle(bundle: str | Path, public_key_path: str | Path) -> Bundle:
    """Opens a bundle whose manifest a key signed and whose files the manifest vouches for.

    The manifest's bytes are read once: those that the signature is checked over are those that are parsed.

    Raises:
        SignatureError: unsigned, signed with another key, or altered since; or the key cannot be used.
        BundleError: as `Bundle.open`.
        MissingPackageError: cryptography is not installed.
    """
    key = _public_key(Path(public_key_path))
    return Bundle.open(bundle, lambda folder, manifest: _check(folder, manifest, key))


def _check(folder: Path, manifest: bytes, key: Ed25519PublicKey) -> None:
    from cryptography.exceptions import InvalidSignature  # an extra, and here already loaded

    path = folder / SIGNATURE
    if not path.is_file():
        raise SignatureError(
            f"{folder} is not signed, and a trust key is set; sign it with: edge-convert sign BUNDLE --key KEY"
        )
    try:
        signed = SignatureFile.model_validate_json(_read(path, "fetch the bundle again"))
        signature = base64.b64decode(signed.signature, validate=True)
    except (ValidationError, binascii.Error) as error:
        raise SignatureError(f"{path} is no signature of this kit; sign the bundle again, or fetch it again") from error
    if signed.key_id != _key_id(key):
        raise SignatureError(
            f"{folder} is signed with key {signed.key_id[:12]}…, but the trust key is {_key_id(key)[:12]}…; "
            "fetch it from whom you trust, or set their public key"
        )
    try:
        key.verify(signature, _PURPOSE + manifest)
    except InvalidSignature as error:
        raise SignatureError(f"{folder / MANIFEST} was altered after it was signed; fetch the bundle again") from error


def _private_key(path: Path) -> Ed25519PrivateKey:
    try:
        from cryptography.exceptions import UnsupportedAlgorithm
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
        from cryptography.hazmat.primitives.serialization import load_pem_private_key
    except ImportError as error:
        raise MissingPackageError("cryptography", "sign") from error
    make = "make one with: openssl genpkey -algorithm ed25519 -out KEY"
    data = _read(path, make)
    try:
        key: PrivateKeyTypes = load_pem_private_key(data, password=None)
    except TypeError as error:
        raise SignatureError(
            f"{path} is encrypted, and signing asks for no password; decrypt it with: openssl pkey -in {path} -out KEY"
        ) from error
    except (ValueError, UnsupportedAlgorithm) as error:
        raise SignatureError(f"{path} holds no private key in PEM form; {make}") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise SignatureError(f"{path} holds another kind of key than Ed25519; {make}")
    return key


def _public_key(path: Path) -> Ed25519PublicKey:
    try:
        from cryptography.exceptions import UnsupportedAlgorithm
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
        from cryptography.hazmat.primitives.serialization import load_pem_public_key
    except ImportError as error:
        raise MissingPackageError("cryptography", "sign") from error
    make = "take it out of the private one with: openssl pkey -in KEY -pubout -out PUBLIC"
    data = _read(path, make)
    if b"PRIVATE KEY" in data:
        raise SignatureError(f"{path} holds a private key, which belongs on no device; {make}")
    try:
        key: PublicKeyTypes = load_pem_public_key(data)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise SignatureError(f"{path} holds no public key in PEM form; {make}") from error
    if not isinstance(key, Ed25519PublicKey):
        raise SignatureError(f"{path} holds another kind of key than Ed25519; {make} from an Ed25519 key")
    return key


def _key_id(key: Ed25519PublicKey) -> str:
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat  # an extra, and here already loaded

    return hashlib.sha256(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).hexdigest()


def _read(path: Path, remedy: str, limit: int = _FILE_BYTES) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(limit + 1)
    except (OSError, ValueError) as error:  # ValueError: a null byte in the path
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise SignatureError(f"{path} cannot be read: {reason}; {remedy}") from error
    if len(data) > limit:
        raise SignatureError(f"{path} is larger than {limit} bytes and cannot be a key or signature; {remedy}")
    return data
