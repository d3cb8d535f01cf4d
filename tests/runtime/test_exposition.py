from __future__ import annotations

import threading
from dataclasses import replace

import prometheus_client
import pytest
from prometheus_client.parser import text_string_to_metric_families

from runtime.exposition import Exposition
from runtime.status import DaemonStatus
from tests.runtime.test_status import GATE, STATUS

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def samples(exposition: Exposition) -> Samples:
    body, content_type = exposition.render()
    assert content_type.startswith("text/plain")
    found: Samples = {}
    for family in text_string_to_metric_families(body.decode()):
        for sample in family.samples:
            key = (sample.name, frozenset(sample.labels.items()))
            assert key not in found, f"{key} twice"
            found[key] = sample.value
    return found


def value(found: Samples, name: str, **labels: str) -> float | None:
    return found.get((name, frozenset(labels.items())))


def test_render__a_whole_status() -> None:
    found = samples(Exposition(lambda: STATUS))
    for name, labels, expected in (
        ("edgeloop_frames_captured_total", {"camera": "gate"}, 100),
        ("edgeloop_frames_processed_total", {"camera": "gate"}, 90),
        ("edgeloop_frames_dropped_total", {"camera": "gate", "reason": "overload"}, 8),
        ("edgeloop_frames_dropped_total", {"camera": "gate", "reason": "stale"}, 2),
        ("edgeloop_camera_up", {"camera": "gate"}, 1),
        ("edgeloop_camera_up", {"camera": "yard"}, 0),
        ("edgeloop_camera_state", {"camera": "yard", "state": "reconnecting"}, 1),
        ("edgeloop_camera_state", {"camera": "yard", "state": "running"}, 0),
        ("edgeloop_camera_last_frame_timestamp_seconds", {"camera": "gate"}, 1.7e9),
        ("edgeloop_camera_last_frame_age_seconds", {"camera": "gate"}, 0.125),
        ("edgeloop_camera_last_frame_age_seconds", {"camera": "yard"}, None),
        ("edgeloop_reconnects_total", {"camera": "gate"}, 1),
        ("edgeloop_model_info", {"bundle": "ab" * 32, "precision": "int8", "runtime": "onnxruntime"}, 1),
        ("edgeloop_swaps_total", {"result": "taken_over"}, 2),
        ("edgeloop_swaps_total", {"result": "refused"}, 1),
        ("edgeloop_resident_memory_bytes", {}, 200_000_000),
        ("edgeloop_open_descriptors", {}, 31),
        ("edgeloop_threads", {}, 14),
        ("edgeloop_sink_dropped_total", {}, 3),
        ("edgeloop_sink_failed_total", {}, 4),
        ("edgeloop_collected_frames_total", {}, 5),
        ("edgeloop_temperature_celsius", {"sensor": "cpu-thermal"}, 51.5),
        ("edgeloop_power_watts", {"rail": "VDD_IN"}, 6),
        ("edgeloop_gpu_utilization_ratio", {}, 0.5),
        ("edgeloop_throttled", {}, 0),
        ("edgeloop_gpu_memory_used_bytes", {}, None),
    ):
        assert value(found, name, **labels) == expected, (name, labels)


def test_render__asks_for_the_status_anew_each_time() -> None:
    asked: list[DaemonStatus] = []

    def status() -> DaemonStatus:
        asked.append(replace(STATUS, cameras=[replace(GATE, read=len(asked))]))
        return asked[-1]

    exposition = Exposition(status)
    assert not asked, "a status is not there before the daemon runs"
    assert [value(samples(exposition), "edgeloop_frames_captured_total", camera="gate") for _ in range(3)] == [0, 1, 2]


def test_render__before_the_engine_is_warm() -> None:
    found = samples(Exposition(lambda: replace(STATUS, model=None, cameras=[])))
    assert not [name for name, _ in found if name.startswith(("edgeloop_model", "edgeloop_swaps"))]


def test_observe__from_many_threads_counts_every_frame() -> None:
    exposition = Exposition(lambda: STATUS)

    def feed(camera: str) -> None:
        for _ in range(1000):
            exposition.observe(camera, "infer", 0.02)
            exposition.observe_age(camera, 0.2)

    threads = [threading.Thread(target=feed, args=(camera,)) for camera in ("gate", "yard", "gate", "yard")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = samples(exposition)
    for camera in ("gate", "yard"):
        assert value(found, "edgeloop_stage_duration_seconds_count", camera=camera, stage="infer") == 2000
        assert value(found, "edgeloop_stage_duration_seconds_bucket", camera=camera, stage="infer", le="0.01") == 0
        assert value(found, "edgeloop_stage_duration_seconds_bucket", camera=camera, stage="infer", le="0.025") == 2000
        assert value(found, "edgeloop_frame_age_seconds_sum", camera=camera) == pytest.approx(400)


def test_exposition__two_in_one_process_share_nothing() -> None:
    first, second = Exposition(lambda: STATUS), Exposition(lambda: STATUS)
    first.observe("gate", "infer", 0.1)
    assert value(samples(second), "edgeloop_stage_duration_seconds_count", camera="gate", stage="infer") is None
    assert "edgeloop" not in prometheus_client.generate_latest().decode()
