"""One refresh on one screen: pretrain further → re-tune → convert → compare → publish, or change nothing."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from converters.convert import ConvertRequest, convert, to_stderr
from edge.data import load_dataset
from edge.errors import RefreshError
from edge.evaluate import Accuracy
from edge.finetune import FinetuneRequest, finetune
from edge.pretrain import PretrainRequest, pretrain
from edge.refresh.gate import Verdict, bundle_accuracy, compare
from edge.refresh.journal import Journal
from edge.training import LAST
from runtime.bundle import CURRENT, Bundle, publish
from runtime.files import sha256_of_file
from runtime.pool import Pool


@dataclass(frozen=True, slots=True)
class RefreshRequest:
    """A refresh.

    Attributes:
        bundles: where releases live; `current` in it is what the devices run.
        pool: frames that the devices collected.
        data: the kept labelled set, with held-out images under `val`.
        backbone: the last self-supervised checkpoint.
        detector: checkpoint of the released detector; its neck and head are the start of the re-tuning.
        out: work folder of this refresh; killed, it is taken up there.
        pretrain_epochs, tune_epochs: budget of the two trainings.
        imgsz: side of the detector's input in pixels.
        ssl_imgsz: side of the views in pixels.
        batch, lr, seed: of the re-tuning.
    """

    bundles: Path
    pool: Path
    data: Path
    backbone: Path
    detector: Path
    out: Path
    model: str = "yolo11n"
    pretrain_epochs: int = 5
    tune_epochs: int = 20
    imgsz: int = 640
    ssl_imgsz: int = 128
    ssl_batch: int = 64
    batch: int = 16
    lr: float = 1e-3
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Refreshed:
    """How it ended.

    Attributes:
        verdict: the comparison.
        bundle: the candidate, published or not.
        backbone, detector: the new checkpoints, for the next refresh.
    """

    verdict: Verdict
    bundle: Path
    backbone: Path
    detector: Path


def refresh(request: RefreshRequest) -> Refreshed:
    """Runs the steps that the journal does not hold yet.

    Raises:
        RefreshError: nothing released yet, or a work folder of another refresh.
        EdgeloopError: as of each step; `current` is unchanged.
    """
    released = _released(request)
    request.out.mkdir(parents=True, exist_ok=True)
    journal = Journal(request.out)
    inputs = _inputs(request, released)
    ssl = journal.step("pretrain", inputs, lambda: _pretrain(request))
    tuned = journal.step("tune", inputs, lambda: _tune(request, Path(ssl["backbone"])))
    candidate = journal.step("convert", inputs, lambda: _convert(request, Path(tuned["detector"]), released))
    told = journal.step("compare", inputs, lambda: _compare(request, released, Path(candidate["bundle"])))
    verdict = compare(Accuracy(**told["released"]), Accuracy(**told["candidate"]))
    bundle = Path(candidate["bundle"])
    if verdict.publish:
        journal.step("publish", inputs, lambda: _publish(request, bundle))
    return Refreshed(verdict, bundle, Path(ssl["backbone"]), Path(tuned["detector"]))


def _released(request: RefreshRequest) -> Bundle:
    if not (request.bundles / CURRENT).exists():
        raise RefreshError(f"{request.bundles} has no `current` release to refresh; make one with: edge-convert CKPT --release {request.bundles}")
    return Bundle.open(request.bundles / CURRENT)


def _inputs(request: RefreshRequest, released: Bundle) -> dict[str, str]:
    """What the refresh rests on. The released bundle is the one that the journal began with, also after publishing."""
    with Pool.open(request.pool) as pool:
        frames = hashlib.sha256("".join(entry.sha256 for entry in pool.entries()).encode()).hexdigest()
    labels = hashlib.sha256()
    for item in load_dataset(request.data).train:
        labels.update(item.path.name.encode() + item.class_id.tobytes() + item.cxcywh.tobytes())
    for path in (request.backbone, request.detector):
        if not path.is_file():
            raise RefreshError(f"no such checkpoint: {path}; name the one that the released model was made from")
    del released
    return {"pool": frames, "labels": labels.hexdigest(), "backbone": sha256_of_file(request.backbone), "detector": sha256_of_file(request.detector)}


def _pretrain(request: RefreshRequest) -> dict[str, Any]:
    out = request.out / "pretrain"
    path = pretrain(
        PretrainRequest(
            request.pool, out, request.model, request.backbone, request.ssl_imgsz, request.ssl_batch,
            request.pretrain_epochs, seed=request.seed, resume=(out / LAST).is_file(),
        )
    )  # fmt: skip
    return {"backbone": str(path)}


def _tune(request: RefreshRequest, backbone: Path) -> dict[str, Any]:
    out = request.out / "tune"
    tuned = finetune(
        FinetuneRequest(
            request.data, out, request.model, (request.detector, backbone), request.imgsz, request.batch,
            request.tune_epochs, request.lr, request.seed, resume=(out / LAST).is_file(),
        )
    )  # fmt: skip
    return {"detector": str(tuned.checkpoint)}


def _convert(request: RefreshRequest, detector: Path, released: Bundle) -> dict[str, Any]:
    thresholds = released.manifest.thresholds
    wanted = ConvertRequest(
        detector, request.pool, request.imgsz, confidence=thresholds.confidence, iou=thresholds.iou, seed=request.seed,
        lineage={"refreshed_from": released.digest},
    )  # fmt: skip
    folder = request.bundles / f"candidate-{sha256_of_file(detector)[:16]}"
    if folder.exists():  # a kill between convert and journal: the bundle is complete, since it appears in one step
        return {"bundle": str(Bundle.open(folder).path)}
    return {"bundle": str(convert(wanted, folder, to_stderr).path)}


def _compare(request: RefreshRequest, released: Bundle, candidate: Path) -> dict[str, Any]:
    held_out = load_dataset(request.data).val
    old, new = bundle_accuracy(released.path, held_out), bundle_accuracy(candidate, held_out)
    return {"released": asdict(old), "candidate": asdict(new)}


def _publish(request: RefreshRequest, bundle: Path) -> dict[str, Any]:
    publish(request.bundles, Bundle.open(bundle))
    return {"current": bundle.name}
