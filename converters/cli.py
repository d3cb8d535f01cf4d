"""`edge-convert`: from a model to a bundle, and everything that is done to a bundle before it is deployed."""

from __future__ import annotations

import json
import resource
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from runtime.cli import Program

if TYPE_CHECKING:
    from runtime.bundle import Bundle
    from runtime.manifest import Manifest

program = Program(
    "edge-convert",
    "Converts a YOLO to a bundle: FP32 and INT8 ONNX, measured against each other.\n\n"
    "edge-convert MODEL --pool POOL --out BUNDLE is short for edge-convert convert …, whose --help lists all options.",
    default="convert",
)
NOT_INT8 = 3  # exit code: --require-int8, and INT8 is not what this device should run

BundleArgument = Annotated[Path, typer.Argument(help="A bundle's folder, or a `current` link to one.", metavar="BUNDLE")]
TrustKey = Annotated[
    Optional[Path], typer.Option(help="Public key (PEM); the bundle must be signed by its owner.", metavar="KEY")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")]


@program.app.command("convert")
def convert_command(
    checkpoint: Annotated[
        Path,
        typer.Argument(help="Our checkpoint, a state dict, an Ultralytics .pt or .yaml, or a plain .onnx.", metavar="MODEL"),
    ],
    out: Annotated[Optional[Path], typer.Option(help="The bundle's folder; must not exist yet.", metavar="BUNDLE")] = None,
    release_to: Annotated[
        Optional[Path],
        typer.Option("--release", help="Write BUNDLES/<digest> and move BUNDLES/current there.", metavar="BUNDLES"),
    ] = None,
    pool: Annotated[Optional[Path], typer.Option(help="Pool to draw calibration frames from; without it, no INT8.")] = None,
    data: Annotated[Optional[Path], typer.Option(help="data.yaml whose `val` images the gate measures F1 and mAP on.")] = None,
    target: Annotated[str, typer.Option(help="auto (this device), cpu, tensorrt, jetson-orin or rtx.")] = "auto",
    precision: Annotated[str, typer.Option(help="auto (all that make sense), fp32, fp16 or int8.")] = "auto",
    require_int8: Annotated[bool, typer.Option("--require-int8", help="Exit with 3 unless INT8 holds and pays.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only tell what would be done, with sizes and time.")] = False,
    as_json: AsJson = False,
    imgsz: Annotated[
        Optional[int], typer.Option(help="Side of the square input in pixels, a multiple of 32.", min=32, max=4096)
    ] = None,
    batch: Annotated[int, typer.Option(help="Largest static batch; its files are made and gated too.", min=1, max=64)] = 1,
    model: Annotated[
        Optional[str], typer.Option(help="Architecture, e.g. yolo11n; found from the shapes if not given.")
    ] = None,
    head: Annotated[Optional[str], typer.Option(help="Layout of a plain ONNX's output; recognised if not given.")] = None,
    names: Annotated[Optional[str], typer.Option(help="Class names, comma-separated, for models that carry none.")] = None,
    trust_pickle: Annotated[
        bool, typer.Option("--trust-pickle", help="Load a .pt that needs its own code to load: it may do anything.")
    ] = False,
    conf: Annotated[float, typer.Option(help="Confidence threshold of the release.", min=0, max=1)] = 0.25,
    iou: Annotated[float, typer.Option(help="IoU above which two boxes of a class are one.", min=0, max=1)] = 0.7,
    frames: Annotated[
        Optional[int], typer.Option(help="How many pool frames calibrate (128, or all there are).", min=1, max=4096)
    ] = None,
    gate_frames: Annotated[int, typer.Option(help="How many frames the gate measures on, at most.", min=1, max=100_000)] = 128,
    sampler: Annotated[Optional[str], typer.Option(help="first-n, random, time-spread, k-center or typicality.")] = None,
    calibration: Annotated[
        Optional[Path], typer.Option(help="Take the calibration frames of this bundle again.", metavar="BUNDLE")
    ] = None,
    pictures: Annotated[
        bool, typer.Option("--pictures/--no-pictures", help="Show frames where INT8 differs most in report.html.")
    ] = True,
    seed: Annotated[int, typer.Option(help="Seed of the draw.", min=0, max=2**31 - 1)] = 0,
) -> None:
    """Writes a bundle and tells how far each file is from FP32 on every engine of this device."""
    from calibration.sampler import DEFAULT_SAMPLER
    from converters.request import TARGETS, WANTED, ConvertRequest, plan_of

    _refuse_contradictions(target, precision, pool, require_int8=require_int8)
    if (out is None) == (release_to is None) and not dry_run:
        raise typer.BadParameter("name one of --out BUNDLE and --release BUNDLES")
    request = ConvertRequest(
        checkpoint, pool, imgsz, model, _class_names(names), conf, iou, frames, seed, data=data,
        target=next(name for name in TARGETS if name == target), precision=next(name for name in WANTED if name == precision),
        sampler=sampler or DEFAULT_SAMPLER, gate_frames=gate_frames, batch=batch, head=head, trust_pickle=trust_pickle,
        calibration=calibration, pictures=pictures,
    )  # fmt: skip
    plan_of(request)  # refuses what cannot be done
    if dry_run:
        from converters.dry_run import estimate  # onnx, and torch: only once it is certain

        _tell(estimate(request), as_json)
        return
    from converters.convert import convert, release, to_stderr  # as above

    start = time.monotonic()
    bundle = convert(request, out, to_stderr) if out is not None else release(request, release_to or Path(), to_stderr)
    seconds = round(time.monotonic() - start, 1)
    typer.echo(json.dumps(_result(bundle, seconds), indent=2) if as_json else f"{bundle.path} {bundle.digest[:16]}")
    if require_int8 and not _serves_int8(bundle.manifest, target):
        sys.stderr.write(f"edge-convert: --require-int8, but {bundle.manifest.preferred.reason}\n")
        raise typer.Exit(NOT_INT8)


@program.app.command()
def build(
    path: BundleArgument,
    pool: Annotated[Optional[Path], typer.Option(help="Pool whose frames the gate measures on, here.")] = None,
    data: Annotated[Optional[Path], typer.Option(help="data.yaml whose `val` images the gate measures on, here.")] = None,
    compute_capability: Annotated[
        Optional[list[str]], typer.Option(help="Build for another GPU with TensorRT-RTX, like SM86; may be repeated.")
    ] = None,
    gate_frames: Annotated[int, typer.Option(help="How many frames the gate measures on, at most.", min=1, max=100_000)] = 128,
    trust_key: TrustKey = None,
    as_json: AsJson = False,
) -> None:
    """Measures here what was measured elsewhere and builds this device's engines into its cache."""
    from converters.build import BuildRequest
    from converters.build import build as start
    from converters.errors import ConversionError
    from converters.examine import row_line

    targets = tuple(name.upper().replace("_", "") for name in compute_capability or ())  # sm_86, as nvcc writes it
    request = BuildRequest(path, pool, data, targets, gate_frames, trust_key=trust_key)
    outcome = start(request, lambda line: typer.echo(line, err=True))
    told = {"bundle": str(path), **outcome.told}
    if outcome.verdict and not as_json:
        told["measurements"] = [row_line(row) for row in outcome.verdict.parity]
    _tell({key: value for key, value in told.items() if as_json or value}, as_json)
    if outcome.refusal:
        raise ConversionError(outcome.refusal)


@program.app.command()
def sign(
    path: BundleArgument,
    key: Annotated[Path, typer.Option(help="Private Ed25519 key (PEM), as `openssl genpkey -algorithm ed25519` makes it.")],
    as_json: AsJson = False,
) -> None:
    """Signs a bundle; a daemon with `trust_key` takes no other."""
    from runtime.signature import sign_bundle

    _tell({"bundle": str(path), "signed by key": sign_bundle(path, key).key_id}, as_json)


@program.app.command()
def inspect(path: BundleArgument, as_json: AsJson = False) -> None:
    """Tells what is in a bundle and what was measured."""
    from converters.examine import describe
    from runtime.bundle import Bundle

    _tell(describe(Bundle.open(path)), as_json)


@program.app.command()
def verify(
    path: BundleArgument,
    trust_key: TrustKey = None,
    as_json: AsJson = False,
) -> None:
    """Checks hashes, signature, graphs and calibration; exit code 2 and one sentence if something is wrong."""
    from converters.examine import verify_bundle

    _tell(verify_bundle(path, trust_key), as_json)


@program.app.command()
def diff(
    one: Annotated[Path, typer.Argument(help="A bundle.", metavar="A")],
    other: Annotated[Path, typer.Argument(help="Another one.", metavar="B")],
    as_json: AsJson = False,
) -> None:
    """Tells in what two bundles differ."""
    from converters.examine import differences
    from runtime.bundle import Bundle

    _tell(differences(Bundle.open(one), Bundle.open(other)), as_json)


def _refuse_contradictions(target: str, precision: str, pool: Path | None, *, require_int8: bool) -> None:
    from converters.request import TARGETS, WANTED

    if target not in TARGETS:
        raise typer.BadParameter(f"--target {target!r} is unknown; the targets are {', '.join(TARGETS)}")
    if precision not in WANTED:
        raise typer.BadParameter(f"--precision {precision!r} is unknown; the precisions are {', '.join(WANTED)}")
    if require_int8 and (pool is None or precision in ("fp32", "fp16")):
        raise typer.BadParameter("--require-int8 needs --pool POOL, and --precision auto or int8")


def _result(bundle: Bundle, seconds: float) -> dict[str, Any]:
    """What `--json` prints of a conversion."""
    return {
        "bundle": str(bundle.path), "digest": bundle.digest, "preferred": bundle.manifest.preferred.model_dump(),
        "parity": [row.model_dump() for row in bundle.manifest.parity],
        "files": {name: (bundle.path / name).stat().st_size for name in bundle.manifest.files},
        "seconds": seconds, "peak_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
    }  # fmt: skip


def _serves_int8(manifest: Manifest, target: str) -> bool:
    """Whether this device should run INT8; for a GPU target, whether its INT8 file held under the proxy."""
    if target in ("auto", "cpu"):
        return manifest.preferred.precision == "int8"
    rows = (row for row in manifest.parity if row.precision == "int8" and row.form in ("tensorrt", "tensorrt-strong"))
    return any(not row.refused for row in rows)


def _class_names(text: str | None) -> tuple[str, ...] | None:
    if text is None:
        return None
    found = tuple(text.split(","))
    if not all(found) or len(set(found)) < len(found):
        raise typer.BadParameter(f"--names {text!r} has empty or equal names; name each class once")
    return found


def _tell(content: dict[str, Any], as_json: bool) -> None:
    """A mapping as JSON, or as lines `key: value`, lists one a line."""
    if as_json:
        typer.echo(json.dumps(content, indent=2))
        return
    for key, value in content.items():
        if isinstance(value, list):
            typer.echo(f"{key}:" if value else f"{key}: none")
            for item in value:
                typer.echo(f"  {item}")
        else:
            typer.echo(f"{key}: {value}")


def main() -> None:
    """Entry point."""
    program.run()


if __name__ == "__main__":
    main()
