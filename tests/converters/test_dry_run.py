from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from converters.dry_run import Workload, estimate
from converters.request import ConvertRequest
from runtime.sources.simulated import CLASS_NAMES
from tests.conftest import ROOT, write_images

# 126 calibration frames, 128 labelled gate frames, 640 px, on the machine that the file names.
MEASURED = json.loads((ROOT / "benchmarks" / "results" / "convert_int8.json").read_text())
CPU = Workload(5.0, 0.06, 126, 126, 128, labeled=True, families=("cpu",))


@pytest.mark.parametrize("model", ["yolo11n", "yolov8n"])
def test_seconds__within_30_percent_of_what_was_measured(model: str) -> None:
    run = MEASURED[f"{model}, cpu"]
    rows = (row for row in run["measurements"] if (row["precision"], row["engine"]) == ("fp32", "onnxruntime"))
    work = replace(CPU, inference_s=next(rows)["latency_p50_ms"] / 1e3)
    assert work.seconds == pytest.approx(run["seconds"], rel=0.3)


@pytest.mark.parametrize(
    "more",
    [
        {"inference_s": 0.12}, {"calibration_frames": 252}, {"gate_frames": 256}, {"families": ("cpu", "tensorrt")},
        {"fp16": True}, {"batches": 2}, {"pool_frames": 1000},
    ],
)  # fmt: skip
def test_seconds__more_work_takes_longer(more: dict[str, object]) -> None:
    assert replace(CPU, **more).seconds > CPU.seconds + 1  # type: ignore[arg-type]


def test_seconds__without_int8_only_the_export_and_fp32_are_counted() -> None:
    fp32 = replace(CPU, families=(), pool_frames=0, calibration_frames=0, gate_frames=0, labeled=False)
    assert fp32.seconds == pytest.approx(9.0)
    assert replace(CPU, labeled=False).seconds < CPU.seconds - 20


def test_estimate__counts_the_labels_that_are_there(checkpoint: Path, pool_dir: Path, tmp_path: Path) -> None:
    write_images(tmp_path / "images", 3)
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "000.txt").write_text("0 .5 .5 .2 .2\n")
    data = tmp_path / "data.yaml"
    data.write_text(yaml.safe_dump({"path": str(tmp_path), "val": "images", "names": dict(enumerate(CLASS_NAMES))}))
    told = estimate(ConvertRequest(checkpoint, pool_dir, data=data))
    assert told["gate"] == "3 frames with labels, at batch 1"
    assert told["calibration"] == "24 of 24 pool frames by k-center"
    assert "an estimate for this machine" in told["time"]
