"""Input buffers: where a batch is put together, row by row, before a backend runs it."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from runtime.frame import Picture
from runtime.preprocess import Letterbox, Preprocess


class Inputs(Protocol):
    """One batch. Rows may be filled from several threads, one thread a row, but not while the batch runs.

    Attributes:
        batch: rows; what a row holds stays until it is filled again.
    """

    batch: int

    def put(self, row: int, image: Picture) -> Letterbox:
        """Letterboxes a frame into a row; `image` is BGR uint8 (h, w, 3) or YUV, also a view, and free again on return.

        Raises:
            BackendError: a GPU backend cannot take it.
        """
        ...


class HostInputs:
    """A batch in the host's memory, for engines that run there.

    Attributes:
        batch: rows.
        images: uint8 (batch, height, width, 3), letterboxed BGR.
    """

    def __init__(self, images: NDArray[np.uint8], preprocess: Preprocess) -> None:
        self.batch, self.images, self._preprocess = len(images), images, preprocess

    def put(self, row: int, image: Picture) -> Letterbox:
        """See `Inputs.put`."""
        return self._preprocess.letterbox(image, self.images[row])


def images_of(inputs: Inputs) -> NDArray[np.uint8]:
    """The batch of an engine that runs on the host.

    Raises:
        TypeError: the inputs are another backend's.
    """
    if not isinstance(inputs, HostInputs):
        raise TypeError(f"expected inputs that this backend made, but got {type(inputs).__name__}")
    return inputs.images
