"""Has the network collapsed? Features that are the same for every image give a fine loss and a useless network."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from edge.errors import TrainingError

if TYPE_CHECKING:
    import torch

_LEAST_RANK = 2.0  # directions in use
_LEAST_SPREAD = 0.02  # of unit vectors; those of d random dimensions have 1 / sqrt(d) each, times sqrt(d) here: about 1
FEWEST = 8  # images; fewer span few directions whatever the network does


@dataclass(frozen=True, slots=True)
class Spread:
    """How different a network's features are.

    Attributes:
        effective_rank: directions that are in use, 1 to the number of dimensions (RankMe, arXiv 2210.02885).
        deviation: mean standard deviation of the dimensions of unit vectors, times the root of their number: 0 for one
            point, about 1 for all directions alike (SimSiam, arXiv 2011.10566, figure 2).
    """

    effective_rank: float
    deviation: float


def spread_of(features: torch.Tensor) -> Spread:
    """The spread of features (n, d), any scale."""
    import torch

    vectors = torch.nn.functional.normalize(features.detach().double(), dim=1)
    values = torch.linalg.svdvals(vectors - vectors.mean(0))
    share = values / values.sum().clamp_min(1e-12)
    entropy = -(share * (share + 1e-12).log()).sum()
    deviation = vectors.std(0).mean() * vectors.shape[1] ** 0.5
    return Spread(float(entropy.exp()), float(deviation))


def refuse_collapse(found: Spread, images: int, method: str) -> None:
    """Stops a run that has nothing left to learn from.

    Raises:
        TrainingError: all features are (nearly) one.
    """
    if images >= FEWEST and (found.effective_rank < _LEAST_RANK or found.deviation < _LEAST_SPREAD):
        other = "" if method == "vicreg" else ", or take --method vicreg, which forbids it"
        raise TrainingError(
            f"the features have collapsed (effective rank {found.effective_rank:.1f}, spread {found.deviation:.3f}): all images "
            f"look alike to the network; lower --lr, enlarge --batch{other}"
        )
