"""SimCLR (Chen et al. 2020, arXiv 2002.05709): two views of an image attract, all other images of the batch repel.

The batch is the source of negatives, so accumulating gradients over small batches does not replace a large one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from runtime.errors import MissingPackageError

if TYPE_CHECKING:
    import torch

TEMPERATURE = 0.2  # 0.1 of the paper is for batches of 4096; small batches separate better a little warmer
_PROJECTION = (512, 128)
# Views for inspection images: crops keep at least a third of the frame, since a small network cannot match views that
# share almost nothing (SSLight, 2210.02808), and colour is jittered half as hard as on photographs.
_MIN_SCALE, _JITTER = 0.3, 0.5


def build_simclr(backbone: torch.nn.Module, channels: int) -> torch.nn.Module:
    """SimCLR around a backbone (b, 3, h, w) → (b, channels, h', w').

    The module's forward takes two views, float32 (b, 3, h, w) RGB in 0 to 1, and gives the NT-Xent loss.

    Raises:
        MissingPackageError: lightly is not installed.
    """
    import torch

    try:
        from lightly.loss import NTXentLoss  # part of the train extra
        from lightly.models.modules.heads import SimCLRProjectionHead
    except ImportError as error:
        raise MissingPackageError("lightly", "train") from error

    class SimCLR(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.backbone = backbone
            self.head = SimCLRProjectionHead(channels, *_PROJECTION)
            self.criterion = NTXentLoss(temperature=TEMPERATURE)

        def forward(self, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
            # One pass over both views: batch norm then sees the same statistics for both.
            features = self.backbone(torch.cat([first, second])).mean(dim=(2, 3))
            first_z, second_z = self.head(features).chunk(2)
            loss: torch.Tensor = self.criterion(first_z, second_z)
            return loss

    return SimCLR()


class TwoViews:
    """Makes two random views of an image."""

    def __init__(self, size: int) -> None:
        """Views are `size` pixels square.

        Raises:
            MissingPackageError: lightly is not installed.
        """
        try:
            from lightly.transforms import SimCLRTransform  # part of the train extra
        except ImportError as error:
            raise MissingPackageError("lightly", "train") from error
        self._transform = SimCLRTransform(
            input_size=size, min_scale=_MIN_SCALE, cj_strength=_JITTER, vf_prob=0.5, gaussian_blur=0.2, normalize=None
        )

    def __call__(self, image: NDArray[np.uint8]) -> tuple[torch.Tensor, torch.Tensor]:
        """uint8 (h, w, 3) BGR → two float32 (3, size, size) RGB in 0 to 1."""
        from PIL import Image  # comes with torchvision

        first, second = self._transform(Image.fromarray(np.ascontiguousarray(image[..., ::-1])))
        return first, second
