"""Who labels the pool for a run of fine-tuning: the average of its own weights, or a detector that is given.

One that is larger, or that sees larger pictures, knows more than the one that learns, from the same labels: what it sees in
frames without labels is how the small one comes to know it (Buciluă et al. 2006, "Model compression"; of detectors Radosavovic
et al. 2018, "Data distillation", arXiv 1712.04440).
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from converters.checkpoint import Checkpoint, detector_from_checkpoint, load_checkpoint
from converters.errors import CheckpointError
from edge.errors import TrainingError
from edge.fused_looks import fused_looks
from edge.processes import launched_fabric
from edge.self_training import Look, Pupils, Taught
from edge.snapshot import Snapshot
from edge.torch_detector import batch_detector
from runtime.preprocess import Preprocess

if TYPE_CHECKING:
    from calibration.labels import Dataset
    from edge.finetune_request import FinetuneRequest

PSEUDO_LABELS = "pseudo_labels.json"
LABELS = "labels_sha256"  # in the lineage: what a detector was fine-tuned on
_MOSAIC = 4  # frames in a picture that the student sees
_TOGETHER = 16  # frames that the teacher looks at, at most


class PoolTeacher:
    """What a teacher makes of the pool, look by look; kept for a run that is resumed."""

    def __init__(self, dataset: Dataset, digest: str, request: FinetuneRequest) -> None:
        """Looks at the teacher that was given, if one was; says so if it learnt from other labels.

        Args:
            dataset: what stands beside the frames.
            digest: of its labels.
            request: the run's.

        Raises:
            CheckpointError: the teacher cannot be read, or is no detector.
            TrainingError: it knows other classes.
        """
        self._dataset, self._request = dataset, request
        self._path = request.out / PSEUDO_LABELS
        self._pupils: Pupils | None = None
        self._given = _given(request.teacher, dataset, digest) if request.teacher else None

    def taught(self, average: Checkpoint, epoch: int) -> Taught:
        """Of as many frames as the steps until the next look have room for, mosaics counted.

        Args:
            average: of the run's weights so far.
            epoch: before which the teacher looks.
        """
        request, dataset = self._request, self._dataset
        if self._path.is_file() and (kept := Taught.read(self._path)).epoch == epoch:  # the run was cut
            return kept
        self._pupils = self._pupils or Pupils(Snapshot(request.out), dataset.train, dataset.val, len(dataset.names))
        looking = self._given or average
        teacher = detector_from_checkpoint(looking).to(launched_fabric().device)
        detect = fused_looks(batch_detector(teacher, Preprocess((looking.imgsz, looking.imgsz))), upright=request.upright)
        until = min((each for each in request.looks if each > epoch), default=request.epochs)
        steps = (until - epoch) * request.steps(len(dataset.train))
        look = Look(epoch, _MOSAIC * request.frames_a_step * steps, min(request.batch, _TOGETHER), request.seed)
        taught = self._pupils.taught(detect, look)
        taught.write(self._path)
        who = "teacher" if self._given else "average so far"
        sys.stderr.write(f"the {who} believes {taught.boxes} boxes in {taught.looked} frames of the pool\n")
        if not taught.images:
            sys.stderr.write("no frame is left to learn from, so the steps that follow have labels alone\n")
        return taught


def _given(path: Path, dataset: Dataset, digest: str) -> Checkpoint:
    found = load_checkpoint(path)
    if found.kind != "detector":
        raise CheckpointError(
            f"--teacher {path} is a {found.kind}; fine-tune it on the same labels first with: edge finetune --init"
        )
    if found.names != dataset.names:
        raise TrainingError(
            f"--teacher {path} knows {', '.join(found.names)}, but the labels have {', '.join(dataset.names)}; fine-tune it on the "
            "same data.yaml first"
        )
    if found.lineage.get(LABELS) != digest:
        sys.stderr.write(
            f"--teacher {path} learnt from other labels; if held-out images were among them, every figure is too good\n"
        )
    return found
