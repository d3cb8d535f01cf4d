from __future__ import annotations

import json
from dataclasses import replace

from runtime.status import CameraStatus, DaemonStatus, ModelStatus
from runtime.telemetry.snapshot import Telemetry

GATE = CameraStatus(
    name="gate", state="running", reason="", epoch=1, size_wh=(1920, 1080), read=100, processed=90,
    dropped={"overload": 8, "stale": 2}, reconnects=1, last_frame_wall_s=1.7e9, last_frame_age_s=0.125, fps=10.0,
    url="rtsp://admin:secret@cam/live",
)  # fmt: skip
YARD = replace(
    GATE, name="yard", state="reconnecting", reason="rtsp://a:secret@yard/x timed out", size_wh=None, read=0, processed=0,
    dropped={}, last_frame_wall_s=None, last_frame_age_s=None, fps=0.0,
)  # fmt: skip
STATUS = DaemonStatus(
    state="running", uptime_s=12.5, cameras=[GATE, YARD],
    model=ModelStatus("ab" * 32, "onnxruntime", "int8", swaps=2, refusals=1, refused=["the bundle was altered"]),
    sinks_dropped=3, sinks_failed=4, collected=5, resident_bytes=200_000_000, descriptors=31, threads=14,
    telemetry=Telemetry({"cpu-thermal": 51.5}, {"VDD_IN": 6.0}, gpu_utilization_ratio=0.5, throttled=False),
)  # fmt: skip


def test_as_dict__is_plain_json() -> None:
    shown = json.loads(json.dumps(STATUS.as_dict(), allow_nan=False))
    assert shown["cameras"][0]["dropped"] == {"overload": 8, "stale": 2}
    assert shown["cameras"][0]["size_wh"] == [1920, 1080]
    assert shown["model"]["refused"] == ["the bundle was altered"]
    assert shown["telemetry"]["temperatures_celsius"] == {"cpu-thermal": 51.5}
    assert shown["telemetry"]["gpu_memory_used_bytes"] is None


def test_camera_status__holds_no_credentials() -> None:
    assert GATE.url == "rtsp://***@cam/live"
    assert "secret" not in str(STATUS.as_dict())


def test_troubles__name_each_camera_that_should_give_frames() -> None:
    assert STATUS.troubles() == ["camera yard is reconnecting: rtsp://***@yard/x timed out"]
    assert replace(STATUS, cameras=[replace(GATE, state="ended"), replace(GATE, state="starting")]).troubles() == [
        "camera gate is starting"
    ]
