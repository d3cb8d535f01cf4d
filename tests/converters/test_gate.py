from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from calibration.gate_frames import PoolGateFrames
from converters.gate import (
    Bars,
    Candidate,
    Gate,
    candidates_of,
    judge,
    missed_bar,
    prefer,
    run_candidates,
)
from converters.tally import Tally
from runtime.bundle import Bundle
from runtime.detections import Detections
from runtime.errors import BackendError
from runtime.manifest import LabeledAccuracy, Parity
from runtime.pool import Pool


def boxes(*rows: tuple[float, float, int]) -> Detections:
    """(x, score, class) of boxes 10 pixels wide, far from each other."""
    xyxy = np.array([[x * 100, 0, x * 100 + 10, 10] for x, _, _ in rows], np.float32).reshape(-1, 4)
    scores = np.array([score for _, score, _ in rows], np.float32)
    return Detections(xyxy, scores, np.array([label for _, _, label in rows], np.int32))


# found, expected; F1, shift, flips at threshold 0.5 with a margin of 0.1
TALLIES = {
    "the same": (boxes((0, 0.9, 0), (1, 0.8, 1)), boxes((0, 0.9, 0), (1, 0.8, 1)), 1.0, 0.0, 0),
    "nothing on both sides": (boxes(), boxes(), 1.0, 0.0, 0),
    "one missing": (boxes((0, 0.9, 0)), boxes((0, 0.9, 0), (1, 0.8, 1)), 2 / 3, 0.0, 0),
    "one invented": (boxes((0, 0.9, 0), (2, 0.8, 0)), boxes((0, 0.9, 0)), 2 / 3, 0.0, 0),
    "just below the threshold counts as seen": (boxes((0, 0.45, 0)), boxes((0, 0.55, 0)), 1.0, -0.1, 0),
    "far below does not": (boxes((0, 0.3, 0)), boxes((0, 0.55, 0)), 0.0, 0.0, 0),
    "another class": (boxes((0, 0.9, 1)), boxes((0, 0.9, 0)), 0.0, 0.0, 1),
    "higher scores": (boxes((0, 0.8, 0)), boxes((0, 0.7, 0)), 1.0, 0.1, 0),
}


@pytest.mark.parametrize("case", TALLIES)
def test_tally(case: str) -> None:
    found, expected, f1, shift, flips = TALLIES[case]
    tally = Tally(0.5)
    tally.compare(found, expected)
    assert tally.f1 == pytest.approx(f1)
    assert tally.score_shift == pytest.approx(shift, abs=1e-6)
    assert tally.flips == flips


def test_tally__scores_that_all_sink_below_the_threshold_are_no_agreement() -> None:
    """Within the margin each box counts as seen, but a daemon at 0.25 would see none of them."""
    tally = Tally(0.25)
    tally.compare(boxes(*((x, 0.235, 0) for x in range(40))), boxes(*((x, 0.26, 0) for x in range(40))))
    assert (tally.f1, tally.f1_at_threshold) == (1.0, 0.0)


def row(precision: str = "int8", engine: str = "openvino", p50: float = 5.0, **changes: Any) -> Parity:
    values = {
        "precision": precision, "form": "any" if precision == "fp32" else "cpu", "engine": engine, "batch": 1, "frames": 8,
        "boxes": 50, "recall_of_fp32": 1.0, "f1_against_fp32": 1.0, "f1_at_threshold": 1.0, "mean_iou": 1.0,
        "mean_score_shift": 0.0, "class_flips": 0,
        "latency_p50_ms": p50, "latency_p99_ms": p50,
    }  # fmt: skip
    return Parity.model_validate({**values, **changes})


def labeled(f1_drop: float, map_drop: float) -> LabeledAccuracy:
    return LabeledAccuracy(
        images=9, f1=0.5, map50_95=0.5, f1_drop=f1_drop, map50_95_drop=map_drop, map50_95_drop_interval=(0.0, 0.1)
    )


@pytest.mark.parametrize(
    ("changes", "missed"),
    [
        ({}, ""),
        (
            {"boxes": 19},
            "only 19 boxes to compare, 20 are needed: measure on more frames, larger ones or at a lower --conf",
        ),
        ({"f1_against_fp32": 0.96}, "F1 against FP32 0.960 < 0.97"),
        ({"f1_at_threshold": 0.84}, "F1 against FP32 at the threshold 0.840 < 0.85"),
        ({"mean_iou": 0.8}, "boxes moved, mean IoU 0.800 < 0.9"),
        ({"mean_score_shift": -0.031}, "scores shift by -0.031, more than 0.03"),
        ({"labeled": labeled(0.0101, 0)}, "F1 falls by 0.0101, more than 0.01"),
        ({"labeled": labeled(0, 0.0101)}, "mAP50-95 falls by 0.0101, more than 0.01"),
        ({"labeled": labeled(-0.02, 0.0099)}, ""),
    ],
)
def test_missed_bar(changes: dict[str, Any], missed: str) -> None:
    assert missed_bar(row(**changes), Bars()) == missed


FP32 = row("fp32", "onnxruntime", 10.0)


@pytest.mark.parametrize(
    ("rows", "expected", "said"),
    [
        ([FP32, row()], ("int8", "openvino"), "at 2.00 times FP32's rate"),
        ([FP32, row(p50=9.8)], ("fp32", "onnxruntime"), "INT8 not worth it here: 1.02 times"),
        ([FP32, row(p50=20.0)], ("fp32", "onnxruntime"), "FP32 is the fastest that holds"),
        ([FP32, row(refused="scores shift")], ("fp32", "onnxruntime"), "refused: int8 on openvino: scores shift"),
        ([FP32, row(), row(batch=8, refused="boxes moved")], ("fp32", "onnxruntime"), "FP32"),
        ([FP32, row("fp32", "openvino", 8.0), row(p50=7.9)], ("fp32", "openvino"), "not worth it"),
        ([FP32, row(refused="x"), row(engine="onnxruntime", p50=6.0)], ("int8", "onnxruntime"), "1.67 times"),
        ([FP32, row(form="tensorrt", engine="onnxruntime")], ("fp32", "onnxruntime"), "FP32"),  # a proxy runs nowhere
        ([FP32, row("fp32", "onnxruntime", 40.0, batch=8), row()], ("fp32", "onnxruntime"), "FP32"),
        ([], ("fp32", "onnxruntime"), "nothing was measured"),
    ],
)
def test_prefer(rows: list[Parity], expected: tuple[str, str], said: str) -> None:
    chosen = prefer(rows, Bars())
    assert (chosen.precision, chosen.engine) == expected
    assert said in chosen.reason


def test_prefer__what_was_left_out_is_told_and_not_chosen() -> None:
    chosen = prefer([FP32], Bars(), [row(refused="scores shift"), row(engine="onnxruntime", p50=2.0)])
    assert (chosen.precision, chosen.engine) == ("fp32", "onnxruntime")
    assert "refused: int8 on openvino: scores shift" in chosen.reason


def test_run_and_judge__the_same_file_agrees_and_a_broken_one_is_refused(
    bundle: Bundle, pool_dir: Path, tmp_path: Path
) -> None:
    broken = onnx.load(bundle.model_path("fp32"))
    for item in broken.graph.initializer:
        if "cv3" in item.name and item.name.endswith("bias"):  # the class scores' biases
            item.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(item) - 1, item.name))
    onnx.save(broken, tmp_path / "broken.onnx")
    fp32 = bundle.model_path("fp32")
    candidates = candidates_of(
        [("fp32", "any", 1, fp32), ("int8", "cpu", 1, tmp_path / "broken.onnx")], ["onnxruntime", "openvino"]
    )
    with Pool.open(pool_dir) as pool:
        frames = PoolGateFrames(pool, pool.entries()[:6], bundle.preprocess)
        gate = Gate(frames, bundle.thresholds, tuple(bundle.manifest.classes))
        runs = run_candidates(candidates, gate, [])
        rows = {(item.precision, item.engine): item for item in judge(runs, gate)}
    assert set(rows) == {(precision, engine) for precision in ("fp32", "int8") for engine in ("onnxruntime", "openvino")}
    assert rows["fp32", "onnxruntime"].f1_against_fp32 == 1.0
    assert rows["fp32", "onnxruntime"].mean_iou == pytest.approx(1)
    assert rows["fp32", "openvino"].refused == ""
    assert all(rows["int8", engine].refused for engine in ("onnxruntime", "openvino"))
    assert all(len(run.detections) == 6 == len(run.times_s) for run in runs.values())


def test_run_candidates__an_engine_that_refuses_a_file_is_told_and_left_out(
    bundle: Bundle, pool_dir: Path, tmp_path: Path
) -> None:
    (tmp_path / "bad.onnx").write_bytes(b"no onnx")
    reference = Candidate("fp32", "any", "onnxruntime", bundle.model_path("fp32"))
    bad = Candidate("int8", "cpu", "openvino", tmp_path / "bad.onnx")
    with Pool.open(pool_dir) as pool:
        gate = Gate(PoolGateFrames(pool, pool.entries()[:2], bundle.preprocess), bundle.thresholds, ("a",))
        skipped: list[str] = []
        assert set(run_candidates([reference, bad], gate, skipped)) == {reference}
        assert len(skipped) == 1
        with pytest.raises(BackendError):  # without the reference there is nothing to compare with
            run_candidates([Candidate("fp32", "any", "onnxruntime", tmp_path / "bad.onnx")], gate, skipped)


def test_run_candidates__an_engine_that_fails_in_the_middle_is_told_and_left_out(bundle: Bundle, pool_dir: Path) -> None:
    reference = Candidate("fp32", "any", "onnxruntime", bundle.model_path("fp32"))
    wrong_batch = Candidate("int8", "cpu", "openvino", bundle.model_path("int8", "cpu"), batch=3)  # the file takes one
    with Pool.open(pool_dir) as pool:
        gate = Gate(PoolGateFrames(pool, pool.entries()[:4], bundle.preprocess), bundle.thresholds, ("a",))
        skipped: list[str] = []
        runs = run_candidates([reference, wrong_batch], gate, skipped)
        assert set(runs) == {reference}
        assert len(runs[reference].detections) == 4
        assert len(skipped) == 1
        assert "OpenVINO" in skipped[0]
