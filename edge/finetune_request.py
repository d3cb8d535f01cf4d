"""What a fine-tuning can be asked for, and what follows from it."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from pathlib import Path

from converters.architecture import MODEL_NAMES
from edge.errors import TrainingError
from edge.processes import Precision, several
from runtime.preprocess import STRIDE

_USUAL_BURN_IN = 0.5  # where a run is its own teacher
LOOKS = 4  # of the teacher, evenly over the epochs that frames take part in


@dataclass(frozen=True, slots=True)
class FinetuneRequest:
    """A fine-tuning run.

    Attributes:
        data: data.yaml with `train` and `val`.
        out: run folder; `detector.pt` appears there.
        model: architecture.
        init: weights to start from, in the order they are injected (a detector, then a backbone); none = scratch.
        imgsz: side of the square input in pixels.
        batch, epochs, lr, seed: the usual.
        freeze: share of the epochs, from the first on, in which the backbone stays as it is, whole epochs, rounded
            up; 1 trains neck and head only.
        layer_decay: learning rate of a layer over that of the one behind it, 1 for the same in all: layers near the input
            hold what all pictures have in common, and few labels would spoil it (as in BEiT, arXiv 2106.08254).
        precision: of the arithmetic, as Lightning Fabric names it.
        eval_every: epochs between looks at the held-out images; 0 for the last epoch only.
        confidence: threshold that F1 is told at.
        light_pool: a pool whose light half of the labelled images are given; None leaves them as they are.
        until_s: of both pools, frames captured up to this Unix time; None for all.
        pool: unlabeled frames that take part, see `edge.self_training`; None for labels alone.
        pool_ratio: such frames in a step for each labelled image in it, above 0.
        burn_in: share of the epochs with labels alone before, from 0 to below 1; None for half of them, and for none where there
            is a teacher.
        teacher: a detector of the same classes that labels the pool, larger or for larger pictures than the one that learns,
            which is then not its own teacher; None for the average of the run's own weights.
        upright: scenes have an up and a down, so the teacher does not look at frames upside down.
        resume: go on with the run in `out`.
        workers: processes that augment images; what they draw depends on how many they are.
        activation_checkpointing: compute activations twice instead of keeping them; the weights come out the same.
    """

    data: Path
    out: Path
    _: KW_ONLY
    model: str = "yolo11n"
    init: tuple[Path, ...] = ()
    imgsz: int = 640
    batch: int = 16
    epochs: int = 50
    lr: float = 1e-3
    seed: int = 0
    freeze: float = 0.0
    layer_decay: float = 1.0
    precision: Precision = "32-true"
    eval_every: int = 0
    confidence: float = 0.25
    light_pool: Path | None = None
    until_s: float | None = None
    resume: bool = False
    pool: Path | None = None
    pool_ratio: float = 1.0
    burn_in: float | None = None
    teacher: Path | None = None
    upright: bool = False
    activation_checkpointing: bool = False
    workers: int = 0

    @property
    def share_alone(self) -> float:
        """`burn_in`, or what it is where nobody named it."""
        if self.burn_in is not None:
            return self.burn_in
        return 0.0 if self.teacher else _USUAL_BURN_IN

    @property
    def looks(self) -> list[int]:
        """The epochs before which a teacher looks at frames: its own average several times, and after an epoch with labels at
        least; one that does not change once.
        """
        if not self.pool:
            return []
        alone = min(self.epochs - 1, max(0 if self.teacher else 1, round(self.share_alone * self.epochs)))
        turns = 1 if self.teacher else min(LOOKS, self.epochs - alone)
        return [alone + turn * (self.epochs - alone) // turns for turn in range(turns)]

    @property
    def frames_a_step(self) -> int:
        """That take part beside the labelled images."""
        return max(1, round(self.pool_ratio * self.batch))

    def steps(self, labels: int) -> int:
        """In an epoch, which is a pass over the labels; frames beside them make it no longer."""
        return max(1, labels // self.batch)


def check(request: FinetuneRequest) -> None:
    """Whether the run can start, before the data is read and long before the first checkpoint.

    Raises:
        TrainingError: it cannot.
    """
    if request.model not in MODEL_NAMES:
        raise TrainingError(f"unknown model {request.model!r}; known are {', '.join(MODEL_NAMES)}")
    if request.imgsz % STRIDE:
        raise TrainingError(
            f"--imgsz must be a multiple of {STRIDE}, but got {request.imgsz}; try {-(-request.imgsz // STRIDE) * STRIDE}"
        )
    if request.teacher and not request.pool:
        raise TrainingError("--teacher labels the frames of --pool; give it as well, or leave the teacher out")
    if several():
        raise TrainingError("fine-tuning runs in one process; start it without torchrun")
    if request.pool and not request.teacher and request.epochs == 1:
        raise TrainingError("--pool needs 2 epochs or more, since labels alone come first; raise --epochs")
