"""Which of a teacher's detections on unlabeled frames a student may learn from.

A box is believed above its class's threshold. Thresholds follow the labels: as many boxes of a class are believed in a frame
as labelled frames have of it (LabelMatch, arXiv 2206.06608), within limits, so that a class that is detected timidly is not
starved and one that is detected everywhere does not flood. What lies between belief and disbelief is neither an object nor
background: the student does not get to see it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from runtime.detections import Detections

LOWEST, HIGHEST = 0.4, 0.9
DOUBT = 0.1  # below it a detection is background
_FEWEST = 20  # frames that thresholds can rest on


def class_thresholds(found: Sequence[Detections], boxes_per_frame: NDArray[np.float64]) -> NDArray[np.float64]:
    """Thresholds by class, between `LOWEST` and `HIGHEST`.

    Args:
        found: the teacher's detections of each frame, down to `DOUBT`.
        boxes_per_frame: of each class in the labelled images, float64 (classes,).

    Returns:
        float64 (classes,); the middle between the limits where too few frames were looked at.
    """
    values = np.full(len(boxes_per_frame), (LOWEST + HIGHEST) / 2)
    if len(found) < _FEWEST:
        return values
    classes = np.concatenate([each.class_id for each in found])
    scores = np.concatenate([each.confidence for each in found])
    for index, wanted in enumerate(boxes_per_frame):
        ranked = -np.sort(-scores[classes == index])
        believed = round(wanted * len(found))
        value = ranked[believed - 1] if 0 < believed <= len(ranked) else (LOWEST if believed else HIGHEST)
        values[index] = min(HIGHEST, max(LOWEST, float(value)))
    return values


def split_by_belief(found: Detections, thresholds: NDArray[np.float64]) -> tuple[Detections, Detections]:
    """A frame's detections to learn from, and those to keep out of sight; the rest is background."""
    sure = found.confidence >= thresholds[found.class_id]
    unsure = ~sure & (found.confidence >= DOUBT)
    return found[sure], found[unsure]
