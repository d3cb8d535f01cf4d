"""What tells how good weights, detectors and data are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal, Optional

import typer

from edge.commands.options import Imgsz, Json, Model, Seed


def probe(
    data: Annotated[
        Path,
        typer.Option(
            help="data.yaml; classifiers learn on the boxes of `train`, `val` is asked. Or a folder with train/CLASS/ and val/CLASS/."
        ),
    ],
    init: Annotated[list[Path], typer.Option(help="Weights to probe, in the order they are injected.")],
    model: Model = "yolo11n",
    part: Annotated[Literal["backbone", "neck"], typer.Option(help="Whose features.")] = "backbone",
    imgsz: Imgsz = 128,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Measures kNN and linear accuracy of frozen features on labelled boxes or images, beside those of fresh weights."""
    from edge.probe import ProbeRequest
    from edge.probe import probe as measure

    found = measure(ProbeRequest(data, tuple(init), model, part, imgsz, seed))
    if as_json:
        typer.echo(json.dumps({name: row.as_dict() for name, row in found.items()}, indent=2))
        return
    for name, row in found.items():
        low, high = row.linear_interval
        typer.echo(
            f"{name:14} kNN {row.knn:.3f}  linear {row.linear:.3f} ({low:.3f} to {high:.3f})  {row.val} asked, {row.train} learnt"
        )


def check(
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
    if found.labels_from_reference is not None:
        typer.echo(f"labels and reference are told apart in {100 * found.labels_from_reference:.0f} %")
    for frame, shown in list(found.leaks.items())[:20]:
        typer.echo(f"leak: {frame} shows {shown}")
    typer.echo("\n".join(found.verdict))


def embed(
    pool: Annotated[Path, typer.Option(help="The frames.")],
    plot: Annotated[Path, typer.Option(help="The HTML file to write.", dir_okay=False, writable=True)],
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
    from edge.run_folder import refuse_unwritable
    from runtime.files import write_atomically

    refuse_unwritable(plot.parent)
    weights: dict[str, tuple[Path, ...]] = {title: (path,) for title, path in _titles(init or []).items()}
    found = look(EmbedRequest(pool, weights or {"fresh weights": ()}, model, part, imgsz, frames, seed))
    plot.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(plot, embed_page(found, seed).encode())
    typer.echo(f"{plot}: {len(found.names)} frames, {', '.join(found.vectors)}")


def _titles(paths: list[Path]) -> dict[str, Path]:
    """As little of each path's end as tells them apart, two parts at least."""
    absolute = dict.fromkeys(path.absolute() for path in paths)
    length = 2
    while len({path.parts[-length:] for path in absolute}) < len(absolute):
        length += 1
    return {"/".join(path.parts[-length:]): path for path in absolute}


def evaluate(
    model: Annotated[Path, typer.Argument(help="A bundle's folder, or a detector's checkpoint.")],
    data: Annotated[Path, typer.Option(help="data.yaml; its `val` is evaluated.")],
    engine: Annotated[
        str, typer.Option(help="Of a bundle: auto, onnxruntime, openvino, onnxruntime-cuda, tensorrt or tensorrt-rtx.")
    ] = "auto",
    precision: Annotated[str, typer.Option(help="Of a bundle: auto, fp32 or int8.")] = "auto",
    report: Annotated[
        Optional[Path],
        typer.Option(help="An HTML file: classes, sizes, curve, confusions, worst images.", dir_okay=False, writable=True),
    ] = None,
    as_json: Json = False,
) -> None:
    """Accuracy of a bundle, as deployed, or of a checkpoint, on held-out labels."""
    from calibration.labels import load_held_out, tell_unlabelled
    from edge.evaluation import evaluate_model
    from edge.evaluation_page import evaluation_page
    from edge.run_folder import refuse_unwritable
    from runtime.files import write_atomically

    if report:
        refuse_unwritable(report.parent)
    dataset = load_held_out(data)
    tell_unlabelled(dataset)
    found = evaluate_model(model, dataset, engine, precision)
    whole = {**found.accuracy.as_dict(), **found.breakdown.as_dict()}
    typer.echo(json.dumps(whole, indent=2) if as_json else "\n".join(found.lines()))
    if report:
        report.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(report, evaluation_page(found, dataset.val, dataset.names, f"{model} on {data}").encode())
