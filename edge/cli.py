"""`edge`: one command a stage. Each imports its room only when it is called, so that `edge run` stays light."""

from __future__ import annotations

import json
import logging
import sys
import time
from pathlib import Path
from typing import Annotated, Literal, Optional

import typer

from runtime.cli import Program
from runtime.logs import LogForm

program = Program("edge", "Unlabeled frames → self-supervised YOLO → INT8 → camera → refresh: the whole loop.")
pool_program = typer.Typer(help="The frames worth keeping: add, look, check.", no_args_is_help=True)
program.app.add_typer(pool_program, name="pool")

Imgsz = Annotated[int, typer.Option(help="Side of the square input in pixels, a multiple of 32.", min=32, max=4096)]
Epochs = Annotated[int, typer.Option(min=1, help="Passes over the data.")]
Batch = Annotated[int, typer.Option(min=2, help="Images a step.")]
Lr = Annotated[float, typer.Option(min=1e-8, max=1, help="Peak learning rate.")]
Upright = Annotated[bool, typer.Option("--upright", help="Scenes have an up and a down: no vertical flips.")]
MixedPrecision = Annotated[
    Literal["32-true", "bf16-mixed"],
    typer.Option(help="Of the arithmetic; mixed is faster on GPUs and CPUs with AVX-512 BF16."),
]
Seed = Annotated[int, typer.Option(min=0, max=2**31 - 1, help="Of every random stream.")]
Model = Annotated[
    str,
    typer.Option(
        help="Architecture: yolov5, v8, v9, v10, yolo11, 12, 26 with their sizes; yolo11n-resnet18, yolo11s-resnet50, yolo11m-resnet101."
    ),
]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with the killed run in --out.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@program.app.command()
def run(
    config: Annotated[Path, typer.Option(help="edge.yaml; deploy/edge.yaml shows every key.")],
    log_format: Annotated[LogForm, typer.Option(help="Of the log on stderr: lines for people or for a collector.")] = "text",
    as_json: Json = False,
) -> None:
    """Runs the cameras of this device until they end or SIGTERM comes."""
    from runtime.config import load_config
    from runtime.daemon import Daemon
    from runtime.errors import DeviceLostError
    from runtime.logs import configure_logging
    from runtime.restart import restart_process
    from runtime.sources.uri import redacted_values

    configure_logging(log_format)
    loaded = load_config(config)
    resolved = json.dumps(redacted_values(loaded.model_dump(mode="json")))
    logging.getLogger(__name__).info("configuration: %s", resolved)
    daemon = Daemon(loaded, reread=lambda: load_config(config))
    try:
        summary = daemon.run()
    except DeviceLostError as error:
        restart_process(error)
        raise
    typer.echo(json.dumps(summary, indent=2) if as_json else _run_table(summary))
    if daemon.failed:
        raise typer.Exit(2)


@program.app.command()
def bench(
    bundle: Annotated[Path, typer.Argument(help="A bundle's folder.")],
    runs: Annotated[int, typer.Option(min=1, help="Inferences of each engine and precision.")] = 200,
    threads: Annotated[int, typer.Option(min=0, max=256, help="CPU threads; 0 for all that are usable.")] = 0,
    as_json: Json = False,
) -> None:
    """Latency percentiles of a bundle on this device; nothing is trimmed."""
    from runtime.bench import bench as measure
    from runtime.bundle import Bundle

    measured = measure(Bundle.open(bundle), runs, threads)
    if as_json:
        rows = [{"precision": key[0], "engine": key[1], **value.as_dict()} for key, value in measured.items()]
        typer.echo(json.dumps(rows, indent=2))
        return
    typer.echo(
        f"{'precision':10}{'engine':13}{'mean':>9}{'p50':>9}{'p90':>9}{'p99':>9}{'max':>9}  ms, {runs} runs each, interleaved"
    )
    for (precision, engine), row in measured.items():
        typer.echo(
            f"{precision:10}{engine:13}{row.mean_ms:9.2f}{row.p50_ms:9.2f}{row.p90_ms:9.2f}{row.p99_ms:9.2f}{row.max_ms:9.2f}"
        )


@program.app.command()
def doctor(as_json: Json = False) -> None:
    """What this machine has, what is missing, and how to get it."""
    from dataclasses import asdict

    from edge.doctor import examine

    found = examine()
    if as_json:
        typer.echo(json.dumps([asdict(item) for item in found], indent=2))
        return
    for item in found:
        typer.echo(f"{item.state:8}{item.what:18}{item.detail}")


@program.app.command()
def split(
    folder: Annotated[Path, typer.Argument(help="images/, labels/ and a data.yaml with names.")],
    out: Annotated[Path, typer.Option(help="Where data.yaml and the lists go.")],
    group: Annotated[str, typer.Option(help="Regular expression on file names; its first group is never split.")] = "^(.*)$",
    labels: Annotated[int, typer.Option(min=0, help="Training images that keep their labels; 0 for all.")] = 0,
    val: Annotated[float, typer.Option(min=0.01, max=0.9, help="Share of the images to hold out.")] = 0.2,
    seed: Seed = 0,
) -> None:
    """Splits a labelled folder by boards, photos or scenes, and writes a data.yaml."""
    from calibration.labels import load_dataset, split_dataset

    written = split_dataset(folder, out, group, labels, val, seed)
    dataset = load_dataset(written)
    typer.echo(f"{written}: {len(dataset.train)} to train on, {len(dataset.val)} held out, {len(dataset.names)} classes")


@program.app.command()
def pretrain(
    out: Annotated[Path, typer.Option(help="Run folder; backbone.pt, neck.pt or localizer.pt appears there.")],
    pool: Annotated[Optional[Path], typer.Option(help="Unlabeled frames.")] = None,
    shards: Annotated[
        str, typer.Option(help="Instead: where `edge pool export` wrote them; a folder, https:// or s3://.")
    ] = "",
    model: Model = "yolo11n",
    init: Annotated[Optional[Path], typer.Option(help="Weights to start from: COCO weights, or the last run's.")] = None,
    method: Annotated[
        str, typer.Option(help="dense, simclr, moco, vicreg, mae, rotation, jigsaw, hybrid, distill or cutpaste.")
    ] = "simclr",
    part: Annotated[
        Literal["backbone", "neck", "localizer"],
        typer.Option(help="What is trained: the backbone, the neck with it, or all but the head's classes (cutpaste)."),
    ] = "backbone",
    teacher: Annotated[Optional[Path], typer.Option(help="A larger detector's checkpoint, for distill.")] = None,
    imgsz: Imgsz = 128,
    batch: Batch = 64,
    chunk: Annotated[int, typer.Option(min=0, help="Images that fit the memory at once; 0 for the whole batch.")] = 0,
    epochs: Epochs = 10,
    lr: Lr = 1e-3,
    upright: Upright = False,
    anchor: Annotated[float, typer.Option(min=0, help="Weight of staying near --init, for dense and hybrid; 0: free.")] = 0.0,
    workers: Annotated[int, typer.Option(min=0, max=256, help="Processes that make views.")] = 0,
    precision: MixedPrecision = "32-true",
    seed: Seed = 0,
    resume: Resume = False,
) -> None:
    """Pretrains a YOLO on unlabeled frames, without labels."""
    from edge.errors import TrainingError
    from edge.pretrain import PretrainRequest
    from edge.pretrain import pretrain as start

    if (pool is None) == (not shards):
        raise TrainingError("name the frames with --pool, or with --shards, and not with both")
    request = PretrainRequest(
        pool or Path(), out, model, init, imgsz, batch, epochs, lr, seed, resume=resume, method=method, part=part, teacher=teacher,
        upright=upright, chunk=chunk, workers=workers, precision=precision, shards=shards, anchor=anchor,
    )  # fmt: skip
    typer.echo(str(start(request)))


@program.app.command()
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
    pool: Annotated[Optional[Path], typer.Option(help="Unlabeled frames that take part (self-training).")] = None,
    pool_share: Annotated[float, typer.Option(min=0.05, max=0.95, help="Of a batch's pictures that are such frames.")] = 0.5,
    burn_in: Annotated[float, typer.Option(min=0.05, max=0.95, help="Share of the epochs with labels alone before.")] = 0.5,
    upright: Upright = False,
    seed: Seed = 0,
    resume: Resume = False,
) -> None:
    """Fine-tunes a detector on few labels, with unlabeled frames beside them if there are some."""
    from edge.finetune import FinetuneRequest
    from edge.finetune import finetune as start

    request = FinetuneRequest(
        data, out, model, tuple(init or ()), imgsz, batch, epochs, lr, seed, freeze, layer_decay, precision, eval_every,
        resume=resume, pool=pool, pool_share=pool_share, burn_in=burn_in, upright=upright,
    )  # fmt: skip
    done = start(request)
    if done.accuracy:
        typer.echo(
            f"mAP50-95 {done.accuracy.map50_95:.3f}, F1 {done.accuracy.f1:.3f} on {done.accuracy.images} held-out images"
        )
    typer.echo(str(done.checkpoint))


@program.app.command()
def probe(
    data: Annotated[Path, typer.Option(help="data.yaml; classifiers learn on the boxes of `train`, `val` is asked.")],
    init: Annotated[list[Path], typer.Option(help="Weights to probe, in the order they are injected.")],
    model: Model = "yolo11n",
    part: Annotated[Literal["backbone", "neck"], typer.Option(help="Whose features.")] = "backbone",
    imgsz: Imgsz = 128,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Measures kNN and linear accuracy of frozen features on labelled boxes, beside those of fresh weights."""
    from edge.probe import ProbeRequest
    from edge.probe import probe as measure

    found = measure(ProbeRequest(data, tuple(init), model, part, imgsz, seed))
    if as_json:
        typer.echo(json.dumps({name: row.as_dict() for name, row in found.items()}, indent=2))
        return
    for name, row in found.items():
        low, high = row.linear_interval
        typer.echo(
            f"{name:14} kNN {row.knn:.3f}  linear {row.linear:.3f} ({low:.3f} to {high:.3f})  {row.val} boxes, {row.train} learnt"
        )


@program.app.command("check")
def check_pool_and_labels(
    pool: Annotated[Path, typer.Option(help="Unlabeled frames.")],
    data: Annotated[Path, typer.Option(help="data.yaml with `train` and `val`.")],
    init: Annotated[list[Path], typer.Option(help="Weights whose features are compared, in the order they are injected.")],
    reference: Annotated[Optional[Path], typer.Option(help="A pool of what the weights were trained on.")] = None,
    remove: Annotated[bool, typer.Option("--remove", help="Take frames that show held-out images out of the pool.")] = False,
    model: Model = "yolo11n",
    imgsz: Imgsz = 320,
    as_json: Json = False,
) -> None:
    """Says whether a pool shows what the labels show, and whether it gives away the held-out images."""
    from edge.transfer_check import CheckRequest, check_transfer

    found = check_transfer(CheckRequest(pool, data, tuple(init), model, imgsz=imgsz, reference=reference), remove=remove)
    if as_json:
        typer.echo(json.dumps(found.as_dict(), indent=2))
        return
    typer.echo(f"pool and labels are told apart in {100 * found.pool_from_labels:.0f} % (50: the same, 100: two worlds)")
    if found.pool_from_reference is not None:
        typer.echo(f"pool and reference are told apart in {100 * found.pool_from_reference:.0f} %")
    for frame, shown in list(found.leaks.items())[:20]:
        typer.echo(f"leak: {frame} shows {shown}")
    typer.echo("\n".join(found.verdict))


@program.app.command()
def embed(
    pool: Annotated[Path, typer.Option(help="The frames.")],
    plot: Annotated[Path, typer.Option(help="The HTML file to write.")],
    init: Annotated[
        Optional[list[Path]], typer.Option(help="A checkpoint to look with; each is shown by itself. None: fresh weights.")
    ] = None,
    model: Model = "yolo11n",
    part: Annotated[Literal["backbone", "neck"], typer.Option(help="Whose features.")] = "backbone",
    imgsz: Imgsz = 320,
    frames: Annotated[int, typer.Option(min=3, max=5000, help="How many at most, spread over the pool's time.")] = 400,
    seed: Seed = 0,
) -> None:
    """Draws a map of a pool as networks see it: one HTML file with thumbnails."""
    from edge.embed import EmbedRequest
    from edge.embed import embed as look
    from edge.embed_page import embed_page
    from runtime.files import write_atomically

    weights: dict[str, tuple[Path, ...]] = {"/".join(path.parts[-2:]): (path,) for path in init or ()}
    found = look(EmbedRequest(pool, weights or {"fresh weights": ()}, model, part, imgsz, frames, seed))
    write_atomically(plot, embed_page(found, seed).encode())
    typer.echo(f"{plot}: {len(found.names)} frames, {', '.join(found.vectors)}")


@program.app.command()
def study(
    plan: Annotated[Path, typer.Argument(help="study.yaml: sets, arms, fractions, seeds; docs/study.md has an example.")],
    out: Annotated[Path, typer.Option(help="Where runs and results go; a study that was cut goes on there.")],
) -> None:
    """Runs a grid of training arms with equal budgets; writes a table with intervals and a plot."""
    from edge.study import load_plan
    from edge.study import study as start
    from edge.study_report import plot, rows_of, table

    rows = rows_of(start(load_plan(plan), out))
    told = table(rows)
    (out / "table.md").write_text(told + "\n", encoding="utf-8")
    plot(rows, out / "plot.svg")
    typer.echo(told)


@program.app.command()
def evaluate(
    model: Annotated[Path, typer.Argument(help="A bundle's folder, or a detector's checkpoint.")],
    data: Annotated[Path, typer.Option(help="data.yaml; its `val` is evaluated.")],
    engine: Annotated[
        str, typer.Option(help="Of a bundle: auto, onnxruntime, openvino, onnxruntime-cuda, tensorrt or tensorrt-rtx.")
    ] = "auto",
    precision: Annotated[str, typer.Option(help="Of a bundle: auto, fp32 or int8.")] = "auto",
    report: Annotated[
        Optional[Path], typer.Option(help="An HTML file: classes, sizes, curve, confusions, worst images.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Accuracy of a bundle, as deployed, or of a checkpoint, on held-out labels."""
    from calibration.labels import load_dataset
    from edge.evaluation import evaluate_model
    from edge.evaluation_page import evaluation_page
    from runtime.files import write_atomically

    dataset = load_dataset(data)
    found = evaluate_model(model, dataset, engine, precision)
    whole = {**found.accuracy.as_dict(), **found.breakdown.as_dict()}
    typer.echo(json.dumps(whole, indent=2) if as_json else "\n".join(found.lines()))
    if report:
        report.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(report, evaluation_page(found, dataset.val, dataset.names, f"{model} on {data}").encode())


@program.app.command()
def refresh(
    bundles: Annotated[Path, typer.Option(help="Where releases live; `current` is refreshed.")],
    pool: Annotated[Path, typer.Option(help="Frames that the devices collected.")],
    data: Annotated[Path, typer.Option(help="The kept labelled set, data.yaml.")],
    backbone: Annotated[Path, typer.Option(help="The last self-supervised checkpoint.")],
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


@program.app.command()
def demo(
    data: Annotated[
        Optional[Path], typer.Option(help="A labelled folder (images/, labels/, data.yaml); none simulates a line.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Work folder; report.html appears there.")] = Path("work/demo"),
    group: Annotated[str, typer.Option(help="With --data: regular expression of what must not be split.")] = "^(.*)$",
    weights: Annotated[
        Optional[Path], typer.Option(help="Start both arms from these weights (e.g. COCO) instead of scratch.")
    ] = None,
    labels: Annotated[int, typer.Option(min=8, help="Labelled training images.")] = 80,
    seed: Seed = 0,
) -> None:
    """Runs the whole loop on this CPU and writes report.html."""
    from edge.demo.loop import DemoRequest
    from edge.demo.loop import demo as start

    typer.echo(start(DemoRequest(out, data, group, weights, labels, seed)))


@pool_program.command("add")
def pool_add(
    pool: Annotated[Path, typer.Argument(help="The pool; made if need be.")],
    images: Annotated[Path, typer.Argument(help="A folder of images.")],
    camera: Annotated[str, typer.Option(help="Name to file them under.")] = "import",
    quota_mb: Annotated[
        float, typer.Option(min=0.001, max=1e9, help="Hard limit of the pool in megabytes; a full pool refuses.")
    ] = 2147.483648,
) -> None:
    """Adds a folder of images; JPEG files keep their bytes."""
    from runtime.images import list_images
    from runtime.pool import Pool
    from runtime.pool_import import add_image_file
    from runtime.progress import Progress

    paths = list_images(images)
    now, added = time.time(), 0
    with Pool.create(pool, round(quota_mb * 1e6), evict=False) as opened, Progress("add", len(paths)) as progress:
        for number, path in enumerate(paths):
            added += add_image_file(opened, path, camera, now + number * 1e-3)
            progress.advance(path.name)
        typer.echo(
            f"{added} of {len(paths)} added, {len(paths) - added} were there; {len(opened)} frames, {opened.used_bytes / 1e6:.1f} MB"
        )


@pool_program.command("info")
def pool_info(pool: Annotated[Path, typer.Argument(help="The pool.")], as_json: Json = False) -> None:
    """How many frames, why, from when."""
    from collections import Counter

    from runtime.pool import Pool

    with Pool.open(pool) as opened:
        entries, used = opened.entries(), opened.used_bytes
    reasons, cameras = Counter(entry.reason for entry in entries), Counter(entry.camera for entry in entries)
    if as_json:
        typer.echo(json.dumps({"frames": len(entries), "bytes": used, "reasons": reasons, "cameras": cameras}, indent=2))
        return
    typer.echo(f"{len(entries)} frames, {used / 1e6:.1f} MB")
    typer.echo("reasons: " + ", ".join(f"{name} {count}" for name, count in reasons.most_common()))
    typer.echo("cameras: " + ", ".join(f"{name} {count}" for name, count in cameras.most_common()))


@pool_program.command("export")
def pool_export(
    pool: Annotated[Path, typer.Argument(help="The pool.")],
    out: Annotated[Path, typer.Argument(help="Where the shards go.")],
    per_shard: Annotated[int, typer.Option(min=1, help="Frames in each tar file.")] = 1000,
) -> None:
    """Writes a pool's frames as shards (tar files), for `edge pretrain --shards`."""
    from edge.shards import export_shards

    index = export_shards(pool, out, per_shard)
    typer.echo(f"{out}: {sum(shard.frames for shard in index.shards)} frames in {len(index.shards)} shards")


@pool_program.command("check")
def pool_check(
    pool: Annotated[Path, typer.Argument(help="The pool.")],
    repair: Annotated[bool, typer.Option("--repair", help="Remove damaged frames.")] = False,
) -> None:
    """Reads every frame and compares it with its name; exit code 2 if some are damaged and stay."""
    from runtime.pool import Pool

    opened = Pool.open(pool)
    damaged = list(opened.damaged())
    total = len(opened)
    opened.close()
    for _, error in damaged:
        sys.stderr.write(f"{error}\n")
    if repair and damaged:
        with Pool.create(pool) as writable:
            for entry, _ in damaged:
                writable.remove(entry)
    typer.echo(f"{total} frames, {len(damaged)} damaged{', removed' if repair and damaged else ''}")
    if damaged and not repair:
        raise typer.Exit(2)


def _run_table(summary: dict[str, object]) -> str:
    lines = []
    cameras, latency = summary["cameras"], summary["latency"]
    if isinstance(cameras, dict) and isinstance(latency, dict):
        for name, counts in cameras.items():
            dropped = ", ".join(f"{count} by {reason}" for reason, count in counts["dropped"].items())
            lines.append(f"camera {name}: {counts['read']} frames read, {counts['processed']} processed, dropped {dropped}")
        for stage, row in latency.items():
            lines.append(
                f"{stage:12} p50 {row['p50_ms']:8.2f}  p90 {row['p90_ms']:8.2f}  p99 {row['p99_ms']:8.2f}  max {row['max_ms']:8.2f} ms"
            )
    lines.append(
        f"{summary['frames_per_s']} frames/s, {summary['detections']} detections, {summary['collected']} collected, "
        f"{summary['resident_mb']} MB resident, {summary['precision']} on {summary['engine']}"
    )
    lost = {
        "results failed": "sink_results_failed",
        "results dropped": "sink_results_dropped",
        "frames not collected": "not_collected",
    }
    lines += [f"{summary[key]} {name}; see the log above" for name, key in lost.items() if summary[key]]
    return "\n".join(lines)


def main() -> None:
    """Entry point."""
    program.run()


if __name__ == "__main__":
    main()
