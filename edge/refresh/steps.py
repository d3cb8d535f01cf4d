"""One refresh on one screen: pretrain further → re-tune → convert → compare → publish, or change nothing."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast, get_args

from calibration.accuracy import Accuracy
from calibration.labels import load_dataset
from converters.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from converters.convert import convert_into, to_stderr
from converters.request import ConvertRequest
from edge.errors import RefreshError
from edge.evaluation import model_accuracy
from edge.finetune import data_digest, finetune
from edge.finetune_request import FinetuneRequest
from edge.pretrain import RESULT, pretrain
from edge.pretrain_request import PretrainRequest
from edge.processes import Precision
from edge.refresh.gate import Verdict, compare
from edge.refresh.journal import Journal
from edge.run_folder import LAST
from edge.yolo import PARTS, Part, part_keys
from runtime.bundle import CURRENT, Bundle, publish
from runtime.files import sha256_of_file
from runtime.pool import Pool
from runtime.preprocess import STRIDE

_METHOD, _BATCH, _LR = "simclr", 64, 1e-3  # where the checkpoint does not tell

Gate = Callable[[Accuracy, Accuracy], Verdict]  # released, candidate


@dataclass(frozen=True, slots=True)
class RefreshRequest:
    """A refresh.

    Attributes:
        bundles: where releases live; `current` in it is what the devices run.
        pool: frames that the devices collected.
        data: the kept labelled set, with held-out images under `val`.
        backbone: the last self-supervised checkpoint, also with neck or localizer; it is trained further as it was trained.
        detector: checkpoint of the released detector; its neck and head are the start of the re-tuning.
        out: work folder of this refresh; killed, it is taken up there.
        pretrain_epochs, tune_epochs: budget of the two trainings.
        imgsz: side of the detector's input in pixels; 0 takes the released bundle's.
        batch, lr, seed: of the re-tuning.
        until_s: learn from frames captured up to this Unix time; None means up to the refresh's first start.
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
    imgsz: int = 0
    batch: int = 16
    lr: float = 1e-3
    seed: int = 0
    until_s: float | None = None


@dataclass(frozen=True, slots=True)
class Refreshed:
    """How it ended.

    Attributes:
        verdict: the comparison.
        bundle: what is released now: the candidate if it was published, or what was before.
        backbone, detector: the new checkpoints, for the next refresh.
    """

    verdict: Verdict
    bundle: Path
    backbone: Path
    detector: Path


def refresh(request: RefreshRequest, gate: Gate = compare) -> Refreshed:
    """Runs the steps that the journal does not hold yet.

    Raises:
        RefreshError: nothing released yet, or a work folder of another refresh.
        EdgeloopError: as of each step; `current` is unchanged.
    """
    request = _resolved(request)
    request.out.mkdir(parents=True, exist_ok=True)
    journal = Journal(request.out)
    inputs = _inputs(request)
    begun = journal.step("begin", inputs, lambda: _begin(request))
    released = Bundle.open(request.bundles / begun["released"])
    ssl = journal.step("pretrain", inputs, lambda: _pretrain(request, begun["until_s"]))
    tuned = journal.step("tune", inputs, lambda: _tune(request, Path(ssl["backbone"]), begun["until_s"]))
    candidate = journal.step("convert", inputs, lambda: _convert(request, Path(tuned["detector"]), released, begun["until_s"]))
    bundle = Path(candidate["bundle"])
    told = journal.step("compare", inputs, lambda: _compare(request, released, bundle))
    verdict = gate(Accuracy(**told["released"]), Accuracy(**told["candidate"]))
    if verdict.publish:
        journal.step("publish", inputs, lambda: _publish(request, bundle, released))
    else:
        shutil.rmtree(bundle, ignore_errors=True)  # nobody will run it; the journal keeps its figures
    return Refreshed(verdict, bundle if verdict.publish else released.path, Path(ssl["learnt"]), Path(tuned["detector"]))


def _resolved(request: RefreshRequest) -> RefreshRequest:
    """The request with the released input size filled in, checked before hours of work.

    Raises:
        RefreshError: nothing is released yet, a checkpoint is missing, or the input size is impossible.
    """
    for path in (request.backbone, request.detector):
        if not path.is_file():
            raise RefreshError(f"no such checkpoint: {path}; name the one that the released model was made from")
    if not (request.bundles / CURRENT).exists():
        raise RefreshError(
            f"{request.bundles} has no `current` release to refresh; make one with: edge-convert CKPT --release {request.bundles}"
        )
    released = Bundle.open(request.bundles / CURRENT)
    for path, name, kinds in ((request.backbone, "backbone", tuple(PARTS)), (request.detector, "detector", ("detector",))):
        found = load_checkpoint(path).kind
        if found not in kinds:
            raise RefreshError(f"{path} is a {found}, but --{name} needs a {' or '.join(kinds)}; were the two swapped?")
    names = load_dataset(request.data).names
    if tuple(released.manifest.classes) != names:
        raise RefreshError(
            f"{request.data} has classes {list(names[:8])}, the release {released.manifest.classes[:8]}; they must be the same"
        )
    imgsz = request.imgsz or released.preprocess.size_wh[0]
    if imgsz % STRIDE:
        raise RefreshError(f"--imgsz must be a multiple of {STRIDE}, but got {imgsz}; leave it out to keep the released size")
    return replace(request, imgsz=imgsz)


def _inputs(request: RefreshRequest) -> dict[str, str]:
    """What must not change while a refresh is under way: every setting, and what the files hold."""
    settings = {name: str(value) for name, value in asdict(request).items() if name != "out"}
    files = {"backbone": sha256_of_file(request.backbone), "detector": sha256_of_file(request.detector)}
    return {**settings, **files, "labels": data_digest(load_dataset(request.data))}


def _begin(request: RefreshRequest) -> dict[str, Any]:
    """Fixes what the refresh starts from: the release that it must not fall behind, and the pool as it is now."""
    released = Bundle.open(request.bundles / CURRENT)
    with Pool.open(request.pool) as pool:
        if not pool.entries(request.until_s):
            raise RefreshError(
                f"pool {request.pool} is empty; fill it with: edge pool add {request.pool} IMAGES, or let the daemon collect"
            )
    return {"released": released.path.name, "until_s": time.time() if request.until_s is None else request.until_s}


def _pretrain(request: RefreshRequest, until_s: float) -> dict[str, Any]:
    out = request.out / "pretrain"
    learnt = pretrain(_further(request, load_checkpoint(request.backbone), out, until_s))
    backbone = request.out / RESULT["backbone"]
    save_checkpoint(backbone, _backbone_of(load_checkpoint(learnt)))
    return {"learnt": str(learnt), "backbone": str(backbone)}


def _further(request: RefreshRequest, last: Checkpoint, out: Path, until_s: float) -> PretrainRequest:
    """The last pretraining's recipe, from where it ended; what an older checkpoint does not tell is as it was then."""
    told = last.lineage
    method = told.get("ssl", _METHOD)
    try:
        recipe = _recipe(told)
    except ValueError as error:
        raise RefreshError(f"{request.backbone} does not say how it was made ({error}); pretrain it anew") from error
    if method == "distill":
        sys.stderr.write(f"a refresh has no teacher, so {_METHOD} goes on where distill ended\n")
        method = _METHOD
        recipe["lr"] = min(recipe["lr"], _LR)  # only who has a teacher learns faster
    if method == _METHOD:
        recipe["anchor"] = 0.0
    return PretrainRequest(
        request.pool, out, model=request.model, init=request.backbone, imgsz=last.imgsz, epochs=request.pretrain_epochs, seed=request.seed,
        until_s=until_s, resume=(out / LAST).is_file(), method=method, part=cast("Part", last.kind), **recipe,
    )  # fmt: skip


def _recipe(told: Mapping[str, str]) -> dict[str, Any]:
    """What a checkpoint says of its pretraining's settings.

    Raises:
        ValueError: what only a damaged file says.
    """
    precision = told.get("ssl_precision", "32-true")
    if precision not in get_args(Precision):
        raise ValueError(f"precision {precision!r}")
    numbers = {
        "batch": int(told.get("ssl_batch", _BATCH)),
        "lr": float(told.get("ssl_lr", _LR)),
        "chunk": int(told.get("ssl_chunk", 0)),
    }
    shares = {"anchor": float(told.get("ssl_anchor", 0)), "interpolate": float(told.get("ssl_interpolate", 1))}
    if told.get("ssl_from_scratch") == "True":  # half of the way was from fresh weights; this goes on from what was learnt
        shares["interpolate"] = 1.0
    switches = {name: told.get(f"ssl_{name}") == "True" for name in ("upright", "average", "activation_checkpointing")}
    return {"precision": precision, **numbers, **shares, **switches}


def _backbone_of(learnt: Checkpoint) -> Checkpoint:
    """What goes into the released detector: its neck and head know the labels, and are tuned further."""
    state = {key: learnt.state[key] for key in part_keys(learnt.model, learnt.state, "backbone")}
    return replace(learnt, kind="backbone", state=state)


def _tune(request: RefreshRequest, backbone: Path, until_s: float) -> dict[str, Any]:
    out = request.out / "tune"
    tuned = finetune(
        FinetuneRequest(
            request.data, out, model=request.model, init=(request.detector, backbone), imgsz=request.imgsz, batch=request.batch,
            epochs=request.tune_epochs, lr=request.lr, seed=request.seed, light_pool=request.pool, until_s=until_s, resume=(out / LAST).is_file(),
        )
    )  # fmt: skip
    return {"detector": str(tuned.checkpoint)}


def _convert(request: RefreshRequest, detector: Path, released: Bundle, until_s: float) -> dict[str, Any]:
    thresholds = released.manifest.thresholds
    wanted = ConvertRequest(
        detector, request.pool, request.imgsz, confidence=thresholds.confidence, iou=thresholds.iou, seed=request.seed,
        until_s=until_s, lineage={"refreshed_from": released.digest}, pictures=False,
    )  # fmt: skip
    return {"bundle": str(convert_into(wanted, request.bundles, to_stderr).path)}


def _compare(request: RefreshRequest, released: Bundle, candidate: Path) -> dict[str, Any]:
    dataset = load_dataset(request.data)
    old, new = model_accuracy(released.path, dataset), model_accuracy(candidate, dataset)
    return {"released": asdict(old), "candidate": asdict(new)}


def _publish(request: RefreshRequest, bundle: Path, released: Bundle) -> dict[str, Any]:
    current = Bundle.open(request.bundles / CURRENT)
    if current.digest != released.digest and current.path != bundle:
        raise RefreshError(
            f"{request.bundles / CURRENT} became {current.path.name} while this refresh was compared with {released.path.name}; "
            "refresh again, in another --out"
        )
    publish(request.bundles, Bundle.open(bundle))
    return {"current": bundle.name}
