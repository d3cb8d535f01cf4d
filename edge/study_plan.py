"""study.yaml: data sets × arms × label fractions × seeds, and the budget that all runs have; docs/study.md has an example."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic_core import ErrorDetails

from calibration.labels import grouped
from converters.architecture import MODEL_NAMES
from converters.checkpoint import load_checkpoint
from edge.errors import TrainingError
from edge.pretrain_request import PretrainRequest, check, most_of, usual_of
from edge.processes import Precision
from edge.yolo import Part
from runtime.config_words import problem_of
from runtime.errors import EdgeloopError
from runtime.images import list_images
from runtime.yaml_keys import duplicate_keys
from runtime.yaml_text import NotYamlError, parse_yaml

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_+.-]{0,63}$")]  # of folders
Fraction = Annotated[float, Field(gt=0, le=1)]
# With the limits that the commands have.
Epochs = Annotated[int, Field(ge=1, le=10**6, strict=True)]
Batch = Annotated[int, Field(ge=2, le=65536, strict=True)]
Side = Annotated[int, Field(ge=32, le=4096, multiple_of=32, strict=True)]
Rate = Annotated[float, Field(ge=1e-8, le=1)]
Seed = Annotated[int, Field(ge=0, le=2**31 - 1, strict=True)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class PretrainPlan(_Strict):
    """Budget and method of self-supervision; without `part`, the most that the method trains."""

    method: str = "cutpaste"
    part: Part
    epochs: Epochs = 30
    batch: Batch = 16
    imgsz: Side = 224
    lr: Rate = 1e-3
    upright: bool = False
    teacher: str | None = None
    teacher_model: str = ""
    anchor: float = Field(default=0.0, ge=0)
    interpolate: float = Field(default=1.0, gt=0, le=1)
    average: bool = False
    precision: Precision = "32-true"

    @model_validator(mode="before")
    @classmethod
    def _part_of_method(cls, plan: Any) -> Any:
        method = plan.get("method", cls.model_fields["method"].default) if isinstance(plan, dict) else None
        if not isinstance(plan, dict) or not isinstance(method, str):
            return plan
        try:
            return {"part": most_of(method), **plan}
        except TrainingError as error:
            raise ValueError(str(error)) from error

    @model_validator(mode="after")
    def _goes_together(self) -> PretrainPlan:
        try:
            check(PretrainRequest(
                Path(), Path(), method=self.method, part=self.part, teacher=Path(self.teacher) if self.teacher else None,
                teacher_model=self.teacher_model,
                anchor=self.anchor, init=Path(), interpolate=self.interpolate,
            ))  # fmt: skip
        except TrainingError as error:
            raise ValueError(_as_keys(error)) from error
        return self


class FinetunePlan(_Strict):
    """Budget of fine-tuning: optimizer steps, the same for every fraction and arm.

    Attributes:
        burn_in: of arms that are their own teacher; where one is given, frames take part from the first step on.
    """

    steps: int = Field(default=400, ge=1, le=10**8, strict=True)
    batch: Batch = 16
    lr: Rate = 1e-3
    layer_decay: float = Field(default=1.0, gt=0, le=1)
    freeze: float = Field(default=0.0, ge=0, le=1)
    precision: Precision = "32-true"
    pool_ratio: float = Field(default=1.0, ge=0.1, le=16)
    burn_in: float = Field(default=0.5, ge=0, le=0.95)


class SetPlan(_Strict):
    """A labelled folder and what keeps its scenes together, see `split_dataset`.

    Attributes:
        unlabeled: a folder of more frames for the pool; those of scenes that are held out stay out.
    """

    folder: str
    unlabeled: str | None = None
    group: str = "^(.*)$"
    val: float = Field(default=0.2, gt=0, le=0.9)


class TeacherPlan(_Strict):
    """A detector that is fine-tuned on an arm's labels, as long as the arms are, to label the pool for it.

    Attributes:
        imgsz: side of its pictures.
        model: architecture; None for the study's.
        weights: that it starts from; None for the study's, which are of the study's model.
    """

    imgsz: Side
    model: str | None = None
    weights: str | None = None


class Arm(_Strict):
    """How a detector comes to be.

    Attributes:
        start: `scratch`, or `coco` for the study's weights.
        ssl: pretrained on the pool before; a mapping replaces what `pretrain` says.
        pool: the pool takes part in fine-tuning.
        teacher: who labels the pool; None for the run's own average.
        weights: a checkpoint made elsewhere, `{set}` and `{seed}` filled in.
    """

    start: Literal["scratch", "coco"] = "scratch"
    ssl: bool | dict[str, Any] = False
    pool: bool = False
    teacher: TeacherPlan | None = None
    weights: str | None = None

    @field_validator("ssl", mode="before")
    @classmethod
    def _is_told(cls, ssl: Any) -> Any:
        if not isinstance(ssl, (bool, dict)):
            raise ValueError("expected true, false, or keys of `pretrain` with values")
        return ssl or ssl == {}  # a block that changes nothing of `pretrain`


class StudyPlan(_Strict):
    """The whole of study.yaml."""

    model: str = "yolo11n"
    weights: str | None = None
    imgsz: Side = 224
    pretrain: PretrainPlan = Field(default_factory=lambda: PretrainPlan.model_validate({}))
    finetune: FinetunePlan = Field(default_factory=FinetunePlan)
    fractions: list[Fraction] = Field(min_length=1)
    seeds: list[Seed] = Field(min_length=1)
    sets: dict[Name, SetPlan] = Field(min_length=1)
    arms: dict[Name, Arm] = Field(min_length=1)

    @model_validator(mode="after")
    def _has_weights(self) -> StudyPlan:
        if self.weights is None and any(arm.start == "coco" for arm in self.arms.values()):
            raise ValueError("an arm starts from coco, but `weights` names no checkpoint")
        for name, arm in self.arms.items():
            if isinstance(arm.ssl, dict):
                try:
                    self.pretrain_of(arm)
                except ValidationError as error:
                    raise ValueError(f"arms.{name}.ssl: {_problems(error)}") from error
            self._check_teacher(name, arm)
            if arm.ssl and arm.weights:
                raise ValueError(f"arm {name} has both `ssl` and `weights`; it can have one")
        for key, values in (("seeds", map(str, self.seeds)), ("fractions", map("{:g}".format, self.fractions))):
            if twice := [value for value, count in Counter(values).items() if count > 1]:
                raise ValueError(f"{key}: {', '.join(twice)} comes twice; name each once")
        _refuse_unknown(self.model)
        return self

    def _check_teacher(self, name: str, arm: Arm) -> None:
        try:
            teacher = self.teacher_of(arm)
            if teacher and not arm.pool:
                raise ValueError("its `teacher` labels nothing; add `pool: true`")
            if teacher:
                _refuse_unknown(teacher.model)
        except ValueError as error:
            raise ValueError(f"arm {name}: {error}") from error

    def weights_of(self, arm: Arm, name: str, seed: int) -> Path:
        """The checkpoint that an arm with `weights` starts from."""
        return Path(str(arm.weights).replace("{set}", name).replace("{seed}", str(seed)))

    def resolved(self) -> dict[str, Any]:
        """The plan with each arm's own self-supervision and weights spelt out, so that what an arm does not use can change."""
        plain = self.model_dump(exclude={"weights"})
        plain["pretrain"] = {"upright": self.pretrain.upright}  # which self-training looks at as well
        for name, arm in self.arms.items():
            plain["arms"][name]["ssl"] = self.pretrain_of(arm).model_dump() if arm.ssl else False
            plain["arms"][name]["from"] = self.weights if arm.start == "coco" else None
            plain["arms"][name]["teacher"] = asdict(teacher) if (teacher := self.teacher_of(arm)) else None
        return plain

    def files(self) -> list[Path]:
        """All checkpoints that the plan names, each once."""
        everywhere = [Path(self.weights)] if self.weights else []
        return list(dict.fromkeys([*everywhere, *(path for cell in cells_of(self) for path in self.files_of(cell))]))

    def files_of(self, cell: Cell) -> list[Path]:
        """The checkpoints that a run begins as or learns from."""
        arm = self.arms[cell.arm]
        teacher = self.teacher_of(arm)
        named = [
            self.weights if arm.start == "coco" else None,
            str(self.weights_of(arm, cell.set, cell.seed)) if arm.weights else None,
            teacher.weights if teacher else None,
            self.pretrain_of(arm).teacher if arm.ssl else None,
        ]
        return [Path(name) for name in named if name]

    def refuse_missing(self) -> None:
        """Looks for every file before the first run.

        Raises:
            TrainingError: some file or folder is not there, of another architecture, or of a part that does not fit; or a group
                does not fit the names.
            CheckpointError: weights that cannot be read.
        """
        missing = dict.fromkeys(str(path) for path in self.files() if not path.is_file())
        if missing:
            raise TrainingError(f"no such checkpoint: {', '.join(missing)}; correct the plan")
        wanted = [(Path(self.weights), self.model, "the plan")] if self.weights else []
        wanted += [
            (Path(each.weights), each.model, f"the teacher of arm {name}")
            for name, arm in self.arms.items()
            if (each := self.teacher_of(arm))
        ]
        replacing: set[Path] = set()  # what `start: coco` gave
        for arm in self.arms.values():
            paths = [self.weights_of(arm, name, seed) for name in self.sets for seed in self.seeds if arm.weights]
            wanted += [(path, self.model, "the plan") for path in paths]
            replacing |= set(paths) if arm.start == "coco" else set()
        for path, model, whose in dict.fromkeys(wanted):
            found = load_checkpoint(path)
            if found.model != model:
                raise TrainingError(f"{path} is of {found.model}, but the model of {whose} is {model}; correct one of them")
            if self.weights and path == Path(self.weights) and found.kind != "detector":
                raise TrainingError(f"`weights` is to name a whole detector, but {path} is a {found.kind}; give it to an arm")
            if found.kind == "detector" and path in replacing:
                raise TrainingError(
                    f"{path} is a whole detector, which leaves nothing of `start: coco`; take that out of its arm"
                )
        for name, spec in self.sets.items():
            with keys_told(f"sets.{name}"):
                grouped(list_images(Path(spec.folder) / "images"), spec.group)
                if spec.unlabeled is not None:
                    grouped(list_images(Path(spec.unlabeled)), spec.group)

    def teacher_of(self, arm: Arm) -> Teacher | None:
        """The arm's teacher; its model and weights are those of the study where it names none.

        Raises:
            ValueError: it has no weights to start from.
        """
        if arm.teacher is None:
            return None
        model = arm.teacher.model or self.model
        weights = arm.teacher.weights or (self.weights if model == self.model else None)
        if weights is None:
            raise ValueError("its teacher starts from nothing; name the teacher's `weights`")
        return Teacher(model, weights, arm.teacher.imgsz)

    def pretrain_of(self, arm: Arm) -> PretrainPlan:
        """The arm's own self-supervision; part, teacher and anchor are not handed to another method. What nobody named is as in
        `edge pretrain`.
        """
        changes = arm.ssl if isinstance(arm.ssl, dict) else {}
        method = changes.get("method", self.pretrain.method)
        own = {"part", "teacher", "teacher_model", "anchor"}
        kept = self.pretrain.model_dump(exclude=own if method != self.pretrain.method else None, exclude_unset=True)
        usual = dict(zip(("lr", "interpolate"), usual_of(method, "detector" if arm.start == "coco" else None), strict=True))
        return PretrainPlan.model_validate({**usual, **kept, **changes})


@contextmanager
def keys_told(place: str) -> Iterator[None]:
    """A refusal within is told as one of the plan: behind its place, and of keys instead of a command's flags.

    Raises:
        TrainingError: there was one.
    """
    try:
        yield
    except EdgeloopError as error:
        raise TrainingError(f"{place}: {_as_keys(error)}") from error


def _as_keys(error: EdgeloopError) -> str:
    """What a command says of its flags, of keys."""
    return re.sub(r"(?<![^\s('\"])--([a-z][a-z-]*)", lambda flag: flag[1].replace("-", "_"), str(error))


def _refuse_unknown(model: str) -> None:
    if model not in MODEL_NAMES:
        raise ValueError(f"unknown model {model!r}; known are {', '.join(MODEL_NAMES)}")


@dataclass(frozen=True, slots=True)
class Teacher:
    """A `TeacherPlan` with nothing left open."""

    model: str
    weights: str
    imgsz: int


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
        content, tree = parse_yaml(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no UTF-8 text"
        raise TrainingError(f"{path} cannot be read: {reason}; docs/study.md has an example") from error
    except NotYamlError as error:
        raise TrainingError(f"{path}{error.place}: not valid YAML: {error}; docs/study.md has an example") from error
    if twice := duplicate_keys(tree):
        told = "; ".join(
            f"line {each.line}: {'.'.join(each.path)} is there already in line {each.first_line}" for each in twice
        )
        raise TrainingError(f"{path}: {told}; a key may come once")
    try:
        return StudyPlan.model_validate(content)
    except ValidationError as error:
        raise TrainingError(f"{path}: {_problems(error)}; docs/study.md has an example") from error


def _problems(error: ValidationError) -> str:
    """All of them, each behind its place."""
    told = ((".".join(str(part) for part in item["loc"] if part != "[key]"), _problem(item)) for item in error.errors())
    return "; ".join(f"{place}: {problem}" if place else problem for place, problem in told)


def _problem(item: ErrorDetails) -> str:
    if item["type"] == "string_pattern_mismatch":
        return "expected letters, digits, - _ + and ., at most 64 of them, a letter or digit first"
    return problem_of([item])


def cells_of(plan: StudyPlan) -> Iterator[Cell]:
    """All runs, seed by seed, so that a study that is cut has every arm as often."""
    for seed in plan.seeds:
        for name in plan.sets:
            for fraction in plan.fractions:
                for arm in plan.arms:
                    yield Cell(name, arm, fraction, seed)
