"""What a pretraining can be asked for, and whether its settings go together."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Any

from edge.errors import TrainingError
from edge.methods import METHODS, kind_of
from edge.processes import Precision, several, world_size
from edge.yolo import Part
from runtime.files import sha256_of_file
from runtime.preprocess import STRIDE

_SAVE_EVERY_S = 120.0


@dataclass(frozen=True, slots=True)
class PretrainRequest:
    """A pretraining run.

    Attributes:
        pool: unlabeled frames.
        out: run folder; `backbone.pt`, `neck.pt` or `localizer.pt` appears there.
        model: architecture.
        init: weights to start from (COCO weights, or the last run's); None starts from scratch.
        imgsz: side of the views in pixels.
        batch: images a step.
        epochs: the usual.
        lr: the usual.
        seed: the usual.
        until_s: use frames captured up to this Unix time; None for all.
        resume: go on with the run in `out`.
        method: one of `METHODS`.
        part: what is trained and kept.
        teacher: weights for the method that distils: a YOLO's checkpoint, or those of `teacher_model`.
        upright: scenes have an up and a down.
        anchor: weight of staying near `init` (dense and hybrid); 0 for none.
        activation_checkpointing: compute activations twice instead of keeping them; the weights come out the same.
        interpolate: share of what was learnt in the weights that are written, the rest is of those that training began with,
            `init`'s (WiSE-FT, Wortsman et al. 2022, arXiv 2109.01903) or fresh ones (Ash and Adams 2020, arXiv 1910.08475); 1
            for all of it.
        chunk: images that fit the memory at once; 0 for the whole batch. The gradients of simclr and vicreg stay those of the
            batch, those of moco, dense, hybrid and cutpaste are accumulated.
        teacher_model: timm's name of the teacher; empty for a YOLO.
        average: whether the moving average of the weights is written (about a tenth of the run), and not the last ones.
        workers: processes that make views, for each process that trains.
        precision: of the arithmetic, as Lightning Fabric names it.
        shards: where shards lie (`edge pool export`), instead of the pool's own frames.
        save_every_s: time between two savings within an epoch.
    """

    pool: Path
    out: Path
    _: KW_ONLY
    model: str = "yolo11n"
    init: Path | None = None
    imgsz: int = 320
    batch: int = 16
    epochs: int = 10
    lr: float = 1e-3
    seed: int = 0
    until_s: float | None = None
    resume: bool = False
    method: str = "cutpaste"
    part: Part = "localizer"
    teacher: Path | None = None
    upright: bool = False
    chunk: int = 0
    average: bool = False
    workers: int = 0
    precision: Precision = "32-true"
    shards: str = ""
    save_every_s: float = _SAVE_EVERY_S
    anchor: float = 0.0
    interpolate: float = 1.0
    activation_checkpointing: bool = False
    teacher_model: str = ""


def most_of(method: str) -> Part:
    """The largest part of a detector that a method trains.

    Raises:
        TrainingError: unknown method.
    """
    return kind_of(method).parts[0]


def usual_of(method: str, init: str | None) -> tuple[float, float]:
    """Learning rate, and share of what is learnt in what is written, for who names none.

    From a detector's weights a short pretraining on few frames forgets more than it learns, so it learns slowly and goes half of
    the way (WiSE-FT, arXiv 2109.01903). A network that goes on from what it has learnt can come out worse than a fresh one, so
    from fresh weights it goes half of the way as well, which is their shrink and perturb (Ash and Adams 2020, "On warm-starting
    neural network training", arXiv 1910.08475). docs/study.md has arms for both. A teacher tells each cell of a fresh network what
    to become, so distillation can learn from it faster than the other methods.

    Args:
        method: one of `METHODS`.
        init: the kind of the checkpoint that training begins as; None for fresh weights.
    """
    fast = 4e-3 if method == "distill" and init is None else 1e-3
    return 3e-4 if init == "detector" else fast, 0.5 if init in ("detector", None) else 1.0


def check(request: PretrainRequest) -> None:
    """Whether the settings go together.

    Raises:
        TrainingError: they do not.
    """
    if request.imgsz % STRIDE:
        raise TrainingError(
            f"--imgsz must be a multiple of {STRIDE}, but got {request.imgsz}; try {-(-request.imgsz // STRIDE) * STRIDE}"
        )
    kind = kind_of(request.method)
    if request.anchor and (request.init is None or not kind.is_anchored):
        anchored = " and ".join(name for name, each in METHODS.items() if each.is_anchored)
        raise TrainingError(f"--anchor holds what --init knows, for {anchored}; give both, or leave it out")
    if request.method == "distill" and request.teacher is None:
        raise TrainingError("distill needs a teacher; name the weights of a larger model (--teacher)")
    if request.teacher_model and request.teacher is None:
        raise TrainingError("--teacher-model says what --teacher is; give both, or leave it out")
    if request.teacher and request.method != "distill":
        raise TrainingError(f"--teacher is for distill, and {request.method} has none; leave it out")
    check_part(request.method, request.part)
    if request.activation_checkpointing and kind.is_masked:
        raise TrainingError(f"--activation-checkpointing is not for {request.method}; give --chunk instead")
    if request.chunk == 1:
        raise TrainingError("--chunk 1 leaves batch norm a single image; give 2 or more, or leave it out")
    if request.chunk and several():
        raise TrainingError("--chunk is for one process; under torchrun the processes share the batch already")


def check_part(method: str, part: Part) -> None:
    """Whether a method trains a part.

    Raises:
        TrainingError: it does not.
    """
    parts = kind_of(method).parts
    if part not in parts:
        raise TrainingError(f"{method} can train {' or '.join(parts)}, but --part is {part}; change it, or --method")


def remedies_of(request: PretrainRequest) -> str:
    """What helps a run of these settings that is out of memory."""
    ways = ["lower it or --imgsz"]
    if not (request.activation_checkpointing or kind_of(request.method).is_masked):
        ways.append("give --activation-checkpointing")
    ways.append("start more processes" if several() else "give --chunk" if not request.chunk else "lower --chunk")
    return f"{', '.join(ways[:-1])}, or {ways[-1]}"


def settings_of(request: PretrainRequest) -> dict[str, Any]:
    """What a run that goes on must have been started with."""
    return {
        "model": request.model, "init": _digest(request.init), "imgsz": request.imgsz,
        "batch": request.batch, "method": request.method, "part": request.part, "teacher": teacher_of(request),
        "upright": request.upright, "chunk": request.chunk, "average": request.average,
        # Batch norms see what one process has; which frames share a batch of shards depends on who reads them.
        "processes": world_size() if several() else "",
        "readers": f"{request.workers} × {world_size()}" if request.shards else "",
        "precision": request.precision, "anchor": request.anchor,
        "interpolate": request.interpolate,
    }  # fmt: skip


def teacher_of(request: PretrainRequest) -> str:
    """The teacher's digest and timm's name of it; "" for none."""
    return f"{_digest(request.teacher)} {request.teacher_model}".strip()


def _digest(path: Path | None) -> str:
    return sha256_of_file(path)[:12] if path else ""
