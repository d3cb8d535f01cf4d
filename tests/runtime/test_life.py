"""The daemon's life: systemd, health, reload, ends that must come."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from runtime.bundle import Bundle
from runtime.clock import ClockWatch
from runtime.config import EdgeConfig
from runtime.daemon import Daemon
from runtime.pipeline import Pipeline
from runtime.restart import restarts
from runtime.swap import load_pipeline
from tests.conftest import ROOT, write_images
from tests.runtime.test_daemon import config, lines, wait
from tests.servers import RtspServer, free_port, rtsp_missing


def live(fps: float = 50.0, seed: int = 0) -> dict[str, Any]:
    return {"source": {"kind": "simulated", "size_wh": [64, 64], "seed": seed}, "fps": fps}


@pytest.fixture
def started() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts `edge run` and ends it."""
    running: list[subprocess.Popen[str]] = []

    def start(folder: Path, content: dict[str, Any], **environment: str) -> subprocess.Popen[str]:
        (folder / "edge.yaml").write_text(yaml.safe_dump(content))
        command = [sys.executable, "-m", "edge.cli", "run", "--config", str(folder / "edge.yaml"), "--json"]
        process = subprocess.Popen(
            command, cwd=ROOT, env={**os.environ, **environment}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        running.append(process)
        return process

    yield start
    for process in running:
        if process.poll() is None:
            process.kill()
        process.communicate()


def frames(folder: Path) -> int:
    path = folder / "results.jsonl"
    return path.read_text().count("\n") if path.exists() else 0


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[socket.socket]:
    """What systemd listens on: `notify` in the test's folder."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(30)
        yield manager


def hear(manager: socket.socket, text: str) -> None:
    """Waits until systemd is told that."""
    while text not in manager.recv(4096).decode().split("\n"):
        pass


def test_edge_run__tells_systemd_and_feeds_the_watchdog_while_frames_flow(
    bundle: Bundle, tmp_path: Path, started: Callable[..., subprocess.Popen[str]], manager: socket.socket
) -> None:
    content = config(bundle, tmp_path, cameras={"a": live()})
    process = started(tmp_path, content, NOTIFY_SOCKET=str(tmp_path / "notify"), WATCHDOG_USEC="400000")
    hear(manager, "READY=1")
    hear(manager, "WATCHDOG=1")
    process.send_signal(signal.SIGHUP)
    hear(manager, "RELOADING=1")
    hear(manager, "READY=1")
    process.send_signal(signal.SIGTERM)
    hear(manager, "STOPPING=1")
    assert process.wait(10) == 0


def test_edge_run__no_watchdog_without_frames(
    bundle: Bundle, tmp_path: Path, started: Callable[..., subprocess.Popen[str]], manager: socket.socket
) -> None:
    """frigate#7764: a process that looks healthy while no frame comes."""
    content = config(bundle, tmp_path, cameras={"dead": {"source": f"rtsp://127.0.0.1:{free_port()}/x"}})
    started(tmp_path, content, NOTIFY_SOCKET=str(tmp_path / "notify"), WATCHDOG_USEC="200000")
    hear(manager, "READY=1")
    manager.settimeout(2)
    with pytest.raises(TimeoutError):
        hear(manager, "WATCHDOG=1")


def get(port: int, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def test_edge_run__health_metrics_and_status_of_good_and_bad_cameras(
    bundle: Bundle, tmp_path: Path, started: Callable[..., subprocess.Popen[str]]
) -> None:
    port, dead = free_port(), free_port()
    cameras = {"good": live(), "dead": {"source": f"rtsp://user:hunter2@127.0.0.1:{dead}/x"}}
    process = started(tmp_path, config(bundle, tmp_path, cameras=cameras, server={"port": port}))
    wait(lambda: frames(tmp_path) > 20)
    wait(lambda: get(port, "/readyz")[0] == 200)
    assert get(port, "/healthz")[0] == 200
    status = json.loads(get(port, "/api/status")[1])
    lost, good = status["cameras"]  # as YAML was written: by name
    assert (good["state"], lost["state"]) == ("running", "reconnecting")
    assert "Connection refused" in lost["reason"]
    assert good["last_frame_age_s"] < 5
    assert lost["last_frame_age_s"] is None
    assert status["model"]["bundle"] == bundle.digest
    code, text = get(port, "/metrics")
    assert code == 200
    assert 'edgeloop_camera_up{camera="dead"} 0.0' in text
    assert 'edgeloop_camera_up{camera="good"} 1.0' in text
    assert 'edgeloop_stage_duration_seconds_count{camera="good",stage="infer"}' in text
    assert 'edgeloop_frame_age_seconds_bucket{camera="good"' in text
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=10)
    assert process.returncode == 0
    assert "hunter2" not in out + err + json.dumps(status) + text


def test_run__the_cameras_are_shown_while_the_engine_loads(bundle: Bundle, tmp_path: Path) -> None:
    port, seen = free_port(), []

    def load(model: Any, cameras: int, streams: int) -> Pipeline:
        seen.append(json.loads(get(port, "/api/status")[1]))
        return load_pipeline(model, cameras, streams)

    Daemon(EdgeConfig.model_validate(config(bundle, tmp_path, server={"port": port})), load=load).run()
    assert [(camera["name"], camera["state"]) for camera in seen[0]["cameras"]] == [("line", "starting")]
    assert seen[0]["model"] is None


def test_edge_run__a_taken_port_is_one_sentence(
    bundle: Bundle, tmp_path: Path, started: Callable[..., subprocess.Popen[str]]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        process = started(tmp_path, config(bundle, tmp_path, cameras={"a": live()}, server={"port": port}))
        _, err = process.communicate(timeout=30)
    assert process.returncode == 2
    assert f"cannot serve on 127.0.0.1:{port}" in err.splitlines()[-1]


def test_edge_run__sighup_takes_cameras_in_and_out_without_touching_the_others(
    bundle: Bundle, tmp_path: Path, started: Callable[..., subprocess.Popen[str]]
) -> None:
    content = config(bundle, tmp_path, cameras={"stays": live(), "goes": live(seed=1)})
    process = started(tmp_path, content)
    wait(lambda: {"stays", "goes"} <= {line["camera"] for line in whole_lines(tmp_path)})
    (tmp_path / "edge.yaml").write_text("model: [")
    process.send_signal(signal.SIGHUP)  # a mistake changes nothing
    before = frames(tmp_path)
    wait(lambda: frames(tmp_path) > before + 20)
    content["cameras"] = {"stays": live(), "comes": live(seed=2)}
    (tmp_path / "edge.yaml").write_text(yaml.safe_dump(content))
    process.send_signal(signal.SIGHUP)
    wait(lambda: "comes" in {line["camera"] for line in whole_lines(tmp_path)[-20:]})
    content["cameras"] = {"stays": live(), "goes": live(seed=1)}
    (tmp_path / "edge.yaml").write_text(yaml.safe_dump(content))
    process.send_signal(signal.SIGHUP)
    wait(lambda: "comes" not in {line["camera"] for line in whole_lines(tmp_path)[-20:]})
    wait(lambda: "goes" in {line["camera"] for line in whole_lines(tmp_path)[-20:]})
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=10)
    summary = json.loads(out)
    records = lines(tmp_path)
    keys = [(record["camera"], record["frame"]) for record in records]
    assert len(keys) == len(set(keys))
    assert {record["epoch"] for record in records if record["camera"] == "stays"} == {0}
    assert {record["epoch"] for record in records if record["camera"] == "goes"} == {0, 1}
    for name, counts in summary["cameras"].items():
        assert counts["read"] == counts["processed"] + sum(counts["dropped"].values()), name
        assert counts["processed"] == sum(camera == name for camera, _ in keys)
    assert "the configuration was not taken over" in err


def whole_lines(folder: Path) -> list[dict[str, Any]]:
    """Those that are written whole by now."""
    path = folder / "results.jsonl"
    text = path.read_text() if path.exists() else ""
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]


def test_edge_run__ends_in_time_with_a_frozen_camera(
    bundle: Bundle, tmp_path: Path, started: Callable[..., subprocess.Popen[str]]
) -> None:
    if missing := rtsp_missing():
        pytest.skip(missing)
    server = RtspServer()
    try:
        process = started(tmp_path, config(bundle, tmp_path, cameras={"frozen": {"source": server.url}, "a": live()}))
        wait(lambda: {"frozen", "a"} <= {line["camera"] for line in whole_lines(tmp_path)})
        server.freeze()
        time.sleep(0.5)
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=8)  # five seconds, and what a busy machine adds
    finally:
        server.kill()
    assert process.returncode == 0, err
    assert json.loads(out)["cameras"]["a"]["processed"] == sum(line["camera"] == "a" for line in lines(tmp_path))


def test_edge_run__a_still_scene_is_no_hang(
    bundle: Bundle, tmp_path: Path, started: Callable[..., subprocess.Popen[str]], manager: socket.socket
) -> None:
    port = free_port()
    picture = tmp_path / "still"
    write_images(picture, 1)
    camera = {"source": {"kind": "images", "path": str(picture), "loop": True}, "fps": 20.0, "motion": {"every_s": 3600}}
    content = config(bundle, tmp_path, cameras={"still": camera}, server={"port": port})
    started(tmp_path, content, NOTIFY_SOCKET=str(tmp_path / "notify"), WATCHDOG_USEC="1000000")
    for _ in range(4):
        hear(manager, "WATCHDOG=1")
    assert get(port, "/healthz")[0] == 200
    assert frames(tmp_path) == 1
    dropped = json.loads(get(port, "/api/status")[1])["cameras"][0]["dropped"]
    assert dropped["motion"] > 20


def test_edge_run__two_reloads_in_a_row_end_with_the_second(
    bundle: Bundle, tmp_path: Path, started: Callable[..., subprocess.Popen[str]]
) -> None:
    content = config(bundle, tmp_path, cameras={"a": live(20.0)})
    process = started(tmp_path, content)
    wait(lambda: frames(tmp_path) > 5)
    for confidence in (0.5, 1.0):
        content["model"]["confidence"] = confidence
        (tmp_path / "edge.yaml").write_text(yaml.safe_dump(content))
        process.send_signal(signal.SIGHUP)
        time.sleep(0.1)
    wait(lambda: all(not line["detections"] for line in whole_lines(tmp_path)[-20:]))
    process.send_signal(signal.SIGTERM)
    assert process.wait(10) == 0


def test_restart_process__same_process_new_program_and_not_for_ever() -> None:
    program = (
        "import os, sys, logging; from runtime.restart import restart_process; from runtime.errors import DeviceLostError;"
        "logging.basicConfig(); import runtime.restart as r; r.time.sleep = lambda s: None;"
        "print(os.getpid(), sys.argv[1:], flush=True); restart_process(DeviceLostError('gone')); sys.exit(3)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program, "a b"], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    out, err = process.communicate(timeout=120)
    assert process.returncode == 3
    assert set(out.splitlines()) == {f"{process.pid} ['a b']"}
    assert len(out.splitlines()) == 6
    assert "5 restarts within ten minutes did not help" in err


def test_restarts__old_ones_and_nonsense_do_not_count() -> None:
    assert restarts(1000.0, {}) == [1000.0]
    assert restarts(1000.0, {"EDGELOOP_RESTARTS": "1,x,999.5,2000"}) == [999.5, 1000.0]
    assert restarts(1000.0, {"EDGELOOP_RESTARTS": "996,997,998,999,999.5"}) is None


def test_clock_watch__tells_a_jump_once() -> None:
    clock = ClockWatch(1000.0, 5.0)
    assert clock.jump_s(1010.5, 15.0) == 0  # slewed
    assert clock.jump_s(4620.0, 25.0) == pytest.approx(3600)
    assert clock.jump_s(4630.0, 35.0) == 0
    assert clock.jump_s(1030.0, 35.0) == pytest.approx(-3600)
