"""Video files, RTSP and HTTP streams through PyAV (FFmpeg's libraries).

PyAV and not OpenCV, because of what OpenCV cannot do: options and timeouts of each stream (OpenCV has one environment
variable for all), an error that says what was wrong (password, codec, silence), key frames and damaged frames that are told
apart. A stream is entered at a key frame and damaged frames are left out, so that no grey or smeared picture passes for
the scene.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from runtime.errors import SourceError, SourceRefusedError, first_line
from runtime.frame import Picture, Planes
from runtime.sources.uri import is_live, redacted

if TYPE_CHECKING:  # opening a camera imports it: a tenth of a second that a folder replay need not wait
    import av
    from av.container import InputContainer
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

log = logging.getLogger(__name__)

OPEN_TIMEOUT_S = 5.0  # connecting, handshake and the stream's description
READ_TIMEOUT_S = 5.0  # the longest silence of a camera; a frame a second is slow already
_WHOLE = 0.98  # share of the announced frames; containers round
_ENTRY_S = 20.0  # cameras with "smart" codecs send a key frame every ten seconds
_DAMAGED = 100  # frames in a row that do not decode; ten seconds at 10 frames/s of garbage is no camera
_QUARTER_TURN = 90
# AVColorSpace and AVColorRange: what FFmpeg itself takes for BT.601, and the range of JPEG.
_BT601, _FULL_RANGE = (2, 5, 6), 2  # unspecified, BT.470 BG, SMPTE 170M


@dataclass(frozen=True, slots=True)
class VideoOptions:
    """How a stream is read.

    Attributes:
        loop: files only: start again at the end.
        transport: of RTSP: `tcp` or `udp`.
        open_timeout_s, read_timeout_s: how long a network camera may say nothing.
    """

    loop: bool = False
    transport: str = "tcp"
    open_timeout_s: float = OPEN_TIMEOUT_S
    read_timeout_s: float = READ_TIMEOUT_S


class VideoSource:
    """A file or a stream URL.

    Attributes:
        live: True for streams: frames that nobody takes are gone.
        fps: the file's own rate, None where unknown.
    """

    fps: float | None

    def __init__(self, uri: str, options: VideoOptions = VideoOptions()) -> None:
        """Opens the stream.

        Raises:
            SourceRefusedError: wrong credentials, or nothing that can be decoded.
            SourceError: no such file, or nobody answers.
        """
        self.live = is_live(uri)
        self._uri, self._name, self._options = uri, redacted(uri), options
        if not self.live and not Path(uri).is_file():
            raise SourceError(f"no such video file: {uri}; check `uri` of the camera")
        self._container, self._stream = self._open()
        rate = float(self._stream.average_rate or 0)
        self.fps = rate if not self.live and 0 < rate < 1000 else None

    def images(self) -> Iterator[Picture]:
        """Yields decoded pictures until the file ends or the stream breaks.

        Raises:
            SourceError: silence for `read_timeout_s`, a broken connection, a file without one frame.
        """
        while True:
            read = 0
            for frame in self._frames():
                read += 1
                yield _picture(frame)
            if read == 0 and not self.live:
                raise SourceError(f"{self._name} holds no frame that can be decoded; check the file or its codec")
            if self.live or not self._options.loop:
                self._tell_if_short(read)
                return
            self.close()
            self._container, self._stream = self._open()

    def close(self) -> None:
        """Releases the file or the connection."""
        self._container.close()

    def interrupt(self) -> None:
        """Nothing to do: FFmpeg's own timeouts end what waits."""

    def _frames(self) -> Iterator[VideoFrame]:
        """Whole frames, from the first key frame on."""
        import av

        entered, damaged = not self.live, 0
        heard_s = whole_s = time.monotonic()
        try:
            for packet in self._container.demux(self._stream):
                silent_s, heard_s = time.monotonic() - heard_s, time.monotonic()
                if self.live and silent_s >= self._options.read_timeout_s:
                    # FFmpeg swallows the first timeout and gives what its parser still held; the second would be too late.
                    raise self._silence(silent_s)
                try:
                    frames = packet.decode()
                except av.error.InvalidDataError:
                    frames = []
                    damaged += 1
                for frame in frames:
                    entered = entered or bool(frame.key_frame)
                    if entered and not (self.live and frame.is_corrupt):
                        damaged, whole_s = 0, heard_s
                        yield frame
                if self.live and heard_s - whole_s > max(_ENTRY_S, 2 * self._options.read_timeout_s):
                    raise SourceError(
                        f"{self._name} sends data, but no whole picture for {heard_s - whole_s:.0f} s; "
                        "let it send key frames more often, or check the network"
                    )
                if damaged > _DAMAGED and self.live:
                    raise SourceError(f"{self._name} sends {damaged} packets in a row that are no video; check the camera")
        except av.error.FFmpegError as error:
            if not self.live and not isinstance(error, (av.error.EOFError, av.error.InvalidDataError)):
                raise SourceError(f"{self._name} breaks off ({error.strerror}); it is damaged, copy it again") from error
            if self.live or not isinstance(error, (av.error.EOFError, av.error.InvalidDataError)):
                raise self._refusal(error) from error

    def _tell_if_short(self, read: int) -> None:
        expected = self._stream.frames
        if not self.live and read < _WHOLE * expected:
            log.warning("%s ended after %d of %d frames; it is truncated or damaged, copy it again", self._name, read, expected)

    def _open(self) -> tuple[InputContainer, VideoStream]:
        import av

        av.logging.set_level(None)  # FFmpeg's own complaints repeat ours, with passwords
        timeout = (self._options.open_timeout_s, self._options.read_timeout_s) if self.live else None
        began_s = time.monotonic()
        try:
            container = av.open(self._uri, options=self._demuxer_options(), timeout=timeout)
        except av.error.FFmpegError as error:
            waited_s = time.monotonic() - began_s
            raise self._silence(waited_s) if timeout and waited_s >= timeout[0] else self._refusal(error) from error
        with contextlib.ExitStack() as undo:
            undo.callback(container.close)
            if not container.streams.video:
                raise SourceRefusedError(f"{self._name} has no video stream that can be decoded; check its codec")
            stream = container.streams.video[0]
            if stream.codec_context is None:
                raise SourceRefusedError(
                    f"{self._name} has a video stream of a codec that nothing here decodes; use H.264 or MJPEG"
                )
            # Frame threads hold back one frame each: right for a file, late for a camera.
            stream.thread_type = "SLICE" if self.live else "AUTO"
            stream.codec_context.thread_count = 2
            undo.pop_all()
        return container, stream

    def _demuxer_options(self) -> dict[str, str]:
        if self._uri.startswith(("rtsp://", "rtsps://")):
            # A session description names the codec: half a second of probing is for what it leaves out.
            return {"rtsp_transport": self._options.transport, "fflags": "nobuffer+discardcorrupt", "analyzeduration": "500000"}
        return {"fflags": "nobuffer"} if self.live else {}

    def _silence(self, silent_s: float) -> SourceError:
        return SourceError(
            f"{self._name} gave nothing for {silent_s:.0f} s; check camera and network, or raise open_timeout_s and read_timeout_s"
        )

    def _refusal(self, error: av.error.FFmpegError) -> SourceError:
        from av import error as av_error

        if isinstance(error, av_error.ExitError):  # our own timeout: FFmpeg's interrupt callback
            return self._silence(self._options.read_timeout_s)
        if isinstance(error, (av_error.HTTPUnauthorizedError, av_error.HTTPForbiddenError)):
            return SourceRefusedError(f"{self._name} refuses user or password ({error.strerror}); check them in `uri`")
        if isinstance(error, (av_error.DecoderNotFoundError, av_error.DemuxerNotFoundError, av_error.ProtocolNotFoundError)):
            return SourceRefusedError(f"{self._name} cannot be read ({error.strerror}); check protocol and codec")
        if not self.live:
            return SourceError(f"{self._name} cannot be opened as video ({error.strerror}); check that it plays elsewhere")
        return SourceError(
            f"{self._name} is not there ({redacted(error.strerror or first_line(error))}); check host, path and network"
        )


def _picture(frame: VideoFrame) -> Picture:
    """The picture, the right way up."""
    if _is_plain(frame):
        luma, u, v = (np.frombuffer(memoryview(plane), np.uint8).reshape(-1, plane.line_size) for plane in frame.planes)
        half_h, half_w = frame.height // 2, frame.width // 2
        return Planes(luma[: frame.height, : frame.width], u[:half_h, :half_w], v[:half_h, :half_w])
    image = np.asarray(frame.to_ndarray(format="bgr24"), np.uint8)
    turns = round(frame.rotation / _QUARTER_TURN) % 4
    return np.ascontiguousarray(np.rot90(image, turns)) if turns else image


def _is_plain(frame: VideoFrame) -> bool:
    """Whether its planes are what `Planes` are; anything else FFmpeg turns into BGR."""
    if frame.format.name != "yuv420p" or frame.colorspace not in _BT601 or frame.color_range == _FULL_RANGE:
        return False
    return (
        frame.width % 2 == frame.height % 2 == 0 and not frame.rotation and all(plane.line_size > 0 for plane in frame.planes)
    )
