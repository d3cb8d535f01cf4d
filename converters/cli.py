"""`edge-convert`: from a checkpoint to a bundle."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from runtime.cli import Program

program = Program("edge-convert", "Converts a YOLO checkpoint to a bundle: FP32 and INT8 ONNX, measured against each other.")


@program.app.command()
def convert_command(
    checkpoint: Annotated[Path, typer.Argument(help="Our checkpoint, or an Ultralytics state dict.", metavar="CKPT")],
    out: Annotated[Optional[Path], typer.Option(help="The bundle's folder; must not exist yet.", metavar="BUNDLE")] = None,
    release_to: Annotated[
        Optional[Path],
        typer.Option("--release", help="Write BUNDLES/<digest> and move BUNDLES/current there.", metavar="BUNDLES"),
    ] = None,
    pool: Annotated[Optional[Path], typer.Option(help="Pool to draw calibration frames from; without it, FP32 only.")] = None,
    imgsz: Annotated[
        Optional[int], typer.Option(help="Side of the square input in pixels, a multiple of 32.", min=32, max=4096)
    ] = None,
    model: Annotated[
        Optional[str], typer.Option(help="Architecture, e.g. yolo11n; found from the shapes if not given.")
    ] = None,
    names: Annotated[Optional[str], typer.Option(help="Class names, comma-separated, for weights that carry none.")] = None,
    conf: Annotated[float, typer.Option(help="Confidence threshold of the release.", min=0, max=1)] = 0.25,
    iou: Annotated[float, typer.Option(help="IoU above which two boxes of a class are one.", min=0, max=1)] = 0.7,
    frames: Annotated[int, typer.Option(help="How many pool frames calibrate.", min=1, max=4096)] = 64,
    seed: Annotated[int, typer.Option(help="Seed of the draw.", min=0, max=2**31 - 1)] = 0,
) -> None:
    """Writes a bundle and prints how far INT8 is from FP32 on every engine of this device."""
    from converters.convert import ConvertRequest, convert, release, to_stderr  # torch and onnx: only once it is certain

    if (out is None) == (release_to is None):
        raise typer.BadParameter("name one of --out BUNDLE and --release BUNDLES")
    if names is not None and (not all(names.split(",")) or len(set(names.split(","))) < len(names.split(","))):
        raise typer.BadParameter(f"--names {names!r} has empty or equal names; name each class once")
    request = ConvertRequest(
        checkpoint, pool, imgsz, model, tuple(names.split(",")) if names else None, conf, iou, frames, seed
    )
    bundle = convert(request, out, to_stderr) if out is not None else release(request, release_to or Path(), to_stderr)
    typer.echo(f"{bundle.path} {bundle.digest[:16]}")


def main() -> None:
    """Entry point."""
    program.run()


if __name__ == "__main__":
    main()
