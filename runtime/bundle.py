"""Bundle: a released model as a content-addressed folder that is checked before anything is loaded.

bundles/
  3f9c2ab1d07e54aa/      first 16 hex digits of the SHA-256 of manifest.json
    manifest.json        what is in it, how it was made, what was measured; SHA-256 of every other file
    signature.json       who released it, if anyone signed it; see runtime.signature
    model.fp32.onnx
    model.int8.cpu.onnx  one INT8 file a family of engines
    calibration.json     frames and ranges behind the INT8 files
    report.html          the gate's measurements to look at; report.json holds the same
  current -> 3f9c2ab1d07e54aa
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ValidationError

from runtime.errors import BundleError
from runtime.files import point_link, sha256_of_file
from runtime.manifest import SCHEMA_VERSION, Form, Manifest
from runtime.postprocess import Thresholds
from runtime.preprocess import Preprocess

CURRENT = "current"
MANIFEST = "manifest.json"
_MANIFEST_BYTES = 4 << 20  # a manifest is a few kilobytes; anything far larger is no manifest


@dataclass(frozen=True, slots=True)
class Bundle:
    """A bundle whose files were checked against its manifest.

    Attributes:
        path: the bundle's own folder (never the `current` link).
        digest: SHA-256 of `manifest.json`, in hex.
        manifest: what it says.
    """

    path: Path
    digest: str
    manifest: Manifest

    @classmethod
    def open(cls, path: str | Path, vouch: Callable[[Path, bytes], None] = lambda folder, manifest: None) -> Bundle:
        """Opens a bundle folder, or the one that a `current` link points at, and checks every file's SHA-256.

        Args:
            path: the folder or link.
            vouch: given the folder and the manifest's bytes before they are parsed; raises if it does not trust them.

        Raises:
            BundleError: no such bundle, unreadable manifest, newer schema, a file missing or altered.
        """
        try:
            folder = Path(path).resolve()
        except (OSError, RuntimeError, ValueError) as error:  # a link to itself; a null byte
            raise BundleError(f"{path} leads nowhere ({error}); make it point at a bundle") from error
        if not folder.is_dir():
            raise BundleError(f"{path} is no bundle: there is no such folder; make one with: edge-convert CKPT --out BUNDLE")
        manifest_path = folder / MANIFEST
        if not manifest_path.is_file():
            raise BundleError(f"{path} is no bundle: it has no manifest.json; make one with: edge-convert CKPT --out BUNDLE")
        if manifest_path.stat().st_size > _MANIFEST_BYTES:
            raise BundleError(f"{manifest_path} is larger than {_MANIFEST_BYTES} bytes and cannot be a manifest; convert again")
        try:
            data = manifest_path.read_bytes()
            vouch(folder, data)
            manifest = _parse_manifest(data, manifest_path)
            for name, expected in manifest.files.items():
                _check_file(folder, name, expected)
        except OSError as error:
            raise BundleError(f"{error.filename or folder} cannot be read: {error.strerror}; fetch the bundle again") from error
        return cls(folder, hashlib.sha256(data).hexdigest(), manifest)

    @property
    def preprocess(self) -> Preprocess:
        """The bundle's letterbox."""
        spec = self.manifest.preprocess
        return Preprocess(spec.size_wh, spec.pad_value, spec.stride, spec.color, spec.scale)

    @property
    def thresholds(self) -> Thresholds:
        """The release's thresholds; no IoU for NMS-free heads."""
        spec = self.manifest.thresholds
        return Thresholds(spec.confidence, spec.iou if self.manifest.outputs.nms else None)

    def model_path(self, precision: str, form: Form | None = None, batch: int = 1) -> Path:
        """The ONNX file of a precision in the form that an engine wants; without a form, the first of that precision.

        Raises:
            BundleError: the bundle has no such file.
        """
        for variant in self.manifest.variants:
            if (variant.precision, variant.batch) == (precision, batch) and (form is None or variant.form in ("any", form)):
                return self.path / variant.file
        known = ", ".join(f"{row.precision} for {row.form}, batch {row.batch}" for row in self.manifest.variants)
        wanted = f"{precision} model for {form or 'any'}, batch {batch}"
        raise BundleError(f"bundle {self.path} has no {wanted}; it has {known}")


def publish(bundles: Path, bundle: Bundle) -> None:
    """Moves `bundles/current` to a bundle inside `bundles`, in one step: a daemon sees the old one or the new one.

    Raises:
        BundleError: the bundle lies elsewhere.
    """
    if bundle.path.parent != bundles.resolve():
        raise BundleError(f"{bundle.path} is not in {bundles}; write it there with: edge-convert CKPT --out {bundles}")
    point_link(bundles / CURRENT, bundle.path.name)


def _parse_manifest(data: bytes, path: Path) -> Manifest:
    class Version(BaseModel):
        schema_version: int

    try:
        version = Version.model_validate_json(data).schema_version
        if version < SCHEMA_VERSION:
            raise BundleError(
                f"{path} has schema version {version}, but this edgeloop reads {SCHEMA_VERSION}; convert the checkpoint again"
            )
        if version > SCHEMA_VERSION:
            raise BundleError(
                f"{path} has schema version {version}, but this edgeloop reads up to {SCHEMA_VERSION}; "
                "upgrade with: pip install -U edgeloop"
            )
        return Manifest.model_validate_json(data)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"]) or "the file"
        raise BundleError(f"{path} is not a valid manifest: {place}: {first['msg']}; convert the model again") from error


def _check_file(folder: Path, name: str, expected: str) -> None:
    path = folder / name
    if not path.is_file():
        raise BundleError(f"{path} is named in the manifest but missing; fetch the bundle again")
    if path.resolve() != path:
        raise BundleError(f"{path} is a link out of the bundle; fetch the bundle again")
    actual = sha256_of_file(path)
    if actual != expected:
        raise BundleError(
            f"{path} was altered: its SHA-256 is {actual[:12]}…, but the manifest says {expected[:12]}…; fetch the bundle again"
        )
