from __future__ import annotations

import base64
import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

pytest.importorskip("cryptography", reason="pip install 'edgeloop[sign]'")

from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from runtime.bundle import Bundle
from runtime.errors import BundleError, SignatureError
from runtime.signature import sign_bundle, verify_bundle
from tests.conftest import ROOT


def write_keys(folder: Path, name: str, key: Ed25519PrivateKey | rsa.RSAPrivateKey | None = None) -> tuple[Path, Path]:
    """A private and a public PEM file, as openssl makes them."""
    key = key or Ed25519PrivateKey.generate()
    private, public = folder / f"{name}.pem", folder / f"{name}.pub.pem"
    private.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    public.write_bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    return private, public


@pytest.fixture
def copied(bundle: Bundle, tmp_path: Path) -> Path:
    """A bundle that may be changed."""
    return Path(shutil.copytree(bundle.path, tmp_path / "bundle"))


@pytest.fixture
def keys(tmp_path: Path) -> tuple[Path, Path]:
    return write_keys(tmp_path, "release")


def test_sign_bundle__verifies_and_changes_nothing_else(copied: Path, bundle: Bundle, keys: tuple[Path, Path]) -> None:
    private, public = keys
    sign_bundle(copied, private)
    assert verify_bundle(copied, public).digest == bundle.digest
    assert Bundle.open(copied).manifest == bundle.manifest
    assert {path.name for path in copied.iterdir()} - {path.name for path in bundle.path.iterdir()} == {"signature.json"}


def test_sign_bundle__through_the_current_link_and_twice(copied: Path, tmp_path: Path, keys: tuple[Path, Path]) -> None:
    (tmp_path / "current").symlink_to(copied.name)
    first = sign_bundle(tmp_path / "current", keys[0])
    assert sign_bundle(copied, keys[0]) == first  # Ed25519 is deterministic
    assert verify_bundle(tmp_path / "current", keys[1]).path == copied


def test_sign_bundle__takes_what_openssl_makes(copied: Path, tmp_path: Path) -> None:
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    private, public = tmp_path / "k.pem", tmp_path / "k.pub.pem"

    def openssl(*arguments: str | Path) -> bytes:
        return subprocess.run(["openssl", *arguments], check=True, capture_output=True, timeout=60).stdout

    openssl("genpkey", "-algorithm", "ed25519", "-out", private)
    openssl("pkey", "-in", private, "-pubout", "-out", public)
    told = sign_bundle(copied, private)
    verify_bundle(copied, public)
    assert told.key_id == hashlib.sha256(openssl("pkey", "-pubin", "-in", public, "-outform", "DER")).hexdigest()


def test_sign_bundle__a_damaged_bundle_is_not_signed(copied: Path, keys: tuple[Path, Path]) -> None:
    (copied / "model.fp32.onnx").write_bytes(b"damaged")
    with pytest.raises(BundleError, match="was altered"):
        sign_bundle(copied, keys[0])
    assert not (copied / "signature.json").exists()


def encrypted(folder: Path) -> Path:
    path = folder / "encrypted.pem"
    key = Ed25519PrivateKey.generate()
    path.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret")))
    return path


def another_kind(folder: Path) -> tuple[Path, Path]:
    return write_keys(folder, "rsa", rsa.generate_private_key(65537, 2048))


def text(folder: Path) -> Path:
    path = folder / "text.pem"
    path.write_text("no key")
    return path


def large(folder: Path) -> Path:
    path = folder / "large.pem"
    path.write_bytes(bytes(70_000))
    return path


@pytest.mark.parametrize(
    ("key", "message"),
    [
        (lambda folder: folder / "none.pem", "cannot be read: No such file.*openssl genpkey"),
        (lambda folder: folder, "cannot be read: Is a directory"),
        (encrypted, "is encrypted"),
        (lambda folder: another_kind(folder)[0], "another kind of key than Ed25519"),
        (lambda folder: write_keys(folder, "x")[1], "holds no private key"),
        (text, "holds no private key"),
        (large, "larger than 65536 bytes"),
    ],
)
def test_sign_bundle__keys_that_do_not_sign(copied: Path, tmp_path: Path, key: Callable[[Path], Path], message: str) -> None:
    with pytest.raises(SignatureError, match=message) as caught:
        sign_bundle(copied, key(tmp_path))
    assert "\n" not in str(caught.value)
    assert not (copied / "signature.json").exists()


@pytest.mark.parametrize(
    ("key", "message"),
    [
        (lambda folder: folder / "none.pem", "cannot be read: No such file.*-pubout"),
        (lambda folder: write_keys(folder, "x")[0], "holds a private key, which belongs on no device"),
        (lambda folder: another_kind(folder)[1], "another kind of key than Ed25519"),
        (text, "holds no public key"),
        (large, "larger than 65536 bytes"),
        (lambda folder: write_keys(folder, "stranger")[1], "is signed with key .*but the trust key is"),
    ],
)
def test_verify_bundle__keys_that_do_not_vouch(
    copied: Path, tmp_path: Path, keys: tuple[Path, Path], key: Callable[[Path], Path], message: str
) -> None:
    sign_bundle(copied, keys[0])
    with pytest.raises(SignatureError, match=message) as caught:
        verify_bundle(copied, key(tmp_path))
    assert "\n" not in str(caught.value)


def signed_by_hand(folder: Path, purpose: bytes) -> None:
    """The right key under another purpose."""
    key = Ed25519PrivateKey.generate()
    write_keys(folder.parent, "release", key)
    told = json.loads((folder / "signature.json").read_text())
    der = key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    signature = key.sign(purpose + (folder / "manifest.json").read_bytes())
    told.update(key_id=hashlib.sha256(der).hexdigest(), signature=base64.b64encode(signature).decode())
    (folder / "signature.json").write_text(json.dumps(told))


def rewrite(folder: Path, **changes: object) -> None:
    told = {**json.loads((folder / "signature.json").read_text()), **changes}
    (folder / "signature.json").write_text(json.dumps({name: value for name, value in told.items() if value is not None}))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "signature.json").unlink(), "is not signed.*edge-convert sign"),
        (
            lambda folder: (folder / "manifest.json").write_bytes((folder / "manifest.json").read_bytes() + b" "),
            "was altered after",
        ),
        (lambda folder: (folder / "manifest.json").write_bytes(b"{"), "was altered after"),  # told before it is parsed
        (lambda folder: (folder / "model.fp32.onnx").write_bytes(b"x"), "model.fp32.onnx was altered"),
        (lambda folder: signed_by_hand(folder, b""), "was altered after"),
        (lambda folder: (folder / "signature.json").write_bytes(b""), "no signature of this kit"),
        (lambda folder: (folder / "signature.json").write_bytes(b"[" * 10_000), "no signature of this kit"),
        (lambda folder: (folder / "signature.json").write_bytes(bytes(70_000)), "larger than 65536 bytes"),
        (lambda folder: rewrite(folder, algorithm="none"), "no signature of this kit"),
        (lambda folder: rewrite(folder, signature=None), "no signature of this kit"),
        (lambda folder: rewrite(folder, signature="A" * 87 + "="), "no signature of this kit"),
        (lambda folder: rewrite(folder, signature="A" * 86 + "=="), "was altered after"),
        (lambda folder: rewrite(folder, surprise=1), "no signature of this kit"),
        (lambda folder: rewrite(folder, key_id="0" * 64), "is signed with key 000000000000…"),
    ],
)
def test_verify_bundle__refuses(copied: Path, keys: tuple[Path, Path], damage: Callable[[Path], object], message: str) -> None:
    sign_bundle(copied, keys[0])
    damage(copied)
    with pytest.raises(BundleError, match=message) as caught:
        verify_bundle(copied, keys[1])
    assert "\n" not in str(caught.value)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.binary(max_size=300))
def test_verify_bundle__fuzzed_signature(copied: Path, keys: tuple[Path, Path], data: bytes) -> None:
    (copied / "signature.json").write_bytes(data)
    with pytest.raises(SignatureError):
        verify_bundle(copied, keys[1])


@pytest.mark.parametrize("call", ["sign_bundle", "verify_bundle"])
def test_signature__without_the_extra(copied: Path, keys: tuple[Path, Path], call: str) -> None:
    program = (
        "import sys\nsys.modules['cryptography'] = None\nfrom runtime import signature\n"
        "from runtime.errors import EdgeloopError\n"
        f"try:\n    signature.{call}({str(copied)!r}, {str(keys[0])!r})\nexcept EdgeloopError as error:\n    print(error)"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "cryptography is not installed; install it with: pip install 'edgeloop[sign]'\n"
