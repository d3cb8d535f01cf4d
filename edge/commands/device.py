"""What runs on a device, and the demonstration of the whole loop."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Annotated, Optional

import typer

from edge.commands.options import Json, Seed
from runtime.logs import LogForm


def run(
    config: Annotated[Path, typer.Option(help="edge.yaml; deploy/edge.yaml shows every key.")],
    log_format: Annotated[LogForm, typer.Option(help="Of the log on stderr: lines for people or for a collector.")] = "text",
    as_json: Json = False,
) -> None:
    """Runs the cameras of this device until they end or SIGTERM comes."""
    from runtime.config import load_config
    from runtime.daemon import Daemon
    from runtime.errors import DeviceLostError
    from runtime.logs import configure_logging
    from runtime.restart import restart_process
    from runtime.sources.uri import redacted_values

    configure_logging(log_format)
    loaded = load_config(config)
    resolved = json.dumps(redacted_values(loaded.model_dump(mode="json")))
    logging.getLogger(__name__).info("configuration: %s", resolved)
    daemon = Daemon(loaded, reread=lambda: load_config(config))
    try:
        summary = daemon.run()
    except DeviceLostError as error:
        restart_process(error)
        raise
    typer.echo(json.dumps(summary, indent=2) if as_json else _run_table(summary))
    if daemon.failed:
        raise typer.Exit(2)


def bench(
    bundle: Annotated[Path, typer.Argument(help="A bundle's folder.")],
    runs: Annotated[int, typer.Option(min=1, help="Inferences of each engine and precision.")] = 200,
    threads: Annotated[int, typer.Option(min=0, max=256, help="CPU threads; 0 for all that are usable.")] = 0,
    as_json: Json = False,
) -> None:
    """Latency percentiles of a bundle on this device; nothing is trimmed."""
    from runtime.bench import bench as measure
    from runtime.bundle import Bundle

    measured = measure(Bundle.open(bundle), runs, threads)
    if as_json:
        rows = [{"precision": key[0], "engine": key[1], **value.as_dict()} for key, value in measured.items()]
        typer.echo(json.dumps(rows, indent=2))
        return
    typer.echo(
        f"{'precision':10}{'engine':13}{'mean':>9}{'p50':>9}{'p90':>9}{'p99':>9}{'max':>9}  ms, {runs} runs each, interleaved"
    )
    for (precision, engine), row in measured.items():
        typer.echo(
            f"{precision:10}{engine:13}{row.mean_ms:9.2f}{row.p50_ms:9.2f}{row.p90_ms:9.2f}{row.p99_ms:9.2f}{row.max_ms:9.2f}"
        )


def doctor(as_json: Json = False) -> None:
    """What this machine has, what is missing, and how to get it."""
    from dataclasses import asdict

    from edge.doctor import examine

    found = examine()
    if as_json:
        typer.echo(json.dumps([asdict(item) for item in found], indent=2))
        return
    for item in found:
        typer.echo(f"{item.state:8}{item.what:18}{item.detail}")


def demo(
    data: Annotated[
        Optional[Path], typer.Option(help="A labelled folder (images/, labels/, data.yaml); none simulates a line.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Work folder; report.html appears there.")] = Path("work/demo"),
    group: Annotated[str, typer.Option(help="With --data: regular expression of what must not be split.")] = "^(.*)$",
    weights: Annotated[
        Optional[Path], typer.Option(help="Start both arms from these weights (e.g. COCO) instead of scratch.")
    ] = None,
    labels: Annotated[int, typer.Option(min=8, help="Labelled training images.")] = 80,
    seed: Seed = 0,
) -> None:
    """Runs the whole loop on this CPU and writes report.html."""
    from edge.demo.loop import DemoRequest
    from edge.demo.loop import demo as start

    typer.echo(start(DemoRequest(out, data, group, weights, labels, seed)))


def _run_table(summary: dict[str, object]) -> str:
    lines = []
    cameras, latency = summary["cameras"], summary["latency"]
    if isinstance(cameras, dict) and isinstance(latency, dict):
        for name, counts in cameras.items():
            dropped = ", ".join(f"{count} by {reason}" for reason, count in counts["dropped"].items())
            lines.append(f"camera {name}: {counts['read']} frames read, {counts['processed']} processed, dropped {dropped}")
        for stage, row in latency.items():
            lines.append(
                f"{stage:12} p50 {row['p50_ms']:8.2f}  p90 {row['p90_ms']:8.2f}  p99 {row['p99_ms']:8.2f}  max {row['max_ms']:8.2f} ms"
            )
    lines.append(
        f"{summary['frames_per_s']} frames/s, {summary['detections']} detections, {summary['collected']} collected, "
        f"{summary['resident_mb']} MB resident, {summary['precision']} on {summary['engine']}"
    )
    lost = {
        "results failed": "sink_results_failed",
        "results dropped": "sink_results_dropped",
        "frames not collected": "not_collected",
    }
    lines += [f"{summary[key]} {name}; see the log above" for name, key in lost.items() if summary[key]]
    return "\n".join(lines)
