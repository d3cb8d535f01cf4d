"""The gate's frames, through the runtime's letterbox: held-out frames of a pool, or labelled images."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from calibration.labels import LabeledImage
from calibration.pinned import FrameReader
from runtime.detections import Detections
from runtime.images import read_image
from runtime.pool import PoolEntry
from runtime.preprocess import Letterbox, Preprocess


@dataclass(frozen=True, slots=True)
class GateFrame:
    """A letterboxed frame.

    Attributes:
        name: to find it again.
        canvas: uint8 (h, w, 3), BGR.
        letterbox: where the picture came to lie on it.
        truth: its true boxes in source pixels, or None.
    """

    name: str
    canvas: NDArray[np.uint8]
    letterbox: Letterbox
    truth: Detections | None = None


class GateFrames(Protocol):
    """Frames that can be walked through more than once, one at a time, so that memory stays bounded."""

    labeled: bool

    def __len__(self) -> int:
        """How many."""
        ...

    def __iter__(self) -> Iterator[GateFrame]:
        """In a fixed order."""
        ...


class PoolGateFrames:
    """Frames of a pool; nothing is known of what is on them."""

    labeled = False

    def __init__(self, frames: FrameReader, entries: Sequence[PoolEntry], preprocess: Preprocess) -> None:
        self._frames, self._entries, self._preprocess = frames, entries, preprocess

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[GateFrame]:
        for entry in self._entries:
            yield _letterboxed(entry.sha256[:12], self._frames.read(entry), self._preprocess)


class LabeledGateFrames:
    """Labelled images."""

    labeled = True

    def __init__(self, items: Sequence[LabeledImage], preprocess: Preprocess) -> None:
        self._items, self._preprocess = items, preprocess

    def __len__(self) -> int:
        return len(self._items)

    def __iter__(self) -> Iterator[GateFrame]:
        for item in self._items:
            image = read_image(item.path)
            frame = _letterboxed(item.path.name, image, self._preprocess)
            yield GateFrame(frame.name, frame.canvas, frame.letterbox, item.truth((image.shape[1], image.shape[0])))


def _letterboxed(name: str, image: NDArray[np.uint8], preprocess: Preprocess) -> GateFrame:
    canvas = preprocess.buffer()[0]
    return GateFrame(name, canvas, preprocess.letterbox(image, canvas))
