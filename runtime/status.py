"""The daemon at one instant: what `/api/status` shows and `/metrics` counts. The daemon fills it, nobody changes it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Literal, get_args

from runtime.sources.uri import redacted
from runtime.telemetry.snapshot import Telemetry

CameraState = Literal["starting", "running", "stalled", "reconnecting", "failed", "ended"]
DaemonState = Literal["starting", "running", "reloading", "stopping"]

CAMERA_STATES: tuple[CameraState, ...] = get_args(CameraState)


@dataclass(frozen=True)
class CameraStatus:
    """One camera.

    Attributes:
        name: as in edge.yaml.
        state: failed = given up, ended = a file or folder is through.
        reason: why it is in that state, one sentence; empty where nothing is wrong.
        epoch: how often its stream began anew.
        size_wh: pixels of the latest frame; None before the first.
        read: frames that came; read = processed + dropped + those on their way.
        processed: frames that became results.
        dropped: reason → frames.
        reconnects: how often it was opened again.
        last_frame_wall_s: Unix time of the latest frame; None before the first.
        last_frame_age_s: seconds since it was captured, by a clock that never jumps; None before the first.
        fps: frames a second that came, lately.
        url: where it is; credentials are taken out at birth, as from `reason`.
    """

    name: str
    state: CameraState
    reason: str
    epoch: int
    size_wh: tuple[int, int] | None
    read: int
    processed: int
    dropped: Mapping[str, int]
    reconnects: int
    last_frame_wall_s: float | None
    last_frame_age_s: float | None
    fps: float
    url: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "url", redacted(self.url))
        object.__setattr__(self, "reason", redacted(self.reason))


@dataclass(frozen=True)
class ModelStatus:
    """The model that runs.

    Attributes:
        bundle: digest.
        engine: as in `runtime.backends.ENGINES`.
        precision: fp32, int8, …
        swaps: bundles taken over since the start.
        refusals: bundles refused since the start.
        refused: the latest refusals, one sentence each, oldest first.
    """

    bundle: str
    engine: str
    precision: str
    swaps: int = 0
    refusals: int = 0
    refused: Sequence[str] = ()


@dataclass(frozen=True)
class DaemonStatus:
    """The whole daemon.

    Attributes:
        state: what it is doing.
        uptime_s: seconds since it started.
        cameras: in the order of edge.yaml.
        model: None until the engine is warm.
        sinks_dropped: results that no sink saw, because the sinks were too slow.
        sinks_failed: results that a sink could not write.
        collected: frames kept in the pool.
        resident_bytes: memory of the process in RAM.
        descriptors: open files and sockets.
        threads: of the process, native ones too.
        telemetry: the latest look at the device.
    """

    state: DaemonState
    uptime_s: float
    cameras: Sequence[CameraStatus]
    model: ModelStatus | None
    sinks_dropped: int
    sinks_failed: int
    collected: int
    resident_bytes: int
    descriptors: int
    threads: int
    telemetry: Telemetry = field(default_factory=Telemetry)

    def as_dict(self) -> dict[str, object]:
        """For JSON: plain dicts, lists, numbers and texts."""
        return asdict(self)

    def troubles(self) -> list[str]:
        """A sentence for every camera that gives no frames though it should."""
        return [
            f"camera {camera.name} is {camera.state}{f': {camera.reason}' if camera.reason else ''}"
            for camera in self.cameras
            if camera.state not in ("running", "ended")
        ]
