"""What the long runs share: `edge run` in a process of its own, watched from outside."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from benchmarks.common import ROOT, WORK
from runtime.bundle import Bundle


class Running:
    """A daemon under way.

    Attributes:
        results: its JSONL file.
    """

    def __init__(self, folder: Path, config: dict[str, Any]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.results = folder / "results.jsonl"
        self.results.unlink(missing_ok=True)
        (folder / "edge.yaml").write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
        command = [sys.executable, "-m", "edge.cli", "run", "--config", str(folder / "edge.yaml"), "--json"]
        self._log = folder / "stderr.log"
        with self._log.open("w") as log:
            self._process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=log, text=True)
        while "first frame done" not in self.log():
            if self._process.poll() is not None:
                raise RuntimeError(f"edge run ended: {self.log()[-2000:]}")
            time.sleep(0.05)

    def log(self) -> str:
        """What it wrote on stderr so far."""
        return self._log.read_text(encoding="utf-8")

    def health(self) -> dict[str, int]:
        """Resident bytes, open descriptors and threads, now."""
        proc = Path(f"/proc/{self._process.pid}")
        status = dict(line.split(":\t", 1) for line in (proc / "status").read_text().splitlines() if ":\t" in line)
        return {
            "resident_bytes": int(status["VmRSS"].split()[0]) * 1024,
            "descriptors": len(list((proc / "fd").iterdir())),
            "threads": int(status["Threads"]),
        }

    @property
    def alive(self) -> bool:
        """Whether it still runs."""
        return self._process.poll() is None

    def finish(self) -> dict[str, Any]:
        """Waits for the end of its sources; its summary."""
        out, _ = self._process.communicate()
        if self._process.returncode:
            raise RuntimeError(f"edge run ended with {self._process.returncode}: {self.log()[-2000:]}")
        found: dict[str, Any] = json.loads(out)
        return found

    def stop(self) -> dict[str, Any]:
        """Ends it as systemd would; its summary."""
        self._process.send_signal(signal.SIGTERM)
        return self.finish()

    def kill(self) -> None:
        """For the end of a benchmark that failed."""
        self._process.kill()
        self._process.wait()


@contextmanager
def running(name: str, config: dict[str, Any]) -> Iterator[Running]:
    """A daemon in `work/benchmarks/<name>`, which does not outlive the block."""
    daemon = Running(WORK / name, config)
    try:
        yield daemon
    finally:
        if daemon.alive:
            daemon.kill()


def results(path: Path) -> list[dict[str, Any]]:
    """The lines of a JSONL file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def slope_per(values: list[float], positions: list[float]) -> float:
    """Growth of `values` for each unit of `positions`, least squares."""
    return float(np.polyfit(positions, values, 1)[0])


def tiny_bundle() -> Bundle:
    """A detector of the simulated line at 64 × 64 with fresh weights: small, so that the daemon itself is what runs."""
    from converters.checkpoint import Checkpoint, save_checkpoint
    from converters.convert import convert, to_stderr
    from converters.gate import Bars
    from converters.request import ConvertRequest
    from edge.yolo import build_detector
    from runtime.pool import Pool, Seen
    from runtime.sources.simulated import CLASS_NAMES, Line

    out = WORK / "tiny"
    if out.exists():
        return Bundle.open(out)
    (WORK / "tiny-pool").parent.mkdir(parents=True, exist_ok=True)
    line = Line(5, (96, 96))
    with Pool.create(WORK / "tiny-pool") as pool:
        for index in range(24):
            pool.add(line.image(index * 5), Seen("line", 1000.0 + index, "test"))
    detector = build_detector("yolo11n", CLASS_NAMES, seed=3)
    checkpoint = WORK / "tiny.pt"
    save_checkpoint(checkpoint, Checkpoint("yolo11n", CLASS_NAMES, detector.state_dict(), imgsz=64, lineage={"seed": "3"}))
    bars = Bars(agreement=0, at_threshold=0, mean_iou=0, score_shift=1, boxes=0)
    return convert(ConvertRequest(checkpoint, WORK / "tiny-pool", confidence=0.001, frames=8, bars=bars), out, to_stderr)
