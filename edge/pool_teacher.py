"""Who labels the pool for a run of fine-tuning: the average of its own weights, or a detector that is given.

One that is larger, or that sees larger pictures, knows more than the one that learns, from the same labels: what it sees in
frames without labels is how the small one comes to know it (Buciluă et al. 2006, "Model compression"; of detectors Radosavovic
et al. 2018, "Data distillation", arXiv 1712.04440).
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from converters.checkpoint import Checkpoint, detector_from_checkpoint, load_checkpoint
from converters.errors import CheckpointError
from edge.errors import TrainingError
from edge.fused_looks import fused_looks
from edge.lineage import UNKNOWN, seen_labels, with_seen
from edge.processes import launched_fabric
from edge.self_training import Look, Pupils, Taught
from edge.snapshot import Snapshot
from edge.torch_detector import DetectBatch, batch_detector
from edge.training import memory_told, with_training
from runtime.files import sha256_of_file
from runtime.preprocess import STRIDE, Preprocess

if TYPE_CHECKING:
    from calibration.labels import Dataset
    from edge.finetune_request import FinetuneRequest

PSEUDO_LABELS = "pseudo_labels.json"
TEACHER = "teacher"  # what the keys in the lineage that tell of it begin with
_MOSAIC = 4  # frames in a picture that the student sees
_TOGETHER = 16  # frames that the teacher looks at, at most
_MOST_NAMES = 5  # of classes, in a sentence
_LARGEST = 4096  # side of a picture, as --imgsz has it
_REMEDIES = "lower --batch below that, or give a smaller --teacher or one for smaller pictures"


class PoolTeacher:
    """What a teacher makes of the pool, look by look; kept for a run that is resumed."""

    def __init__(self, request: FinetuneRequest, names: Sequence[str]) -> None:
        """Reads the teacher that is given, if one is.

        Args:
            request: the run's.
            names: of the classes to be found.

        Raises:
            CheckpointError: the teacher cannot be read, is no detector, or knows other classes.
            TrainingError: it is gone, of a run that is resumed.
        """
        self._request = request
        self._path = request.out / PSEUDO_LABELS
        self._given = _read(request.teacher, names, resume=request.resume) if request.teacher else None
        self._pupils: Pupils | None = None

    def lineage(self, digest: str) -> dict[str, str]:
        """Of a run with these labels: who taught it, and all labels that have a part in it. Says on stderr where the teacher may
        know held-out images.
        """
        if self._given is None:
            return with_seen({}, {digest})
        seen = seen_labels(self._given.lineage) or {UNKNOWN}
        if seen == {UNKNOWN}:
            self._tell("does not say which labels it learnt from")
        elif seen != {digest}:
            self._tell("learnt from other labels as well" if digest in seen else "learnt from other labels")
        told = {
            f"{TEACHER}_sha256": sha256_of_file(Path(str(self._request.teacher))),
            TEACHER: f"{self._given.model} at {self._given.imgsz} px",
        }
        return with_seen(told, seen, {digest})

    def _tell(self, told: str) -> None:
        sys.stderr.write(
            f"--teacher {self._request.teacher} {told}; if held-out images were among them, every figure is too good\n"
        )

    def taught(self, dataset: Dataset, average: Checkpoint, epoch: int) -> Taught:
        """Of as many frames as the steps until the next look have room for, mosaics counted.

        Args:
            dataset: what stands beside the frames.
            average: of the run's weights so far.
            epoch: before which the teacher looks.

        Raises:
            TrainingError: out of memory, or too many frames are damaged.
            SourceError: a labelled or held-out image is damaged.
        """
        began_s = time.monotonic()
        if self._path.is_file() and (kept := Taught.read(self._path)).epoch == epoch:  # the run was cut
            return kept
        self._pupils = self._pupils or Pupils(Snapshot(self._request.out), dataset.train, dataset.val, len(dataset.names))
        look = self._look(epoch, len(dataset.train))
        if self._given:
            with memory_told(f"a teacher that looks at {look.together} frames at once", _REMEDIES):
                taught = self._pupils.taught(self._detect(self._given), look)
            self._pupils = None  # it looks once
        else:
            taught = self._pupils.taught(self._detect(average), look)
        taught = replace(taught, seconds=round(time.monotonic() - began_s, 2))
        taught.write(self._path)
        who = "teacher" if self._given else "average so far"
        sys.stderr.write(f"the {who} believes {taught.boxes} boxes in {taught.looked} frames of the pool\n")
        if not taught.images:
            sys.stderr.write("no frame is left to learn from, so the steps that follow have labels alone\n")
        return taught

    def _look(self, epoch: int, labels: int) -> Look:
        request = self._request
        until = min((each for each in request.looks if each > epoch), default=request.epochs)
        steps = (until - epoch) * request.steps(labels)
        return Look(epoch, _MOSAIC * request.frames_a_step * steps, min(request.batch, _TOGETHER), request.seed)

    def _detect(self, looking: Checkpoint) -> DetectBatch:
        detector = detector_from_checkpoint(looking).to(launched_fabric().device)
        return fused_looks(batch_detector(detector, Preprocess((looking.imgsz, looking.imgsz))), upright=self._request.upright)


def _read(path: Path, names: Sequence[str], *, resume: bool) -> Checkpoint:
    if resume and not path.is_file():
        raise TrainingError(f"--teacher {path} is no file; put back the one that the run began with")
    try:
        found = load_checkpoint(path)
        if found.kind != "detector":
            raise CheckpointError(f"it is a {found.kind}; fine-tune it on the same labels first with: edge finetune --init")
        if found.names != tuple(names):
            raise CheckpointError(
                f"it knows {_listed(found.names)}, but the labels have {_listed(names)}; fine-tune it on the same data.yaml first"
            )
        if found.imgsz % STRIDE or not STRIDE <= found.imgsz <= _LARGEST:
            raise CheckpointError(
                f"it was trained at {found.imgsz} px, no multiple of {STRIDE} from {STRIDE} to {_LARGEST}; take another"
            )
        detector_from_checkpoint(found)
    except CheckpointError as error:
        raise CheckpointError(f"--teacher {path}: {error}") from error
    return with_training(found, None)


def _listed(names: Sequence[str]) -> str:
    more = len(names) - _MOST_NAMES
    return ", ".join(names[:_MOST_NAMES]) + (f" and {more} more" if more > 0 else "")
