"""A grid of training runs: data sets × arms × label fractions × seeds, each with the same budget, and what it says.

study.yaml:

    model: yolo11n
    weights: weights/yolo11n_coco.pt      # what `coco` starts from
    imgsz: 224
    pretrain: {epochs: 30, batch: 16, imgsz: 224, method: cutpaste}
    finetune: {steps: 400, batch: 16, lr: 0.001}
    fractions: [0.05, 0.1, 0.25]
    seeds: [0, 1, 2]
    sets:
      neu_det: {folder: data/neu_det, group: '^(.*)$'}
    arms:
      scratch: {}
      coco: {start: coco}
      coco+ssl: {start: coco, ssl: true}
      coco+pool: {start: coco, pool: true}

Each seed splits a set anew; the labels of a smaller fraction are among those of a larger one. The pool is all images that
are not held out, without their labels, and without those that show a held-out image; `unlabeled` of a set adds a folder of
frames. A run that is there is not repeated; one that was killed goes on.
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from calibration.labels import grouped, load_dataset, split_dataset
from converters.architecture import MODEL_NAMES
from edge.errors import TrainingError
from edge.finetune import FinetuneRequest, finetune
from edge.leaks import leaks_of
from edge.pretrain import RESULT, PretrainRequest, check, most_of, pretrain
from edge.processes import Precision
from edge.run_folder import LAST
from edge.yolo import Part
from runtime.config_words import problem_of
from runtime.files import write_atomically
from runtime.images import list_images
from runtime.pool import Pool
from runtime.pool_import import add_image_file

RESULTS = "results.jsonl"
_NO_QUOTA = 2**50  # bytes
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_+.-]{0,63}$")]  # of folders
Fraction = Annotated[float, Field(gt=0, le=1)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class PretrainPlan(_Strict):
    """Budget and method of self-supervision; without `part`, the most that the method trains."""

    method: str = "cutpaste"
    part: Part
    epochs: int = Field(default=30, ge=1)
    batch: int = Field(default=16, ge=2)
    imgsz: int = Field(default=224, ge=32, multiple_of=32)
    lr: float = Field(default=1e-3, gt=0)
    upright: bool = False
    teacher: str | None = None
    anchor: float = Field(default=0.0, ge=0)
    interpolate: float = Field(default=1.0, gt=0, le=1)
    average: bool = False
    precision: Precision = "32-true"

    @model_validator(mode="before")
    @classmethod
    def _part_of_method(cls, plan: Any) -> Any:
        method = cls.model_fields["method"].default
        return {"part": most_of(plan.get("method", method)), **plan} if isinstance(plan, dict) else plan

    @model_validator(mode="after")
    def _goes_together(self) -> PretrainPlan:
        try:
            check(PretrainRequest(
                Path(), Path(), method=self.method, part=self.part, teacher=Path(self.teacher) if self.teacher else None,
                anchor=self.anchor, init=Path(), interpolate=self.interpolate,
            ))  # fmt: skip
        except TrainingError as error:
            raise ValueError(str(error)) from error
        return self


class FinetunePlan(_Strict):
    """Budget of fine-tuning: optimizer steps, the same for every fraction and arm."""

    steps: int = Field(default=400, ge=1)
    batch: int = Field(default=16, ge=1)
    lr: float = Field(default=1e-3, gt=0)
    layer_decay: float = Field(default=1.0, gt=0, le=1)
    freeze: float = Field(default=0.0, ge=0, le=1)
    precision: Precision = "32-true"
    pool_ratio: float = Field(default=1.0, gt=0)
    burn_in: float = Field(default=0.5, gt=0, lt=1)


class SetPlan(_Strict):
    """A labelled folder and what keeps its scenes together, see `split_dataset`.

    Attributes:
        unlabeled: a folder of more frames for the pool; those of scenes that are held out stay out.
    """

    folder: str
    unlabeled: str | None = None
    group: str = "^(.*)$"
    val: float = Field(default=0.2, gt=0, le=0.9)


class Arm(_Strict):
    """How a detector comes to be.

    Attributes:
        start: `scratch`, or `coco` for the study's weights.
        ssl: pretrained on the pool before; a mapping replaces what `pretrain` says.
        pool: the pool takes part in fine-tuning.
        weights: a checkpoint made elsewhere, `{set}` and `{seed}` filled in.
    """

    start: str = Field(default="scratch", pattern="^(scratch|coco)$")
    ssl: bool | dict[str, Any] = False
    pool: bool = False
    weights: str | None = None


class StudyPlan(_Strict):
    """The whole of study.yaml."""

    model: str = "yolo11n"
    weights: str | None = None
    imgsz: int = Field(default=224, ge=32, multiple_of=32)
    pretrain: PretrainPlan = Field(default_factory=lambda: PretrainPlan.model_validate({}))
    finetune: FinetunePlan = Field(default_factory=FinetunePlan)
    fractions: list[Fraction] = Field(min_length=1)
    seeds: list[Annotated[int, Field(ge=0)]] = Field(min_length=1)
    sets: dict[Name, SetPlan] = Field(min_length=1)
    arms: dict[Name, Arm] = Field(min_length=1)

    @model_validator(mode="after")
    def _has_weights(self) -> StudyPlan:
        if self.weights is None and any(arm.start == "coco" for arm in self.arms.values()):
            raise ValueError("an arm starts from coco, but `weights` names no checkpoint")
        for name, arm in self.arms.items():
            if isinstance(arm.ssl, dict):
                self.pretrain_of(arm)
            if arm.ssl and arm.weights:
                raise ValueError(f"arm {name} has both `ssl` and `weights`; it can have one")
        if len(set(self.seeds)) < len(self.seeds) or len(set(self.fractions)) < len(self.fractions):
            raise ValueError("a seed or a fraction is named twice")
        if self.model not in MODEL_NAMES:
            raise ValueError(f"unknown model {self.model!r}; known are {', '.join(MODEL_NAMES)}")
        return self

    def weights_of(self, arm: Arm, name: str, seed: int) -> Path:
        """The checkpoint that an arm with `weights` starts from."""
        return Path(str(arm.weights).replace("{set}", name).replace("{seed}", str(seed)))

    def resolved(self) -> dict[str, Any]:
        """The plan with each arm's own self-supervision spelt out, so that what an arm does not use can change."""
        plain = self.model_dump()
        plain["pretrain"] = {"upright": self.pretrain.upright}  # which self-training looks at as well
        for name, arm in self.arms.items():
            plain["arms"][name]["ssl"] = self.pretrain_of(arm).model_dump() if arm.ssl else False
        return plain

    def refuse_missing(self) -> None:
        """Looks for every file before the first run.

        Raises:
            TrainingError: some file or folder is not there.
            DataError: a group that does not fit the names.
        """
        wanted = [Path(self.weights)] if self.weights else []
        for arm in self.arms.values():
            teacher = self.pretrain_of(arm).teacher if arm.ssl else None
            wanted += [Path(teacher)] if teacher else []
            wanted += [self.weights_of(arm, name, seed) for name in self.sets for seed in self.seeds if arm.weights]
        missing = [str(path) for path in wanted if not path.is_file()]
        if missing:
            raise TrainingError(f"no such checkpoint: {', '.join(missing)}; correct the plan")
        for spec in self.sets.values():
            grouped(list_images(Path(spec.folder) / "images"), spec.group)
            if spec.unlabeled is not None:
                grouped(list_images(Path(spec.unlabeled)), spec.group)

    def pretrain_of(self, arm: Arm) -> PretrainPlan:
        """The arm's own self-supervision; part, teacher and anchor are not handed to another method."""
        changes = arm.ssl if isinstance(arm.ssl, dict) else {}
        other = changes.get("method", self.pretrain.method) != self.pretrain.method
        kept = self.pretrain.model_dump(exclude={"part", "teacher", "anchor"} if other else None)
        return PretrainPlan.model_validate({**kept, **changes})


@dataclass(frozen=True, slots=True)
class Cell:
    """One fine-tuning run of the grid."""

    set: str
    arm: str
    fraction: float
    seed: int

    @property
    def name(self) -> str:
        """Of its folder."""
        return f"{self.set}/seed{self.seed}/{self.arm}-{self.fraction:g}"


def load_plan(path: Path) -> StudyPlan:
    """Reads study.yaml.

    Raises:
        TrainingError: it cannot be read, or says something that is not understood.
    """
    try:
        return StudyPlan.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise TrainingError(f"{path} cannot be read as YAML: {error}; see docs/study.md for an example") from error
    except ValidationError as error:
        told = "; ".join(f"{'.'.join(map(str, item['loc']))}: {problem_of([item])}" for item in error.errors())
        raise TrainingError(f"{path}: {told}; see docs/study.md for an example") from error


def cells_of(plan: StudyPlan) -> Iterator[Cell]:
    """All runs, seed by seed, so that a study that is cut has every arm as often."""
    for seed in plan.seeds:
        for name in plan.sets:
            for fraction in plan.fractions:
                for arm in plan.arms:
                    yield Cell(name, arm, fraction, seed)


def study(plan: StudyPlan, out: Path) -> list[dict[str, Any]]:
    """Runs what is missing in `out`; returns one record a run (the cell, `map50_95`, `map50`, `f1`, `labels`).

    Raises:
        DataError, CheckpointError, TrainingError: as `pretrain` and `finetune` do.
    """
    plan.refuse_missing()
    out.mkdir(parents=True, exist_ok=True)
    same_plan(plan, out)
    cells = list(cells_of(plan))
    records = []
    for number, cell in enumerate(cells, 1):
        folder = out / cell.name
        path = folder / "result.json"
        if not path.is_file():
            sys.stderr.write(f"[{number}/{len(cells)}] {cell.name}\n")
            record = _run(plan, cell, out)
            write_atomically(path, (json.dumps(record) + "\n").encode())
            (folder / "run" / LAST).unlink(missing_ok=True)  # optimizer states of many would fill the disk
        records.append(json.loads(path.read_text(encoding="utf-8")))
        lines = "".join(json.dumps(record) + "\n" for record in records)
        write_atomically(out / RESULTS, lines.encode())
    return records


def same_plan(plan: StudyPlan, out: Path) -> None:
    """Writes the plan beside its results; a study may grow by sets, arms, fractions and seeds, not change what was run.

    Raises:
        TrainingError: `out` holds results of other budgets.
    """
    path = out / "study.json"
    resolved = plan.resolved()
    fixed = {key: value for key, value in resolved.items() if key not in ("sets", "arms", "fractions", "seeds")}
    if path.is_file():
        before = json.loads(path.read_text(encoding="utf-8"))
        changed = [key for key in fixed if before.get(key) != fixed[key]]
        changed += [f"sets.{name}" for name, each in resolved["sets"].items() if before["sets"].get(name, each) != each]
        for name, each in resolved["arms"].items():
            cells = [f"{name}-{fraction:g}" for fraction in before["fractions"]]
            has_run = any(any(out.glob(f"*/seed*/{cell}/result.json")) for cell in cells)
            if has_run and before["arms"].get(name, each) != each:
                changed.append(f"arms.{name}")
        if changed:
            raise TrainingError(f"{out} holds a study with other {', '.join(sorted(changed))}; choose another --out or name")
        kept = {kind: {**before.get(kind, {}), **resolved[kind]} for kind in ("sets", "arms")}
    else:
        kept = {}
    write_atomically(path, json.dumps({**resolved, **kept}, indent=2).encode())


def _run(plan: StudyPlan, cell: Cell, out: Path) -> dict[str, Any]:
    arm, spec = plan.arms[cell.arm], plan.sets[cell.set]
    home = out / cell.set / f"seed{cell.seed}"
    everything = load_dataset(_split(spec, home / "_all", 0, cell.seed))
    labels = max(2, round(cell.fraction * len(everything.train)))
    data = _split(spec, home / f"_labels-{cell.fraction:g}", labels, cell.seed)
    own, held_out = ([item.path for item in part] for part in (everything.train, everything.val))
    pool = _pool(home / "_pool", [*own, *_unlabeled(spec, held_out)], held_out)
    init = _init(plan, arm, cell, home, pool)
    steps_per_epoch = max(1, labels // plan.finetune.batch)
    fewest = 2 if any(each.pool for each in plan.arms.values()) else 1  # the same for all arms
    epochs = max(fewest, round(plan.finetune.steps / steps_per_epoch))
    run = out / cell.name / "run"
    began_s = time.monotonic()
    done = finetune(
        FinetuneRequest(
            data, run, plan.model, init, plan.imgsz, plan.finetune.batch, epochs,
            plan.finetune.lr, cell.seed, resume=(run / LAST).is_file(), pool=pool if arm.pool else None,
            pool_ratio=plan.finetune.pool_ratio, burn_in=plan.finetune.burn_in, upright=plan.pretrain.upright, freeze=plan.finetune.freeze,
            layer_decay=plan.finetune.layer_decay, precision=plan.finetune.precision,
        )
    )  # fmt: skip
    if done.accuracy is None:
        raise TrainingError(f"{data} has no held-out images")
    found = done.accuracy.as_dict()
    return {
        "set": cell.set,
        "arm": cell.arm,
        "fraction": cell.fraction,
        "seed": cell.seed,
        "labels": labels,
        "seconds": round(time.monotonic() - began_s, 1),
        **found,
    }


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
            for number, image in enumerate(images):
                add_image_file(pool, image, "study", float(number))
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
    digest = hashlib.sha256(chosen.model_dump_json().encode()).hexdigest()[:8]
    run = home / f"_ssl-{arm.start}-{chosen.method}-{chosen.part}-{digest}"
    result = run / RESULT[chosen.part]
    if not result.is_file():
        request = PretrainRequest(
            pool, run, plan.model, start[0] if start else None, chosen.imgsz, chosen.batch, chosen.epochs, chosen.lr, cell.seed,
            resume=(run / LAST).is_file(), method=chosen.method, part=chosen.part, upright=chosen.upright,
            teacher=Path(chosen.teacher) if chosen.teacher else None, precision=chosen.precision,
            anchor=chosen.anchor if start else 0.0, interpolate=chosen.interpolate if start else 1.0, average=chosen.average,
        )  # fmt: skip
        pretrain(request)
    (run / LAST).unlink(missing_ok=True)
    return (*start, result)
