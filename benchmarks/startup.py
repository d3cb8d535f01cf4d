"""What a fresh interpreter pays: importing `runtime`, `edge run --help`, and the first frame of the daemon."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from typing import Any

from benchmarks.common import DATA, ROOT, WORK, coco_bundle, edge_run, write_result

ROUNDS = 10
HEAVY = ("torch", "ultralytics", "onnx")
CASES = {
    "import runtime": "import runtime",
    "import runtime, every public name": "import runtime; [getattr(runtime, n) for n in runtime.__all__]",
    "edge run --help": "import edge.cli\ntry:\n    edge.cli.program.app(['run', '--help'])\nexcept SystemExit:\n    pass",
}
PROGRAM = """
import sys, time
start = time.perf_counter()
{}
seconds = time.perf_counter() - start
import json
print()
print(json.dumps([seconds, [name for name in {} if name in sys.modules]]))
"""


def measure(code: str) -> tuple[float, float, list[str]]:
    """Seconds of the code itself, of the whole process, and which heavy modules it loaded."""
    start = time.perf_counter()
    command = [sys.executable, "-c", PROGRAM.format(code, HEAVY)]
    out = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    seconds, heavy = json.loads(out.splitlines()[-1])
    return seconds, time.perf_counter() - start, heavy


def main() -> None:
    figures: dict[str, Any] = {}
    rows: dict[str, list[tuple[float, float, list[str]]]] = {name: [] for name in CASES}
    for _ in range(ROUNDS):
        for name, code in CASES.items():
            rows[name].append(measure(code))
    for name, values in rows.items():
        seconds = sorted(value[0] for value in values)
        figures[name] = {
            "median_s": round(seconds[len(seconds) // 2], 3), "max_s": round(seconds[-1], 3),
            "process_median_s": round(sorted(value[1] for value in values)[len(values) // 2], 3), "heavy_modules": values[0][2],
        }  # fmt: skip
    bundle = coco_bundle()
    first: dict[str, list[float]] = {}
    for _ in range(ROUNDS // 2):
        for engine, precision in (("onnxruntime", "fp32"), ("openvino", "fp32"), ("openvino", "int8")):
            folder = WORK / "startup"
            shutil.rmtree(folder, ignore_errors=True)
            source = {"kind": "images", "path": str(DATA / "coco_val2017" / "images")}
            config = {
                "model": {"bundle": str(bundle.path), "engine": engine, "precision": precision},
                "cameras": {"a": {"source": source, "fps": 1000.0}},
            }
            first.setdefault(f"{precision}, {engine}", []).append(edge_run(folder, config)["first_frame_s"])
    figures["process start to first frame done, s"] = first
    write_result("startup", figures)


if __name__ == "__main__":
    main()
