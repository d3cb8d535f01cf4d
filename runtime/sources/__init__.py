"""Where frames come from: one file a kind, same verbs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from runtime.frame import Picture
from runtime.sources.gstreamer import GStreamerSource
from runtime.sources.images import ImagesSource
from runtime.sources.simulated import Line, SimulatedSource
from runtime.sources.video import VideoOptions, VideoSource

if TYPE_CHECKING:
    from runtime.config import GStreamerConfig, ImagesConfig, SimulatedConfig, SourceConfig, VideoConfig


class Source(Protocol):
    """An opened source of pictures.

    Attributes:
        live: frames that are not taken in time are gone (a camera); otherwise the source waits (a file).
        fps: the source's own rate in frames per second, None where unknown.
    """

    @property
    def live(self) -> bool:
        """See above."""
        ...

    @property
    def fps(self) -> float | None:
        """See above."""
        ...

    def images(self) -> Iterator[Picture]:
        """Yields pictures, BGR or YUV, each its own memory, until the source ends.

        Raises:
            SourceError: the source gives something that is no picture.
        """
        ...

    def interrupt(self) -> None:
        """Called from another thread: what `images` holds outside this process shall end now."""
        ...

    def close(self) -> None:
        """Releases devices and connections."""
        ...


def _images(config: ImagesConfig) -> Source:
    return ImagesSource(Path(config.path), loop=config.loop)


def _video(config: VideoConfig) -> Source:
    options = VideoOptions(config.loop, config.transport, config.open_timeout_s, config.read_timeout_s)
    return VideoSource(config.uri, options)


def _gstreamer(config: GStreamerConfig) -> Source:
    return GStreamerSource(
        config.pipeline, live=config.live, open_timeout_s=config.open_timeout_s, read_timeout_s=config.read_timeout_s
    )


def _simulated(config: SimulatedConfig) -> Source:
    line = Line(config.seed, config.size_wh, light=config.light, light_drift=config.light_drift)
    return SimulatedSource(line, config.frames, config.start)


_OPEN: dict[str, Callable[[Any], Source]] = {
    "images": _images,
    "video": _video,
    "gstreamer": _gstreamer,
    "simulated": _simulated,
}


def open_source(config: SourceConfig) -> Source:
    """Opens the source that a camera's configuration names.

    Raises:
        SourceError: it cannot be opened.
    """
    return _OPEN[config.kind](config)
