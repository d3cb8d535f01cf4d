"""A `DaemonStatus` as Prometheus metrics; names and units after prometheus.io/docs/practices/naming."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric

from runtime.status import CAMERA_STATES, CameraStatus, DaemonStatus, ModelStatus
from runtime.telemetry.snapshot import Telemetry


def metrics_of(status: DaemonStatus) -> Iterator[Metric]:
    """Every metric of a status; what is unknown is absent."""
    yield from _camera_counters(status)
    yield from _camera_gauges(status)
    if status.model is not None:
        yield from _model(status.model)
    yield from _process(status)
    yield from _telemetry(status.telemetry)


def _camera_counters(status: DaemonStatus) -> Iterator[Metric]:
    captured = CounterMetricFamily("edgeloop_frames_captured", "Frames that a camera gave.", labels=["camera"])
    processed = CounterMetricFamily("edgeloop_frames_processed", "Frames that became results.", labels=["camera"])
    dropped = CounterMetricFamily("edgeloop_frames_dropped", "Frames left out, and why.", labels=["camera", "reason"])
    reconnects = CounterMetricFamily("edgeloop_reconnects", "How often a camera was opened again.", labels=["camera"])
    for camera in status.cameras:
        captured.add_metric([camera.name], camera.read)
        processed.add_metric([camera.name], camera.processed)
        reconnects.add_metric([camera.name], camera.reconnects)
        for reason, count in camera.dropped.items():
            dropped.add_metric([camera.name, reason], count)
    yield from (captured, processed, dropped, reconnects)


def _camera_gauges(status: DaemonStatus) -> Iterator[Metric]:
    up = GaugeMetricFamily("edgeloop_camera_up", "1 while frames come.", labels=["camera"])
    state = GaugeMetricFamily("edgeloop_camera_state", "1 for the state that a camera is in.", labels=["camera", "state"])
    seen = GaugeMetricFamily(
        "edgeloop_camera_last_frame_timestamp_seconds", "Unix time of the latest frame.", labels=["camera"]
    )
    age = GaugeMetricFamily(
        "edgeloop_camera_last_frame_age_seconds", "Since the latest frame, by a clock that never jumps.", labels=["camera"]
    )
    for camera in status.cameras:
        up.add_metric([camera.name], camera.state == "running")
        for name in CAMERA_STATES:
            state.add_metric([camera.name, name], camera.state == name)
        _add_latest(seen, age, camera)
    yield from (up, state, seen, age)


def _add_latest(seen: GaugeMetricFamily, age: GaugeMetricFamily, camera: CameraStatus) -> None:
    if camera.last_frame_wall_s is not None:
        seen.add_metric([camera.name], camera.last_frame_wall_s)
    if camera.last_frame_age_s is not None:
        age.add_metric([camera.name], camera.last_frame_age_s)


def _model(model: ModelStatus) -> Iterator[Metric]:
    labels = {"bundle": model.bundle, "precision": model.precision, "runtime": model.engine}
    yield InfoMetricFamily("edgeloop_model", "The model that runs.", value=labels)
    swaps = CounterMetricFamily("edgeloop_swaps", "New bundles that came, and what became of them.", labels=["result"])
    swaps.add_metric(["taken_over"], model.swaps)
    swaps.add_metric(["refused"], model.refusals)
    yield swaps


def _process(status: DaemonStatus) -> Iterator[Metric]:
    yield GaugeMetricFamily("edgeloop_uptime_seconds", "Since the daemon started.", status.uptime_s)
    yield GaugeMetricFamily("edgeloop_resident_memory_bytes", "Memory of the process in RAM.", status.resident_bytes)
    yield GaugeMetricFamily("edgeloop_open_descriptors", "Open files and sockets.", status.descriptors)
    yield GaugeMetricFamily("edgeloop_threads", "Threads of the process.", status.threads)
    yield CounterMetricFamily("edgeloop_sink_dropped", "Results that no sink saw: the sinks were slow.", status.sinks_dropped)
    yield CounterMetricFamily("edgeloop_sink_failed", "Results that a sink could not write.", status.sinks_failed)
    yield CounterMetricFamily("edgeloop_collected_frames", "Frames kept in the pool.", status.collected)


def _telemetry(found: Telemetry) -> Iterator[Metric]:
    yield _by_name("edgeloop_temperature_celsius", "Heat by sensor.", "sensor", found.temperatures_celsius)
    yield _by_name("edgeloop_power_watts", "Power by rail, package or GPU.", "rail", found.power_watts)
    singles = (
        ("edgeloop_gpu_utilization_ratio", "Load of the busiest GPU.", found.gpu_utilization_ratio),
        ("edgeloop_gpu_memory_used_bytes", "Of all GPUs together.", found.gpu_memory_used_bytes),
        ("edgeloop_throttled", "1 while heat or the supply slows a processor down.", found.throttled),
        ("edgeloop_cpu_frequency_ratio", "Present over highest clock.", found.cpu_frequency_ratio),
        ("edgeloop_memory_available_bytes", "What programs can still take.", found.memory_available_bytes),
    )
    for name, purpose, value in singles:
        if value is not None:
            yield GaugeMetricFamily(name, purpose, float(value))


def _by_name(name: str, purpose: str, label: str, values: Mapping[str, float]) -> Metric:
    family = GaugeMetricFamily(name, purpose, labels=[label])
    for key, value in values.items():
        family.add_metric([key], value)
    return family
