"""What a frozen network makes of pictures: one vector each. What probes, maps and comparisons share."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from edge.errors import TrainingError
from edge.injection import inject_all, refuse_uncovered
from edge.yolo import PARTS, Part, build_detector
from runtime.preprocess import STRIDE, Preprocess
from runtime.progress import Progress

if TYPE_CHECKING:
    from edge.trunk import Trunk

_BATCH = 16
_SEEN = 512  # pictures that statistics are taken of


def frozen_trunk(model: str, part: Part, weights: Iterable[Path], seed: int = 0) -> Trunk:
    """The part of a detector that gives features, with the weights injected in their order over fresh ones, and told; a word where
    they are no weights to be looked at.

    Raises:
        CheckpointError: weights of another architecture, or of less than that part.
    """
    import torch

    from edge.trunk import Trunk

    detector = build_detector(model, ["object"], seed)
    injected = inject_all(detector, tuple(weights), model)
    refuse_uncovered(part, injected)
    if injected.kinds and injected.kinds[-1] in PARTS and float(injected.lineage.get("ssl_interpolate", 1)) < 1:
        sys.stderr.write(
            f"this {injected.kinds[-1]} is a mean of weights, made to be trained further: its batch norms do not fit while it is "
            "frozen; what was learnt is better seen in one of edge pretrain --interpolate 1\n"
        )
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


def show(trunk: Trunk, canvases: Sequence[NDArray[np.uint8]]) -> None:
    """Gives its batch norms the statistics of pictures, two at least: those of fresh weights hold statistics of no image, under
    which layer after layer fades, and a network that is compared with them would be praised for having seen any.
    """
    import torch

    norms = [layer for layer in trunk.modules() if isinstance(layer, torch.nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the mean over all batches
    count = min(_SEEN, len(canvases))
    with Progress("statistics", count) as progress:
        for batch in np.array_split(np.arange(count), -(-count // _BATCH)):  # as large as each other: they weigh the same
            features(trunk.train(), [canvases[index] for index in batch], progress)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    trunk.eval()


def unit_vectors(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """The same directions with length 1."""
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors / np.maximum(length, 1e-12), np.float32)
