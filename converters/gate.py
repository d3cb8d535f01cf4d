"""The gate: does a file, under the engine that will run it, still see what FP32 sees? Else it is refused.

The same Q/DQ file can be right on one engine and ruined on another (benchmarks/results/coco_parity.json), so every file
is measured under every installed engine that it is for, on frames that were not calibrated on.

Without labels FP32's boxes are the measure. A box that one side scores just above the threshold and the other just below
is a coin's toss, not a fault: it counts as seen if the other side has it within `SCORE_MARGIN` of the threshold. That all
scores sink is caught by the mean score shift, and by a wider bar on F1 with the threshold taken at its word. With labels,
F1 and mAP50-95 decide too.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from calibration.accuracy import EVALUATION_CONFIDENCE, accuracy
from calibration.bootstrap import REPLICATES, MatchedPairs, drop_interval
from calibration.gate_frames import GateFrame, GateFrames
from converters.tally import SCORE_MARGIN, Tally
from runtime.backends import SETTLE_S, Backend, open_model, warm
from runtime.detections import Detections
from runtime.errors import BackendError, EdgeloopError, MissingPackageError
from runtime.manifest import Form, LabeledAccuracy, Parity, Precision, Preferred, is_for
from runtime.metrics import percentiles
from runtime.postprocess import Thresholds, detections_from_outputs
from runtime.progress import Progress

REFERENCE_ENGINE = "onnxruntime"
_BLOCK = 16  # frames that one engine runs before the next has its turn; more for larger batches


@dataclass(frozen=True, slots=True)
class Bars:
    """What a candidate must hold against FP32.

    Attributes:
        agreement: least F1 against FP32's boxes, 0 to 1, with the margin. Good INT8 files of yolo11n and yolov8n have .989
            to .998 on COCO.
        at_threshold: the same without the margin; good files have .93 to .96, since boxes near the threshold change sides.
        mean_iou: least mean IoU of matched boxes, 0 to 1.
        score_shift: largest mean change of a score, either way.
        f1_drop, map_drop: largest loss on labelled frames.
        boxes: agreement on fewer is luck; a model that finds nothing agrees with every other.
        speedup: INT8 and FP16 must be this many times as fast as the fastest FP32 to be worth it.
    """

    agreement: float = 0.97
    at_threshold: float = 0.85
    mean_iou: float = 0.90
    score_shift: float = 0.03
    f1_drop: float = 0.01
    map_drop: float = 0.01
    boxes: int = 20
    speedup: float = 1.05


@dataclass(frozen=True, slots=True)
class Candidate:
    """One file under one engine."""

    precision: Precision
    form: Form
    engine: str
    path: Path
    batch: int = 1

    @property
    def is_reference(self) -> bool:
        """Whether the others are compared with this one."""
        return (self.precision, self.engine, self.batch) == ("fp32", REFERENCE_ENGINE, 1)


@dataclass(slots=True)
class Run:
    """What a candidate gave: detections of every frame in order, and the time of every inference in seconds."""

    detections: list[Detections] = field(default_factory=list)
    times_s: list[float] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Gate:
    """Everything that a comparison needs.

    Attributes:
        frames: to measure on.
        thresholds: of the release.
        names: class names.
        bars: to hold.
        seed: of the bootstrap.
    """

    frames: GateFrames
    thresholds: Thresholds
    names: tuple[str, ...]
    bars: Bars = Bars()
    seed: int = 0


def candidates_of(files: Sequence[tuple[Precision, Form, int, Path]], engines: Sequence[str]) -> list[Candidate]:
    """Each file under each of the engines that it is for; TensorRT's INT8 under ONNX Runtime, as a proxy (see docs).

    A proxy shows that the numbers in the file are right, not that TensorRT computes them so.
    """
    found = []
    for precision, form, batch, path in files:
        for engine in engines:
            proxy = engine == REFERENCE_ENGINE and form in ("tensorrt", "tensorrt-strong")
            if is_for(form, engine) or proxy:
                found.append(Candidate(precision, form, engine, path, batch))
    return found


def run_candidates(candidates: Sequence[Candidate], gate: Gate, skipped: list[str]) -> dict[Candidate, Run]:
    """Runs all candidates over all frames in blocks, turn by turn, so that a slow minute of the machine hits all alike.

    Candidates whose engine is missing, refuses the file or fails to run it are left out; the reason is appended to `skipped`.

    Raises:
        MissingPackageError, BackendError: the same for the reference.
    """
    backends = _opened(candidates, skipped)
    runs = {candidate: Run() for candidate in backends}
    thresholds = Thresholds(_lowest_score(gate), gate.thresholds.iou)
    largest = max((candidate.batch for candidate in backends), default=1)
    try:
        with Progress("measuring", len(gate.frames)) as progress:
            for block in _blocks(gate.frames, -(-_BLOCK // largest) * largest):
                for candidate in list(backends):
                    time.sleep(SETTLE_S)
                    try:
                        _run_block(backends[candidate], candidate.batch, block, thresholds, runs[candidate])
                    except BackendError as error:
                        _leave_out(candidate, error, skipped)
                        backends.pop(candidate).close()
                        del runs[candidate]
                progress.advance(steps=len(block))
    finally:
        for backend in backends.values():
            backend.close()
    return runs


def judge(runs: Mapping[Candidate, Run], gate: Gate, replicates: int = REPLICATES) -> list[Parity]:
    """Compares every run with the reference's and says which bars it misses; `replicates` of the bootstrap, 0 for none."""
    reference = next((run for candidate, run in runs.items() if candidate.is_reference), None)
    if reference is None or not reference.detections:
        return []
    known = [frame.truth for frame in gate.frames if frame.truth is not None] if gate.frames.labeled else []
    base = MatchedPairs(list(zip(known, reference.detections[: len(known)], strict=True)))
    found = []
    for candidate, run in runs.items():
        labeled = _labeled(run, reference, known, gate) if known else None
        if labeled and replicates and run is not reference:
            low, high = drop_interval(base, MatchedPairs(list(zip(known, run.detections, strict=True))), gate.seed, replicates)
            labeled = labeled.model_copy(update={"map50_95_drop_interval": (round(low, 4), round(high, 4))})
        found.append(_judged(candidate, run, reference, labeled, gate))
    return found


def prefer(rows: Sequence[Parity], bars: Bars, left_out: Sequence[Parity] = (), skipped: Sequence[str] = ()) -> Preferred:
    """The fastest sound engine and precision at batch 1; anything but FP32 must be worth its while.

    Args:
        rows: of the files that are there.
        bars: for the speed.
        left_out: measurements of files that are not there any more: they are told, not chosen.
        skipped: why an engine did not run a file: told.
    """
    here = [row for row in rows if row.batch == 1 and not row.is_proxy]
    sound = [row for row in here if is_sound(row, rows)]
    floats = [row for row in sound if row.precision == "fp32"]
    if not floats:
        return Preferred(
            engine=REFERENCE_ENGINE, precision="fp32", reason="nothing was measured: no pool, or too few frames in it"
        )
    fp32 = min(floats, key=lambda row: row.latency_p50_ms)
    best = min(sound, key=lambda row: row.latency_p50_ms)
    refusals = [f"{row.precision} on {row.engine}: {row.refused}" for row in (*here, *left_out) if row.refused]
    told = "; refused: " + ", ".join(dict.fromkeys(refusals)) if refusals else ""
    told += "".join(f"; not measured: {reason}" for reason in dict.fromkeys(skipped))
    if any(row.is_proxy and not row.refused for row in rows):
        told += "; TensorRT's files hold by proxy and were not timed: this verdict is for this machine's CPU"
    if best.precision == "fp32":
        reason = f"FP32 is the fastest that holds, p50 {fp32.latency_p50_ms:.1f} ms{told}"
        return Preferred(engine=fp32.engine, precision="fp32", reason=reason)
    ratio = fp32.latency_p50_ms / best.latency_p50_ms
    if ratio < bars.speedup:
        reason = f"{best.precision.upper()} not worth it here: {ratio:.2f} times FP32's rate, less than {bars.speedup:g}{told}"
        return Preferred(engine=fp32.engine, precision="fp32", reason=reason)
    reason = f"holds all bars at {ratio:.2f} times FP32's rate, p50 {best.latency_p50_ms:.1f} ms{told}"
    return Preferred(engine=best.engine, precision=best.precision, reason=reason)


def is_sound(row: Parity, rows: Sequence[Parity]) -> bool:
    """Whether a file holds under an engine at every batch that was measured; a batch that it could not run counts too."""
    same = [other for other in rows if (other.precision, other.form, other.engine) == (row.precision, row.form, row.engine)]
    batches = {other.batch for other in (*same, *rows) if other in same or other.precision == "fp32"}
    held = {other.batch for other in same if not other.refused}
    return held == batches


def _lowest_score(gate: Gate) -> float:
    """MAP needs the weak boxes too; agreement only those just below the threshold."""
    near = max(gate.thresholds.confidence - SCORE_MARGIN, EVALUATION_CONFIDENCE)
    return EVALUATION_CONFIDENCE if gate.frames.labeled else near


def _opened(candidates: Sequence[Candidate], skipped: list[str]) -> dict[Candidate, Backend]:
    backends: dict[Candidate, Backend] = {}
    for candidate in candidates:
        try:
            backends[candidate] = open_model(candidate.engine, candidate.path, candidate.precision)
        except (MissingPackageError, BackendError) as error:
            _leave_out(candidate, error, skipped)
    return backends


def _leave_out(candidate: Candidate, error: EdgeloopError, skipped: list[str]) -> None:
    if candidate.is_reference:
        raise error
    skipped.append(str(error))


def _blocks(frames: GateFrames, size: int) -> Iterator[list[GateFrame]]:
    block: list[GateFrame] = []
    for frame in frames:
        block.append(frame)
        if len(block) == size:
            yield block
            block = []
    if block:
        yield block


def _run_block(backend: Backend, batch: int, block: Sequence[GateFrame], thresholds: Thresholds, run: Run) -> None:
    for start in range(0, len(block), batch):
        rows = block[start : start + batch]
        images = np.stack([rows[index % len(rows)].canvas for index in range(batch)])
        if not run.times_s:
            warm(backend, images)
        begun = time.perf_counter()
        outputs = backend.infer(images)
        run.times_s.append(time.perf_counter() - begun)
        run.detections += [
            detections_from_outputs(outputs, index, frame.letterbox, thresholds) for index, frame in enumerate(rows)
        ]


def _judged(candidate: Candidate, run: Run, reference: Run, labeled: LabeledAccuracy | None, gate: Gate) -> Parity:
    tally = Tally(gate.thresholds.confidence)
    for found, expected in zip(run.detections, reference.detections, strict=True):
        tally.compare(found, expected)
    times = percentiles(run.times_s)
    row = Parity(
        precision=candidate.precision, form=candidate.form, engine=candidate.engine, batch=candidate.batch,
        frames=len(run.detections), boxes=tally.expected, recall_of_fp32=round(tally.recall, 4),
        f1_against_fp32=round(tally.f1, 4), f1_at_threshold=round(tally.f1_at_threshold, 4),
        mean_iou=round(tally.mean_iou, 4), mean_score_shift=round(tally.score_shift, 4),
        class_flips=tally.flips, latency_p50_ms=round(times.p50_ms, 3), latency_p99_ms=round(times.p99_ms, 3),
        labeled=labeled,
    )  # fmt: skip
    return row if candidate.is_reference else row.model_copy(update={"refused": missed_bar(row, gate.bars)})


def _labeled(run: Run, reference: Run, truths: Sequence[Detections], gate: Gate) -> LabeledAccuracy:
    ours, theirs = (
        accuracy(list(zip(truths, one.detections, strict=True)), gate.names, gate.thresholds.confidence)
        for one in (run, reference)
    )
    drop = round(theirs.map50_95 - ours.map50_95, 4)
    return LabeledAccuracy(
        images=len(truths), f1=round(ours.f1, 4), map50_95=round(ours.map50_95, 4), f1_drop=round(theirs.f1 - ours.f1, 4),
        map50_95_drop=drop, map50_95_drop_interval=(drop, drop),
    )  # fmt: skip


def missed_bar(row: Parity, bars: Bars) -> str:
    """The first bar that a row misses, in words; empty when it holds them all."""
    if row.precision != "fp32" and row.boxes < bars.boxes:
        return f"only {row.boxes} boxes to compare, {bars.boxes} are needed: measure on more frames, larger ones or at a lower --conf"
    if row.f1_against_fp32 < bars.agreement:
        return f"F1 against FP32 {row.f1_against_fp32:.3f} < {bars.agreement:g}"
    if row.f1_at_threshold < bars.at_threshold:
        return f"F1 against FP32 at the threshold {row.f1_at_threshold:.3f} < {bars.at_threshold:g}"
    if row.boxes and row.mean_iou < bars.mean_iou:
        return f"boxes moved, mean IoU {row.mean_iou:.3f} < {bars.mean_iou:g}"
    if abs(row.mean_score_shift) > bars.score_shift:
        return f"scores shift by {row.mean_score_shift:+.3f}, more than {bars.score_shift:g}"
    if row.labeled and row.labeled.f1_drop > bars.f1_drop:
        return f"F1 falls by {row.labeled.f1_drop:.4f}, more than {bars.f1_drop:g}"
    if row.labeled and row.labeled.map50_95_drop > bars.map_drop:
        return f"mAP50-95 falls by {row.labeled.map50_95_drop:.4f}, more than {bars.map_drop:g}"
    return ""
