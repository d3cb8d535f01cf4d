"""Bundle: a released model as a content-addressed folder that is checked before anything is loaded.

bundles/
  3f9c2ab1d07e54aa/      first 16 hex digits of the SHA-256 of manifest.json
    manifest.json        what is in it, how it was made, what was measured; SHA-256 of every other file
    model.fp32.onnx
    model.int8.onnx
  current -> 3f9c2ab1d07e54aa
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from runtime.errors import BundleError
from runtime.files import point_link, sha256_of_file
from runtime.postprocess import Thresholds
from runtime.preprocess import Preprocess

SCHEMA_VERSION = 1
CURRENT = "current"
_MANIFEST_BYTES = 4 << 20  # a manifest is a few kilobytes; anything far larger is no manifest

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Share = Annotated[float, Field(ge=0, le=1)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class PreprocessSpec(_Strict):
    """`runtime.preprocess.Preprocess` as it is written down."""

    size_wh: tuple[Annotated[int, Field(gt=0, le=8192)], Annotated[int, Field(gt=0, le=8192)]]
    pad_value: int = Field(ge=0, le=255)
    stride: int = Field(gt=0)
    color: Literal["rgb", "bgr"]
    scale: float = Field(gt=0)

    @model_validator(mode="after")
    def _on_the_stride(self) -> PreprocessSpec:
        if any(side % self.stride for side in self.size_wh):
            raise ValueError(f"size_wh {self.size_wh} is no multiple of stride {self.stride}")
        return self


class OutputSpec(_Strict):
    """Shapes of the graph's outputs."""

    batch: int = Field(gt=0)
    top_k: int = Field(gt=0)
    embedding_dim: int = Field(gt=0)
    nms: bool  # False for end-to-end heads (v10, 26)


class ThresholdSpec(_Strict):
    """What the release counts as a detection."""

    confidence: Share
    iou: Share


class Variant(_Strict):
    """One precision of the model."""

    precision: Literal["fp32", "int8"]
    file: str


class Parity(_Strict):
    """One variant under one engine against FP32 under ONNX Runtime, on pool frames that were not calibrated on.

    `boxes` is how many FP32 gave: agreement on few boxes proves little. `f1_against_fp32` takes them for truth: 1 means
    that the same boxes came out.
    """

    precision: Literal["fp32", "int8"]
    engine: str
    frames: int = Field(ge=0)
    boxes: int = Field(ge=0)
    f1_against_fp32: Share
    mean_iou: Share
    mean_score_shift: float
    class_flips: int = Field(ge=0)
    latency_p50_ms: float = Field(gt=0)
    latency_p99_ms: float = Field(gt=0)


class Preferred(_Strict):
    """The engine and precision that `auto` means."""

    engine: str
    precision: Literal["fp32", "int8"]
    reason: str


class Calibration(_Strict):
    """Which frames set the INT8 ranges."""

    sampler: str
    seed: int
    frame_sha256: list[Sha256]


class Manifest(_Strict):
    """`manifest.json`."""

    schema_version: Literal[1]
    name: str
    classes: list[str] = Field(min_length=1)
    preprocess: PreprocessSpec
    outputs: OutputSpec
    thresholds: ThresholdSpec
    variants: list[Variant] = Field(min_length=1)
    preferred: Preferred
    parity: list[Parity]
    calibration: Calibration | None
    lineage: dict[str, str]
    accuracy: dict[str, float]
    files: dict[str, Sha256]

    @field_validator("files")
    @classmethod
    def _inside_the_bundle(cls, files: dict[str, str]) -> dict[str, str]:
        for name in files:
            path = PurePosixPath(name)
            if path.is_absolute() or ".." in path.parts or "\\" in name or name in ("", "manifest.json"):
                raise ValueError(f"file name {name!r} leaves the bundle")
        return files

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> Manifest:
        for variant in self.variants:
            if variant.file not in self.files:
                raise ValueError(f"variant {variant.precision} names {variant.file!r}, which is not in files")
        if self.preferred.precision not in {variant.precision for variant in self.variants}:
            raise ValueError(f"preferred precision {self.preferred.precision} is not among the variants")
        return self


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
    def open(cls, path: str | Path) -> Bundle:
        """Opens a bundle folder, or the one that a `current` link points at, and checks every file's SHA-256.

        Raises:
            BundleError: no such bundle, unreadable manifest, newer schema, a file missing or altered.
        """
        try:
            folder = Path(path).resolve()
        except (OSError, RuntimeError, ValueError) as error:  # a link to itself; a null byte
            raise BundleError(f"{path} leads nowhere ({error}); make it point at a bundle") from error
        manifest_path = folder / "manifest.json"
        if not manifest_path.is_file():
            raise BundleError(f"{path} is no bundle: it has no manifest.json; make one with: edge-convert CKPT --out BUNDLE")
        if manifest_path.stat().st_size > _MANIFEST_BYTES:
            raise BundleError(f"{manifest_path} is larger than {_MANIFEST_BYTES} bytes and cannot be a manifest; convert again")
        try:
            data = manifest_path.read_bytes()
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

    def model_path(self, precision: str) -> Path:
        """The ONNX file of a precision.

        Raises:
            BundleError: the bundle has no such precision.
        """
        for variant in self.manifest.variants:
            if variant.precision == precision:
                return self.path / variant.file
        known = ", ".join(variant.precision for variant in self.manifest.variants)
        raise BundleError(f"bundle {self.path} has no {precision} model; it has {known}")


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
