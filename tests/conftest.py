"""Shared parts: the data folder, small real pools, one small real bundle."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from runtime.bundle import Bundle
from runtime.pool import Pool, Seen
from runtime.sources.simulated import CLASS_NAMES, Line

ROOT = Path(__file__).parent.parent
SIDE = 64  # pixels; the smallest canvas that all feature maps of a YOLO survive


def pytest_configure() -> None:
    """Gives each of pytest-xdist's workers a core of its own: engines and torch spin, and two would slow each other fourfold."""
    if worker := os.environ.get("PYTEST_XDIST_WORKER"):
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cores[int(worker.removeprefix("gw")) % len(cores)]})


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest comes first, so that it does not keep one worker busy when the other has nothing left."""
    items.sort(key=lambda item: item.name != "test_demo__closes_the_loop")


def few_labels(out: Path, held_out: int) -> Path:
    """Eight labelled simulated images of 64 pixels, and so many held-out ones; the path of data.yaml."""
    from edge.demo.scene import SimulatedScene

    path = SimulatedScene.make(out, labels=8, seed=0, imgsz=SIDE).data
    kept = (out / "val.txt").read_text().splitlines()[:held_out]
    (out / "val.txt").write_text("\n".join(kept) + "\n")
    return path


@pytest.fixture(autouse=True)
def _same_number_of_threads() -> Iterator[None]:
    """Ultralytics' exporter takes a core from torch for good, and a training with another number of threads ends elsewhere."""
    torch = sys.modules.get("torch")
    threads = torch.get_num_threads() if torch else 0
    yield
    if torch:
        torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """../shared/data, or what EDGE_TEST_DATA names."""
    folder = Path(os.environ.get("EDGE_TEST_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no test data at {folder}; set EDGE_TEST_DATA")
    return folder


@pytest.fixture(scope="session")
def frame() -> NDArray[np.uint8]:
    """A picture of the simulated line, 128 × 96."""
    return Line(1, (128, 96)).image(0)


def fill_pool(path: Path, count: int, side: int = 96) -> None:
    """A pool of `count` simulated frames, a second apart."""
    line = Line(5, (side, side))
    with Pool.create(path) as pool:
        for index in range(count):
            pool.add(line.image(index * 5), Seen("line", 1000.0 + index, "test"))


@pytest.fixture(scope="session")
def pool_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pool of 24 frames; not to be written to."""
    path = tmp_path_factory.mktemp("pool") / "pool"
    fill_pool(path, 24)
    return path


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A detector of ours with fresh weights and the simulated line's classes."""
    from converters.checkpoint import Checkpoint, save_checkpoint
    from edge.yolo import build_detector

    path = tmp_path_factory.mktemp("checkpoint") / "detector.pt"
    detector = build_detector("yolo11n", CLASS_NAMES, seed=3)
    save_checkpoint(path, Checkpoint("yolo11n", CLASS_NAMES, detector.state_dict(), imgsz=SIDE, lineage={"seed": "3"}))
    return path


@contextmanager
def few_stretches() -> Iterator[None]:
    """Conversions within try four stretches of layers in float instead of thirty: each is a file more to compile."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("converters.sensitivity.STRETCHES", 4)
        yield


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory, checkpoint: Path, pool_dir: Path) -> Bundle:
    """A real bundle, FP32 and INT8, of fresh weights at 64 × 64; its threshold lets boxes through."""
    from converters.convert import convert
    from converters.gate import Bars
    from converters.request import ConvertRequest

    out = tmp_path_factory.mktemp("bundles") / "tiny"
    # Fresh weights give scores that INT8 shuffles at will; what the gate refuses has tests of its own.
    bars = Bars(agreement=0, at_threshold=0, mean_iou=0, score_shift=1, boxes=0)
    with few_stretches():
        return convert(ConvertRequest(checkpoint, pool_dir, confidence=0.001, frames=8, bars=bars), out, lambda _: None)


@pytest.fixture
def edge(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs `edge …` in a process of its own, in `tmp_path`."""

    def call(*arguments: object, module: str = "edge.cli") -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", module, *(str(argument) for argument in arguments)]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "120"}
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=540, check=False)

    return call


def write_images(folder: Path, count: int, side: int = 96) -> list[Path]:
    """Simulated frames as JPEG files."""
    folder.mkdir(parents=True, exist_ok=True)
    line = Line(6, (side, side))
    paths = [folder / f"{index:03d}.jpg" for index in range(count)]
    for index, path in enumerate(paths):
        cv2.imwrite(str(path), line.image(index * 3))
    return paths
