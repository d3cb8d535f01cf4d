"""Real servers that tests and benchmarks start and end: cameras that can be killed, frozen and changed."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

_SYSTEM_PYTHON = "/usr/bin/python3"  # PyGObject is built for it and for no other


def rtsp_missing() -> str:
    """What keeps the RTSP server from running here; empty when nothing does."""
    check = "import gi; gi.require_version('GstRtspServer', '1.0'); from gi.repository import GstRtspServer"
    if shutil.which("gst-launch-1.0") is None:
        return "no GStreamer: apt-get install gstreamer1.0-tools gstreamer1.0-plugins-good gstreamer1.0-plugins-ugly"
    try:
        subprocess.run([_SYSTEM_PYTHON, "-c", check], check=True, capture_output=True, timeout=30)
    except (OSError, subprocess.SubprocessError):
        return "no RTSP server: apt-get install gir1.2-gst-rtsp-server-1.0 python3-gi"
    return ""


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class RtspServer:
    """A camera of ours.

    Attributes:
        url: where it is while it runs.
    """

    def __init__(self, *options: str, port: int = 0, path: str = "cam") -> None:
        self.port = port or free_port()
        self.url = f"rtsp://127.0.0.1:{self.port}/{path}"
        self._process: subprocess.Popen[str] | None = None
        self.start(*options)

    def start(self, *options: str, limit_s: float = 20.0) -> None:
        """Starts it on its port, `options` as of `tests/servers/rtsp.py`; a port in TIME_WAIT is waited for."""
        until_s = time.monotonic() + limit_s
        while True:
            self._process = subprocess.Popen(
                [_SYSTEM_PYTHON, str(Path(__file__).parent / "rtsp.py"), str(self.port), *options],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
            )  # fmt: skip
            assert self._process.stdout is not None
            if self._process.stdout.readline() == "ready\n":
                return
            self.kill()
            if time.monotonic() > until_s:
                raise RuntimeError(f"the RTSP server does not start on port {self.port}")
            time.sleep(0.2)

    def kill(self) -> None:
        """Pulls the plug."""
        if self._process:
            self._process.kill()
            for pipe in (self._process.stdin, self._process.stdout):
                if pipe:
                    pipe.close()
            self._process.wait()
            self._process = None

    def freeze(self) -> None:
        """Stops it in its tracks: connections stay open, nothing comes."""
        assert self._process
        os.kill(self._process.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        """Lets it go on."""
        assert self._process
        os.kill(self._process.pid, signal.SIGCONT)
