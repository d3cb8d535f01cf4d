"""CSI cameras and any GStreamer pipeline, each in a process of its own.

`gst-launch-1.0` is what every device with GStreamer has; Python bindings fit only the system's own interpreter, and the
OpenCV wheel is built without GStreamer. A process can also be killed, where a driver that hangs (nvarguscamerasrc does)
would hold a thread of ours for ever, and its leaks end with it. Frames come through a pipe as YUV4MPEG2, which tells its
own size: https://wiki.multimedia.cx/index.php/YUV4MPEG2
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import shlex
import shutil
import signal
import subprocess
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, cast

import cv2
import numpy as np
from numpy.typing import NDArray

from runtime.errors import SourceError, SourceRefusedError
from runtime.frame import Picture, Planes
from runtime.sources.uri import redacted
from runtime.threads import LeftThread

_HEADER_BYTES = 256
_FRAME = b"FRAME"
_MOST_PIXELS = 8192 * 8192  # what comes through the pipe is not trusted with more memory than that
_PIPE_BYTES = 1 << 20  # what Linux grants without privileges; 64 KiB would mean fifty wake-ups a frame
# Without an answer to its question for memory a decoder gives rows without its padding, which y4menc would pass on.
# A descriptor of its own: NVIDIA's camera source prints on stdout, which would end up between frames.
_TAIL = "videoconvert ! video/x-raw,format=I420 ! identity drop-allocation=true ! y4menc ! fdsink fd={fd}"
# Jetson's camera daemon hands out NV12 in GPU memory; nvvidconv brings it to the CPU.
_CSI = "nvarguscamerasrc sensor-id={sensor} ! video/x-raw(memory:NVMM),format=NV12 ! nvvidconv ! video/x-raw,format=I420"
_V4L2 = "v4l2src device={device} ! decodebin"
_TOLD = 20  # lines of GStreamer that are kept
_END_S = 1.0  # what a pipeline that has said its last may take to end
_LATEST = "queue leaky=downstream max-size-buffers=1 max-size-bytes=0 max-size-time=0"


def csi_pipeline(sensor: int) -> str:
    """The pipeline of a Jetson's CSI camera."""
    return _CSI.format(sensor=sensor)


def v4l2_pipeline(device: str) -> str:
    """The pipeline of a V4L2 device such as `/dev/video0`, raw or compressed."""
    return _V4L2.format(device=shlex.quote(device))


class GStreamerSource:
    """A pipeline in `gst-launch-1.0` notation that ends in raw video; the sink is ours.

    Attributes:
        live: True unless `live` says that the source can wait (a file).
        fps: what the stream's header tells, None where it tells nothing.
        pid: of the process, which leads a group of its own.
    """

    fps: float | None = None

    def __init__(self, pipeline: str, *, live: bool = True, open_timeout_s: float = 10.0, read_timeout_s: float = 5.0) -> None:
        """Starts the pipeline and waits for its first header.

        Raises:
            SourceRefusedError: GStreamer is not installed, or does not understand the pipeline.
            SourceError: no picture within `open_timeout_s`.
        """
        self.live, self._name, self._read_timeout_s = live, redacted(pipeline), read_timeout_s
        self._process, self._fd = _launch(pipeline, live)
        self.pid = self._process.pid
        self._said: deque[str] = deque(maxlen=_TOLD)
        self._listener = LeftThread(target=self._listen, name="gstreamer-stderr")
        self._listener.start()
        self._buffer = bytearray()
        try:
            header = self._line(open_timeout_s)
            if not header.startswith("YUV4MPEG2"):
                raise SourceError(f"{self._name} gives no raw video; let it end in video/x-raw")
            self._size_wh, self.fps = _parse_header(header, self._name)
            self._layout: _I420 | None = None
        except BaseException:
            self.close()
            raise

    def images(self) -> Iterator[Picture]:
        """Yields pictures until the pipeline ends.

        Raises:
            SourceError: silence for `read_timeout_s`, or the pipeline failed.
        """
        while line := self._line(self._read_timeout_s):
            if line.startswith("YUV4MPEG2"):  # the camera changed its mode
                self._size_wh, self.fps = _parse_header(line, self._name)
                self._layout = None
            elif line.startswith("FRAME"):
                yield self._picture()
            else:
                raise SourceError(f"{self._name} sent {line[:20]!r}, which is no frame; check the pipeline")

    def interrupt(self) -> None:
        """Ends the process and what it started, hanging or not; `images` then ends by itself."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)

    def close(self) -> None:
        """Ends the process and lets go of its pipes."""
        if self._fd < 0:
            return
        self.interrupt()
        self._process.wait()
        self._listener.join()
        os.close(self._fd)
        self._fd = -1

    def _listen(self) -> None:
        """Empties the pipe of stderr: a full one would stop the pipeline."""
        with cast(IO[bytes], self._process.stderr) as told:  # a pipe, as `_launch` asked for
            for line in told:
                self._said.append(line.decode("utf-8", "replace").strip())

    def _picture(self) -> Picture:
        width, height = self._size_wh
        packed, padded = _I420(width, height), _I420(width, height, 4)
        if self._layout is None:
            self._layout = packed if packed.size == padded.size or self._packs(packed) else padded
        layout = self._layout
        data = np.empty(layout.size, np.uint8)
        self._read_into(data.data)
        return layout.picture(data)

    def _packs(self, packed: _I420) -> bool:
        """Whether rows follow each other without padding, as the format says; GStreamer before 1.24 aligns them to four bytes.

        Told by where the next frame's header stands, so the first frame waits for the second.
        """
        deadline_s = time.monotonic() + self._read_timeout_s
        while len(self._buffer) < packed.size + len(_FRAME):
            if not (data := self._read(packed.size, deadline_s, self._read_timeout_s)):
                return len(self._buffer) == packed.size
            self._buffer += data
        return bool(self._buffer[packed.size :].startswith(_FRAME))

    def _line(self, timeout_s: float) -> str:
        """The next text line; empty at the end of the stream."""
        deadline_s = time.monotonic() + timeout_s
        while (end := self._buffer.find(b"\n")) < 0:
            if len(self._buffer) > _HEADER_BYTES:
                raise SourceError(f"{self._name} gives no raw video; let it end in video/x-raw")
            data = self._read(_HEADER_BYTES, deadline_s, timeout_s)
            if not data:
                self._tell_failure()
                return ""
            self._buffer += data
        line = self._buffer[:end].decode("ascii", "replace")
        del self._buffer[: end + 1]
        return line

    def _read_into(self, target: memoryview) -> None:
        taken = min(len(self._buffer), len(target))
        target[:taken] = self._buffer[:taken]
        del self._buffer[:taken]
        deadline_s = time.monotonic() + self._read_timeout_s
        while taken < len(target):
            self._wait(deadline_s, self._read_timeout_s)
            count = os.readv(self._fd, [target[taken:]])
            if count == 0:
                raise SourceError(f"{self._name} ended in the middle of a frame; check the pipeline")
            taken += count

    def _read(self, count: int, deadline_s: float, timeout_s: float) -> bytes:
        self._wait(deadline_s, timeout_s)
        return os.read(self._fd, count)

    def _wait(self, deadline_s: float, timeout_s: float) -> None:
        poll = select.poll()
        poll.register(self._fd, select.POLLIN | select.POLLHUP)
        if not poll.poll(max(0.0, deadline_s - time.monotonic()) * 1e3):
            raise SourceError(f"{self._name} gave nothing for {timeout_s:g} s; check the camera, or raise the timeout")

    def _tell_failure(self) -> None:
        """Raises what GStreamer said, if it ended for a reason.

        Raises:
            SourceRefusedError: the pipeline cannot be built.
            SourceError: it ran and broke.
        """
        try:
            code = self._process.wait(_END_S)
        except subprocess.TimeoutExpired:  # its stream ended, it did not
            self.interrupt()
            code = self._process.wait()
        if code == 0:
            return
        self._listener.join(_END_S)
        lines = [line for line in self._said if "ERROR" in line or "WARNING: erroneous" in line]
        reason = redacted(lines[0]) if lines else f"exit code {code}"
        kind = SourceRefusedError if "erroneous pipeline" in reason else SourceError
        raise kind(f"{self._name} failed in GStreamer: {reason}; try it with gst-launch-1.0")


def _launch(pipeline: str, live: bool) -> tuple[subprocess.Popen[bytes], int]:
    """The process, and the descriptor where its frames arrive."""
    if shutil.which("gst-launch-1.0") is None:
        raise SourceRefusedError(
            "GStreamer is not installed; on Debian, Ubuntu and Jetson: apt-get install gstreamer1.0-tools gstreamer1.0-plugins-good"
        )
    frames, sink = os.pipe()
    try:
        words = shlex.split(f"{pipeline} ! {_LATEST + ' ! ' if live else ''}{_TAIL.format(fd=sink)}")
        process = subprocess.Popen(
            ["gst-launch-1.0", "-q", *words], pass_fds=[sink], start_new_session=True, bufsize=0,
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        )  # fmt: skip
    except ValueError as error:
        os.close(frames)
        raise SourceRefusedError(f"the pipeline {redacted(pipeline)!r} cannot be read: {error}; check its quotes") from error
    except OSError as error:
        os.close(frames)
        raise SourceError(f"GStreamer cannot be started: {error.strerror}; check memory and limits") from error
    finally:
        os.close(sink)
    with contextlib.suppress(OSError, AttributeError):  # the kernel may grant less
        fcntl.fcntl(frames, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
    return process, frames


def _parse_header(header: str, name: str) -> tuple[tuple[int, int], float | None]:
    """Size and rate from `YUV4MPEG2 W640 H480 C420jpeg Ip F30:1 A1:1`."""
    fields = {word[0]: word[1:] for word in header.split()[1:]}
    try:
        width, height = int(fields["W"]), int(fields["H"])
        numerator, _, denominator = fields.get("F", "0:1").partition(":")
        rate = int(numerator) / int(denominator or 1)
    except (KeyError, ValueError, ZeroDivisionError) as error:
        raise SourceError(f"{name} sent a header that is no YUV4MPEG2: {header[:80]!r}; check the pipeline") from error
    if width < 1 or height < 1 or width * height > _MOST_PIXELS:
        raise SourceError(f"{name} sends pictures of {width}x{height}; scale them down in the pipeline")
    return (width, height), rate or None


@dataclass(frozen=True, slots=True)
class _I420:
    """Planes of a picture: luma, then two of chroma at half the size; rows begin at multiples of `align` bytes."""

    width: int
    height: int
    align: int = 1

    @property
    def _even(self) -> tuple[int, int, int]:
        """Rows of luma, bytes of its rows, bytes of a chroma row."""
        rows, columns = self.height, self.width
        if self.align > 1:
            rows, columns = rows + rows % 2, columns + columns % 2
        return rows, -(-self.width // self.align) * self.align, -(-((columns + 1) // 2) // self.align) * self.align

    @property
    def size(self) -> int:
        """Bytes of a picture."""
        rows, luma, chroma = self._even
        return rows * luma + 2 * ((rows + 1) // 2) * chroma

    def picture(self, data: NDArray[np.uint8]) -> Picture:
        """From the bytes of a picture; those with even sides stay planes, which are views of the bytes."""
        rows, luma, chroma = self._even
        half_h, half_w = (rows + 1) // 2, (self.width + 1) // 2
        if self.height % 2 == self.width % 2 == 0:
            u, v = data[rows * luma :].reshape(2, half_h, chroma)[:, :, :half_w]
            return Planes(data[: rows * luma].reshape(rows, luma)[:, : self.width], u, v)
        even = np.empty((3 * half_h, 2 * half_w), np.uint8)  # what OpenCV calls I420
        image = data[: rows * luma].reshape(rows, luma)[: self.height, : self.width]
        even[: 2 * half_h] = np.pad(image, ((0, 2 * half_h - self.height), (0, 2 * half_w - self.width)), mode="edge")
        even[2 * half_h :] = data[rows * luma :].reshape(2 * half_h, chroma)[:, :half_w].reshape(half_h, 2 * half_w)
        return np.ascontiguousarray(cv2.cvtColor(even, cv2.COLOR_YUV2BGR_I420)[: self.height, : self.width], np.uint8)
