from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from converters.graph_cleanup import with_batch
from runtime.backends import open_model
from runtime.bundle import Bundle
from runtime.capture import Capture
from runtime.config import CameraConfig
from runtime.frame import Frame
from runtime.pipeline import Pipeline
from runtime.preprocess import PAD_VALUE
from runtime.scheduler import Scheduler
from runtime.sources.simulated import Line


@pytest.fixture
def pipeline(bundle: Bundle) -> Iterator[Pipeline]:
    pipeline = Pipeline.load(bundle, "onnxruntime", "fp32", 1)
    yield pipeline
    pipeline.close()


@pytest.fixture
def wide(bundle: Bundle, tmp_path: Path) -> Iterator[Pipeline]:
    """The same model with a file for four frames beside the one for one."""
    path = tmp_path / "batch4.onnx"
    onnx.save(with_batch(onnx.load(bundle.model_path("fp32")), 4), path)
    model = open_model("onnxruntime", path, "fp32", 1)
    alone = open_model("onnxruntime", bundle.model_path("fp32"), "fp32", 1)
    pipeline = Pipeline(bundle, alone, bundle.thresholds, model)
    yield pipeline
    pipeline.close()


@pytest.fixture
def start() -> Iterator[Callable[..., Scheduler]]:
    """Starts cameras and a scheduler over them, and stops all."""
    running: list[Capture | Scheduler] = []

    def start(pipeline: Pipeline, cameras: dict[str, dict[str, Any]], wait_s: float = 0.005, streams: int = 1) -> Scheduler:
        changed = threading.Event()
        captures = [Capture(name, CameraConfig.model_validate(camera), changed) for name, camera in cameras.items()]
        scheduler = Scheduler(pipeline, wait_s, changed, streams)
        scheduler.watch(captures)
        for capture in captures:
            capture.start()
        scheduler.start()
        running.extend([*captures, scheduler])
        return scheduler

    yield start
    for part in running:
        part.stop()


def simulated(frames: int | None = None, **camera: Any) -> dict[str, Any]:
    return {"source": {"kind": "simulated", "frames": frames, "size_wh": [64, 64]}, **camera}


def drain(scheduler: Scheduler, most: int, busy_s: float = 0.0) -> list[list[Frame]]:
    batches: list[list[Frame]] = []
    while len(batches) < most and not scheduler.finished:
        if batch := scheduler.take():
            time.sleep(busy_s)
            batch.pipeline.run(batch)
            scheduler.done()
            batches.append([row.frame for row in batch.rows])
    return batches


def test_scheduler__overloaded_cameras_get_the_same_share_whatever_their_rates(
    pipeline: Pipeline, start: Callable[..., Scheduler]
) -> None:
    cameras = {f"cam{index}": simulated(fps=50.0 + 50 * index) for index in range(6)}
    batches = drain(start(pipeline, cameras), 90, busy_s=0.01)
    served = Counter(frame.camera for batch in batches[12:] for frame in batch)
    assert set(served) == set(cameras)
    assert min(served.values()) >= 0.8 * max(served.values())


def test_scheduler__a_batch_has_one_frame_of_each_camera(wide: Pipeline, start: Callable[..., Scheduler]) -> None:
    cameras = {name: simulated(fps=100.0) for name in ("a", "b", "c")}
    batches = drain(start(wide, cameras, wait_s=0.05), 20, busy_s=0.02)
    assert all(len({frame.camera for frame in batch}) == len(batch) <= 3 for batch in batches)
    assert max(len(batch) for batch in batches) == 3


def test_scheduler__a_lone_frame_does_not_wait_for_ever(wide: Pipeline, start: Callable[..., Scheduler]) -> None:
    scheduler = start(wide, {"fast": simulated(fps=20.0), "slow": simulated(fps=0.1)}, wait_s=0.02)
    batches = drain(scheduler, 8)
    assert [len(batch) for batch in batches[2:]] == [1] * 6


def test_scheduler__every_frame_of_files_comes_out_once(pipeline: Pipeline, start: Callable[..., Scheduler]) -> None:
    batches = drain(start(pipeline, {name: simulated(25, fps="max") for name in ("a", "b")}), 1000)
    seen = sorted((frame.camera, frame.index) for batch in batches for frame in batch)
    assert seen == [(name, index) for name in ("a", "b") for index in range(25)]


def test_scheduler__still_frames_are_left_out_and_counted(
    pipeline: Pipeline, start: Callable[..., Scheduler], tmp_path: Any
) -> None:
    import cv2

    for index in range(20):
        cv2.imwrite(str(tmp_path / f"{index:02d}.png"), np.full((64, 64, 3), 90, np.uint8))
    cameras = {"still": {"source": str(tmp_path), "fps": "max", "motion": {"every_s": 100}}}
    scheduler = start(pipeline, cameras)
    assert len(drain(scheduler, 100)) == 1
    assert scheduler.dropped["still"] == {"motion": 19}


def test_scheduler__a_switch_keeps_the_order(pipeline: Pipeline, start: Callable[..., Scheduler], bundle: Bundle) -> None:
    scheduler = start(pipeline, {"a": simulated(60, fps="max")})
    second = Pipeline.load(bundle, "onnxruntime", "fp32", 1)
    order, indices = [], []
    while not scheduler.finished:
        if batch := scheduler.take():
            order.append(batch.pipeline is second)
            indices += [row.frame.index for row in batch.rows]
            batch.pipeline.run(batch)
            scheduler.done()
            if len(order) == 20:
                scheduler.switch(second)
    second.close()
    assert order == sorted(order)
    assert any(order)
    assert indices == list(range(60))


def test_pipeline__a_region_is_looked_at_alone_and_boxes_lie_in_the_frame(pipeline: Pipeline) -> None:
    image: NDArray[np.uint8] = np.zeros((120, 160, 3), np.uint8)
    image[60:, 80:] = 255
    batch = pipeline.prepare([Frame(image, "a", 0, time.monotonic(), time.time())], {"a": (0.5, 0.5, 1.0, 1.0)})
    canvas = batch.inputs.images[0]  # type: ignore[attr-defined]
    assert set(np.unique(canvas)) == {PAD_VALUE, 255}
    assert (batch.rows[0].left, batch.rows[0].top) == (80, 60)
    (result,) = pipeline.run(batch)
    assert len(result.detections)
    assert (result.detections.xyxy[:, 0] >= 80).all()
    assert (result.detections.xyxy[:, 1] >= 60).all()
    assert (result.detections.xyxy[:, 2] <= 160).all()


def test_pipeline__a_wide_batch_gives_what_frames_give_alone(wide: Pipeline) -> None:
    frames = [Frame(Line(1, (96, 64)).image(index * 7), f"cam{index}", 0, time.monotonic(), time.time()) for index in range(3)]
    together = wide.run(wide.prepare(frames))
    for frame, result in zip(frames, together, strict=True):
        alone = wide.process(frame)
        assert result.frame is frame
        np.testing.assert_array_equal(result.detections.class_id, alone.detections.class_id)
        np.testing.assert_allclose(result.detections.xyxy, alone.detections.xyxy, atol=0.05)
        np.testing.assert_allclose(result.embedding, alone.embedding, atol=1e-4)
