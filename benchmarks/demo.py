"""`edge demo` on the simulated line and on two real sets; keeps each summary. Twice on the line: is it deterministic?"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.common import DATA, RESULTS, ROOT, WORK

COCO = DATA / "weights" / "yolo11n_coco_dequant_state_fp16.pt"
CASES: dict[str, list[str]] = {
    "simulated": [],
    "simulated_again": [],
    "deeppcb_coco": ["--data", str(DATA / "deeppcb"), "--group", r"^(\d{5})", "--weights", str(COCO)],
    "neu_det_coco": ["--data", str(DATA / "neu_det"), "--group", r"_(\d+)$", "--weights", str(COCO)],
}


def run(name: str) -> dict[str, Any]:
    """Runs one demo in a process of its own; its summary."""
    out = WORK / f"demo-{name}"
    shutil.rmtree(out, ignore_errors=True)
    command = [sys.executable, "-m", "edge.cli", "demo", "--out", str(out), *CASES[name]]
    subprocess.run(command, cwd=ROOT, check=True)
    summary: dict[str, Any] = json.loads((out / "summary.json").read_text(encoding="utf-8"))
    return summary


def main() -> None:
    for name in sys.argv[1:] or list(CASES):
        summary = run(name)
        RESULTS.mkdir(exist_ok=True)
        Path(RESULTS / f"demo_{name}.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
        print(name, f"{summary['seconds']:.0f} s", summary["arms"])


if __name__ == "__main__":
    main()
