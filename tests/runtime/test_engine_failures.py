"""The daemon while engines fail, swap and fall behind: every frame is accounted for."""

from __future__ import annotations

import dataclasses
import logging
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runtime.bundle import Bundle
from runtime.config import EdgeConfig
from runtime.daemon import Daemon
from runtime.errors import BackendError, DeviceLostError
from runtime.frame import Frame
from runtime.outlet import QUEUE_SIZE, Outlet
from runtime.pipeline import Batch, Pipeline, Result
from runtime.sources.simulated import Line
from runtime.swap import load_pipeline
from tests.runtime.test_daemon import changed_bundle, config, lines, wait
from tests.runtime.test_life import frames, live


class Failing(Pipeline):
    """A pipeline whose engine fails at some runs; the rest is real."""

    failures: Iterator[Exception | None]

    def run(self, batch: Batch) -> list[Result]:
        if error := next(self.failures, None):
            self._free[id(batch.backend)].append(batch.inputs)
            raise error
        return super().run(batch)


def failing(*instances: Iterable[Exception | None]) -> Callable[..., Pipeline]:
    """Loads pipelines one after the other, each with its own failures, which begin after the warm-up."""
    waiting = iter(instances)

    def load(model: Any, cameras: int, streams: int) -> Pipeline:
        pipeline = load_pipeline(model, cameras, streams)
        broken = Failing.__new__(Failing)
        broken.__dict__ = pipeline.__dict__
        broken.failures = iter(next(waiting, ()))
        return broken

    return load


def accounted(summary: Any) -> bool:
    return all(
        counts["read"] == counts["processed"] + sum(counts["dropped"].values()) for counts in summary["cameras"].values()
    )


DEAD = [BackendError("dead")] * 1000


def test_run__an_engine_that_broke_is_replaced_and_the_new_one_has_its_own_tries(bundle: Bundle, tmp_path: Path) -> None:
    load = failing([None, None, *DEAD], [None, BackendError("a cough")], [])
    summary: Any = Daemon(EdgeConfig.model_validate(config(bundle, tmp_path)), load=load).run()
    counts = summary["cameras"]["line"]
    assert accounted(summary)
    assert counts["processed"] + counts["dropped"]["engine"] == 30
    assert 2 <= counts["dropped"]["engine"] <= 4  # what was under way on the broken ones
    assert summary["swaps"] == []
    assert len(lines(tmp_path)) == counts["processed"]


def test_run__engines_that_all_fail_end_the_daemon(bundle: Bundle, tmp_path: Path) -> None:
    daemon = Daemon(EdgeConfig.model_validate(config(bundle, tmp_path)), load=failing(DEAD, DEAD, DEAD, DEAD))
    with pytest.raises(BackendError, match="dead"):
        daemon.run()
    assert accounted(daemon.summary())


def test_run__a_lost_device_ends_at_once_and_keeps_what_was_found(bundle: Bundle, tmp_path: Path) -> None:
    daemon = Daemon(EdgeConfig.model_validate(config(bundle, tmp_path)), load=failing([None, DeviceLostError("gone")]))
    with pytest.raises(DeviceLostError):
        daemon.run()
    assert [line["frame"] for line in lines(tmp_path)] == [0]
    assert accounted(daemon.summary())


def test_run__outputs_that_are_no_numbers_are_an_engine_that_fails(bundle: Bundle, tmp_path: Path) -> None:
    def load(model: Any, cameras: int, streams: int) -> Pipeline:
        pipeline = load_pipeline(model, cameras, streams)
        right = pipeline.backend.run

        def wrong(inputs: Any) -> Any:
            outputs = right(inputs)
            return dataclasses.replace(outputs, boxes=np.full_like(outputs.boxes, np.nan), scores=np.ones_like(outputs.scores))

        pipeline.backend.run = wrong  # type: ignore[method-assign]
        return pipeline

    daemon = Daemon(EdgeConfig.model_validate(config(bundle, tmp_path)), load=load)
    with pytest.raises(BackendError, match="no detections"):
        daemon.run()
    assert accounted(daemon.summary())


class Stuck:
    """A disk that hangs."""

    def __init__(self) -> None:
        self.free = threading.Event()

    def emit(self, result: Result) -> None:
        self.free.wait(60)

    def close(self) -> None:
        """Nothing is open."""


def test_outlet__a_stuck_sink_keeps_nobody_from_ending(bundle: Bundle) -> None:
    stuck, ending = Stuck(), threading.Event()
    outlet = Outlet([stuck], lambda result: result, lossless=True)
    outlet.start()
    pipeline = Pipeline.load(bundle, "onnxruntime", "fp32", 1)
    result = pipeline.process(Frame(Line(1, (64, 64)).image(0), "a", 0, time.monotonic(), time.time()))
    threading.Timer(0.5, ending.set).start()
    for _ in range(QUEUE_SIZE + 5):
        assert outlet.put(result, lambda: not ending.is_set())
    outlet.close(0.1)
    assert outlet.dropped >= QUEUE_SIZE
    stuck.free.set()


def test_run__swaps_with_failures_leak_nothing(bundle: Bundle, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """triton#8969: leaks on reload and on failed loads. Twelve here; benchmarks/swaps.py does 200."""
    caplog.set_level(logging.INFO)
    current = tmp_path / "current"
    releases = [changed_bundle(bundle, tmp_path / f"r{index}", str(index)) for index in range(3)]
    broken = Path(shutil.copytree(bundle.path, tmp_path / "broken"))
    (broken / "model.fp32.onnx").write_bytes(b"no ONNX")
    current.symlink_to(releases[0].path)
    model = {"bundle": str(current), "threads": 1, "reload_s": 0.02, "engine": "onnxruntime", "precision": "fp32"}
    daemon = Daemon(EdgeConfig.model_validate(config(bundle, tmp_path, cameras={"a": live(100.0)}, model=model)))
    result: list[Any] = []
    thread = threading.Thread(target=lambda: result.append(daemon.run()))
    thread.start()
    wait(lambda: frames(tmp_path) > 5)
    descriptors = []
    for number in range(12):
        target = broken if number % 4 == 3 else releases[(number + 1) % 3].path
        told = "new bundle refused" if target == broken else "took over bundle"
        count = caplog.text.count(told)
        (tmp_path / "next").symlink_to(target)
        (tmp_path / "next").replace(current)
        wait(lambda told=told, count=count: caplog.text.count(told) > count)
        descriptors.append(len(list(Path("/proc/self/fd").iterdir())))
    daemon.stop()
    thread.join(30)
    records = lines(tmp_path)
    counts = result[0]["cameras"]["a"]
    assert len({record["frame"] for record in records}) == len(records) == counts["processed"]
    assert counts["read"] == counts["processed"] + sum(counts["dropped"].values())
    assert (len(result[0]["swaps"]), result[0]["bundles_refused"]) == (9, 3)
    assert max(descriptors[3:]) <= max(descriptors[:3]) + 1


def test_run__a_link_that_leads_nowhere_is_told_once(bundle: Bundle, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    current = tmp_path / "current"
    current.symlink_to(bundle.path)
    model = {"bundle": str(current), "threads": 1, "reload_s": 0.02}
    daemon = Daemon(EdgeConfig.model_validate(config(bundle, tmp_path, cameras={"a": live()}, model=model)))
    thread = threading.Thread(target=daemon.run)
    thread.start()
    wait(lambda: frames(tmp_path) > 5)
    current.unlink()
    wait(lambda: "leads to no folder" in caplog.text)
    before = frames(tmp_path)
    wait(lambda: frames(tmp_path) > before + 10)
    daemon.stop()
    thread.join(30)
    assert caplog.text.count("leads to no folder") == 1


def test_run__lag_does_not_grow_under_overload(bundle: Bundle, tmp_path: Path) -> None:
    """yolov5#4465: twenty seconds behind after an hour. Here a frame waits for at most one turn of all cameras."""
    cameras = {name: {**live(500.0, seed), "source": {**live()["source"], "frames": 1500}} for seed, name in enumerate("abcd")}
    summary: Any = Daemon(EdgeConfig.model_validate(config(bundle, tmp_path, cameras=cameras))).run()
    records = lines(tmp_path)
    behind = []  # frames of its camera that a result lies behind the next one of that camera
    last: dict[str, int] = {}
    for record in records:
        behind.append(record["frame"] - last.get(record["camera"], record["frame"] - 1))
        last[record["camera"]] = record["frame"]
    assert accounted(summary)
    assert sum(counts["dropped"]["overload"] for counts in summary["cameras"].values()) > 0
    assert records[-1]["frame"] >= 1490  # the newest frames, not those of a queue
    assert min(behind) >= 1
