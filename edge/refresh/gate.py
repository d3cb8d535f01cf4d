"""The gate: two bundles on the same held-out labels, each as a device would run it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from edge.data import LabeledImage
from edge.evaluate import EVALUATION_CONFIDENCE, Accuracy, evaluate
from runtime.bundle import Bundle
from runtime.pipeline import Pipeline

MAX_DROP = 0.01  # one point, in mAP50-95 and in F1; the same bar as for INT8


@dataclass(frozen=True, slots=True)
class Verdict:
    """The comparison and what follows.

    Attributes:
        released, candidate: accuracy of each, with its preferred engine and precision.
        publish: whether the candidate is not worse.
        reason: in words.
    """

    released: Accuracy
    candidate: Accuracy
    publish: bool
    reason: str


def bundle_accuracy(path: Path, items: Sequence[LabeledImage]) -> Accuracy:
    """Accuracy of a bundle on labelled images with its preferred engine and precision. Raises like `Bundle.open`."""
    bundle = Bundle.open(path)
    pipeline = Pipeline.load(bundle, confidence=EVALUATION_CONFIDENCE)
    try:
        return evaluate(pipeline.detect, items, bundle.manifest.classes, bundle.manifest.thresholds.confidence)
    finally:
        pipeline.close()


def compare(released: Accuracy, candidate: Accuracy, max_drop: float = MAX_DROP) -> Verdict:
    """Whether the candidate may replace the released model: neither mAP50-95 nor F1 may fall by more than `max_drop`."""
    drops = {"mAP50-95": released.map50_95 - candidate.map50_95, "F1": released.f1 - candidate.f1}
    failed = [f"{name} falls by {drop:.3f}" for name, drop in drops.items() if drop > max_drop]
    told = ", ".join(f"{name} {-drop:+.3f}" for name, drop in drops.items())
    reason = f"{'; '.join(failed)}, more than {max_drop:g}" if failed else f"not worse: {told} on {candidate.images} held-out images"
    return Verdict(released, candidate, not failed, reason)
