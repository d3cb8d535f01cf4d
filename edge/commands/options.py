"""Options that several commands share."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

Imgsz = Annotated[int, typer.Option(help="Side of the square input in pixels, a multiple of 32.", min=32, max=4096)]
Epochs = Annotated[int, typer.Option(min=1, help="Passes over the data.")]
Batch = Annotated[int, typer.Option(min=2, help="Images a step.")]
Lr = Annotated[float, typer.Option(min=1e-8, max=1, help="Peak learning rate.")]
Upright = Annotated[bool, typer.Option("--upright", help="Scenes have an up and a down: no vertical flips.")]
MixedPrecision = Annotated[
    Literal["32-true", "bf16-mixed"],
    typer.Option(help="Of the arithmetic; mixed is faster on GPUs and CPUs with AVX-512 BF16."),
]
Workers = Annotated[int, typer.Option(min=0, max=256, help="Processes that make what is learnt from, beside the training.")]
ActivationCheckpointing = Annotated[
    bool,
    typer.Option(
        "--activation-checkpointing", help="Less memory, about two fifths more time, the same weights; also with --resume."
    ),
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
