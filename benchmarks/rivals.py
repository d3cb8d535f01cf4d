"""`edge run` on vtest.avi against what people run today: the same weights, the same video, two threads, turn by turn.

Rivals: ultralytics `predict(stream=True)` on its own ONNX export and on its own OpenVINO INT8 export (calibrated on the same
coco_train2017 images), supervision's frames and detections around a bare ONNX Runtime session, and Roboflow's
`InferencePipeline` around the same session where `inference` is installed (EDGE_RIVALS_PYTHON names its interpreter).
Each is a process of its own; memory is its peak, the start is from exec to the first frame's detections.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.common import DATA, ROOT, WORK, coco_bundle, edge_run, write_result
from benchmarks.daemon import VIDEO

ROUNDS = 4
SECONDS = 8.0  # of each run: short ones in turn, since the machine itself speeds up and slows down within minutes
FOLDER = WORK / "rivals"
WEIGHTS = DATA / "weights" / "yolo11n_coco_dequant_state_fp16.pt"

EXPORT = """
import shutil, sys
from pathlib import Path
import torch
from converters.checkpoint import import_ultralytics
import_ultralytics()
from ultralytics import YOLO
folder = Path(sys.argv[2])
model = YOLO("yolo11n.yaml")
state = torch.load(sys.argv[1], weights_only=True)
model.model.load_state_dict({key: value.float() for key, value in state.items()}, strict=True)
model.model.names = {index: str(index) for index in range(80)}
torch.save({"model": model.model, "train_args": {}}, folder / "yolo11n.pt")
model = YOLO(folder / "yolo11n.pt")
model.export(format="onnx", imgsz=640, simplify=True)
data = Path(sys.argv[3])
(folder / "data.yaml").write_text(
    f"path: {data}\\ntrain: images\\nval: images\\nnames:\\n" + "".join(f"  {i}: '{i}'\\n" for i in range(80)))
model.export(format="openvino", imgsz=640, int8=True, data=str(folder / "data.yaml"))
"""

HEAD = """
import json, os, resource, sys, time
def began():
    ticks = float(open("/proc/self/stat").read().rsplit(")", 1)[1].split()[19])
    return time.time() - float(open("/proc/uptime").read().split()[0]) + ticks / os.sysconf("SC_CLK_TCK")
started = began()
video, model = sys.argv[1:3]
first = None; frames = 0
def seen():
    global first, frames
    frames += 1
    if first is None:
        first = time.time()
    if time.time() - first > float(sys.argv[3]):
        report(); sys.stdout.flush(); os._exit(0)
def report():
    print(json.dumps({"frames": frames, "frames_per_s": (frames - 1) / (time.time() - first), "first_frame_s": first - started,
                      "peak_resident_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6}))
"""

ULTRALYTICS = (
    HEAD
    + """
from converters.checkpoint import import_ultralytics
import_ultralytics()
from ultralytics import YOLO
for result in YOLO(model, task="detect").predict(video, stream=True, imgsz=640, verbose=False):
    result.boxes.xyxy.numpy(); seen()
report()
"""
)

# What a user of supervision writes around a session: frames, letterbox, NMS and detections are supervision's or numpy's.
SESSION = """
import cv2, numpy as np, onnxruntime, supervision as sv
options = onnxruntime.SessionOptions(); options.intra_op_num_threads = 2
session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
def detect(frame):
    canvas = sv.letterbox_image(frame, (640, 640), color=sv.Color(114, 114, 114))
    blob = np.ascontiguousarray(canvas[..., ::-1].transpose(2, 0, 1)[None], np.float32) / 255
    rows = session.run(None, {session.get_inputs()[0].name: blob})[0][0].T
    scores = rows[:, 4:].max(1); kept = scores > 0.25; rows = rows[kept]
    half = rows[:, 2:4] / 2
    found = sv.Detections(xyxy=np.concatenate([rows[:, :2] - half, rows[:, :2] + half], 1), confidence=scores[kept],
                          class_id=rows[:, 4:].argmax(1)).with_nms(0.7)
    height, width = frame.shape[:2]; gain = min(640 / width, 640 / height)
    found.xyxy = (found.xyxy - [(640 - width * gain) / 2, (640 - height * gain) / 2] * 2) / gain
    return found
"""

SUPERVISION = (
    HEAD
    + SESSION
    + """
for frame in sv.get_video_frames_generator(video):
    detect(frame); seen()
report()
"""
)

ROBOFLOW = (
    HEAD
    + SESSION
    + """
from inference import InferencePipeline
def run(video_frames):
    return [detect(frame.image) for frame in video_frames]
pipeline = InferencePipeline.init_with_custom_logic(video_reference=video, on_video_frame=run, on_prediction=lambda *_: seen())
pipeline.start(); pipeline.join()
report()
"""
)


def export() -> None:
    """The rivals' own exports of the same weights. Made once."""
    if (FOLDER / "yolo11n.onnx").exists():
        return
    FOLDER.mkdir(parents=True, exist_ok=True)
    data = FOLDER / "coco_train2017"
    if not data.exists():  # ultralytics writes its cache beside the labels
        shutil.copytree(DATA / "coco_train2017", data)
    subprocess.run([sys.executable, "-c", EXPORT, str(WEIGHTS), str(FOLDER), str(data)], cwd=ROOT, check=True)


def rival(code: str, model: Path, python: str = sys.executable) -> dict[str, float]:
    """One pass of a rival over the video."""
    environment = {**os.environ, "OMP_NUM_THREADS": "2", "PYTHONPATH": str(ROOT)}
    command = [python, "-c", code, str(VIDEO), str(model), str(SECONDS)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr[-3000:])
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def ours(engine: str, precision: str) -> dict[str, float]:
    """One pass of `edge run`."""
    folder = FOLDER / f"edge-{engine}-{precision}"
    shutil.rmtree(folder, ignore_errors=True)
    config = {
        "model": {"bundle": str(coco_bundle().path), "engine": engine, "precision": precision, "threads": 2},
        "cameras": {"vtest": {"source": str(VIDEO), "fps": "max"}},
        "sinks": [{"kind": "jsonl", "path": str(folder / "results.jsonl")}],
    }
    summary = edge_run(folder, config, seconds=SECONDS)
    keys = ("frames_per_s", "first_frame_s", "peak_resident_mb")
    return {"frames": summary["cameras"]["vtest"]["processed"], **{key: summary[key] for key in keys}}


def main() -> None:
    export()
    coco_bundle()
    onnx, openvino = FOLDER / "yolo11n.onnx", FOLDER / "yolo11n_int8_openvino_model"
    contenders: dict[str, Any] = {
        "edge run, FP32, ONNX Runtime": lambda: ours("onnxruntime", "fp32"),
        "edge run, auto": lambda: ours("auto", "auto"),
        "ultralytics, ONNX FP32": lambda: rival(ULTRALYTICS, onnx),
        "ultralytics, OpenVINO INT8": lambda: rival(ULTRALYTICS, openvino),
        "supervision + onnxruntime": lambda: rival(SUPERVISION, onnx),
    }
    if python := os.environ.get("EDGE_RIVALS_PYTHON"):
        contenders["Roboflow InferencePipeline + onnxruntime"] = lambda: rival(ROBOFLOW, onnx, python)
    rounds: list[dict[str, dict[str, float]]] = []
    for number in range(ROUNDS):
        row = {}
        for name, run in contenders.items():
            row[name] = run()
            sys.stderr.write(f"round {number + 1}, {name}: {row[name]}\n")
            time.sleep(1)
        rounds.append(row)
    medians = {
        name: {key: round(statistics.median(row[name][key] for row in rounds), 3) for key in rounds[0][name]}
        for name in contenders
    }
    write_result("rivals", {"video": VIDEO.name, "threads": 2, "medians": medians, "ratios": ratios(medians), "rounds": rounds})


def ratios(medians: dict[str, dict[str, float]]) -> dict[str, float]:
    """What the bars ask for."""
    same, best, ultra = (medians[name] for name in ("edge run, FP32, ONNX Runtime", "edge run, auto", "ultralytics, ONNX FP32"))
    found = {
        "rate, same engine: ours / ultralytics": same["frames_per_s"] / ultra["frames_per_s"],
        "memory, same engine: ours / ultralytics": same["peak_resident_mb"] / ultra["peak_resident_mb"],
        "start, same engine: ours / ultralytics": same["first_frame_s"] / ultra["first_frame_s"],
        "best: ours / ultralytics ONNX FP32": best["frames_per_s"] / ultra["frames_per_s"],
        "best: ours / ultralytics OpenVINO INT8": best["frames_per_s"] / medians["ultralytics, OpenVINO INT8"]["frames_per_s"],
    }
    for name in ("supervision + onnxruntime", "Roboflow InferencePipeline + onnxruntime"):
        if name in medians:
            found[f"rate, same engine: ours / {name}"] = same["frames_per_s"] / medians[name]["frames_per_s"]
    return {name: round(value, 3) for name, value in found.items()}


if __name__ == "__main__":
    main()
