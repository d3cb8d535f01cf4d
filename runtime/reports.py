"""What the daemon tells of itself: the summary of `edge run`, and the status behind `/api/status` and `/metrics`."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from runtime.capture import Capture
from runtime.collector import Collector
from runtime.config import CameraConfig, GStreamerConfig, ImagesConfig, VideoConfig
from runtime.ledger import Ledger
from runtime.metrics import peak_resident_bytes, resident_bytes
from runtime.outlet import Outlet
from runtime.pipeline import Pipeline
from runtime.scheduler import Scheduler
from runtime.status import CameraStatus, DaemonState, DaemonStatus, ModelStatus
from runtime.swap import BundleWatcher
from runtime.telemetry.sampler import TelemetrySampler

_REFUSALS = 5  # sentences kept


@dataclass
class Reports:
    """Reads the daemon's parts; may be asked from any thread.

    Attributes:
        state: what the daemon is doing.
        captures, pipeline: those of now; the daemon replaces them.
        swaps: digests of the releases that were taken over.
        first_frame_s: from the process's begin to its first result.
    """

    ledger: Ledger
    captures: Mapping[str, Capture]
    pipeline: Pipeline
    scheduler: Scheduler
    outlet: Outlet
    collector: Collector | None
    watcher: BundleWatcher
    telemetry: TelemetrySampler | None
    state: DaemonState = "starting"
    swaps: list[str] = field(default_factory=list)
    first_frame_s: float | None = None
    _began_s: float = field(default_factory=time.monotonic)
    _ended: tuple[float, int] | None = None  # elapsed seconds and resident bytes when it ended
    _refused: deque[str] = field(default_factory=lambda: deque(maxlen=_REFUSALS))
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def end(self) -> None:
        """Keeps time and memory as they are now, with the model still loaded."""
        self._ended = (time.monotonic() - self._began_s, resident_bytes())

    @property
    def failed(self) -> bool:
        """Whether a camera stopped because its source was broken, or results were lost because a sink failed."""
        lost = self.outlet.failed + (self.collector.failed if self.collector else 0)
        return lost > 0 or any(capture.error is not None for capture in self.captures.values())

    def summary(self) -> dict[str, object]:
        """Counts and latencies so far. For every camera, read = processed + dropped at the end, whatever happened."""
        elapsed_s, resident = self._ended or (time.monotonic() - self._began_s, resident_bytes())
        ledger = self.ledger
        names = [*self.captures, *(name for name in ledger.cameras() if name not in self.captures)]
        return {
            "cameras": {name: self._counts(name) for name in names},
            "elapsed_s": round(elapsed_s, 3),
            "frames_per_s": round(sum(ledger.processed.values()) / max(elapsed_s, 1e-9), 2),
            "detections": ledger.detections,
            "latency": {stage: durations.summary().as_dict() for stage, durations in ledger.durations.items()},
            "resident_mb": round(resident / 1e6, 1),
            "peak_resident_mb": round(peak_resident_bytes() / 1e6, 1),
            "first_frame_s": None if self.first_frame_s is None else round(self.first_frame_s, 3),
            "collected": self.collector.kept if self.collector else 0,
            "not_collected": self.collector.failed if self.collector else 0,
            "sink_results_dropped": self.outlet.dropped,
            "sink_results_failed": self.outlet.failed,
            "bundles_refused": self.watcher.failed,
            "swaps": [digest[:16] for digest in self.swaps],
            "bundle": self.pipeline.bundle.digest[:16],
            "engine": self.pipeline.backend.engine,
            "precision": self.pipeline.backend.precision,
        }

    def status(self) -> DaemonStatus:
        """The daemon now."""
        return DaemonStatus(
            self.state, time.monotonic() - self._began_s, self._cameras(),
            self._model(), self.outlet.dropped, self.outlet.failed, self.collector.kept if self.collector else 0,
            resident_bytes(), len(list(Path("/proc/self/fd").iterdir())), len(list(Path("/proc/self/task").iterdir())),
            **({"telemetry": self.telemetry.latest} if self.telemetry else {}),
        )  # fmt: skip

    def _counts(self, name: str) -> dict[str, object]:
        capture = self.captures.get(name)
        return {
            "read": self.ledger.read(name, capture),
            "processed": self.ledger.processed[name],
            "dropped": self.ledger.dropped(name, capture, self.scheduler.dropped.get(name, {})),
        }

    def _cameras(self) -> list[CameraStatus]:
        gated = self.scheduler.dropped
        return [camera_status(capture, self.ledger, gated.get(name, {})) for name, capture in self.captures.items()]

    def _model(self) -> ModelStatus:
        pipeline, watcher = self.pipeline, self.watcher
        return ModelStatus(
            pipeline.bundle.digest, pipeline.backend.engine, pipeline.backend.precision,
            len(self.swaps), watcher.failed, self._refusals(),
        )  # fmt: skip

    def _refusals(self) -> Sequence[str]:
        with self._lock:
            if self.watcher.refused and self.watcher.refused not in self._refused:
                self._refused.append(self.watcher.refused)
            return list(self._refused)


def camera_status(capture: Capture, ledger: Ledger, gated: Mapping[str, int]) -> CameraStatus:
    """A camera now; `gated` are its frames that the scheduler left out, by reason."""
    name, seen_s = capture.name, capture.last_frame_s
    return CameraStatus(
        name, capture.state, capture.reason, capture.epoch, capture.size_wh,
        ledger.read(name, capture), ledger.processed[name], ledger.dropped(name, capture, gated), capture.reconnects,
        capture.last_frame_wall_s, None if seen_s is None else time.monotonic() - seen_s,
        capture.fps, address_of(capture.config),
    )  # fmt: skip


def address_of(camera: CameraConfig) -> str:
    """Where a camera's frames come from, in a word; may hold a password."""
    source = camera.source
    if isinstance(source, VideoConfig):
        return source.uri
    if isinstance(source, GStreamerConfig):
        return source.pipeline
    return source.path if isinstance(source, ImagesConfig) else source.kind
