"""The gate: two bundles on the same held-out labels, each as a device would run it."""

from __future__ import annotations

from dataclasses import dataclass

from calibration.accuracy import Accuracy

# mAP50-95 may not fall at all, so that losses cannot add up night by night; F1 at one threshold jumps with single boxes
# of a small held-out set, so it may fall by one point, the bar that INT8 has too.
MIN_MAP50 = 0.01  # two models that find nothing are equal, which proves nothing
MAX_DROP = {"mAP50-95": 0.0, "F1": 0.01}


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


def compare(released: Accuracy, candidate: Accuracy) -> Verdict:
    """Whether the candidate may replace the released model: neither figure may fall by more than `MAX_DROP`."""
    drops = {"mAP50-95": released.map50_95 - candidate.map50_95, "F1": released.f1 - candidate.f1}
    failed = [
        f"{name} falls by {drop:.3f}, more than {MAX_DROP[name]:g}" for name, drop in drops.items() if drop > MAX_DROP[name]
    ]
    if released.map50 < MIN_MAP50 and candidate.map50 < MIN_MAP50:
        failed.append(f"neither finds anything (mAP50 {released.map50:.3f} and {candidate.map50:.3f}), so nothing is proved")
    told = ", ".join(f"{name} {0 - drop:+.3f}" for name, drop in drops.items())
    reason = "; ".join(failed) if failed else f"not worse: {told} on {candidate.images} held-out images"
    return Verdict(released, candidate, not failed, reason)
