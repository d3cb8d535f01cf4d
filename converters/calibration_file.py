"""calibration.json: which frames and ranges are behind a bundle's INT8 files, under a key that tells when they are stale."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import onnx

from converters.errors import ConversionError
from converters.quantizer_passes import ranges_of
from runtime.bundle import Bundle
from runtime.manifest import Calibration
from runtime.preprocess import Preprocess

CALIBRATION_FILE = "calibration.json"


@dataclass(frozen=True, slots=True)
class CalibrationKey:
    """What the ranges depend on, as SHA-256 in hex.

    Attributes:
        onnx: of the FP32 graph.
        frames: of the frames' own digests, in order.
        preprocess: of the letterbox and scaling.
    """

    onnx: str
    frames: str
    preprocess: str

    @property
    def digest(self) -> str:
        """One SHA-256 over all three."""
        return _sha256("\n".join((self.onnx, self.frames, self.preprocess)))


def key_of(onnx_sha256: str, frames: Sequence[str], preprocess: Preprocess) -> CalibrationKey:
    """The key of a calibration."""
    spec = json.dumps(asdict(preprocess), sort_keys=True)
    return CalibrationKey(onnx_sha256, _sha256("\n".join(frames)), _sha256(spec))


def calibration_bytes(key: CalibrationKey, frames: Sequence[str], files: Mapping[str, onnx.ModelProto]) -> bytes:
    """The file's content: key, frames, and every range of every INT8 file."""
    ranges = {name: [asdict(item) for item in ranges_of(model)] for name, model in files.items()}
    content = {"key": key.digest, **asdict(key), "frame_sha256": list(frames), "ranges": ranges}
    return (json.dumps(content, indent=1) + "\n").encode()


def earlier_calibration(bundle_path: Path, onnx_sha256: str, preprocess: Preprocess) -> Calibration:
    """An earlier bundle's calibration, to use its frames again.

    Raises:
        ConversionError: the bundle has none, or it was made for another graph or preprocessing.
        BundleError: it is no bundle, or was altered.
    """
    bundle = Bundle.open(bundle_path)
    known = bundle.manifest.calibration
    if known is None:
        raise ConversionError(f"{bundle_path} has no calibration; leave --calibration out to draw frames anew")
    frames = tuple(known.frame_sha256)
    if key_of(onnx_sha256, frames, preprocess).digest != known.key:
        raise ConversionError(
            f"the calibration of {bundle_path} is stale: it was made for another graph, letterbox or scaling; "
            "leave --calibration out to calibrate anew"
        )
    return known


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
