"""Random views of a frame: crops whose place is known, and other light.

A view depends on the frame and on the generator that is handed in, on nothing else: a resumed run makes the same ones,
with any number of loader processes.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

_RATIO = (3 / 4, 4 / 3)  # width over height of a crop, as in every paper since Inception
_BLUR = (0.1, 2.0)
_TRIES = 10


@dataclass(frozen=True, slots=True)
class ViewSpec:
    """How far views may differ.

    Attributes:
        size: side in pixels of the square view.
        least: smallest share of the frame in a crop, or of what a crop can show of it. A small network cannot
            match views that share almost nothing (SSLight, arXiv 2210.02808), so it is a third where photographs take 0.08.
        jitter: strength of other light and colour, 1 as SimCLR's on photographs.
        grey: share of views without colour.
        blur: share of blurred views.
        upright: no vertical flip: a junction has an up and a down, a circuit board has not.
    """

    size: int
    least: float = 0.3
    jitter: float = 0.5
    grey: float = 0.2
    blur: float = 0.2
    upright: bool = False


def import_albumentations() -> Any:
    """The library, kept from asking the network for its newest version."""
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
    return import_module("albumentations")


class RandomView:
    """Makes one random view."""

    def __init__(self, spec: ViewSpec) -> None:
        albumentations = import_albumentations()
        self._spec = spec
        strength = spec.jitter
        self._light = albumentations.Compose(
            [
                albumentations.ColorJitter(
                    (1 - 0.8 * strength, 1 + 0.8 * strength), (1 - 0.8 * strength, 1 + 0.8 * strength),
                    (1 - 0.8 * strength, 1 + 0.8 * strength), (-0.2 * strength, 0.2 * strength), p=0.8,
                ),
                albumentations.ToGray(p=spec.grey),
                albumentations.GaussianBlur(blur_limit=0, sigma_limit=_BLUR, p=spec.blur),
            ]
        )  # fmt: skip

    def __call__(self, image: NDArray[np.uint8], rng: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        """A view and where it lies.

        Args:
            image: uint8 (h, w, 3) BGR.
            rng: all that is random.

        Returns:
            float32 (3, size, size) RGB in 0 to 1, and float32 (4,): left, top, right, bottom of the crop in shares of the
            frame, as the view's own left, top, right and bottom show them: a flip swaps left with right.
        """
        left, top, right, bottom = _crop(image.shape[1], image.shape[0], self._spec.least, rng)
        size = self._spec.size
        shrinks = (right - left) * (bottom - top) > size * size
        view = cv2.resize(
            image[top:bottom, left:right], (size, size), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
        )
        height, width = image.shape[:2]
        box = np.array([left / width, top / height, right / width, bottom / height], np.float32)
        if rng.random() < 0.5:
            view, box = view[:, ::-1], box[[2, 1, 0, 3]]
        if not self._spec.upright and rng.random() < 0.5:
            view, box = view[::-1], box[[0, 3, 2, 1]]
        self._light.set_random_seed(int(rng.integers(2**31)))
        lit = self._light(image=np.ascontiguousarray(view[..., ::-1]))["image"]
        return to_tensor(lit), torch.from_numpy(box)


class TwoViews:
    """Two views of a frame and where they lie."""

    def __init__(self, spec: ViewSpec) -> None:
        self._view = RandomView(spec)

    def __call__(self, image: NDArray[np.uint8], rng: np.random.Generator) -> tuple[torch.Tensor, ...]:
        """First view, second view, first place, second place; see `RandomView`."""
        (first, first_box), (second, second_box) = self._view(image, rng), self._view(image, rng)
        return first, second, first_box, second_box


def to_tensor(rgb: NDArray[np.uint8]) -> torch.Tensor:
    """uint8 (h, w, 3) → float32 (3, h, w) in 0 to 1, what a YOLO takes."""
    return torch.from_numpy(np.ascontiguousarray(rgb.transpose(2, 0, 1))).float() / 255


def _crop(width: int, height: int, least: float, rng: np.random.Generator) -> tuple[int, int, int, int]:
    """A random rectangle of at least that share of the frame; of a frame that is wider or higher than a crop may be, of as much
    of it as a crop can show: squeezed into a square it would show objects that no detector meets.
    """
    widest, highest = min(width, round(_RATIO[1] * height)), min(height, round(_RATIO[1] * width))
    for _ in range(_TRIES):
        area = rng.uniform(least, 1) * widest * highest
        ratio = np.exp(rng.uniform(np.log(_RATIO[0]), np.log(_RATIO[1])))
        wide, high = round(np.sqrt(area * ratio)), round(np.sqrt(area / ratio))
        if 0 < wide <= width and 0 < high <= height:
            left, top = int(rng.integers(width - wide + 1)), int(rng.integers(height - high + 1))
            return left, top, left + wide, top + high
    left, top = (int(rng.integers(room + 1)) if room else 0 for room in (width - widest, height - highest))
    return left, top, left + widest, top + highest
