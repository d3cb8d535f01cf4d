"""Frames for a conversion: those that calibrate, and those that the gate looks at."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from calibration.gate_frames import GateFrames, LabeledGateFrames, PoolGateFrames
from calibration.labels import LabeledImage, load_held_out
from calibration.sampler import CalibrationFrames, Draw, sample_frames, time_spread
from converters.errors import ConversionError
from converters.imported import ImportedModel
from converters.request import DEFAULT_FRAMES, ConvertRequest
from runtime.backends import open_model
from runtime.manifest import Calibration
from runtime.pool import Pool, PoolEntry
from runtime.progress import Progress

_DARK = 2.0  # mean grey level and deviation below which a frame shows nothing


@dataclass(frozen=True)
class Frames:
    """What a conversion works on.

    Attributes:
        drawn: the calibration frames; None without a pool.
        gate: the gate's frames; None where there is nothing to measure on.
    """

    drawn: CalibrationFrames | None
    gate: GateFrames | None


def choose_frames(
    request: ConvertRequest, pool: Pool | None, model: ImportedModel, fp32: Path, again: Calibration | None
) -> Frames:
    """Labelled images check where they are given, held-out pool frames elsewhere; everything else of the pool may calibrate.

    Args:
        request: what is wanted.
        pool: opened for reading, or None.
        model: whose letterbox and embedding are used.
        fp32: its graph's file.
        again: an earlier calibration whose frames are taken; None draws anew.

    Raises:
        ConversionError: labels of other classes, frames that are gone, or frames that show nothing.
        PoolError, DataError: an empty or too small pool; unreadable labels.
    """
    items = _labeled(request, model) if request.data else ()
    gate: GateFrames | None = LabeledGateFrames(items, model.preprocess) if items else None
    if pool is None:
        return Frames(None, gate)
    checked = frozenset(hashlib.sha256(item.path.read_bytes()).hexdigest() for item in items)
    drawn = _again(pool, again, request, checked) if again else _draw(pool, request, model, fp32, checked)
    _refuse_darkness(pool, drawn.calibration)
    if gate is None and drawn.held_out:
        gate = PoolGateFrames(pool, drawn.held_out, model.preprocess)
    return Frames(drawn, gate)


def _draw(pool: Pool, request: ConvertRequest, model: ImportedModel, fp32: Path, checked: frozenset[str]) -> CalibrationFrames:
    usable = sum(entry.sha256 not in checked for entry in pool.entries(request.until_s, with_embeddings=False))
    held_out = 0 if checked else min(request.gate_frames, usable // 4)
    count = request.frames or max(1, min(DEFAULT_FRAMES, usable - held_out))
    draw = Draw(count, held_out, request.sampler, request.seed, request.until_s, checked)
    return sample_frames(pool, draw, lambda entries: embed(pool, entries, model, fp32))


def _again(pool: Pool, again: Calibration, request: ConvertRequest, checked: frozenset[str]) -> CalibrationFrames:
    entries = {entry.sha256: entry for entry in pool.entries(request.until_s, with_embeddings=False)}
    frames = again.frame_sha256
    if checked & set(frames):
        raise ConversionError(
            f"{len(checked & set(frames))} images of --data are among the calibration frames of --calibration; name other labels"
        )
    gone = [digest for digest in frames if digest not in entries]
    if gone:
        raise ConversionError(
            f"{len(gone)} of the {len(frames)} frames of --calibration are not in pool {pool.path}; leave --calibration out"
        )
    rest = [entry for digest, entry in entries.items() if digest not in set(frames)]
    held_out = () if checked else tuple(time_spread(rest, request.gate_frames, request.seed + 1))
    return CalibrationFrames(
        tuple(entries[digest] for digest in frames), held_out, again.sampler, again.seed, radius=again.radius,
        mean_distance=again.mean_distance,
    )  # fmt: skip


def embed(pool: Pool, entries: Sequence[PoolEntry], model: ImportedModel, fp32: Path) -> NDArray[np.float32]:
    """The FP32 graph's embeddings of pool frames: float32 (n, d), L2-normalised."""
    backend = open_model("onnxruntime", fp32, "fp32")
    canvas = model.preprocess.buffer()
    found = []
    with Progress("looking at the pool", len(entries)) as progress:
        for entry in entries:
            model.preprocess.letterbox(pool.read(entry), canvas[0])
            found.append(backend.infer(canvas).embedding[0].copy())
            progress.advance()
    backend.close()
    return np.stack(found)


def _labeled(request: ConvertRequest, model: ImportedModel) -> tuple[LabeledImage, ...]:
    data = request.data or Path()
    dataset = load_held_out(data)
    if dataset.names != model.names:
        raise ConversionError(
            f"{data} has classes {list(dataset.names[:6])}, the model {list(model.names[:6])}; they must be the same, in the same order"
        )
    if not dataset.val:
        raise ConversionError(f"{data} names no image under `val` to measure on; list some, or leave --data out")
    return tuple(time_spread(dataset.val, request.gate_frames, request.seed))


def _refuse_darkness(pool: Pool, entries: Sequence[PoolEntry]) -> None:
    """A camera with its cap on gives ranges that fit nothing."""
    if all(max(float(image.mean()), float(image.std())) < _DARK for image in (pool.read(entry) for entry in entries)):
        raise ConversionError(
            f"all {len(entries)} calibration frames of {pool.path} are black; collect frames that show something, or name another --pool"
        )
