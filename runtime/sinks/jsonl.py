"""One JSON object a frame, appended to a file."""

from __future__ import annotations

import json
import time
from pathlib import Path

from runtime.errors import SinkError
from runtime.pipeline import Result


class JsonlSink:
    """Appends lines; each is complete on disk before the next is begun."""

    def __init__(self, path: str, class_names: list[str]) -> None:
        """Opens `path` for appending.

        Raises:
            SinkError: it cannot be written.
        """
        self._names, self._path = class_names, path
        try:
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            cut = _ends_in_mid_line(Path(path))
            self._file = Path(path).open("a", encoding="utf-8", buffering=1)  # noqa: SIM115  open for the daemon's life
            if cut:  # by a kill: what follows must start on a line of its own
                self._file.write("\n")
        except OSError as error:
            raise SinkError(f"{path} cannot be written: {error.strerror}; check `path` of the jsonl sink") from error

    def emit(self, result: Result) -> None:
        """Writes one line.

        Raises:
            SinkError: the disk is full.
        """
        try:
            self._file.write(json.dumps(self._record(result), separators=(",", ":")) + "\n")
        except OSError as error:
            raise SinkError(f"{self._path} cannot be written: {error.strerror}; free some space") from error

    def close(self) -> None:
        """Closes the file.

        Raises:
            SinkError: the disk is full and the last line was not written.
        """
        try:
            self._file.close()
        except OSError as error:
            raise SinkError(f"{self._path} cannot be written: {error.strerror}; free some space") from error

    def _record(self, result: Result) -> dict[str, object]:
        frame = result.frame
        return {
            "camera": frame.camera,
            "frame": frame.index,
            "epoch": frame.epoch,
            "time": round(frame.captured_wall_s, 3),
            "captured_s": round(frame.captured_monotonic_s, 6),
            "age_ms": round(result.age_s * 1e3, 2),  # from capture to the detections
            "written_ms": round((time.monotonic() - frame.captured_monotonic_s) * 1e3, 2),  # and to this line
            "infer_ms": round(result.infer_s * 1e3, 2),
            "bundle": result.bundle[:16],
            "detections": self._boxes(result),
        }

    def _boxes(self, result: Result) -> list[dict[str, object]]:
        found = result.detections
        rows: list[dict[str, object]] = [
            {"class": self._names[c], "confidence": round(p, 4), "xyxy": [round(v, 2) for v in box]}
            for box, p, c in zip(found.xyxy.tolist(), found.confidence.tolist(), found.class_id.tolist(), strict=True)
        ]
        for index, row in enumerate(rows):
            if found.track_id is not None:
                row["track"] = int(found.track_id[index]) if found.track_id[index] >= 0 else None
            if result.zones:
                row["zones"] = [name for name, inside in result.zones.items() if inside[index]]
        return rows


def _ends_in_mid_line(path: Path) -> bool:
    if not path.is_file() or not path.stat().st_size:
        return False
    with path.open("rb") as file:
        file.seek(-1, 2)
        return file.read(1) != b"\n"
