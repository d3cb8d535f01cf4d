"""What the demo looks at: the simulated line, or a real labelled folder whose light is dimmed for the live part."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from calibration.labels import LabeledImage, group_of, load_dataset, split_dataset, write_dataset
from runtime.detections import Detections
from runtime.files import write_atomically
from runtime.images import list_images, read_image
from runtime.sources.simulated import CLASS_NAMES, Line

POOL_FRAMES = 384  # what two cores pretrain on in about a minute
_VAL_IMAGES = 60
_LIVE_LIGHT_DRIFT = 1 / 150  # the simulated light is fully drifted after 15 s at 10 frames/s
_VAL_SHARE = 0.2
_MOST_IMGSZ = 320


class Scene(Protocol):
    """What the loop needs of a scene.

    Attributes:
        title: for the report.
        names: class names.
        imgsz: side of the detector's input in pixels.
        data: data.yaml of the few labelled and the held-out images.
    """

    @property
    def title(self) -> str:
        """See above."""
        ...

    @property
    def names(self) -> tuple[str, ...]:
        """See above."""
        ...

    @property
    def imgsz(self) -> int:
        """See above."""
        ...

    @property
    def data(self) -> Path:
        """See above."""
        ...

    def unlabeled(self) -> Iterator[NDArray[np.uint8]]:
        """Frames for the pool; none of them is held out."""
        ...

    def live_source(self) -> dict[str, object]:
        """The `source` of the live camera, whose light drifts, for edge.yaml."""
        ...

    def live(self, index: int) -> tuple[NDArray[np.uint8], Detections]:
        """Frame `index` of the live camera and its ground truth."""
        ...


@dataclass(frozen=True)
class SimulatedScene:
    """Boards of four disjoint lines: pool, labelled, held out, live."""

    data: Path
    imgsz: int
    seed: int
    title: str = "Simulated inspection line"
    names: tuple[str, ...] = CLASS_NAMES

    @classmethod
    def make(cls, out: Path, labels: int, seed: int, imgsz: int = 192) -> SimulatedScene:
        """Draws the labelled and held-out images into `out`."""
        lists = {part: _draw_labeled(out / part, Line(seed * 10 + number, (imgsz, imgsz)), count)
                 for number, (part, count) in enumerate((("train", labels), ("val", _VAL_IMAGES)))}  # fmt: skip
        return cls(write_dataset(out, CLASS_NAMES, lists["train"], lists["val"]), imgsz, seed)

    def unlabeled(self) -> Iterator[NDArray[np.uint8]]:
        """See `Scene`; every fifth frame, so that neighbours differ."""
        line = Line(self.seed * 10 + 2, (self.imgsz, self.imgsz))
        return (line.image(index * 5) for index in range(POOL_FRAMES))

    def live_source(self) -> dict[str, object]:
        """See `Scene`."""
        return {
            "kind": "simulated",
            "seed": self._live_line.seed,
            "size_wh": [self.imgsz, self.imgsz],
            "light_drift": _LIVE_LIGHT_DRIFT,
        }

    def live(self, index: int) -> tuple[NDArray[np.uint8], Detections]:
        """See `Scene`."""
        return self._live_line.image(index), self._live_line.truth(index)

    @property
    def _live_line(self) -> Line:
        return Line(self.seed * 10 + 3, (self.imgsz, self.imgsz), light_drift=_LIVE_LIGHT_DRIFT)


@dataclass(frozen=True)
class FolderScene:
    """A real set in the layout `images/`, `labels/`, `data.yaml`, with `unlabeled/` if there is one."""

    data: Path
    imgsz: int
    title: str
    names: tuple[str, ...]
    pool_paths: tuple[Path, ...]
    held_out: tuple[LabeledImage, ...]
    live_folder: Path

    @classmethod
    def make(cls, folder: Path, out: Path, group: str, labels: int, seed: int) -> FolderScene:
        """Splits the set and writes the dimmed live frames into `out`.

        Raises:
            DataError: unusable labels or grouping.
            SourceError: an image that cannot be decoded.
        """
        data = split_dataset(folder, out, group, labels, _VAL_SHARE, seed)
        dataset = load_dataset(data)
        rest = [Path(line) for line in (out / "rest.txt").read_text(encoding="utf-8").splitlines()]
        more = list_images(folder / "unlabeled") if (folder / "unlabeled").is_dir() else []
        held_out = {group_of(item.path, group) for item in dataset.val}
        more = [path for path in more if group_of(path, group) not in held_out]  # nor may their boards be seen unlabeled
        candidates = [item.path for item in dataset.train] + rest + more
        order = np.random.default_rng(seed).permutation(len(candidates))[:POOL_FRAMES]
        side = max(read_image(dataset.train[0].path).shape[:2])
        imgsz = min(_MOST_IMGSZ, -(-side // 32) * 32)
        live = out / "live"
        _write_dimmed(live, dataset.val)
        return cls(
            data, imgsz, folder.resolve().name, dataset.names, tuple(candidates[i] for i in sorted(order)), dataset.val, live
        )

    def unlabeled(self) -> Iterator[NDArray[np.uint8]]:
        """See `Scene`."""
        return (read_image(path) for path in self.pool_paths)

    def live_source(self) -> dict[str, object]:
        """See `Scene`: the held-out images, ever darker, again and again."""
        return {"kind": "images", "path": str(self.live_folder), "loop": True}

    def live(self, index: int) -> tuple[NDArray[np.uint8], Detections]:
        """See `Scene`."""
        row = index % len(self.held_out)
        image = read_image(_live_path(self.live_folder, row))
        return image, self.held_out[row].truth((image.shape[1], image.shape[0]))


def _draw_labeled(folder: Path, line: Line, count: int) -> list[Path]:
    (folder / "images").mkdir(parents=True, exist_ok=True)
    (folder / "labels").mkdir(exist_ok=True)
    paths = []
    for number in range(count):
        index = number * 7  # so far apart that hardly a defect is seen twice
        path = folder / "images" / f"{number:04d}.png"
        cv2.imwrite(str(path), line.image(index))
        (folder / "labels" / f"{number:04d}.txt").write_text(_yolo_lines(line.truth(index), line.size_wh), encoding="utf-8")
        paths.append(path)
    return paths


def _yolo_lines(truth: Detections, size_wh: tuple[int, int]) -> str:
    boxes = truth.xyxy / np.array([*size_wh, *size_wh], np.float32)
    centre, size = (boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]
    rows = zip(truth.class_id, centre, size, strict=True)
    return "".join(f"{label} {x:.6f} {y:.6f} {w:.6f} {h:.6f}\n" for label, (x, y), (w, h) in rows)


def _write_dimmed(folder: Path, items: tuple[LabeledImage, ...]) -> None:
    """The light falls to three fifths and turns warmer over the first half of the set, and stays so."""
    folder.mkdir(parents=True, exist_ok=True)
    for row, item in enumerate(items):
        light = min(1.0, 2 * row / len(items))
        tint = np.array([1 - 0.3 * light, 1 - 0.1 * light, 1.0]) * (1 - 0.4 * light)
        dimmed = np.clip(read_image(item.path) * tint, 0, 255).astype(np.uint8)
        _, data = cv2.imencode(".jpg", dimmed, [cv2.IMWRITE_JPEG_QUALITY, 95])
        write_atomically(_live_path(folder, row), data.tobytes())


def _live_path(folder: Path, row: int) -> Path:
    return folder / f"{row:05d}.jpg"
