"""Which of a teacher's detections on unlabeled frames a student may learn from.

A box is believed above its class's threshold. Thresholds follow the labels: as many boxes of a class are believed in a frame
as labelled frames have of it (LabelMatch, arXiv 2206.06608), within limits, so that a class that is detected timidly is not
starved and one that is detected everywhere does not flood. What lies between belief and disbelief is neither an object nor
background: the student does not get to see it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from runtime.detections import Detections

LOWEST, HIGHEST = 0.2, 0.9
DOUBT = 0.05  # below it a detection is background
_MEMORY = 400  # frames that thresholds rest on
_FEWEST = 20


class ClassThresholds:
    """Thresholds by class, from what the teacher found lately.

    Attributes:
        values: float64 (classes,), between `LOWEST` and `HIGHEST`.
    """

    def __init__(self, boxes_per_frame: NDArray[np.float64]) -> None:
        """`boxes_per_frame`: of each class in the labelled images, float64 (classes,)."""
        self._wanted = boxes_per_frame
        self._seen: deque[Detections] = deque(maxlen=_MEMORY)
        self.values = np.full(len(boxes_per_frame), (LOWEST + HIGHEST) / 2)

    def update(self, found: Sequence[Detections]) -> None:
        """Takes in the teacher's detections of some frames, down to `DOUBT`."""
        self._seen.extend(found)
        if len(self._seen) < _FEWEST:
            return
        classes = np.concatenate([each.class_id for each in self._seen])
        scores = np.concatenate([each.confidence for each in self._seen])
        for index, wanted in enumerate(self._wanted):
            ranked = -np.sort(-scores[classes == index])
            believed = round(wanted * len(self._seen))
            value = ranked[believed - 1] if 0 < believed <= len(ranked) else (LOWEST if believed else HIGHEST)
            self.values[index] = min(HIGHEST, max(LOWEST, float(value)))

    def state_dict(self) -> dict[str, object]:
        """For a checkpoint."""
        return {
            "values": self.values.tolist(),
            "seen": [(each.xyxy.tolist(), each.confidence.tolist(), each.class_id.tolist()) for each in self._seen],
        }

    def load_state_dict(self, state: dict[str, object]) -> None:
        """Takes up what `state_dict` gave."""
        self.values = np.array(state["values"], np.float64)
        self._seen.clear()
        rows: list[tuple[list[list[float]], list[float], list[int]]] = state["seen"]  # type: ignore[assignment]
        for boxes, scores, classes in rows:
            self._seen.append(
                Detections(
                    np.array(boxes, np.float32).reshape(-1, 4), np.array(scores, np.float32), np.array(classes, np.int32)
                )
            )


def believed(found: Detections, thresholds: ClassThresholds) -> tuple[Detections, Detections]:
    """Splits a frame's detections into those to learn from and those to keep out of sight; the rest is background."""
    sure = found.confidence >= thresholds.values[found.class_id]
    unsure = ~sure & (found.confidence >= DOUBT)
    return found[sure], found[unsure]


def painted_over(image: NDArray[np.uint8], unsure: Detections, sure: Detections) -> NDArray[np.uint8]:
    """A copy of the image, uint8 (h, w, 3), with grey over doubtful boxes, but not over believed ones."""
    kept: NDArray[np.uint8] = image.copy()
    for left, top, right, bottom in unsure.xyxy.astype(int).tolist():
        kept[max(0, top) : bottom + 1, max(0, left) : right + 1] = 114
    for left, top, right, bottom in sure.xyxy.astype(int).tolist():
        rows, columns = slice(max(0, top), bottom + 1), slice(max(0, left), right + 1)
        kept[rows, columns] = image[rows, columns]
    return kept
