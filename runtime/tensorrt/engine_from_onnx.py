"""Engine from ONNX: one build on TensorRT 8.5, 10, 11 and RTX, whatever of their attributes is there.

What differs, by generation: 8.5 wants EXPLICIT_BATCH, which 11 no longer has. Up to 10.11 builder flags set the precision
of float32 layers; from 10.12 on, in 11 and in RTX the graph holds it (strong typing). Progress comes with 9. RTX builds
for GPUs that are named, also where there is none.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, cast

from runtime.errors import BackendError
from runtime.onnx_file import refuse_external_data
from runtime.tensorrt.callbacks import Progress, process_logger, progress_monitor
from runtime.tensorrt.flavour import Flavour, flavour_of
from runtime.tensorrt.surface import RtxBuilderConfig, TensorRT

if TYPE_CHECKING:  # typings/tensorrt: the module itself is an extra
    import tensorrt

Precision = Literal["fp32", "fp16", "int8"]

# Scratch memory of one layer's kernel. YOLO at 640 needs far less; without a limit a build takes what an 8 GB Jetson has.
DEFAULT_WORKSPACE_BYTES = 1 << 30
_ONE_BUILD = threading.Lock()  # TensorRT has one logger a process, and two builds at once need twice the memory
_TOLD = 3  # messages of TensorRT in one sentence; the rest repeats them
_CURRENT = "CURRENT"  # RTX's name for the GPU at hand
FOREIGN = (RuntimeError, TypeError, ValueError, MemoryError)  # what pybind11 makes of TensorRT's failures
NO_GPU_NAMED = (
    "there is no NVIDIA GPU here to build for; run on the device, "
    "or name what TensorRT-RTX shall build for, such as compute_capabilities=('SM86',)"
)


@dataclass(frozen=True, slots=True)
class BuildOptions:
    """How an engine is built; part of its cache key.

    Attributes:
        workspace_bytes: limit of a kernel's scratch memory.
        compute_capabilities: RTX only: targets such as `SM86`; none = the GPU at hand.
    """

    workspace_bytes: int = DEFAULT_WORKSPACE_BYTES
    compute_capabilities: tuple[str, ...] = ()


class TimingCache(Protocol):
    """Where kernel timings are kept between builds, which makes the next one faster."""

    def read(self) -> bytes:
        """What `write` was last given, or nothing."""
        ...

    def write(self, data: bytes) -> None:
        """Keeps it."""
        ...


def engine_from_onnx(
    onnx_path: Path,
    precision: Precision,
    options: BuildOptions,
    *,
    trt: TensorRT,
    progress: Progress = lambda phase, share: None,
    timing: TimingCache | None = None,
) -> bytes:
    """Builds a plan.

    Args:
        onnx_path: static shapes, one file. Where `wants_baked_precision(trt)`, one whose float layers have the precision
            that is wanted; elsewhere float32, for `int8` with Q/DQ nodes.
        precision: `fp32`, `fp16` or `int8`. Sets builder flags up to 10.11; later it is what the file holds.
        options: limits and targets.
        trt: the module, of `load_flavour()`.
        progress: told phase and share, from TensorRT's own threads; from 9 on, and at the ends in any version. What it
            raises ends the build and is raised here.
        timing: kernel timings; RTX has none.

    Raises:
        BackendError: the file is refused, or no engine can be built for this GPU or those targets.
    """
    refuse_external_data(onnx_path)
    with _ONE_BUILD:
        flavour, (logger, told) = flavour_of(trt), process_logger(trt)
        told.clear()
        held = told.held
        progress("Parsing the graph", 0.0)
        try:
            builder = trt.Builder(logger)
            network = builder.create_network(_network_flags(flavour))
            _parse(trt, network, logger, onnx_path)
            config = _configured(flavour, builder, precision, options)
            if hasattr(config, "progress_monitor"):
                config.progress_monitor = progress_monitor(trt, held, progress)
            timings = None if flavour.rtx or timing is None else _with_timings(config, timing.read())
            plan = _build(builder, network, config)
        except FOREIGN as error:
            held.release()
            raise _failure(onnx_path, flavour, options, [*told.errors, str(error)]) from error
        held.release()
        if plan is None:
            raise _failure(onnx_path, flavour, options, told.errors)
        if timings is not None and timing is not None:
            timing.write(_bytes(timings.serialize()))
        progress("Built", 1.0)
        return plan


def _network_flags(flavour: Flavour) -> int:
    members = flavour.trt.NetworkDefinitionCreationFlag
    if flavour.major_minor < (10, 0) and not flavour.rtx:
        return 1 << int(members.EXPLICIT_BATCH)
    if flavour.baked_precision and hasattr(members, "STRONGLY_TYPED"):
        return 1 << int(members.STRONGLY_TYPED)
    return 0


def _parse(trt: TensorRT, network: tensorrt.INetworkDefinition, logger: tensorrt.ILogger, path: Path) -> None:
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(path)):
        told = [_parser_error(parser.get_error(index)) for index in range(parser.num_errors)]
        raise BackendError(f"TensorRT cannot read {path}: {sentence(told)}; convert the model again")
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        if any(side < 0 for side in _shape(tensor)):
            raise BackendError(f"{path} leaves the shape of {tensor.name!r} open; convert the model again with static shapes")


def _parser_error(error: tensorrt.ParserError) -> str:
    if hasattr(error, "node_operator") and error.node_operator():  # not in 8.5
        return f"{error.node_operator()} node {error.node_name()!r}: {error.desc()}"
    return error.desc()


def _configured(
    flavour: Flavour, builder: tensorrt.Builder, precision: Precision, options: BuildOptions
) -> tensorrt.IBuilderConfig:
    trt, config = flavour.trt, builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_bytes)
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # the inspector then shows which layers run in INT8
    if not flavour.baked_precision and precision != "fp32":
        # Also for INT8: without FP16 the layers that are not quantised run in FP32, slower than an FP16 engine.
        config.set_flag(trt.BuilderFlag.FP16)
        if precision == "int8":
            config.set_flag(trt.BuilderFlag.INT8)
    if flavour.rtx:
        _set_targets(trt, cast(RtxBuilderConfig, config), options.compute_capabilities or (_CURRENT,))
    elif options.compute_capabilities:
        raise BackendError(f"{flavour.name} builds for the GPU at hand only; leave the compute capabilities out")
    return config


def known_targets(trt: TensorRT, names: Sequence[str]) -> dict[str, object]:
    """What TensorRT-RTX can build for, by name.

    Raises:
        BackendError: not for all of `names`.
    """
    known: dict[str, object] = cast(Any, trt).ComputeCapability.__members__  # RTX only, so not in the stubs
    unknown = [name for name in names if name not in known]
    if unknown:
        targets = ", ".join(name for name in known if name.startswith("SM"))
        raise BackendError(f"TensorRT-RTX {trt.__version__} cannot build for {', '.join(unknown)}; it can for {targets}")
    return known


def _set_targets(trt: TensorRT, config: RtxBuilderConfig, names: Sequence[str]) -> None:
    known = known_targets(trt, names)
    config.num_compute_capabilities = len(names)
    for index, name in enumerate(names):
        config.set_compute_capability(known[name], index)


def _with_timings(config: tensorrt.IBuilderConfig, data: bytes) -> tensorrt.ITimingCache:
    """Puts kept timings in, or a fresh cache if they are of another GPU or version."""
    timings = config.create_timing_cache(data)
    if not config.set_timing_cache(timings, False):
        timings = config.create_timing_cache(b"")
        config.set_timing_cache(timings, False)
    return timings


def _build(builder: tensorrt.Builder, network: tensorrt.INetworkDefinition, config: tensorrt.IBuilderConfig) -> bytes | None:
    plan = cast("tensorrt.IHostMemory | None", builder.build_serialized_network(network, config))
    return None if plan is None else _bytes(plan)


def _bytes(memory: tensorrt.IHostMemory) -> bytes:
    return bytes(cast(Any, memory))  # it has the buffer protocol, which stubs before Python 3.12 cannot say


def _shape(tensor: tensorrt.ITensor) -> tuple[int, ...]:
    return tuple(cast(Any, tensor.shape))


def _failure(path: Path, flavour: Flavour, options: BuildOptions, errors: list[str]) -> BackendError:
    """The sentence for a build that gave nothing, from what TensorRT said."""
    told = " ".join(errors)
    if flavour.rtx and not options.compute_capabilities and "cudaError" in told:
        return BackendError(NO_GPU_NAMED)
    if "Turing" in told and "FP32 GEMM" in told:
        found = re.search(r"operation '([^']+)'", told)
        return BackendError(
            f"{path} cannot be built for SM75 (Turing): TensorRT-RTX has no FP32 matrix product there, which "
            f"{found[1] if found else 'its attention'} needs; build the FP16 file, or leave SM75 out"
        )
    if "CUDA initialization" in told or "returned nullptr" in told:  # what the full module's Builder says without a driver
        return BackendError(f"{flavour.name} {flavour.version} finds no NVIDIA GPU and driver here; run on the device")
    return BackendError(
        f"{flavour.name} {flavour.version} cannot build {path}: {sentence(errors)}; convert the model again, or use another engine"
    )


def sentence(messages: Sequence[str]) -> str:
    """The first few different messages on one line, without the places in TensorRT's own source."""
    lines = [line.strip() for message in messages for line in message.splitlines()]
    telling = [line for line in lines if "catchCudaError" not in line] or lines  # beside the point where there is no GPU
    distinct = list(dict.fromkeys(re.sub(r"\.? In \w+ at /\S+:\d+", "", line).rstrip(".;") for line in telling))
    return "; ".join(distinct[:_TOLD]) or "it does not say why"
