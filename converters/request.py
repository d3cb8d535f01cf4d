"""What `edge-convert` is asked for, and which files follow from it.

Loads no onnx: it refuses what cannot be done before anything heavy is read, and devices without onnx read it too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from calibration.sampler import DEFAULT_SAMPLER, SAMPLERS
from converters.errors import ConversionError
from converters.gate import Bars
from runtime.bundle import Bundle
from runtime.extras import require

if TYPE_CHECKING:  # both load onnx
    from converters.imported import ImportOptions
    from converters.qdq_from_onnx import Family

Target = Literal["auto", "cpu", "tensorrt", "jetson-orin", "rtx"]
Wanted = Literal["auto", "fp32", "fp16", "int8"]
TARGETS: tuple[Target, ...] = ("auto", "cpu", "tensorrt", "jetson-orin", "rtx")
WANTED: tuple[Wanted, ...] = ("auto", "fp32", "fp16", "int8")
DEFAULT_FRAMES = 128  # a table of 32 and 128: benchmarks/results/calibration_samplers.json
DEFAULT_GATE_FRAMES = 128


@dataclass(frozen=True)
class ConvertRequest:
    """What to convert and how.

    Attributes:
        checkpoint: the model: our checkpoint, an Ultralytics `.pt` or `.yaml`, or a plain `.onnx`.
        pool: where calibration frames come from; None makes a bundle without INT8.
        imgsz: side of the square canvas in pixels; None takes the model's.
        model: architecture, where a state dict's shapes alone cannot tell.
        names: class names that replace the model's.
        confidence, iou: thresholds of the release, 0 to 1.
        frames: how many frames calibrate; None takes `DEFAULT_FRAMES`, or all if the pool has fewer.
        seed: of the draw and the bootstrap.
        until_s: use pool frames captured up to this Unix time; None for all.
        lineage: facts for the manifest that the caller knows.
        data: data.yaml whose `val` images the gate uses instead of held-out pool frames; None has no labels.
        target: which engines to make files for; `auto` takes those of this device.
        precision: which precisions to make; `auto` takes all that the target and the pool allow.
        sampler: how calibration frames are chosen, one of `calibration.sampler.SAMPLERS`.
        gate_frames: how many frames the gate looks at.
        batch: the largest static batch; files for it are made and gated beside those for one frame.
        head: layout of a plain ONNX's output; None recognises it.
        trust_pickle: whether a `.pt` may run the code that it holds.
        calibration: a bundle whose calibration frames are used again; refused if the graph or preprocessing differ.
        bars: of the gate.
        pictures: whether the report shows the frames where INT8 differs most.
    """

    checkpoint: Path
    pool: Path | None = None
    imgsz: int | None = None
    model: str | None = None
    names: tuple[str, ...] | None = None
    confidence: float = 0.25
    iou: float = 0.7
    frames: int | None = None
    seed: int = 0
    until_s: float | None = None
    lineage: Mapping[str, str] = field(default_factory=dict)
    data: Path | None = None
    target: Target = "auto"
    precision: Wanted = "auto"
    sampler: str = DEFAULT_SAMPLER
    gate_frames: int = DEFAULT_GATE_FRAMES
    batch: int = 1
    head: str | None = None
    trust_pickle: bool = False
    calibration: Path | None = None
    bars: Bars = field(default_factory=Bars)
    pictures: bool = True

    @property
    def import_options(self) -> ImportOptions:
        """What the importer needs of it."""
        from converters.imported import ImportOptions  # loads onnx

        return ImportOptions(self.imgsz, self.model, self.names, self.head, self.trust_pickle)


@dataclass(frozen=True, slots=True)
class Plan:
    """Which files will be made.

    Attributes:
        int8: families of engines that get an INT8 file.
        fp16: whether a file with FP16 baked in is made.
    """

    int8: tuple[Family, ...]
    fp16: bool


def plan_of(request: ConvertRequest) -> Plan:
    """What the request comes to on this device.

    Raises:
        ConversionError: an unknown sampler, INT8 without a pool, or FP16 for a CPU, whose engines compute in FP32.
        BundleError: `calibration` is no bundle.
        MissingPackageError: a package that only the conversion needs is not installed.
    """
    if request.sampler not in SAMPLERS:
        raise ConversionError(f"unknown sampler {request.sampler!r}; the samplers are {', '.join(SAMPLERS)}")
    if request.calibration is not None:
        Bundle.open(request.calibration)
    families: tuple[Family, ...] = ("cpu",) if request.target in ("auto", "cpu") else ("tensorrt",)
    if request.target == "auto" and _has_nvidia():
        families = ("cpu", "tensorrt")
    if request.precision == "fp16" and "tensorrt" not in families:
        raise ConversionError(
            "--precision fp16 is for GPUs, the CPU engines compute in FP32; name a GPU with --target tensorrt, jetson-orin or rtx"
        )
    if request.precision == "int8" and request.pool is None:
        raise ConversionError("--precision int8 needs frames to calibrate with; name a pool with --pool POOL")
    wants_int8 = request.precision in ("auto", "int8") and request.pool is not None
    plan = Plan(families if wants_int8 else (), "tensorrt" in families and request.precision != "fp32")
    require(_modules_for(request, plan), "convert")
    return plan


def _modules_for(request: ConvertRequest, plan: Plan) -> list[str]:
    return [
        *("onnx", "onnxslim", "onnxruntime"),
        *(["nncf"] if plan.int8 else []),
        *(["faster_coco_eval"] if request.data is not None else []),
    ]


def _has_nvidia() -> bool:
    return any(Path(path).exists() for path in ("/proc/driver/nvidia/version", "/etc/nv_tegra_release"))
