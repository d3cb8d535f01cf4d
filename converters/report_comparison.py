"""One INT8 run beside FP32's, box by box: which frames differ most, and how scores moved."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from calibration.accuracy import EVALUATION_CONFIDENCE
from calibration.gate_frames import GateFrame
from calibration.matching import match_boxes
from converters.gate import Candidate, Gate, Run
from converters.sensitivity import score_distance
from converters.tally import SCORE_MARGIN
from runtime.detections import Detections
from runtime.draw import annotated
from runtime.manifest import Preferred, is_for

WORST_FRAMES = 4
_SCORE_PAIRS = 500  # more make the plot black and the file long
_PICTURE_SIDE = 480  # pixels; two fit side by side on a laptop, one on a phone


@dataclass(frozen=True, slots=True)
class Comparison:
    """The runs over the gate's frames, in the same order.

    Attributes:
        candidate: the INT8 file and its engine.
        found, expected: INT8's and FP32's boxes from `lowest_score` on.
        lowest_score: the deployed threshold less the gate's margin.
    """

    candidate: Candidate
    found: tuple[Detections, ...]
    expected: tuple[Detections, ...]
    lowest_score: float

    @property
    def distance(self) -> float:
        """See `score_distance`."""
        return score_distance(list(zip(self.found, self.expected, strict=True)))

    def worst(self) -> list[tuple[int, float]]:
        """Place and distance of the frames that differ most, the worst first; frames without a difference are left out."""
        distances = [
            score_distance([pair], least=1.0)  # a frame's own expected score may be next to nothing
            for pair in zip(self.found, self.expected, strict=True)
        ]
        order = sorted(range(len(distances)), key=lambda place: (-distances[place], place))
        return [(place, distances[place]) for place in order[:WORST_FRAMES] if distances[place] > 0]

    def score_pairs(self) -> NDArray[np.float32]:
        """FP32's and INT8's score of every box that both have: (n, 2), in the order of the frames."""
        pairs = [np.zeros((0, 2), np.float32)]
        for found, expected in zip(self.found, self.expected, strict=True):
            index, _ = match_boxes(expected, found)
            seen = index >= 0
            pairs.append(np.stack([expected[seen].confidence, found[index[seen]].confidence], axis=1))
        return np.concatenate(pairs)


@dataclass(frozen=True, slots=True)
class WorstFrame:
    """A frame of the gate, and how far INT8's boxes on it are from FP32's: 0 and more, see `score_distance`."""

    name: str
    distance: float


@dataclass(frozen=True, slots=True)
class SideBySide:
    """A worst frame with both sides' boxes drawn on it: uint8 (h, w, 3), BGR."""

    frame: WorstFrame
    fp32: NDArray[np.uint8]
    int8: NDArray[np.uint8]


def compare(runs: Mapping[Candidate, Run], preferred: Preferred, gate: Gate) -> Comparison | None:
    """The preferred INT8 run beside FP32's, or the one closest to FP32 where none is preferred; None without any.

    Args:
        runs: the reference's among them.
        preferred: the verdict.
        gate: whose frames were run.
    """
    reference = next((run for candidate, run in runs.items() if candidate.is_reference), None)
    if reference is None:
        return None
    low = max(gate.thresholds.confidence - SCORE_MARGIN, EVALUATION_CONFIDENCE)
    found = [
        Comparison(candidate, _above(run, low), _above(reference, low), low)
        for candidate, run in runs.items()
        if candidate.precision == "int8" and candidate.batch == 1
    ]
    liked = [one for one in found if preferred.precision == "int8" and _runs_on(one.candidate, preferred.engine)]
    return min(liked or found, key=lambda one: one.distance, default=None)


def pictures_of(comparison: Comparison, gate: Gate) -> list[SideBySide]:
    """The worst frames with boxes, the worst first; walks through the gate's frames once more."""
    wanted = dict(comparison.worst())
    made = {
        place: SideBySide(
            WorstFrame(frame.name, round(wanted[place], 4)),
            _drawn(frame, comparison.expected[place], gate.names),
            _drawn(frame, comparison.found[place], gate.names),
        )
        for place, frame in enumerate(gate.frames)
        if place in wanted
    }
    return [made[place] for place in wanted]


def some_of(pairs: NDArray[np.float32]) -> tuple[tuple[float, float], ...]:
    """At most 500 of the rows (n, 2), evenly spaced, so that all frames are among them."""
    places = np.linspace(0, len(pairs) - 1, min(len(pairs), _SCORE_PAIRS)).round().astype(int)
    return tuple((round(float(x), 4), round(float(y), 4)) for x, y in pairs[places])


def _runs_on(candidate: Candidate, engine: str) -> bool:
    return candidate.engine == engine and is_for(candidate.form, engine)


def _above(run: Run, low: float) -> tuple[Detections, ...]:
    return tuple(detections.above(low) for detections in run.detections)


def _drawn(frame: GateFrame, detections: Detections, names: Sequence[str]) -> NDArray[np.uint8]:
    """The picture without the letterbox's border, small, with boxes."""
    box = frame.letterbox
    width, height = (max(1, round(side * box.gain)) for side in box.source_wh)
    inner = frame.canvas[box.top : box.top + height, box.left : box.left + width]
    factor = _PICTURE_SIDE / max(width, height)
    size = (max(1, round(width * factor)), max(1, round(height * factor)))
    small = np.asarray(cv2.resize(inner, size, interpolation=cv2.INTER_AREA), np.uint8)
    moved = Detections(
        (detections.xyxy * np.float32(box.gain * factor)).astype(np.float32), detections.confidence, detections.class_id
    )
    return annotated(small, moved, names)
