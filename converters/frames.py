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
from calibration.pinned import FrameReader, PinnedFrames
from calibration.sampler import BY_EMBEDDING, CalibrationFrames, Draw, sample_frames, time_spread, unlike
from converters.errors import ConversionError
from converters.imported import ImportedModel
from converters.request import DEFAULT_FRAMES, ConvertRequest
from runtime.backends import open_model
from runtime.manifest import Calibration
from runtime.pool import Pool, PoolEntry
from runtime.progress import Progress

FEW_FRAMES = 32  # enough where a pool has no more that differ from the gate's: see benchmarks/results/calibration_samplers.json
_DARK = 2.0  # mean grey level and deviation below which a frame shows nothing


@dataclass(frozen=True)
class Frames:
    """What a conversion works on.

    Attributes:
        drawn: the calibration frames; None without a pool.
        gate: the gate's frames; None where there is nothing to measure on.
        pinned: where the calibration frames are read from; None without a pool.
    """

    drawn: CalibrationFrames | None
    gate: GateFrames | None
    pinned: FrameReader | None = None


@dataclass(frozen=True)
class _Looks:
    """How frames look to the model: its FP32 graph's embeddings."""

    model: ImportedModel
    fp32: Path
    pinned: PinnedFrames

    def at(self, entries: Sequence[PoolEntry]) -> NDArray[np.float32]:
        """Of pool frames, all pinned before the first is looked at."""
        self.pinned.pin(entries)
        return embed(PoolGateFrames(self.pinned, entries, self.model.preprocess), self.fp32)


def choose_frames(
    request: ConvertRequest, pool: Pool | None, model: ImportedModel, fp32: Path, again: Calibration | None, folder: Path
) -> Frames:
    """Labelled images check where they are given, held-out pool frames elsewhere; everything else of the pool may calibrate.

    Args:
        request: what is wanted.
        pool: opened for reading, or None.
        model: whose letterbox and embedding are used.
        fp32: its graph's file.
        again: an earlier calibration whose frames are taken; None draws anew.
        folder: an empty one, where the chosen pool frames are pinned.

    Raises:
        ConversionError: labels of other classes, frames that are gone, or frames that show nothing.
        PoolError, DataError: an empty or too small pool; unreadable labels.
    """
    items = labeled_images(request, model) if request.data else ()
    gate: GateFrames | None = LabeledGateFrames(items, model.preprocess) if items else None
    if pool is None:
        return Frames(None, gate)
    checked = frozenset(hashlib.sha256(item.path.read_bytes()).hexdigest() for item in items)
    pinned = PinnedFrames(pool, folder)
    looks = _Looks(model, fp32, pinned)
    drawn = _again(pool, again, request, checked, looks) if again else _draw(pool, request, looks, checked, gate)
    pinned.pin((*drawn.calibration, *drawn.held_out))
    _refuse_darkness(pinned, drawn.calibration, pool.path)
    if gate is None and drawn.held_out:
        gate = PoolGateFrames(pinned, drawn.held_out, model.preprocess)
    return Frames(drawn, gate, pinned)


def _draw(
    pool: Pool, request: ConvertRequest, looks: _Looks, checked: frozenset[str], gate: GateFrames | None
) -> CalibrationFrames:
    usable = sum(entry.sha256 not in checked for entry in pool.entries(request.until_s, with_embeddings=False))
    held_out = 0 if checked else min(request.gate_frames, usable // 4)
    count = request.frames or max(1, min(DEFAULT_FRAMES, usable - held_out))
    calibrates = request.precision in ("auto", "int8")
    sampler = request.sampler if calibrates else "time-spread"  # which needs no look at the whole pool
    least = None if request.frames else FEW_FRAMES
    draw = Draw(count, held_out, sampler, request.seed, request.until_s, checked, least)
    like = embed(gate, looks.fp32) if gate is not None and sampler in BY_EMBEDDING else None
    return sample_frames(pool, draw, looks.at, like)


def _again(
    pool: Pool, again: Calibration, request: ConvertRequest, checked: frozenset[str], looks: _Looks
) -> CalibrationFrames:
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
    calibration = tuple(entries[digest] for digest in frames)
    rest = [entry for digest, entry in entries.items() if digest not in set(frames)]
    held_out = () if checked or not rest else _unlike(calibration, rest, request, looks)
    return CalibrationFrames(
        calibration, held_out, again.sampler, again.seed, radius=again.radius, mean_distance=again.mean_distance
    )  # fmt: skip


def _unlike(
    calibration: Sequence[PoolEntry], rest: Sequence[PoolEntry], request: ConvertRequest, looks: _Looks
) -> tuple[PoolEntry, ...]:
    """Frames for the check that look like none that calibrates, spread over time; any where there are none."""
    candidates = time_spread(rest, 2 * request.gate_frames, request.seed + 1)
    there, here = looks.at(calibration), looks.at(candidates)
    fresh = [candidates[row] for row in unlike(here, range(len(candidates)), there)] or candidates
    return tuple(time_spread(fresh, request.gate_frames, request.seed + 1))


def embed(frames: GateFrames, fp32: Path) -> NDArray[np.float32]:
    """The FP32 graph's embeddings of letterboxed frames: float32 (n, d), L2-normalised."""
    backend = open_model("onnxruntime", fp32, "fp32")
    found = []
    with Progress("looking at frames", len(frames)) as progress:
        for frame in frames:
            found.append(backend.infer(frame.canvas[None]).embedding[0].copy())
            progress.advance()
    backend.close()
    return np.stack(found)


def labeled_images(request: ConvertRequest, model: ImportedModel) -> tuple[LabeledImage, ...]:
    """The images of `--data` that the gate looks at. Raises like `choose_frames`."""
    data = request.data or Path()
    dataset = load_held_out(data)
    if dataset.names != model.names:
        raise ConversionError(
            f"{data} has {_told(dataset.names)}, the model {_told(model.names)}; they must be the same, in the same order"
        )
    if not dataset.val:
        raise ConversionError(f"{data} names no image under `val` to measure on; list some, or leave --data out")
    return tuple(time_spread(dataset.val, request.gate_frames, request.seed))


def _told(names: Sequence[str]) -> str:
    return f"{len(names)} classes ({', '.join(names[:6])}{', …' if len(names) > 6 else ''})"


def _refuse_darkness(frames: FrameReader, entries: Sequence[PoolEntry], pool: Path) -> None:
    """A camera with its cap on gives ranges that fit nothing."""
    if all(max(float(image.mean()), float(image.std())) < _DARK for image in (frames.read(entry) for entry in entries)):
        raise ConversionError(
            f"all {len(entries)} calibration frames of {pool} are black; collect frames that show something, or name another --pool"
        )
