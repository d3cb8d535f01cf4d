"""What a network makes of a pool: one vector a frame, and a map of them with thumbnails to look at."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from edge.features import checked_preprocess, features, frozen_trunk, letterboxed, unit_vectors
from edge.pool_frames import readable
from edge.yolo import Part
from runtime.errors import PoolError
from runtime.pool import Pool
from runtime.progress import Progress

_FEWEST_NEIGHBOURS = 5  # frames; fewer have no neighbourhoods
_THUMB = 64  # pixels
_QUALITY = 70


@dataclass(frozen=True, slots=True)
class EmbedRequest:
    """What is looked at, and by which networks.

    Attributes:
        pool: the frames.
        weights: title → checkpoints in the order they are injected; none are fresh weights.
        model: architecture.
        part: whose features.
        imgsz: side in pixels of the square that a frame is letterboxed to.
        frames: how many at most, spread over the pool's time.
        seed: of fresh weights.
    """

    pool: Path
    weights: dict[str, tuple[Path, ...]]
    model: str = "yolo11n"
    part: Part = "backbone"
    imgsz: int = 320
    frames: int = 500
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Embedded:
    """Frames and what each network makes of them.

    Attributes:
        names: of the frames.
        cameras: of each.
        thumbnails: JPEG as data addresses.
        vectors: title → float32 (n, d), L2-normalised.
    """

    names: list[str]
    cameras: list[str]
    thumbnails: list[str]
    vectors: dict[str, NDArray[np.float32]]


def embed(request: EmbedRequest) -> Embedded:
    """Runs every network over the frames.

    Raises:
        PoolError: no pool, or an empty one.
        TrainingError: an impossible size.
        CheckpointError: weights of another architecture.
    """
    preprocess = checked_preprocess(request.imgsz)
    trunks = {title: frozen_trunk(request.model, request.part, paths, request.seed) for title, paths in request.weights.items()}
    names, cameras, thumbnails, canvases = [], [], [], []
    with Pool.open(request.pool) as pool:
        entries = sorted(pool.entries(with_embeddings=False), key=lambda entry: entry.captured_wall_s)
        if not entries:
            raise PoolError(f"pool {request.pool} is empty; fill it with: edge pool add {request.pool} IMAGES")
        chosen = sorted({round(place) for place in np.linspace(0, len(entries) - 1, min(request.frames, len(entries)))})
        with Progress("embed", len(chosen) * (1 + len(trunks))) as progress:
            for entry, image in readable(pool, (entries[index] for index in chosen)):
                canvases.append(letterboxed(image, preprocess))
                names.append(f"{entry.sha256[:12]}.jpg")
                cameras.append(entry.camera)
                thumbnails.append(_thumbnail(image))
                progress.advance("")
            vectors = {title: unit_vectors(features(trunk, canvases, progress)) for title, trunk in trunks.items()}
    return Embedded(names, cameras, thumbnails, vectors)


def principal_plane(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """The two directions of most variance (PCA), float32 (n, 2), scaled into -1 to 1."""
    centred = vectors - vectors.mean(0)
    _, _, directions = np.linalg.svd(centred, full_matrices=False)
    plane = centred @ directions[:2].T
    if plane.shape[1] < 2:
        plane = np.pad(plane, ((0, 0), (0, 2 - plane.shape[1])))
    return np.asarray(plane / max(1e-9, float(np.abs(plane).max())), np.float32)


def neighbour_plane(vectors: NDArray[np.float32], seed: int) -> NDArray[np.float32]:
    """Neighbours near each other (t-SNE, van der Maaten and Hinton 2008), float32 (n, 2), scaled into -1 to 1."""
    from sklearn.manifold import TSNE

    if len(vectors) < _FEWEST_NEIGHBOURS:
        return principal_plane(vectors)
    few = max(2.0, min(30.0, (len(vectors) - 1) / 3))
    plane = TSNE(perplexity=few, init="pca", random_state=seed).fit_transform(vectors)
    plane -= plane.mean(0)
    return np.asarray(plane / max(1e-9, float(np.abs(plane).max())), np.float32)


def _thumbnail(image: NDArray[np.uint8]) -> str:
    scale = _THUMB / max(image.shape[:2])
    small = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    data = cv2.imencode(".jpg", small, [cv2.IMWRITE_JPEG_QUALITY, _QUALITY])[1]
    return "data:image/jpeg;base64," + base64.b64encode(data.tobytes()).decode()
