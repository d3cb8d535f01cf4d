"""Fifteen ways in which today's systems fail their users (public threads), and the tests that show that this one does not.

A row whose test is renamed or removed fails here.
"""

from __future__ import annotations

import ast

import pytest

from tests.conftest import ROOT

# Thread → what users met → the tests.
THREADS = {
    "ultralytics#24668: INT8 keeps mAP while scores sink": [
        "tests/converters/test_gate.py::test_tally__scores_that_all_sink_below_the_threshold_are_no_agreement",
        "tests/converters/test_gate.py::test_missed_bar",
    ],
    "ultralytics#23841: INT8 of YOLO26 cannot be built on some TensorRT": [
        "tests/converters/test_tensorrt_files.py::test_shipped_files__fp32_fp16_and_int8_are_built",
        "tests/runtime/tensorrt/test_engine_from_onnx.py::test_engine_from_onnx__typing_by_version",
    ],
    "TensorRT#1179: INT8 with right scores and wrong boxes, whatever the calibration": [
        "tests/converters/test_fallback.py::test_search_int8__finds_the_layer_that_saturates_and_returns_it",
        "tests/converters/test_gate.py::test_tally",
    ],
    "ultralytics#19353: the official model survives INT8, one's own does not": [
        "tests/converters/test_gate.py::test_run_and_judge__the_same_file_agrees_and_a_broken_one_is_refused",
    ],
    "TensorRT#3137: new weights under an old calibration cache": [
        "tests/runtime/tensorrt/test_engine_cache.py::test_load__another_key_is_another_plan",
        "tests/converters/test_convert.py::test_convert__the_same_frames_again_and_a_larger_batch",
    ],
    "TensorRT#2036: right on one device, poor on another": [
        "tests/runtime/test_verdict.py::test_preferred_here__fp32_where_int8_was_not_measured",
    ],
    "DeepStream-Yolo#311: calibrated with another letterbox than the one that runs": [
        "tests/calibration/test_batches.py::test_pool_batches__the_runtimes_own_letterbox",
        "tests/runtime/test_preprocess.py::test_letterbox__same_pixels_as_ultralytics",
    ],
    "DeepStream-Yolo#77: the engine file is not compatible": [
        "tests/runtime/tensorrt/test_engine_cache.py::test_load__a_plan_of_another_device_does_not_carry_this_seal",
        "tests/runtime/tensorrt/test_engine_cache.py::test_engine_for__one_altered_byte_of_a_real_plan",
    ],
    "TensorRT#3231: latency jumps with dynamic shapes": [
        "tests/runtime/tensorrt/test_engine_from_onnx.py::test_rtx__graph_has_the_contract_of_the_runtime",
    ],
    "ultralytics#15057: the stream comes back with another size": [
        "tests/runtime/test_cameras.py::test_capture__a_killed_server_comes_back_with_another_size",
    ],
    "Savant#860, jetson-utils#148: a frozen source never recovers, a dead one leaks": [
        "tests/runtime/test_cameras.py::test_capture__a_frozen_server_is_stalled_then_back",
        "tests/runtime/test_cameras.py::test_capture__a_dead_camera_leaks_nothing",
    ],
    "yolov5#4465: the lag grows": [
        "tests/runtime/test_engine_failures.py::test_run__lag_does_not_grow_under_overload",
    ],
    "frigate#7764: looks healthy while no frame comes": [
        "tests/runtime/test_life.py::test_edge_run__no_watchdog_without_frames",
        "tests/runtime/test_life.py::test_edge_run__health_metrics_and_status_of_good_and_bad_cameras",
    ],
    "frigate#6645, triton#8969: memory grows, also on loads that fail": [
        "tests/runtime/test_engine_failures.py::test_run__swaps_with_failures_leak_nothing",
    ],
    "lightly-train#71, pycuda#242: worse than COCO weights and nobody said so; no current context in a thread": [
        "tests/edge/test_demo.py::test_demo__closes_the_loop",
        "tests/runtime/cuda/test_owner.py::",
    ],
}


@pytest.mark.parametrize("thread", THREADS)
def test_threads__each_has_its_tests(thread: str) -> None:
    for place in THREADS[thread]:
        path, _, name = place.partition("::")
        tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
        tests = [node.name for node in tree.body if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")]
        assert name in tests if name else tests, place


def test_threads__are_fifteen() -> None:
    assert len(THREADS) == 15
