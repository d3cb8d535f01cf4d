"""manifest.json: what a bundle holds, how it was made and what was measured."""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from runtime.device import Device

SCHEMA_VERSION = 2

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Share = Annotated[float, Field(ge=0, le=1)]
Precision = Literal["fp32", "fp16", "int8"]
# Which engines a file is for. `tensorrt` leaves FP16 to the builder (weak typing, TensorRT 8.5 to 10.11);
# `tensorrt-strong` has it in the graph (10.12 and later, and TensorRT-RTX).
Form = Literal["any", "cpu", "tensorrt", "tensorrt-strong"]
FORM_OF_ENGINE: dict[str, Form] = {
    "onnxruntime": "cpu",
    "openvino": "cpu",
    "onnxruntime-cuda": "any",  # its CUDA provider runs Q/DQ graphs in float, slower than without them
    "tensorrt": "tensorrt",
    "tensorrt-rtx": "tensorrt-strong",
}


def is_for(form: Form, engine: str) -> bool:
    """Whether a file in that form is meant for that engine; others may run it as a proxy."""
    return form in ("any", FORM_OF_ENGINE.get(engine))


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
    """One file of the model: a precision, the engines that it is for, and its static batch size.

    `float_layers` are the layers of an INT8 file that were returned to float so that the gate holds.
    """

    precision: Precision
    form: Form = "any"
    batch: int = Field(default=1, gt=0)
    file: str
    float_layers: list[str] = Field(default_factory=list)


class LabeledAccuracy(_Strict):
    """Accuracy on labelled gate frames, and how far it lies below FP32's, with a bootstrap interval over the frames.

    A positive drop is a loss. The interval is the 2.5th to 97.5th percentile of the paired bootstrap.
    """

    images: int = Field(gt=0)
    f1: Share
    map50_95: Share
    f1_drop: float
    map50_95_drop: float
    map50_95_drop_interval: tuple[float, float]


class Parity(_Strict):
    """One file under one engine against FP32 under ONNX Runtime, on frames that were not calibrated on.

    `boxes` is how many FP32 gave: agreement on few boxes proves little. `recall_of_fp32` is the share of them that came
    out again, and `f1_against_fp32` counts both ways; a box that the other side scored a little below the threshold
    counts as seen (see `converters.gate`), but not in `f1_at_threshold`. `refused` says which bar was missed; empty when all hold.
    """

    precision: Precision
    form: Form
    engine: str
    batch: int = Field(gt=0)
    frames: int = Field(ge=0)
    boxes: int = Field(ge=0)
    recall_of_fp32: Share
    f1_against_fp32: Share
    f1_at_threshold: Share
    mean_iou: Share
    mean_score_shift: float
    class_flips: int = Field(ge=0)
    latency_p50_ms: float = Field(gt=0)
    latency_p99_ms: float = Field(gt=0)
    labeled: LabeledAccuracy | None = None
    refused: str = ""

    @property
    def is_proxy(self) -> bool:
        """Whether the file is for another engine: its numbers count, its time does not."""
        return not is_for(self.form, self.engine)


class Preferred(_Strict):
    """The engine and precision that `auto` means on the device where it was measured."""

    engine: str
    precision: Precision
    reason: str


class Calibration(_Strict):
    """Which frames set the INT8 ranges; the ranges themselves are in calibration.json, under the same key.

    Attributes:
        key: SHA-256 over the FP32 graph, the frames and the preprocessing.
        radius, mean_distance: cosine distance of the sampler's candidates to the nearest of them, at most and on average.
    """

    key: Sha256
    sampler: str
    seed: int
    frame_sha256: list[Sha256]
    radius: float | None = None
    mean_distance: float | None = None


class Manifest(_Strict):
    """`manifest.json`."""

    schema_version: Literal[2]
    name: str
    classes: list[str] = Field(min_length=1)
    preprocess: PreprocessSpec
    outputs: OutputSpec
    thresholds: ThresholdSpec
    variants: list[Variant] = Field(min_length=1)
    preferred: Preferred
    measured_on: Device
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
