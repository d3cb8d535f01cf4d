"""What the benchmarks share: where data is, how figures are written, how `edge run` is started."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml

from converters.convert import convert, to_stderr
from converters.request import ConvertRequest
from edge.doctor import machine_facts
from runtime.bundle import Bundle
from runtime.images import list_images
from runtime.pool import Pool
from runtime.pool_import import add_image_file

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
DATA = Path(os.environ.get("EDGE_TEST_DATA", ROOT.parent / "shared" / "data"))
WORK = ROOT / "work" / "benchmarks"
SEED = 0


def write_result(name: str, figures: dict[str, Any]) -> None:
    """Writes `results/<name>.json` with machine, versions and seed, and prints it."""
    RESULTS.mkdir(exist_ok=True)
    content = {"machine": machine_facts(), "seed": SEED, **figures}
    (RESULTS / f"{name}.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(figures, indent=2))


def parts_told(tellers: Mapping[str, Callable[[dict[str, Any]], list[str]]]) -> list[str]:
    """Parts of a document, each a paragraph or a table, from the result files that are there, by their names."""
    parts: list[str] = []
    for name, tell in tellers.items():
        path = RESULTS / f"{name}.json"
        if path.exists():
            parts += [*tell(json.loads(path.read_text(encoding="utf-8"))), ""]
    return parts


def coco_pool() -> Path:
    """coco_train2017 as a pool. Made once."""
    path = WORK / "coco-pool"
    if not path.exists():
        with Pool.create(path) as opened:
            for number, picture in enumerate(list_images(DATA / "coco_train2017" / "images")):
                add_image_file(opened, picture, "coco_train2017", float(number))
    return path


def coco_bundle(model: str = "yolo11n") -> Bundle:
    """The COCO weights as a bundle: FP32, and INT8 calibrated on coco_train2017. Made once."""
    out = WORK / f"{model}-coco"
    if out.exists():
        return Bundle.open(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    weights = DATA / "weights" / f"{model}_coco_dequant_state_fp16.pt"
    return convert(ConvertRequest(weights, coco_pool(), 640, seed=SEED), out, to_stderr)


def edge_run(folder: Path, config: dict[str, Any], seconds: float | None = None) -> dict[str, Any]:
    """Runs `edge run` in a process of its own, to its end or so many seconds after its first frame; its summary."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "edge.yaml").write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
    command = [sys.executable, "-m", "edge.cli", "run", "--config", str(folder / "edge.yaml"), "--json"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    if seconds:
        assert process.stderr is not None
        for line in process.stderr:
            if "first frame done" in line:
                break
        time.sleep(seconds)
        process.send_signal(signal.SIGTERM)
    out, err = process.communicate()
    if process.returncode:
        raise RuntimeError(f"edge run ended with {process.returncode}: {err[-2000:]}")
    found: dict[str, Any] = json.loads(out)
    return found
