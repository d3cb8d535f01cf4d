"""What makes a detector."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Optional

import typer

from edge.commands.options import (
    ActivationCheckpointing,
    Batch,
    Epochs,
    Imgsz,
    Lr,
    MixedPrecision,
    Model,
    Resume,
    Seed,
    Upright,
    Workers,
)


def split(
    folder: Annotated[Path, typer.Argument(help="images/, labels/ and a data.yaml with names.")],
    out: Annotated[Path, typer.Option(help="Where data.yaml and the lists go.")],
    group: Annotated[str, typer.Option(help="Regular expression on file names; its first group is never split.")] = "^(.*)$",
    labels: Annotated[int, typer.Option(min=0, help="Training images that keep their labels; 0 for all.")] = 0,
    val: Annotated[float, typer.Option(min=0.01, max=0.9, help="Share of the images to hold out.")] = 0.2,
    seed: Seed = 0,
) -> None:
    """Splits a labelled folder by boards, photos or scenes, and writes a data.yaml."""
    from calibration.labels import load_dataset, split_dataset, tell_unlabelled

    written = split_dataset(folder, out, group, labels, val, seed)
    dataset = load_dataset(written)
    tell_unlabelled(dataset)
    typer.echo(f"{written}: {len(dataset.train)} to train on, {len(dataset.val)} held out, {len(dataset.names)} classes")
    if len(dataset.train) < labels:
        typer.echo(f"--labels {labels} is more than there are: all {len(dataset.train)} keep theirs", err=True)
    shown = {
        side: {int(each) for item in part for each in item.class_id}
        for side, part in (("train", dataset.train), ("val", dataset.val))
    }
    if unseen := sorted(shown["val"] - shown["train"]):
        names = ", ".join(dataset.names[each] for each in unseen)
        typer.echo(f"held out, but never trained on: {names}; take another --group, more --labels or another --seed", err=True)


def pretrain(
    out: Annotated[Path, typer.Option(help="Run folder; backbone.pt, neck.pt or localizer.pt appears there.")],
    pool: Annotated[Optional[Path], typer.Option(help="Unlabeled frames.")] = None,
    shards: Annotated[
        str, typer.Option(help="Instead: where `edge pool export` wrote them; a folder, https:// or s3://.")
    ] = "",
    model: Model = "yolo11n",
    init: Annotated[Optional[Path], typer.Option(help="Weights to start from: COCO weights, or the last run's.")] = None,
    method: Annotated[
        str, typer.Option(help="cutpaste, dense, simclr, moco, vicreg, mae, rotation, jigsaw, hybrid or distill.")
    ] = "cutpaste",
    part: Annotated[
        Optional[Literal["backbone", "neck", "localizer"]],
        typer.Option(
            help="What is kept: the backbone, the neck with it, or all but the head's classes. Left out: the most that --method trains."
        ),
    ] = None,
    teacher: Annotated[
        Optional[Path],
        typer.Option(
            help="For distill: a larger detector's checkpoint, or the weights of --teacher-model (.safetensors, .pth)."
        ),
    ] = None,
    teacher_model: Annotated[
        str,
        typer.Option(help="timm's name of the model that --teacher holds, e.g. vit_small_patch14_dinov2; left out: a YOLO."),
    ] = "",
    imgsz: Imgsz = 320,
    batch: Batch = 16,
    chunk: Annotated[
        int,
        typer.Option(
            min=0,
            help="Images that fit the memory at once; 0: the whole batch. dense, hybrid and cutpaste then compare within a chunk only.",
        ),
    ] = 0,
    average: Annotated[
        bool, typer.Option("--average", help="Write the moving average of the weights, over about a tenth of the run.")
    ] = False,
    epochs: Epochs = 10,
    lr: Annotated[
        Optional[float],
        typer.Option(
            min=1e-8,
            max=1,
            help="Peak learning rate; left out: 0.001, 0.0003 where --init is a detector, 0.004 for distill without --init.",
        ),
    ] = None,
    upright: Upright = False,
    anchor: Annotated[
        float, typer.Option(min=0, max=1e6, help="Weight of staying near --init, for dense and hybrid; 0: free.")
    ] = 0.0,
    interpolate: Annotated[
        Optional[float],
        typer.Option(
            min=0.05,
            max=1,
            help="Share of what was learnt in what is written, the rest is --init's or fresh; left out: 0.5, and 1 where --init is a part.",
        ),
    ] = None,
    workers: Workers = 0,
    precision: MixedPrecision = "32-true",
    activation_checkpointing: ActivationCheckpointing = False,
    seed: Seed = 0,
    resume: Resume = False,
) -> None:
    """Pretrains a YOLO on unlabeled frames, without labels."""
    from converters.checkpoint import load_checkpoint
    from edge.errors import TrainingError
    from edge.pretrain import pretrain as start
    from edge.pretrain_request import PretrainRequest, most_of, usual_of
    from edge.processes import is_first

    if (pool is None) == (not shards):
        raise TrainingError("name the frames with --pool, or with --shards, and not with both")
    usual_lr, usual_share = usual_of(method, load_checkpoint(init).kind if init else None)
    request = PretrainRequest(
        pool or Path(), out, model=model, init=init, imgsz=imgsz, batch=batch, epochs=epochs, lr=lr or usual_lr, seed=seed, resume=resume,
        method=method, part=part or most_of(method), teacher=teacher,
        upright=upright, chunk=chunk, workers=workers, precision=precision, shards=shards, anchor=anchor,
        interpolate=interpolate or usual_share, average=average, activation_checkpointing=activation_checkpointing, teacher_model=teacher_model,
    )  # fmt: skip
    path = start(request)
    if is_first():
        typer.echo(str(path))


def finetune(
    data: Annotated[Path, typer.Option(help="data.yaml with names, train and val.")],
    out: Annotated[Path, typer.Option(help="Run folder; detector.pt appears there.")],
    model: Model = "yolo11n",
    init: Annotated[
        Optional[list[Path]], typer.Option(help="Weights to start from, in order: a detector, then a backbone.")
    ] = None,
    imgsz: Imgsz = 640,
    batch: Batch = 16,
    epochs: Epochs = 50,
    lr: Lr = 1e-3,
    eval_every: Annotated[int, typer.Option(min=0, help="Epochs between evaluations; 0 for the last only.")] = 0,
    freeze: Annotated[
        float, typer.Option(min=0, max=1, help="Share of the epochs in which the backbone stays as it is; 1 for all.")
    ] = 0.0,
    layer_decay: Annotated[
        float, typer.Option(min=0.1, max=1, help="Learning rate of a layer over the next one's; 1: the same in all.")
    ] = 1.0,
    precision: MixedPrecision = "32-true",
    activation_checkpointing: ActivationCheckpointing = False,
    pool: Annotated[Optional[Path], typer.Option(help="Unlabeled frames that take part (self-training).")] = None,
    pool_ratio: Annotated[float, typer.Option(min=0.1, max=16, help="Such frames in a step for each labelled image.")] = 1.0,
    burn_in: Annotated[
        Optional[float],
        typer.Option(
            min=0, max=0.95, help="Share of the epochs with labels alone before; left out: 0.5, and 0 with --teacher."
        ),
    ] = None,
    teacher: Annotated[
        Optional[Path],
        typer.Option(
            help="Who labels --pool: a detector tuned on the same labels, larger or at a larger --imgsz; left out: the run itself."
        ),
    ] = None,
    upright: Upright = False,
    workers: Workers = 0,
    seed: Seed = 0,
    resume: Resume = False,
) -> None:
    """Fine-tunes a detector on few labels, with unlabeled frames beside them if there are some."""
    from calibration.labels import load_dataset, tell_unlabelled
    from edge.errors import TrainingError
    from edge.finetune import finetune as start
    from edge.finetune_request import FinetuneRequest

    if pool is None and (pool_ratio, burn_in) != (1.0, None):
        raise TrainingError("--pool-ratio and --burn-in say how --pool takes part; give it as well, or leave them out")
    request = FinetuneRequest(
        data, out, model=model, init=tuple(init or ()), imgsz=imgsz, batch=batch, epochs=epochs, lr=lr, seed=seed, freeze=freeze,
        layer_decay=layer_decay, precision=precision, eval_every=eval_every, resume=resume,
        pool=pool, pool_ratio=pool_ratio, burn_in=burn_in, teacher=teacher, upright=upright,
        activation_checkpointing=activation_checkpointing, workers=workers,
    )  # fmt: skip
    tell_unlabelled(load_dataset(data))
    done = start(request)
    if done.accuracy:
        typer.echo(
            f"mAP50-95 {done.accuracy.map50_95:.3f}, F1 {done.accuracy.f1:.3f} on {done.accuracy.images} held-out images"
        )
    typer.echo(str(done.checkpoint))


def study(
    plan: Annotated[Path, typer.Argument(help="study.yaml: sets, arms, fractions, seeds; docs/study.md has an example.")],
    out: Annotated[Path, typer.Option(help="Where runs and results go; a study that was cut goes on there.")],
) -> None:
    """Runs a grid of training arms with equal budgets; writes a table with intervals and a plot."""
    from edge.study import study as start
    from edge.study_plan import load_plan
    from edge.study_report import plot, rows_of, summary

    wanted = load_plan(plan)
    records = start(wanted, out)
    plot(rows_of(records, wanted.fractions), out / "plot.svg")
    typer.echo(summary(records, wanted.fractions))


def refresh(
    bundles: Annotated[Path, typer.Option(help="Where releases live; `current` is refreshed.")],
    pool: Annotated[Path, typer.Option(help="Frames that the devices collected.")],
    data: Annotated[Path, typer.Option(help="The kept labelled set, data.yaml.")],
    backbone: Annotated[Path, typer.Option(help="The last self-supervised checkpoint, trained further as it was trained.")],
    detector: Annotated[Path, typer.Option(help="Checkpoint of the released detector.")],
    out: Annotated[Path, typer.Option(help="Work folder; a killed refresh goes on there.")],
    model: Model = "yolo11n",
    pretrain_epochs: Epochs = 5,
    tune_epochs: Epochs = 20,
    imgsz: Annotated[int, typer.Option(min=0, max=4096, help="Input side in pixels; 0 for the released one.")] = 0,
    batch: Batch = 16,
    lr: Lr = 1e-3,
    seed: Seed = 0,
) -> None:
    """Learns from the pool without labels, proves the result is not worse, releases it, or changes nothing."""
    from edge.refresh.steps import RefreshRequest
    from edge.refresh.steps import refresh as start

    request = RefreshRequest(
        bundles, pool, data, backbone, detector, out, model, pretrain_epochs, tune_epochs, imgsz, batch=batch, lr=lr, seed=seed
    )
    done = start(request)
    word = "published" if done.verdict.publish else "kept the released model"
    typer.echo(f"{word}: {done.verdict.reason} ({done.bundle})")
