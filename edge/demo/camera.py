"""The demo's daemon: the real `edge run` in a process of its own, and what it wrote."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from edge.errors import TrainingError

_START_S = 30.0


@dataclass(frozen=True, slots=True)
class Record:
    """One line of results.jsonl."""

    frame: int
    time_s: float
    bundle: str
    infer_ms: float
    detections: list[dict[str, Any]]


class LiveDaemon:
    """Starts `edge run` on a configuration; use it in a `with`, which ends it with SIGTERM."""

    def __init__(self, folder: Path, config: dict[str, Any]) -> None:
        """Writes edge.yaml and the results into `folder`."""
        folder.mkdir(parents=True, exist_ok=True)
        self._results, self._log, self._summary = folder / "results.jsonl", folder / "daemon.log", folder / "summary.json"
        self._config = folder / "edge.yaml"
        sinks = [{"kind": "jsonl", "path": str(self._results)}]
        self._config.write_text(yaml.safe_dump({**config, "sinks": sinks}, sort_keys=False), encoding="utf-8")
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> LiveDaemon:
        with self._log.open("wb") as log, self._summary.open("wb") as summary:
            command = [sys.executable, "-m", "edge.cli", "run", "--config", str(self._config), "--json"]
            self._process = subprocess.Popen(command, stdout=summary, stderr=log)
        try:
            self.wait(lambda records: bool(records), _START_S, "its first frame")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            self._process.wait(timeout=60)

    def records(self) -> list[Record]:
        """What it has seen so far, whole lines only."""
        if not self._results.is_file():
            return []
        lines = self._results.read_text(encoding="utf-8").split("\n")[:-1]
        rows = [json.loads(line) for line in lines]
        return [Record(row["frame"], row["time"], row["bundle"], row["infer_ms"], row["detections"]) for row in rows]

    def wait(
        self, enough: Callable[[list[Record]], bool], limit_s: float, what: str, tell: Callable[[int], None] = lambda _: None
    ) -> list[Record]:
        """Waits until `enough` says so; `tell` hears how many frames there are so far.

        Raises:
            TrainingError: the daemon ended, or the time was up.
        """
        end = time.monotonic() + limit_s
        while not enough(records := self.records()):
            tell(len(records))
            if self._process is None or self._process.poll() is not None:
                tail = self._log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-1:]
                raise TrainingError(f"the daemon ended before {what}: {' '.join(tail) or 'no message'}; see {self._log}")
            if time.monotonic() > end:
                raise TrainingError(f"the daemon did not reach {what} in {limit_s:.0f} s; see {self._log}")
            time.sleep(0.2)
        return records

    def summary(self) -> dict[str, Any]:
        """What `edge run --json` printed when it ended."""
        if self._process is None or self._process.returncode:
            raise TrainingError(f"the daemon did not end cleanly; see {self._log}")
        found: dict[str, Any] = json.loads(self._summary.read_text(encoding="utf-8"))
        return found
