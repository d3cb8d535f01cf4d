"""NNCF's accuracy-aware search against the kit's own, on a model made to fail: yolo11n at 320 px with a saturating layer.

Same frames, same bar (F1 against FP32 under OpenVINO, at most 0.03 lost), same scope. NNCF judges the file that it writes;
that form OpenVINO ruins here, so its judge is given the same numbers as uint8, which is what would be shipped.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterable
from typing import Any

import nncf
import numpy as np
import onnx
from numpy.typing import NDArray

from benchmarks.common import DATA, SEED, WORK, write_result
from calibration.batches import PoolBatches
from calibration.gate_frames import PoolGateFrames
from converters.checkpoint import detector_from_checkpoint, load_checkpoint
from converters.fallback import Quantised, measured
from converters.gate import Gate, Run, candidates_of, run_candidates
from converters.graph_passes import IMAGES
from converters.int8_search import Calibrated, search_int8
from converters.layers import int8_layers
from converters.onnx_from_torch import onnx_from_torch
from converters.qdq_from_onnx import float_for, import_nncf
from converters.quantizer_passes import with_unsigned_activations
from runtime.images import list_images
from runtime.manifest import Parity
from runtime.pool import Pool
from runtime.pool_import import add_image_file
from runtime.postprocess import Thresholds
from runtime.preprocess import Preprocess
from tests.converters.saturating import BROKEN, with_a_saturating_channel

FOLDER = WORK / "accuracy-control"
CALIBRATION, GATED = 32, 64


def by_nncf(fp32: onnx.ModelProto, batches: PoolBatches, gate: Gate, reference: Run) -> tuple[onnx.ModelProto, int]:
    """Its result as uint8, and how often it judged."""
    judged = 0

    def validate(model: onnx.ModelProto, canvases: Iterable[NDArray[np.uint8]]) -> tuple[float, None]:
        nonlocal judged
        judged += 1
        for _ in canvases:  # NNCF counts what is taken
            pass
        if not any(node.op_type == "QuantizeLinear" for node in model.graph.node):
            return 1.0, None
        unsigned = with_unsigned_activations(model)
        (row,) = measured((unsigned,), Quantised(fp32, unsigned, "openvino", "cpu"), reference, gate)
        return row.f1_against_fp32, None

    frames = [frame.canvas[None] for frame in gate.frames]
    found = nncf.quantize_with_accuracy_control(
        fp32,
        nncf.Dataset(batches, lambda images: {IMAGES: images}),
        nncf.Dataset(frames, lambda images: {IMAGES: images}),
        validate,
        max_drop=1 - gate.bars.agreement,
        preset=nncf.QuantizationPreset.MIXED,
        target_device=nncf.TargetDevice.CPU,
        subset_size=CALIBRATION,
        ignored_scope=nncf.IgnoredScope(names=float_for("cpu", fp32)),
        advanced_quantization_parameters=nncf.AdvancedQuantizationParameters(overflow_fix=nncf.OverflowFix.FIRST_LAYER),
    )
    return with_unsigned_activations(found), judged


def figures(row: Parity, model: onnx.ModelProto, seconds: float) -> dict[str, Any]:
    """What counts of a result."""
    layers = int8_layers(model)
    return {
        "seconds": round(seconds, 1),
        "f1_against_fp32": row.f1_against_fp32,
        "mean_score_shift": row.mean_score_shift,
        "refused": row.refused,
        "latency_p50_ms": row.latency_p50_ms,
        "layers_in_int8": len(layers),
        "broken_layer_in_int8": BROKEN in layers,
    }


def main() -> None:
    import_nncf()
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir(parents=True)
    preprocess = Preprocess((320, 320))
    checkpoint = load_checkpoint(DATA / "weights" / "yolo11n_coco_dequant_state_fp16.pt")
    fp32 = with_a_saturating_channel(onnx_from_torch(detector_from_checkpoint(checkpoint), preprocess), 1e4)
    path = FOLDER / "model.fp32.onnx"
    onnx.save(fp32, path)
    with Pool.create(FOLDER / "pool") as pool:
        for index, picture in enumerate(list_images(DATA / "coco_train2017" / "images")[: CALIBRATION + GATED]):
            add_image_file(pool, picture, "coco", float(index))
        entries = pool.entries()
        gate = Gate(PoolGateFrames(pool, entries[CALIBRATION:], preprocess), Thresholds(0.25, 0.7), checkpoint.names, seed=SEED)
        batches = PoolBatches(pool, entries[:CALIBRATION], preprocess)
        floats = run_candidates(candidates_of([("fp32", "any", 1, path)], ["onnxruntime", "openvino"]), gate, [])
        reference = next(run for candidate, run in floats.items() if candidate.is_reference)
        start = time.monotonic()
        looked_at = PoolGateFrames(pool, entries[:CALIBRATION], preprocess)
        search = search_int8("cpu", Calibrated(fp32, batches, CALIBRATION, looked_at, FOLDER, print), gate, floats)
        ours_s = time.monotonic() - start
        start = time.monotonic()
        theirs, judged = by_nncf(fp32, batches, gate, reference)
        theirs_s = time.monotonic() - start
        models = (search.file.model, theirs)
        ours, other = measured(models, Quantised(fp32, theirs, "openvino", "cpu"), reference, gate)
    found = {
        "frames": {"calibration": CALIBRATION, "gate": GATED},
        "ours": figures(ours, models[0], ours_s),
        "nncf.quantize_with_accuracy_control": {**figures(other, theirs, theirs_s), "judged_times": judged},
    }
    write_result("accuracy_control", found)


if __name__ == "__main__":
    main()
