"""The frames worth keeping."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from edge.commands.options import Json

_QUOTA_MB = 2147.0  # about the daemon's 2 GiB


def add(
    pool: Annotated[Path, typer.Argument(help="The pool; made if need be.")],
    images: Annotated[Path, typer.Argument(help="A folder of images.")],
    camera: Annotated[str, typer.Option(help="Name to file them under.")] = "import",
    quota_mb: Annotated[
        float,
        typer.Option(min=0.001, max=1e9, help="Hard limit of the pool in megabytes; a full pool refuses."),
    ] = _QUOTA_MB,
) -> None:
    """Adds a folder of images; JPEG files keep their bytes. Damaged ones are left out and named; above 5 % it stops."""
    from collections import Counter

    from runtime.images import IMAGE_SUFFIXES, list_images
    from runtime.pool import Pool
    from runtime.pool_import import add_image_files

    paths = list_images(images)
    others = Counter(path.suffix for path in images.iterdir() if path.is_file()) - Counter(path.suffix for path in paths)
    if others:
        told = ", ".join(f"{count} {suffix or 'without ending'}" for suffix, count in others.most_common())
        sys.stderr.write(f"not looked at: {told}; images end in {', '.join(IMAGE_SUFFIXES)}\n")
    with Pool.create(pool, round(quota_mb * 1e6), evict=False) as opened:
        found = add_image_files(opened, paths, camera, time.time(), 1e-3)
        typer.echo(
            f"{found.added} of {len(paths)} added, {found.known} were there, {found.damaged} damaged; {len(opened)} frames, "
            f"{opened.used_bytes / 1e6:.1f} MB"
        )


def info(pool: Annotated[Path, typer.Argument(help="The pool.")], as_json: Json = False) -> None:
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


def export(
    pool: Annotated[Path, typer.Argument(help="The pool.")],
    out: Annotated[str, typer.Argument(help="The folder where the shards go.")],
    per_shard: Annotated[int, typer.Option(min=1, help="Frames in each tar file.")] = 1000,
) -> None:
    """Writes a pool's frames as shards (tar files), for `edge pretrain --shards`. Damaged ones are left out and named."""
    from edge.errors import TrainingError
    from edge.shard_export import export_shards

    if "://" in out:  # as a path it would become a folder `s3:` here
        raise TrainingError(f"shards are written to a folder, and {out} is an address; give a folder, then copy it there")
    index = export_shards(pool, Path(out), per_shard)
    typer.echo(f"{out}: {sum(shard.frames for shard in index.shards)} frames in {len(index.shards)} shards")


def check(
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
