"""A grid of training runs, each with the same budget.

Each seed splits a set anew; the labels of a smaller fraction are among those of a larger one. The pool is all images that
are not held out, without their labels, and without those that show a held-out image; `unlabeled` of a set adds a folder of
frames. A run that is there is not repeated; one that was killed goes on.
"""

from __future__ import annotations

import hashlib
import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from calibration.labels import Dataset, grouped, load_dataset, split_dataset, tell_unlabelled
from converters.checkpoint import HELD_OUT, load_checkpoint
from edge.errors import TrainingError
from edge.finetune import DETECTOR, LAST_LOOK, data_digest, finetune
from edge.finetune_request import FinetuneRequest
from edge.leaks import leaks_of
from edge.pretrain import RESULT, pretrain
from edge.pretrain_request import PretrainRequest
from edge.run_folder import LAST, refuse_unwritable
from edge.run_log import LOG
from edge.study_file import RESULT_FILE, RUN, records_of, same_plan
from edge.study_plan import Arm, Cell, SetPlan, StudyPlan, cells_of, keys_told
from edge.study_report import summary
from edge.training_images import refuse_damaged
from runtime.files import sha256_of_file, write_atomically
from runtime.images import list_images
from runtime.pool import Pool
from runtime.pool_import import add_image_files

RESULTS, TABLE = "results.jsonl", "table.md"
_COMPARED = ("scratch", "coco", "ssl", "coco+ssl", "coco+pool", "coco+ssl+pool")
_NO_QUOTA = 2**50  # bytes
_FEWEST_EPOCHS = 2  # of all arms alike: one with labels alone, and one with frames beside them


def study(plan: StudyPlan, out: Path) -> list[dict[str, Any]]:
    """Runs what is missing in `out`; returns one record a run (the cell, `map50_95`, `map50`, `f1`, `labels`).

    Raises:
        DataError, CheckpointError, TrainingError: as `pretrain` and `finetune` do.
    """
    refuse_unwritable(out)
    plan.refuse_missing()
    digests = {**_labels_of(plan), **{str(path): sha256_of_file(path) for path in plan.files()}}
    out.mkdir(parents=True, exist_ok=True)
    same_plan(plan, out, digests)
    if absent := [arm for arm in _COMPARED if arm not in plan.arms]:
        sys.stderr.write(f"without the arms {', '.join(absent)} the table compares less than docs/study.md's example does\n")
    cells = list(cells_of(plan))
    records = records_of(out)
    _write(plan, records, out)
    for number, cell in enumerate(cells, 1):
        if cell not in records:
            sys.stderr.write(f"[{number}/{len(cells)}] {cell.name}\n")
            try:
                records[cell] = _run(plan, cell, out)
            except (KeyboardInterrupt, SystemExit):
                sys.stderr.write(f"\nthe study is {number - 1} of {len(cells)} runs; the same command goes on with it\n")
                raise
            write_atomically(out / cell.name / RESULT_FILE, (json.dumps(records[cell]) + "\n").encode())
            (out / cell.name / RUN / LAST).unlink(missing_ok=True)  # optimizer states of many would fill the disk
            _write(plan, records, out)
    return [records[cell] for cell in cells]


def _labels_of(plan: StudyPlan) -> dict[str, str]:
    """A digest of each set's labels. What is no label, or a damaged image, is told before the first run and not in the middle.

    Raises:
        TrainingError: there is such a label, or two fractions come to the same labels.
        SourceError: there is such an image.
    """
    digests = {}
    for name, spec in plan.sets.items():
        with keys_told(f"sets.{name}"), tempfile.TemporaryDirectory() as folder:
            splits = {seed: load_dataset(_split(spec, Path(folder) / str(seed), 0, seed)) for seed in plan.seeds}
        for seed, split in splits.items():
            _refuse_same_labels(plan.fractions, split, f"{name} are {{labels}} labels both with seed {seed}")
        split = splits[plan.seeds[0]]  # all labels, as of every seed
        items = sorted((*split.train, *split.val), key=lambda item: item.path)
        refuse_damaged(items, "labelled")
        tell_unlabelled(split)
        digests[f"sets.{name}"] = data_digest(replace(split, train=tuple(items)))
    return digests


def _refuse_same_labels(fractions: Sequence[float], split: Dataset, told: str) -> None:
    known: dict[int, float] = {}
    for fraction in fractions:
        labels = _count(fraction, split)
        if labels in known:
            both = f"fractions {known[labels]:g} and {fraction:g} of"
            raise TrainingError(f"{both} {told.format(labels=labels)}; take one out")
        known[labels] = fraction


def _count(fraction: float, everything: Dataset) -> int:
    return max(2, round(fraction * len(everything.train)))


def _write(plan: StudyPlan, records: dict[Cell, dict[str, Any]], out: Path) -> None:
    cells = list(cells_of(plan))
    done = [records[cell] for cell in cells if cell in records]
    write_atomically(out / RESULTS, "".join(json.dumps(record) + "\n" for record in done).encode())
    told = f"{len(done)} of {len(cells)} runs so far.\n\n" if len(done) < len(cells) else ""
    write_atomically(out / TABLE, f"{told}{summary(done, plan.fractions)}\n".encode())


def _run(plan: StudyPlan, cell: Cell, out: Path) -> dict[str, Any]:
    arm, spec = plan.arms[cell.arm], plan.sets[cell.set]
    home = out / cell.set / f"seed{cell.seed}"
    everything = load_dataset(_split(spec, home / "_all", 0, cell.seed))
    labels = _count(cell.fraction, everything)
    data = _split(spec, home / f"_labels-{cell.fraction:g}", labels, cell.seed)
    own, held_out = ([item.path for item in part] for part in (everything.train, everything.val))
    pool = _pool(home / "_pool", [*own, *_unlabeled(spec, held_out)], held_out)
    init = _init(plan, arm, cell, home, pool)
    run = out / cell.name / RUN
    request = FinetuneRequest(
        data, run, model=plan.model, init=init, imgsz=plan.imgsz, batch=plan.finetune.batch, lr=plan.finetune.lr,
        seed=cell.seed, freeze=plan.finetune.freeze, layer_decay=plan.finetune.layer_decay, precision=plan.finetune.precision,
        upright=plan.pretrain.upright, resume=(run / LAST).is_file(),
    )  # fmt: skip
    epochs = max(_FEWEST_EPOCHS, round(plan.finetune.steps / request.steps(labels)))
    request = replace(request, epochs=epochs)
    taught = _taught(plan, arm, request, home / f"_teacher-{cell.fraction:g}")
    if arm.pool:
        burn_in = None if taught else plan.finetune.burn_in
        request = replace(request, pool=pool, pool_ratio=plan.finetune.pool_ratio, burn_in=burn_in, teacher=taught)
    done = finetune(request)
    if done.accuracy is None:
        raise TrainingError(f"{data} has no held-out images")
    found = done.accuracy.as_dict()
    lineage = load_checkpoint(done.checkpoint).lineage
    return {
        "set": cell.set,
        "arm": cell.arm,
        "fraction": cell.fraction,
        "seed": cell.seed,
        "labels": labels,
        "others": len(everything.train),
        "seconds": round(sum(line["seconds"] for line in done.curve), 1),
        "ssl_seconds": _seconds(init[-1].parent) if arm.ssl else 0.0,
        **({"look_seconds": round(sum(line.get("looked_s", 0.0) for line in done.curve), 1)} if arm.pool else {}),
        **({key: int(lineage[key]) for key in LAST_LOOK} if arm.pool else {}),
        **(_of_teacher(taught) if taught else {}),
        **found,
    }


def _taught(plan: StudyPlan, arm: Arm, student: FinetuneRequest, home: Path) -> Path | None:
    """The arm's teacher, fine-tuned on the labels of its student and as long; shared by arms with the same one."""
    teacher = plan.teacher_of(arm)
    if teacher is None:
        return None
    start = Path(teacher.weights)
    settings = json.dumps([teacher.model, teacher.imgsz, sha256_of_file(start)])
    run = home.with_name(f"{home.name}-{hashlib.sha256(settings.encode()).hexdigest()[:8]}")
    if not (run / DETECTOR).is_file():
        resume = (run / LAST).is_file()
        finetune(replace(student, out=run, model=teacher.model, init=(start,), imgsz=teacher.imgsz, resume=resume))
    (run / LAST).unlink(missing_ok=True)
    return run / DETECTOR


def _of_teacher(path: Path) -> dict[str, float]:
    """What it cost, and its own accuracy on the held-out images."""
    lineage = load_checkpoint(path).lineage
    return {
        "teacher_seconds": _seconds(path.parent),
        **{f"teacher_{key}": float(lineage[HELD_OUT + key]) for key in ("map50_95", "f1")},
    }


def _seconds(run: Path) -> float:
    """That a run's epochs took, in all its starts."""
    lines = (run / LOG).read_text(encoding="utf-8").splitlines()
    return round(sum(float(json.loads(line)["seconds"]) for line in lines), 1)


def _split(spec: SetPlan, out: Path, labels: int, seed: int) -> Path:
    data = out / "data.yaml"
    return data if data.is_file() else split_dataset(Path(spec.folder), out, spec.group, labels, spec.val, seed)


def _unlabeled(spec: SetPlan, held_out: list[Path]) -> list[Path]:
    """The set's frames that never had labels."""
    if spec.unlabeled is None:
        return []
    hidden = grouped(held_out, spec.group)
    return [path for path in list_images(Path(spec.unlabeled)) if not grouped([path], spec.group).keys() & hidden.keys()]


def _pool(path: Path, images: list[Path], held_out: list[Path]) -> Path:
    """The images without their labels, and without those that show a held-out one; made once."""
    done = path.with_suffix(".done")
    if not done.is_file():
        with Pool.create(path, quota_bytes=_NO_QUOTA, evict=False) as pool:
            add_image_files(pool, images, "study", 0.0, 1.0)
            leaks = leaks_of(pool, held_out)
            for entry in pool.entries(with_embeddings=False):
                if entry.sha256 in leaks:
                    sys.stderr.write(f"left out of the pool, since it shows a held-out image: {leaks[entry.sha256].name}\n")
                    pool.remove(entry)
        done.touch()
    return path


def _init(plan: StudyPlan, arm: Arm, cell: Cell, home: Path, pool: Path) -> tuple[Path, ...]:
    """The weights of an arm, in the order of injection; self-supervision is shared by all fractions."""
    start = (Path(str(plan.weights)),) if arm.start == "coco" else ()
    if arm.weights:
        return (*start, plan.weights_of(arm, cell.set, cell.seed))
    if not arm.ssl:
        return start
    chosen = plan.pretrain_of(arm)
    learns_from = (*start, *([Path(chosen.teacher)] if chosen.teacher else []))
    settings = chosen.model_dump_json(exclude_defaults=True) + "".join(map(sha256_of_file, learns_from))
    digest = hashlib.sha256(settings.encode()).hexdigest()[:8]
    run = home / f"_ssl-{arm.start}-{chosen.method}-{chosen.part}-{digest}"
    result = run / RESULT[chosen.part]
    if not result.is_file():
        request = PretrainRequest(
            pool, run, model=plan.model, init=start[0] if start else None, imgsz=chosen.imgsz, batch=chosen.batch,
            epochs=chosen.epochs, lr=chosen.lr, seed=cell.seed,
            resume=(run / LAST).is_file(), method=chosen.method, part=chosen.part, upright=chosen.upright,
            teacher=Path(chosen.teacher) if chosen.teacher else None, teacher_model=chosen.teacher_model, precision=chosen.precision,
            anchor=chosen.anchor if start else 0.0, interpolate=chosen.interpolate, average=chosen.average,
        )  # fmt: skip
        pretrain(request)
    (run / LAST).unlink(missing_ok=True)
    return (*start, result)
