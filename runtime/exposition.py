"""What Prometheus scrapes: counts from the daemon's status at scrape time, and two histograms fed frame by frame."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Histogram, generate_latest
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from runtime.status import DaemonStatus
from runtime.status_metrics import metrics_of

# Seconds. From a letterbox (half a millisecond) to an engine that a small CPU needs a second for.
_STAGE_BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0)
# From 100 frames a second to a camera whose frames are too old to act on.
_AGE_BUCKETS = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class Exposition:
    """The metrics of one daemon, in a registry of their own."""

    def __init__(self, status: Callable[[], DaemonStatus]) -> None:
        """`status` is called at each scrape, in the server's thread; it must not wait for anything."""
        self._registry = CollectorRegistry()
        self._registry.register(_StatusCollector(status))
        self._stage = Histogram(
            "edgeloop_stage_duration_seconds",
            "How long a stage took for one frame.",
            ["camera", "stage"],
            buckets=_STAGE_BUCKETS,
            registry=self._registry,
        )
        self._age = Histogram(
            "edgeloop_frame_age_seconds",
            "Age of a frame, from its capture, when its result was out.",
            ["camera"],
            buckets=_AGE_BUCKETS,
            registry=self._registry,
        )
        # Finding a child by its labels costs more than the observation itself, so it is found once.
        self._stages: dict[tuple[str, str], Histogram] = {}
        self._ages: dict[str, Histogram] = {}

    def observe(self, camera: str, stage: str, seconds: float) -> None:
        """Counts one duration of a stage (preprocess, infer, postprocess, …); from any thread, in microseconds."""
        child = self._stages.get((camera, stage))
        if child is None:
            child = self._stages[camera, stage] = self._stage.labels(camera, stage)
        child.observe(seconds)

    def observe_age(self, camera: str, seconds: float) -> None:
        """Counts the age of one frame whose result is out."""
        child = self._ages.get(camera)
        if child is None:
            child = self._ages[camera] = self._age.labels(camera)
        child.observe(seconds)

    def render(self) -> tuple[bytes, str]:
        """The text that Prometheus reads, and its content type."""
        return generate_latest(self._registry), CONTENT_TYPE_LATEST


class _StatusCollector(Collector):
    def __init__(self, status: Callable[[], DaemonStatus]) -> None:
        self._status = status

    def collect(self) -> Iterable[Metric]:
        return metrics_of(self._status())
