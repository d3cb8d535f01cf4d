"""What a frozen network makes of pictures: one vector each. What probes, maps and comparisons share."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from converters.checkpoint import load_checkpoint
from edge.errors import TrainingError
from edge.yolo import Part, build_detector, inject
from runtime.preprocess import STRIDE, Preprocess
from runtime.progress import Progress

if TYPE_CHECKING:
    from edge.trunk import Trunk

_BATCH = 16


def frozen_trunk(model: str, part: Part, weights: Iterable[Path], seed: int = 0) -> Trunk:
    """The part of a detector that gives features, with the weights injected in their order over fresh ones.

    Raises:
        CheckpointError: weights of another architecture.
    """
    import torch

    from edge.trunk import Trunk

    detector = build_detector(model, ["object"], seed)
    for path in weights:
        inject(detector, load_checkpoint(path), model)
    return Trunk(detector, model, part).eval().to("cuda" if torch.cuda.is_available() else "cpu")


def checked_preprocess(imgsz: int) -> Preprocess:
    """The letterbox to a square of that side.

    Raises:
        TrainingError: no multiple of the network's stride.
    """
    if imgsz % STRIDE:
        raise TrainingError(f"--imgsz must be a multiple of {STRIDE}, but got {imgsz}; try {-(-imgsz // STRIDE) * STRIDE}")
    return Preprocess((imgsz, imgsz))


def letterboxed(image: NDArray[np.uint8], preprocess: Preprocess) -> NDArray[np.uint8]:
    """A picture as the network will see it: uint8 (side, side, 3) BGR."""
    canvas: NDArray[np.uint8] = preprocess.buffer()[0]
    preprocess.letterbox(image, canvas)
    return canvas


def features(trunk: Trunk, canvases: Sequence[NDArray[np.uint8]], progress: Progress) -> NDArray[np.float32]:
    """Vectors of letterboxed pictures: float32 (n, d), of any length; `progress` counts the pictures."""
    import torch

    from edge.trunk import pooled

    found = []
    device = next(trunk.parameters()).device
    with torch.inference_mode():
        for start in range(0, len(canvases), _BATCH):
            rgb = np.ascontiguousarray(np.stack(canvases[start : start + _BATCH])[..., ::-1].transpose(0, 3, 1, 2))
            found.append(pooled(trunk(torch.from_numpy(rgb).to(device).float() / 255)).cpu().numpy())
            progress.advance("", len(rgb))
    return np.concatenate(found)


def unit_vectors(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """The same directions with length 1."""
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors / np.maximum(length, 1e-12), np.float32)
