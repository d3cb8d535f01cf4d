"""Which sampler should draw the calibration frames? yolo11n, OpenVINO, plain NNCF without fallback or polish.

The pool is like a camera's: 126 pictures of COCO among 800 frames of four videos, oldest first, so most frames look alike
and the varied ones are rare. Each draw is judged on coco_val2017 (mAP50-95 and F1 against FP32's) and on held-out frames
of the videos (agreement with FP32). Results are kept draw by draw: a run that was cut goes on where it was.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
import onnx
import yaml
from numpy.typing import NDArray

from benchmarks.common import DATA, WORK, write_result
from calibration.batches import PoolBatches
from calibration.gate_frames import GateFrames, LabeledGateFrames, PoolGateFrames
from calibration.labels import read_labels
from calibration.sampler import SAMPLERS, CalibrationFrames, Draw, sample_frames, time_spread
from converters.frames import embed
from converters.gate import Candidate, Gate, Run, judge, run_candidates
from converters.imported import ImportedModel, ImportOptions, load_model
from converters.qdq_from_onnx import qdq_from_onnx
from runtime.files import write_atomically
from runtime.images import list_images
from runtime.manifest import Parity
from runtime.pool import Pool, PoolEntry, Seen
from runtime.pool_import import add_image_file
from runtime.postprocess import Thresholds

SEEDS = range(5)
COUNTS = (32, 128)
VIDEO_FRAMES = 200  # of each video
HELD_OUT = 64
FOLDER = WORK / "samplers"


def build_pool() -> Pool:
    """COCO's pictures spread over the videos' time."""
    path = FOLDER / "pool"
    if not (path / "complete").exists():
        pictures = list_images(DATA / "coco_train2017" / "images")
        with Pool.create(path) as pool:
            clock = 0
            for video in sorted((DATA / "videos").iterdir()):
                if video.suffix not in (".avi", ".mp4"):
                    continue
                for image in video_frames(str(video)):
                    pool.add(image, Seen(video.stem, float(clock), "benchmark"))
                    clock += 1
                    if clock % 6 == 0 and pictures:
                        add_image_file(pool, pictures.pop(0), "coco", clock + 0.5)
            for extra, picture in enumerate(pictures):
                add_image_file(pool, picture, "coco", float(clock + extra))
        (path / "complete").touch()
    return Pool.open(path)


def video_frames(path: str) -> list[NDArray[np.uint8]]:
    """`VIDEO_FRAMES` consecutive frames: a camera's pool is full of near-duplicates."""
    capture = cv2.VideoCapture(path)
    found: list[NDArray[np.uint8]] = []
    while len(found) < VIDEO_FRAMES:
        ok, image = capture.read()
        if not ok:
            break
        found.append(np.asarray(image, np.uint8))
    capture.release()
    return found


def judged(int8: Candidate, references: Sequence[tuple[Gate, dict[Candidate, Run]]]) -> list[Parity]:
    rows = []
    for gate, reference in references:
        runs = run_candidates([int8], gate, [])
        rows.append(judge({**reference, **runs}, gate, replicates=0)[-1])
    return rows


def one_draw(frames: CalibrationFrames, pool: Pool, model: ImportedModel, references: Any) -> dict[str, Any]:
    batches = PoolBatches(pool, frames.calibration, model.preprocess)
    path = FOLDER / "int8.onnx"
    onnx.save(qdq_from_onnx(model.graph, batches, len(frames.calibration), "cpu"), path)
    coco, videos = judged(Candidate("int8", "cpu", "openvino", path), references)
    return {
        "map50_95_drop": coco.labeled.map50_95_drop if coco.labeled else None,
        "f1_drop": coco.labeled.f1_drop if coco.labeled else None,
        "coco_f1_against_fp32": coco.f1_against_fp32,
        "videos_f1_against_fp32": videos.f1_against_fp32,
        "radius": frames.radius,
        "coco_pictures": sum(entry.camera == "coco" for entry in frames.calibration),
    }


def reference_of(frames: GateFrames, model: ImportedModel) -> tuple[Gate, dict[Candidate, Run]]:
    gate = Gate(frames, Thresholds(0.25, 0.7), model.names)
    return gate, run_candidates([Candidate("fp32", "any", "onnxruntime", FOLDER / "fp32.onnx")], gate, [])


def main() -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    pool = build_pool()
    model = load_model(DATA / "weights" / "yolo11n_coco_dequant_state_fp16.pt", ImportOptions(imgsz=640))
    onnx.save(model.graph, FOLDER / "fp32.onnx")
    names = list(yaml.safe_load((DATA / "coco_val2017" / "data.yaml").read_text(encoding="utf-8"))["names"].values())
    items = read_labels(list_images(DATA / "coco_val2017" / "images"), len(names))
    videos = [entry for entry in pool.entries() if entry.camera != "coco"]
    held_out = time_spread(videos, HELD_OUT, 1)
    references = [
        reference_of(LabeledGateFrames(items, model.preprocess), model),
        reference_of(PoolGateFrames(pool, held_out, model.preprocess), model),
    ]
    without = frozenset(entry.sha256 for entry in held_out)
    known: dict[str, NDArray[np.float32]] = {}

    def remembered(entries: Sequence[PoolEntry]) -> NDArray[np.float32]:
        missing = [entry for entry in entries if entry.sha256 not in known]
        if missing:
            known.update(
                zip(
                    (entry.sha256 for entry in missing),
                    embed(PoolGateFrames(pool, missing, model.preprocess), FOLDER / "fp32.onnx"),
                    strict=True,
                )
            )
        return np.stack([known[entry.sha256] for entry in entries])

    kept = FOLDER / "draws.json"
    draws: dict[str, Any] = json.loads(kept.read_text(encoding="utf-8")) if kept.exists() else {}
    for seed in SEEDS:
        for count in COUNTS:
            for sampler in SAMPLERS:
                name = f"{sampler}/{count}/{seed}"
                if name in draws or (sampler == "first-n" and seed):
                    continue
                frames = sample_frames(pool, Draw(count, 0, sampler, seed, without=without), remembered)
                draws[name] = one_draw(frames, pool, model, references)
                write_atomically(kept, json.dumps(draws).encode())
                print(name, draws[name], flush=True)
    write_result("calibration_samplers", {"pool_frames": len(pool), "table": table(draws), "draws": draws})


def table(draws: dict[str, Any]) -> dict[str, Any]:
    """Mean and worst loss of each sampler and count."""
    found: dict[str, Any] = {}
    for sampler in SAMPLERS:
        for count in COUNTS:
            rows = [row for name, row in draws.items() if name.startswith(f"{sampler}/{count}/")]
            losses = [row["map50_95_drop"] for row in rows]
            found[f"{sampler}, {count} frames"] = {
                "draws": len(rows),
                "mean_map50_95_drop": round(statistics.mean(losses), 4),
                "worst_map50_95_drop": max(losses),
                "worst_f1_drop": max(row["f1_drop"] for row in rows),
                "worst_agreement": min(min(row["coco_f1_against_fp32"], row["videos_f1_against_fp32"]) for row in rows),
            }
    return found


if __name__ == "__main__":
    main()
