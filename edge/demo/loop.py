"""The whole loop on one screen: pool → pretrain → fine-tune → convert → daemon → refresh → report."""

from __future__ import annotations

import json
import shutil
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from calibration.accuracy import f1_at
from calibration.errors import DataError
from calibration.labels import load_dataset
from converters.convert import release, to_stderr
from converters.request import ConvertRequest
from edge.demo.camera import LiveDaemon, Record
from edge.demo.report import Story, summary_table, write_report
from edge.demo.scene import POOL_FRAMES, FolderScene, Scene, SimulatedScene
from edge.doctor import machine_facts
from edge.finetune import Finetuned, finetune
from edge.finetune_request import FinetuneRequest
from edge.pretrain import pretrain
from edge.pretrain_request import PretrainRequest
from edge.refresh.steps import RefreshRequest, refresh
from runtime.bundle import CURRENT, Bundle
from runtime.detections import Detections
from runtime.pool import Pool, Seen
from runtime.progress import Progress

MODEL = "yolo11n"
_PRETRAIN_IMGSZ, _PRETRAIN_BATCH = 128, 64  # of a minute on two cores, and a whole-image method for it
_PRETRAIN_EPOCHS, _TUNE_IMAGES, _REFRESH_PRETRAIN_EPOCHS, _REFRESH_TUNE_SHARE = 6, 2240, 2, 0.8
_BATCH, _LR = 8, 2e-3
_LIVE_FRAMES = 200  # before the refresh begins: 20 s, of which the last 5 s are fully drifted
_AFTER_FRAMES = 60  # with the new bundle
_MARKER = ".edgeloop-demo"  # only a folder with this file is ever emptied
_EVALUATIONS = 6  # points of a learning curve


@dataclass(frozen=True, slots=True)
class DemoRequest:
    """What `edge demo` was asked for."""

    out: Path
    data: Path | None = None
    group: str = "^(.*)$"
    weights: Path | None = None
    labels: int = 80
    seed: int = 0


def demo(request: DemoRequest) -> str:
    """Runs the loop; returns the summary table and the report's path.

    Raises:
        DataError: the work folder is in use, or the data set cannot be used.
        EdgeloopError: as of each step.
    """
    start = time.monotonic()
    scene = _scene(request)
    pool, bundles = request.out / "pool", request.out / "bundles"
    _say(1, "collect", _collect(scene, pool))
    backbone = _pretrain(request, pool)
    arms = _finetune_both(request, scene, backbone)
    # The arm with the self-supervised backbone goes on, whichever won, since the refresh continues its backbone.
    released = _release(request, scene, arms["ssl"].checkpoint, pool, bundles)
    with LiveDaemon(request.out / "live", _daemon_config(scene, pool, bundles)) as daemon:
        before = _watch(daemon)
        _say(
            5,
            "daemon",
            f"{len(before)} frames live, {sum(len(r.detections) for r in before)} detections, bundle {before[-1].bundle}",
        )
        done = refresh(_refresh_request(request, scene, backbone, arms["ssl"].checkpoint, before[_LIVE_FRAMES - 1].time_s))
        current = Bundle.open(bundles / CURRENT)
        if done.verdict.publish:
            new = current.digest[:16]
            daemon.wait(lambda seen: sum(r.bundle == new for r in seen) >= _AFTER_FRAMES, 120, "the new bundle")
    records, daemon_summary = daemon.records(), daemon.summary()
    live = _live_f1(scene, records, released.digest[:16], current.digest[:16])
    took = "published, the running daemon took it over" if done.verdict.publish else "refused, nothing changed"
    _say(6, "refresh", f"{took}: {done.verdict.reason}")
    story = Story(
        title=scene.title, labels=_labels(scene), names=scene.names, arms=arms, released=released, current=current, verdict=done.verdict,
        live_f1=live, daemon=daemon_summary, infer_ms=[r.infer_ms for r in records], seconds=time.monotonic() - start,
        pictures=_pictures(scene, records, current.digest[:16]),
    )  # fmt: skip
    report = write_report(request.out / "report.html", story)
    _write_summary(request, story)
    return f"{summary_table(story)}\n7. report: {report}"


def _scene(request: DemoRequest) -> Scene:
    if request.out.exists() and any(request.out.iterdir()):
        if not (request.out / _MARKER).is_file():
            raise DataError(f"{request.out} is not empty and holds no demo; choose another --out")
        shutil.rmtree(request.out)  # a former demo: it is made anew
    request.out.mkdir(parents=True, exist_ok=True)
    (request.out / _MARKER).touch()
    if request.data is None:
        return SimulatedScene.make(request.out / "data", request.labels, request.seed)
    return FolderScene.make(request.data, request.out / "data", request.group, request.labels, request.seed)


def _collect(scene: Scene, pool: Path) -> str:
    start = time.time()
    with Pool.create(pool) as opened, Progress("collect", POOL_FRAMES) as progress:
        for number, image in enumerate(scene.unlabeled()):
            opened.add(image, Seen("commissioning", start + number * 1e-4, "commissioning"))
            progress.advance()
        return f"{len(opened)} frames, {opened.used_bytes / 1e6:.1f} MB"


def _pretrain(request: DemoRequest, pool: Path) -> Path:
    start = time.monotonic()
    path = pretrain(
        PretrainRequest(
            pool, request.out / "pretrain", model=MODEL, init=request.weights, imgsz=_PRETRAIN_IMGSZ, batch=_PRETRAIN_BATCH,
            epochs=_PRETRAIN_EPOCHS, seed=request.seed, method="simclr", part="backbone",
        )
    )  # fmt: skip
    losses = [
        json.loads(line)["loss"] for line in (request.out / "pretrain" / "log.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    _say(
        2,
        "pretrain",
        f"SimCLR, {_PRETRAIN_EPOCHS} epochs, loss {losses[0]:.2f} → {losses[-1]:.2f}, {time.monotonic() - start:.0f} s",
    )
    return path


def _epochs(scene: Scene) -> int:
    """As many as the budget of images allows, at least 4."""
    return max(4, round(_TUNE_IMAGES / _labels(scene)))


def _labels(scene: Scene) -> int:
    return len(load_dataset(scene.data).train)


def _finetune_both(request: DemoRequest, scene: Scene, backbone: Path) -> dict[str, Finetuned]:
    epochs, base = _epochs(scene), (request.weights,) if request.weights else ()
    arms = {}
    for arm, init in (("baseline", base), ("ssl", (*base, backbone))):
        arms[arm] = finetune(
            FinetuneRequest(
                scene.data, request.out / f"finetune-{arm}", model=MODEL, init=init, imgsz=scene.imgsz, batch=_BATCH, epochs=epochs,
                lr=_LR, seed=request.seed, eval_every=max(1, epochs // _EVALUATIONS),
            )
        )  # fmt: skip
    told = "; ".join(
        f"{_arm_name(arm, request)} mAP50-95 {tuned.accuracy.map50_95:.3f}, F1 {tuned.accuracy.f1:.3f}"
        for arm, tuned in arms.items()
        if tuned.accuracy
    )
    _say(3, "fine-tune", f"{_labels(scene)} labelled images, {epochs} epochs each: {told}")
    return arms


def _arm_name(arm: str, request: DemoRequest) -> str:
    base = request.weights.name if request.weights else "scratch"
    return base if arm == "baseline" else f"{base} + SSL"


def _release(request: DemoRequest, scene: Scene, checkpoint: Path, pool: Path, bundles: Path) -> Bundle:
    bundle = release(ConvertRequest(checkpoint, pool, scene.imgsz, seed=request.seed), bundles, to_stderr)
    sizes = ", ".join(
        f"{variant.precision} {bundle.model_path(variant.precision).stat().st_size / 1e6:.1f} MB"
        for variant in bundle.manifest.variants
    )
    _say(4, "convert", f"{sizes}; {bundle.manifest.preferred.precision} on {bundle.manifest.preferred.engine} preferred")
    return bundle


def _daemon_config(scene: Scene, pool: Path, bundles: Path) -> dict[str, Any]:
    return {
        "model": {"bundle": str(bundles / CURRENT), "threads": 1},  # the other core trains
        "cameras": {"line1": {"source": scene.live_source(), "fps": 10.0}},
        "collect": {"pool": str(pool), "every_n": 4, "below_confidence": 0.35},
    }


def _watch(daemon: LiveDaemon) -> list[Record]:
    """Lets the daemon run until the light has drifted."""
    with Progress("daemon", _LIVE_FRAMES) as progress:
        return daemon.wait(
            lambda seen: len(seen) >= _LIVE_FRAMES,
            60 + _LIVE_FRAMES,
            f"frame {_LIVE_FRAMES}",
            lambda done: progress.reach(done, "frames"),
        )


def _refresh_request(request: DemoRequest, scene: Scene, backbone: Path, detector: Path, until_s: float) -> RefreshRequest:
    return RefreshRequest(
        request.out / "bundles", request.out / "pool", scene.data, backbone, detector, request.out / "refresh", MODEL,
        _REFRESH_PRETRAIN_EPOCHS, round(_REFRESH_TUNE_SHARE * _epochs(scene)), scene.imgsz,
        batch=_BATCH, lr=_LR, seed=request.seed, until_s=until_s + 0.001,
    )  # fmt: skip


def _live_f1(scene: Scene, records: list[Record], old: str, new: str) -> dict[str, float]:
    """F1 of the live detections against the ground truth: the old model in drifted light, then the new one."""
    drifted = [record for record in records if record.frame >= _LIVE_FRAMES * 3 // 4]
    windows = {
        "released": [r for r in drifted if r.bundle == old],
        "refreshed": [r for r in drifted if r.bundle == new and new != old],
    }
    found = {}
    for name, rows in windows.items():
        if rows:
            chosen = rows[-_AFTER_FRAMES:]
            pairs = [(scene.live(row.frame)[1], _detections(row, scene.names)) for row in chosen]
            found[name] = f1_at(pairs, 0.0)[2]
    return found


def _detections(record: Record, names: tuple[str, ...]) -> Detections:
    boxes = np.array([row["xyxy"] for row in record.detections], np.float32).reshape(-1, 4)
    confidence = np.array([row["confidence"] for row in record.detections], np.float32)
    return Detections(boxes, confidence, np.array([names.index(row["class"]) for row in record.detections], np.int32))


def _pictures(scene: Scene, records: list[Record], new: str) -> list[tuple[str, Any, Detections, Detections]]:
    """A few live frames: caption, image, ground truth, what the daemon found."""
    early, late = records[:_LIVE_FRAMES], [r for r in records if r.bundle == new]
    chosen = [early[len(early) // 10], early[-1], *([late[-1]] if late and late[-1] is not early[-1] else [])]
    pictures = []
    for record in chosen:
        image, truth = scene.live(record.frame)
        pictures.append((f"frame {record.frame}, bundle {record.bundle}", image, truth, _detections(record, scene.names)))
    return pictures


def _write_summary(request: DemoRequest, story: Story) -> None:
    content = {
        "machine": machine_facts(), "seed": request.seed, "seconds": round(story.seconds, 1), "scene": story.title,
        "labels": story.labels,
        "arms": {_arm_name(arm, request): tuned.accuracy.as_dict() for arm, tuned in story.arms.items() if tuned.accuracy},
        "parity": [row.model_dump() for row in story.released.manifest.parity],
        "preferred": story.released.manifest.preferred.model_dump(),
        "refresh": asdict(story.verdict), "live_f1": story.live_f1, "daemon": story.daemon,
    }  # fmt: skip
    (request.out / "summary.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _say(step: int, name: str, figures: str) -> None:
    sys.stderr.write(f"{step}. {name}: {figures}\n")
