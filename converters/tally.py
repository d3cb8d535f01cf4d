"""How one model's boxes compare with another's, without labels: the gate's sums over frames."""

from __future__ import annotations

from dataclasses import dataclass

from calibration.matching import match_boxes
from runtime.detections import Detections, box_iou

SCORE_MARGIN = 0.1
_MATCH_IOU = 0.5


@dataclass(slots=True)
class Tally:
    """Running sums of one candidate against the reference at a confidence threshold."""

    confidence: float
    found: int = 0
    expected: int = 0
    both: int = 0
    found_seen: int = 0
    expected_seen: int = 0
    iou: float = 0.0
    shift: float = 0.0
    flips: int = 0

    @property
    def f1(self) -> float:
        """Share of both sides' boxes that the other side has too; 1 when neither has any."""
        total = self.found + self.expected
        return (self.found_seen + self.expected_seen) / total if total else 1.0

    @property
    def f1_at_threshold(self) -> float:
        """The same with the threshold taken at its word on both sides: what a user of the boxes sees."""
        total = self.found + self.expected
        return 2 * self.both / total if total else 1.0

    @property
    def recall(self) -> float:
        """Share of the reference's boxes that came out again."""
        return self.expected_seen / self.expected if self.expected else 1.0

    @property
    def mean_iou(self) -> float:
        """Of the matched boxes, both ways."""
        seen = self.found_seen + self.expected_seen
        return self.iou / seen if seen else 0.0

    @property
    def score_shift(self) -> float:
        """Mean change of the score, both ways, so that choosing by the one side's threshold does not bias it."""
        seen = self.found_seen + self.expected_seen
        return self.shift / seen if seen else 0.0

    def compare(self, found: Detections, expected: Detections) -> None:
        """Adds a frame; both hold boxes down to `SCORE_MARGIN` below the threshold at least."""
        low = self.confidence - SCORE_MARGIN
        above_found, above_expected = found.above(self.confidence), expected.above(self.confidence)
        self.found, self.expected = self.found + len(above_found), self.expected + len(above_expected)
        self.expected_seen += self._match(above_expected, found.above(low), -1.0)
        self.found_seen += self._match(above_found, expected.above(low), 1.0)
        self.both += int((match_boxes(above_expected, above_found)[0] >= 0).sum())
        self.flips += _class_flips(above_found, above_expected)

    def _match(self, boxes: Detections, others: Detections, sign: float) -> int:
        """How many of `boxes` the others have too; `sign` makes the shift candidate minus reference."""
        index, iou = match_boxes(boxes, others)
        seen = index >= 0
        self.iou += float(iou.sum())
        self.shift += sign * float((boxes[seen].confidence - others[index[seen]].confidence).sum())
        return int(seen.sum())


def _class_flips(found: Detections, expected: Detections) -> int:
    """How many reference boxes overlap a found box best that has another class, and none of their own."""
    if not len(found) or not len(expected):
        return 0
    iou = box_iou(expected.xyxy, found.xyxy)
    same = expected.class_id[:, None] == found.class_id[None, :]
    return int((((iou * ~same).max(axis=1) >= _MATCH_IOU) & ((iou * same).max(axis=1) < _MATCH_IOU)).sum())
