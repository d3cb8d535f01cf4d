from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from runtime.backends import Backend, open_backend
from runtime.backends.inputs import Inputs
from runtime.bundle import Bundle
from runtime.config import EdgeConfig
from runtime.daemon import Daemon
from runtime.frame import Frame
from runtime.pipeline import Batch, Pipeline, Result, Serving
from runtime.postprocess import Outputs
from runtime.preprocess import Preprocess
from runtime.scheduler import Scheduler
from runtime.sources.simulated import Line
from runtime.swap import load_pipeline
from runtime.workers import Outcome, Workers
from tests.runtime.test_daemon import config, lines, wait
from tests.runtime.test_scheduler import simulated, start  # noqa: F401  a fixture

OUTPUTS = ("boxes", "scores", "classes", "embedding")
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
    left, unfinished = workers.stop(1.0)
    assert (len(left), unfinished) == (3, [])  # two run, one is filled


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
    left, unfinished = workers.stop(0.3)
    assert time.monotonic() - begin < 2
    assert [frame.index for frame in unfinished] == [2]
    assert workers.alive
    done = [row.frame.index for outcome in (*told, *left) for row in outcome.batch.rows]
    indices = sorted([*done, *(frame.index for frame in (*unfinished, *unfilled))])
    assert indices == list(range(len(indices)))
    uneven.hung.set()
    wait(lambda: not workers.alive)


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


class OneAtATime:
    """A backend that runs one batch at a time and gives the same memory each time, as those on a GPU do."""

    engine, precision, batch, streams = "fake", "fp32", 1, 1

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._outputs: Outputs | None = None

    def inputs(self, preprocess: Preprocess) -> Inputs:
        return self._backend.inputs(preprocess)

    def run(self, inputs: Inputs) -> Outputs:
        return self.infer(inputs.images)  # type: ignore[attr-defined]

    def infer(self, images: NDArray[np.uint8]) -> Outputs:
        fresh = self._backend.infer(images)
        if self._outputs is None:
            self._outputs = Outputs(*(np.zeros_like(getattr(fresh, name)) for name in OUTPUTS))
        outputs = self._outputs
        for name in OUTPUTS:
            getattr(outputs, name)[:] = np.nan if name == "boxes" else 0
            time.sleep(0.0005)
            getattr(outputs, name)[:] = getattr(fresh, name)
        return outputs

    def close(self) -> None:
        self._backend.close()


def test_pipeline__an_engine_that_reuses_its_outputs_is_run_by_one_thread_at_a_time(bundle: Bundle) -> None:
    alone = Pipeline.load(bundle, "onnxruntime", "fp32", 1)
    shared = Pipeline(bundle, OneAtATime(open_backend(bundle, "onnxruntime", "fp32", 1)), bundle.thresholds)
    shared.reserve(4)
    frames = [Frame(Line(1, (96, 96)).image(index * 7), "a", index, time.monotonic(), time.time()) for index in range(40)]
    found: dict[int, Result] = {}

    def run(part: list[Frame]) -> None:
        for frame in part:
            found[frame.index] = shared.process(frame)

    threads = [threading.Thread(target=run, args=(frames[offset::3],)) for offset in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for frame in frames:
        np.testing.assert_allclose(found[frame.index].detections.xyxy, alone.process(frame).detections.xyxy, atol=0.05)
    alone.close()
    shared.close()


class Hanging(Pipeline):
    """A real pipeline whose engine hangs after so many batches."""

    runs: Any
    after = 3
    released: threading.Event

    def run(self, batch: Batch) -> list[Result]:
        if next(self.runs) >= self.after:
            self.released.wait(20)
        return super().run(batch)


@pytest.fixture
def hanging() -> Iterator[Callable[..., Pipeline]]:
    """Loads pipelines that hang, until the test is over."""
    released = threading.Event()

    def load(model: Any, cameras: int, streams: int) -> Hanging:
        broken = Hanging.__new__(Hanging)
        broken.__dict__ = load_pipeline(model, cameras, streams).__dict__
        broken.runs, broken.released = iter(range(10_000)), released
        return broken

    yield load
    released.set()


@pytest.mark.parametrize("threads", [1, 2])
def test_run__a_hung_engine_does_not_hold_the_end_up_and_every_frame_is_told(
    bundle: Bundle, tmp_path: Any, hanging: Callable[..., Pipeline], threads: int
) -> None:
    content = config(bundle, tmp_path)
    content["model"]["threads"] = threads
    daemon = Daemon(EdgeConfig.model_validate(content), load=hanging)
    threading.Timer(1.5, daemon.stop).start()
    begin = time.monotonic()
    summary: Any = daemon.run()
    assert time.monotonic() - begin < 1.5 + 5
    counts = summary["cameras"]["line"]
    assert counts["read"] == counts["processed"] + sum(counts["dropped"].values())
    assert [record["frame"] for record in lines(tmp_path)] == list(range(counts["processed"]))


def test_run__the_watchdog_is_not_fed_while_the_engine_hangs(
    bundle: Bundle, tmp_path: Any, hanging: Callable[..., Pipeline], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The gate goes on looking at frames of a still scene, of which none is due."""
    monkeypatch.setattr("runtime.daemon._STUCK_S", 0.5)
    monkeypatch.setattr(Hanging, "after", 0)
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
    monkeypatch.setenv("WATCHDOG_USEC", "100000")
    source = {"kind": "simulated", "size_wh": [64, 64]}
    cameras = {"still": {"source": source, "fps": 50.0, "motion": {"threshold": 0.99, "every_s": 3600}}}
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        daemon = Daemon(EdgeConfig.model_validate(config(bundle, tmp_path, cameras=cameras)), load=hanging)
        thread = threading.Thread(target=daemon.run, daemon=True)
        thread.start()
        manager.settimeout(10)
        while b"WATCHDOG=1" not in manager.recv(4096):
            pass
        time.sleep(1.5)
        manager.settimeout(0.01)
        with pytest.raises(TimeoutError):
            while True:
                manager.recv(4096)
        manager.settimeout(1.0)
        with pytest.raises(TimeoutError):
            manager.recv(4096)
        looked_s = daemon._scheduler.looked_s
        wait(lambda: daemon._scheduler.looked_s > looked_s)
        daemon.stop()
        thread.join(10)
        assert not thread.is_alive()


def test_open_backend__no_more_streams_than_threads(bundle: Bundle) -> None:
    backend = open_backend(bundle, "onnxruntime", "fp32", threads=2, streams=16)
    assert backend.streams == 2
    backend.close()
