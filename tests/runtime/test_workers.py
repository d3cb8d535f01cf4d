from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from runtime.backends import open_backend
from runtime.bundle import Bundle
from runtime.config import EdgeConfig
from runtime.daemon import Daemon
from runtime.frame import Frame
from runtime.pipeline import Batch, Pipeline, Result, Serving
from runtime.scheduler import Scheduler
from runtime.sources.simulated import Line
from runtime.workers import Outcome, Workers
from tests.runtime.test_daemon import config, lines
from tests.runtime.test_scheduler import simulated, start  # noqa: F401  a fixture

Start = Callable[..., Scheduler]


@pytest.fixture
def two(bundle: Bundle) -> Iterator[Pipeline]:
    """Two streams of the engine that the test asks for."""
    pipeline = Pipeline.load(bundle, "openvino", "fp32", 2, serving=Serving(streams=2))
    yield pipeline
    pipeline.close()


class Uneven:
    """A pipeline of which every other batch takes long, so that later ones end first; some fail or wait."""

    def __init__(self, pipeline: Pipeline, fails: Callable[[int], bool] = lambda _: False) -> None:
        self._pipeline, self._fails = pipeline, fails
        self.hung = threading.Event()
        self.at_once, self._now, self._lock = 0, 0, threading.Lock()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._pipeline, name)

    def prepare(self, *arguments: Any) -> Batch:
        batch = self._pipeline.prepare(*arguments)
        return Batch(self, batch.backend, batch.inputs, batch.rows)  # type: ignore[arg-type]

    def run(self, batch: Batch) -> list[Result]:
        with self._lock:
            self._now += 1
            self.at_once = max(self.at_once, self._now)
        try:
            index = batch.rows[0].frame.index
            time.sleep(0.03 if index % 2 == 0 else 0.0)
            results = self._pipeline.run(batch)
            if self._fails(index):
                self.hung.wait(5)
                raise RuntimeError(f"frame {index}")
            return results
        finally:
            with self._lock:
                self._now -= 1


def outcomes(workers: Workers, scheduler: Scheduler) -> list[Outcome]:
    found = []
    while not workers.finished:
        if outcome := workers.next(0.2):
            found.append(outcome)
            scheduler.done()
    return found


@pytest.fixture
def scheduled(start: Start) -> Iterator[Callable[[Any, int], tuple[Workers, Scheduler]]]:  # noqa: F811
    """Two workers over a scheduler over so many simulated frames."""

    def scheduled(pipeline: Any, frames: int) -> tuple[Workers, Scheduler]:
        scheduler = start(pipeline, {"a": simulated(frames, fps="max")}, streams=2)
        workers = Workers(scheduler, 2)
        workers.start()
        return workers, scheduler

    yield scheduled


Scheduled = Callable[[Any, int], tuple[Workers, Scheduler]]


def test_workers__outcomes_keep_the_order_of_the_frames_though_two_run_at_once(two: Pipeline, scheduled: Scheduled) -> None:
    uneven = Uneven(two)
    found = outcomes(*scheduled(uneven, 40))
    assert [result.frame.index for outcome in found for result in outcome.results] == list(range(40))
    assert uneven.at_once == 2


def test_workers__a_batch_that_fails_is_told_in_its_place(two: Pipeline, scheduled: Scheduled) -> None:
    uneven = Uneven(two, lambda index: index in (3, 8))
    uneven.hung.set()
    found = outcomes(*scheduled(uneven, 12))
    assert [(row.frame.index, str(outcome.error)) for outcome in found if outcome.error for row in outcome.batch.rows] == [
        (3, "frame 3"),
        (8, "frame 8"),
    ]
    assert [outcome.batch.rows[0].frame.index for outcome in found] == list(range(12))


def test_workers__who_does_not_ask_for_outcomes_holds_the_engine_up(two: Pipeline, scheduled: Scheduled) -> None:
    workers, _ = scheduled(two, 40)
    time.sleep(0.5)
    left = list(workers.stop(1.0))
    assert len(left) <= 3  # two run, one is filled


def test_workers__a_hung_engine_ends_in_time_and_every_frame_is_told(two: Pipeline, scheduled: Scheduled) -> None:
    uneven = Uneven(two, lambda index: index == 2)
    workers, scheduler = scheduled(uneven, 40)
    told: list[Outcome] = []
    while len(told) < 2:
        if outcome := workers.next(0.2):
            told.append(outcome)
            scheduler.done()
    time.sleep(0.2)
    assert workers.busy_since_s is not None
    begin = time.monotonic()
    unfilled = scheduler.stop()
    left = list(workers.stop(0.3))
    assert time.monotonic() - begin < 2
    indices = [row.frame.index for outcome in (*told, *left) for row in outcome.batch.rows] + [f.index for f in unfilled]
    assert indices == list(range(len(indices)))
    assert [row.frame.index for outcome in left if outcome.error for row in outcome.batch.rows] == [2]
    uneven.hung.set()


@pytest.mark.parametrize("engine", ["openvino", "onnxruntime"])
def test_pipeline__two_streams_find_what_one_finds(bundle: Bundle, engine: str) -> None:
    alone = Pipeline.load(bundle, engine, "fp32", 1)
    both = Pipeline.load(bundle, engine, "fp32", 2, serving=Serving(streams=2))
    assert both.backend.streams == 2
    frames = [Frame(Line(1, (96, 96)).image(index * 7), "a", index, time.monotonic(), time.time()) for index in range(40)]
    expected = [alone.process(frame) for frame in frames]
    found: dict[int, Result] = {}

    def run(part: list[Frame]) -> None:
        for frame in part:
            found[frame.index] = both.process(frame)

    threads = [threading.Thread(target=run, args=(frames[offset::2],)) for offset in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for frame, result in zip(frames, expected, strict=True):
        np.testing.assert_allclose(found[frame.index].detections.xyxy, result.detections.xyxy, atol=0.05)
        np.testing.assert_allclose(found[frame.index].embedding, result.embedding, atol=1e-4)
    alone.close()
    both.close()


@pytest.mark.parametrize(
    ("cameras", "model", "streams"),
    [
        ({"a": {"fps": "max"}}, {"threads": 2}, 2),
        ({"a": {"fps": 5.0}}, {"threads": 2}, 1),
        ({name: {"fps": 5.0} for name in "abc"}, {"threads": 2}, 2),
        ({name: {"fps": 5.0} for name in "abc"}, {"threads": 8}, 3),
        ({"a": {"fps": "max"}}, {"threads": 1}, 1),
        ({"a": {"fps": "max"}}, {"threads": 2, "streams": 1}, 1),
    ],
)
def test_daemon__streams_by_cameras_and_cores(
    bundle: Bundle, cameras: dict[str, Any], model: dict[str, Any], streams: int
) -> None:
    content = {
        "model": {"bundle": str(bundle.path), **model},
        "cameras": {name: {"source": {"kind": "simulated", "frames": 1}, **camera} for name, camera in cameras.items()},
    }
    assert EdgeConfig.model_validate(content).streams == streams


def test_run__two_streams_lose_nothing_and_keep_the_order(bundle: Bundle, tmp_path: Any) -> None:
    content = config(bundle, tmp_path)
    content["model"]["threads"] = 2
    summary = Daemon(EdgeConfig.model_validate(content)).run()
    assert summary["cameras"] == {"line": {"read": 30, "processed": 30, "dropped": {"overload": 0, "shutdown": 0}}}
    assert [record["frame"] for record in lines(tmp_path)] == list(range(30))


def test_open_backend__no_more_streams_than_threads(bundle: Bundle) -> None:
    backend = open_backend(bundle, "onnxruntime", "fp32", threads=2, streams=16)
    assert backend.streams == 2
    backend.close()
