"""Input buffers of an engine: filled row by row with letterboxed frames while another buffer runs."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from runtime.preprocess import Letterbox, Preprocess


class Inputs(Protocol):
    """The input of one batch, owned by the backend that made it.

    Attributes:
        batch: rows that it has.
    """

    batch: int

    def put(self, row: int, image: NDArray[np.uint8]) -> Letterbox:
        """Letterboxes `image`, uint8 (h, w, 3) BGR, contiguous or not, into a row."""
        ...


class HostInputs:
    """A buffer in the CPU's memory.

    Attributes:
        images: uint8 (batch, height, width, 3).
        batch: see `Inputs`.
    """

    def __init__(self, preprocess: Preprocess, batch: int) -> None:
        self._preprocess, self.batch = preprocess, batch
        self.images = preprocess.buffer(batch)

    def put(self, row: int, image: NDArray[np.uint8]) -> Letterbox:
        """See `Inputs.put`."""
        return self._preprocess.letterbox(image, self.images[row])
