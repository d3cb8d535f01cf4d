"""How the chosen calibration frames lie among all candidates: a picture of the embeddings in two dimensions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class CoverageMap:
    """Candidates on their two principal axes.

    Attributes:
        points: x, y and whether the frame was chosen, one per candidate.
        explained: share of the embeddings' variance that the two axes show, 0 to 1.
    """

    points: tuple[tuple[float, float, bool], ...]
    explained: float


def coverage_map(embeddings: NDArray[np.float32], chosen: Sequence[int]) -> CoverageMap:
    """Principal components of `embeddings` (n, d), with the rows `chosen` marked. The axes' signs are fixed."""
    centred = embeddings - embeddings.mean(axis=0)
    _, sizes, axes = np.linalg.svd(centred, full_matrices=False)
    axes = axes[:2] * np.sign([[row[np.abs(row).argmax()] or 1.0] for row in axes[:2]])
    points = np.zeros((len(embeddings), 2))
    points[:, : len(axes)] = centred @ axes.T
    variance = np.square(sizes)
    marked = set(chosen)
    return CoverageMap(
        tuple((round(float(x), 4), round(float(y), 4), row in marked) for row, (x, y) in enumerate(points)),
        round(float(variance[:2].sum() / max(float(variance.sum()), 1e-12)), 4),
    )
