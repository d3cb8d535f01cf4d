"""Cameras that come, go, freeze and lie: real RTSP and HTTP servers, real GStreamer pipelines."""

from __future__ import annotations

import itertools
import logging
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from runtime.capture import Capture
from runtime.config import CameraConfig
from runtime.errors import SourceError, SourceRefusedError
from runtime.frame import Frame, Picture, Planes
from runtime.sources import Source
from runtime.sources.gstreamer import GStreamerSource
from runtime.sources.simulated import Line, SimulatedSource
from runtime.sources.video import VideoOptions, VideoSource
from tests.servers import RtspServer, free_port, rtsp_missing

needs_gstreamer = pytest.mark.skipif(shutil.which("gst-launch-1.0") is None, reason="apt-get install gstreamer1.0-tools")


def wait(condition: Callable[[], object], limit_s: float = 20.0) -> None:
    end_s = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < end_s, "the condition did not come true in time"
        time.sleep(0.02)


@pytest.fixture(scope="module")
def rtsp_here() -> None:
    if missing := rtsp_missing():
        pytest.skip(missing)


@pytest.fixture
def server(rtsp_here: None) -> Iterator[RtspServer]:
    server = RtspServer()
    yield server
    server.kill()


@pytest.fixture
def watch() -> Iterator[Callable[..., Capture]]:
    """Starts captures and stops them."""
    started: list[Capture] = []

    def start(name: str = "cam", **camera: Any) -> Capture:
        extra = {key: camera.pop(key) for key in ("pauses_s", "refused_s", "open_source") if key in camera}
        capture = Capture(name, CameraConfig.model_validate(camera), threading.Event(), **extra)
        capture.start()
        started.append(capture)
        return capture

    yield start
    for capture in started:
        capture.stop()


def bgr(picture: Picture) -> NDArray[np.uint8]:
    return Frame(picture, "cam", 0, 0.0, 0.0).image


def rtsp(url: str, silence_s: float = 1.5) -> dict[str, object]:
    return {"kind": "video", "uri": url, "open_timeout_s": silence_s, "read_timeout_s": silence_s}


def test_capture__a_killed_server_comes_back_with_another_size(
    server: RtspServer, watch: Callable[..., Capture], caplog: pytest.LogCaptureFixture
) -> None:
    """ultralytics#15057: after the loss the camera sends another resolution."""
    caplog.set_level(logging.INFO)
    capture = watch(source=rtsp(server.url))
    wait(lambda: capture.state == "running")
    first = capture.queue.get(timeout_s=5)
    assert first is not None
    assert (first.epoch, first.image.shape) == (0, (240, 320, 3))
    server.kill()
    wait(lambda: capture.state == "reconnecting")
    assert capture.reason
    capture.queue.get(timeout_s=0)
    server.start("--size", "640x360", "--fps", "5")
    wait(lambda: capture.state == "running")
    second = capture.queue.get(timeout_s=5)
    assert second is not None
    assert (second.epoch, second.image.shape, capture.reconnects) == (1, (360, 640, 3), 1)
    assert second.index > first.index
    assert len([record for record in caplog.records if "reconnecting" in record.message]) <= 3  # told, not hammered


def test_capture__a_frozen_server_is_stalled_then_back(server: RtspServer, watch: Callable[..., Capture]) -> None:
    """Savant#860, frigate#7764: a camera that freezes must be told and recover, without black frames."""
    capture = watch(source=rtsp(server.url, silence_s=4))
    wait(lambda: capture.interval_s is not None and capture.state == "running")
    server.freeze()
    wait(lambda: capture.state == "stalled")
    wait(lambda: capture.state == "reconnecting")
    assert "gave nothing for" in capture.reason
    before = capture.read
    while capture.queue.get(timeout_s=0) is not None:
        pass
    time.sleep(2)
    assert capture.read == before
    server.thaw()
    thawed_s = time.monotonic()
    wait(lambda: capture.state == "running")
    frame = capture.queue.get(timeout_s=5)
    assert frame is not None
    assert frame.captured_monotonic_s >= thawed_s
    assert frame.image.mean() > 1  # a picture


def test_capture__a_dead_camera_leaks_nothing(watch: Callable[..., Capture]) -> None:
    """jetson-utils#148: creating a dead source again and again."""
    capture = watch(source=rtsp(f"rtsp://127.0.0.1:{free_port()}/x"), pauses_s=(0.001, 0.002))
    wait(lambda: capture.state == "reconnecting")
    descriptors, threads = set(), set()
    for _ in range(20):
        time.sleep(0.1)
        descriptors.add(len(list(Path("/proc/self/fd").iterdir())))
        threads.add(sum(thread.name.startswith("capture-") for thread in threading.enumerate()))
    assert max(descriptors) - min(descriptors) <= 3  # a socket that is being tried
    assert threads == {1}
    assert "Connection refused" in capture.reason


def test_capture__a_source_that_breaks_in_any_way_is_tried_again(watch: Callable[..., Capture]) -> None:
    tries = []

    def broken(_: object) -> Source:
        tries.append(1)
        if len(tries) < 4:
            raise OSError(24, "Too many open files")
        return SimulatedSource(Line(1, (64, 64)), None, 0)

    capture = watch(source=rtsp("rtsp://127.0.0.1:9/x"), pauses_s=(0.001, 0.002), refused_s=0.001, open_source=broken)
    wait(lambda: capture.read > 3)
    assert capture.error is None
    assert len(tries) == 4


def test_video_source__a_codec_that_nobody_knows(tmp_path: Path) -> None:
    if not shutil.which("ffmpeg"):
        pytest.skip("apt-get install ffmpeg")
    path = tmp_path / "a.mkv"
    source = "testsrc2=size=64x64:rate=5:duration=1"
    subprocess.run(["ffmpeg", "-v", "error", "-f", "lavfi", "-i", source, "-c:v", "mjpeg", str(path)], check=True)
    path.write_bytes(path.read_bytes().replace(b"V_MJPEG", b"V_NOONE"))
    with pytest.raises(SourceRefusedError, match="codec"):
        VideoSource(str(path))


def test_capture__a_wrong_password_is_refused_and_not_told(
    rtsp_here: None, watch: Callable[..., Capture], caplog: pytest.LogCaptureFixture
) -> None:
    server = RtspServer("--user", "u", "--password", "right")
    try:
        capture = watch(source=rtsp(server.url.replace("//", "//u:hunter2@")))
        wait(lambda: capture.state == "failed")
        assert "refuses user or password" in capture.reason
        assert "hunter2" not in capture.reason + caplog.text
        assert capture.read == 0
        with pytest.raises(SourceError, match="404"):
            VideoSource(server.url.replace("//", "//u:right@").replace("cam", "none"))
        VideoSource(server.url.replace("//", "//u:right@")).close()
    finally:
        server.kill()


class _Mjpeg(BaseHTTPRequestHandler):
    """An HTTP camera; the path says what it does."""

    def do_GET(self) -> None:
        if self.path == "/secret":
            self.send_error(401)
            return
        self.send_response(200)
        self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
        self.end_headers()
        line = Line(1, (160, 120))
        try:
            for index in range(10_000):
                data = cv2.imencode(".jpg", line.image(index))[1].tobytes() if self.path == "/cam" else bytes(range(256)) * 40
                head = f"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: {len(data)}\r\n\r\n"
                self.wfile.write(head.encode() + data + b"\r\n")
                time.sleep(0.05)
        except OSError:
            return

    def log_message(self, *_: object) -> None:
        """Nothing on stderr."""


@pytest.fixture
def http() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Mjpeg)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_capture__mjpeg_over_http_with_a_cap(http: str, watch: Callable[..., Capture]) -> None:
    capture = watch(source=f"{http}/cam", fps=5.0)
    wait(lambda: capture.read >= 30)
    assert capture.size_wh == (160, 120)
    taken = capture.read - capture.dropped["fps_cap"]
    assert 0.15 * capture.read <= taken <= 0.5 * capture.read  # 5 of about 20 a second


def test_capture__garbage_and_refusals_of_an_http_camera(http: str, watch: Callable[..., Capture]) -> None:
    garbage = watch("garbage", source=rtsp(f"{http}/garbage"))
    secret = watch("secret", source=rtsp(f"{http}/secret"))
    good = watch("good", source=rtsp(f"{http}/cam"))
    wait(lambda: secret.state == "failed" and garbage.reason and good.read > 20)
    assert garbage.read == 0
    assert "refuses user or password" in secret.reason


def test_capture__one_frame_then_silence(watch: Callable[..., Capture], rtsp_here: None) -> None:
    """One frame a minute, for a camera that is expected to give more: told, with the remedy."""
    server = RtspServer("--fps", "1")
    try:
        capture = watch(source=rtsp(server.url, silence_s=0.7))
        wait(lambda: "raise open_timeout_s and read_timeout_s" in capture.reason)
    finally:
        server.kill()


def test_video_source__a_file_that_is_still_being_written(tmp_path: Path) -> None:
    whole = tmp_path / "whole.mp4"
    subprocess.run(
        ["ffmpeg", "-v", "error", "-f", "lavfi", "-i", "testsrc2=size=320x240:rate=10:duration=3", str(whole)], check=True
    ) if shutil.which("ffmpeg") else pytest.skip("apt-get install ffmpeg")
    growing = tmp_path / "growing.mp4"
    growing.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])  # its index comes last
    with pytest.raises(SourceError, match="cannot be opened as video"):
        VideoSource(str(growing))


def test_video_source__turns_pictures_the_right_way_up(tmp_path: Path) -> None:
    if not shutil.which("ffmpeg"):
        pytest.skip("apt-get install ffmpeg")
    plain, turned = tmp_path / "a.mp4", tmp_path / "b.mp4"
    source = "color=red:size=64x32:rate=5:duration=1,drawbox=x=0:y=0:w=32:h=32:color=blue:t=fill"
    subprocess.run(["ffmpeg", "-v", "error", "-f", "lavfi", "-i", source, "-pix_fmt", "yuv444p", str(plain)], check=True)
    rotate = ["-c", "copy", "-metadata:s:v", "rotate=90"]
    subprocess.run(["ffmpeg", "-v", "error", "-i", str(plain), *rotate, str(turned)], check=True)
    seen = cv2.VideoCapture(str(turned))
    expected = seen.read()[1]
    seen.release()
    image = bgr(next(VideoSource(str(turned)).images()))
    assert image.shape == expected.shape == (64, 32, 3)
    assert np.abs(image.astype(int) - expected).mean() < 8


@pytest.mark.data
def test_video_source__planes_are_what_opencv_shows(data_dir: Path) -> None:
    path = str(data_dir / "videos" / "intel_car-detection.mp4")
    seen = cv2.VideoCapture(path)
    for picture in itertools.islice(VideoSource(path).images(), 3):
        assert isinstance(picture, Planes)
        difference = np.abs(bgr(picture).astype(int) - seen.read()[1])
        assert difference.mean() < 2
    seen.release()


@needs_gstreamer
@pytest.mark.parametrize(("width", "height"), [(64, 48), (33, 35), (322, 242)])
def test_gstreamer_source__any_size(width: int, height: int) -> None:
    caps = f"video/x-raw,width={width},height={height},framerate=25/1"
    source = GStreamerSource(f"videotestsrc num-buffers=4 pattern=red ! {caps}", live=False)
    images = [bgr(picture) for picture in source.images()]
    source.close()
    assert (len(images), source.fps) == (4, 25.0)
    for image in images:
        assert image.shape == (height, width, 3)
        assert image[..., 2].min() > 200
        assert image[..., :2].max() < 60


@needs_gstreamer
@pytest.mark.data
def test_gstreamer_source__decoders_that_pad_their_rows(data_dir: Path) -> None:
    path = data_dir / "videos" / "intel_car-detection.mp4"
    source = GStreamerSource(f"filesrc location={path} ! decodebin", live=False)
    ours = [bgr(picture) for picture in itertools.islice(source.images(), 20)]
    source.close()
    theirs = [bgr(picture) for picture in itertools.islice(VideoSource(str(path)).images(), 20)]
    assert len(ours) == 20
    assert max(np.abs(a.astype(int) - b).mean() for a, b in zip(ours, theirs, strict=True)) < 2


@needs_gstreamer
@pytest.mark.parametrize(
    ("pipeline", "error", "message"),
    [
        ("nosuchelement ! x", SourceRefusedError, "erroneous pipeline"),
        ("videotestsrc 'x", SourceRefusedError, "No closing quotation"),
        ("filesrc location=/none", SourceError, "Resource not found"),
        ("fakesrc num-buffers=0", SourceError, "gives no raw video"),
    ],
)
def test_gstreamer_source__what_cannot_run(pipeline: str, error: type[SourceError], message: str) -> None:
    with pytest.raises(error, match=message):
        list(GStreamerSource(pipeline, open_timeout_s=3).images())


@needs_gstreamer
def test_gstreamer_source__a_pipeline_that_hangs_is_killed() -> None:
    source = GStreamerSource("videotestsrc is-live=true ! video/x-raw,framerate=20/1", read_timeout_s=0.5)
    images = source.images()
    next(images)
    subprocess.run(["kill", "-STOP", str(source.pid)], check=True)
    with pytest.raises(SourceError, match=r"gave nothing for 0\.5 s"):
        for _ in range(100):
            next(images)
    source.close()
    assert not Path(f"/proc/{source.pid}").exists()


def test_video_source__slow_udp_is_an_option() -> None:
    assert VideoOptions().transport == "tcp"
    assert CameraConfig.model_validate({"source": {"kind": "video", "uri": "rtsp://x/y", "transport": "udp"}}).live
