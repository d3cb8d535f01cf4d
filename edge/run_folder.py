"""The folder of a training run: whether a run can start there or go on, one process at a time."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from edge.errors import TrainingError
from edge.processes import is_first
from edge.snapshot import FRAMES

LAST = "last.pt"
RESULTS = ("backbone.pt", "neck.pt", "localizer.pt", "detector.pt")  # what runs leave
_LOCK = ".lock"
_PATIENCE_S = 8.0  # loader processes of a killed run look for it every 5 s, and hold its lock until then


@contextmanager
def run_folder(out: Path, *, resume: bool) -> Iterator[None]:
    """Holds a run folder. What a killed process left half-written there is removed, and so are the frames that a run linked
    which ends before there is anything to resume; a run that was refused leaves no folder.

    Of the processes of a `torchrun` the first holds it.

    Raises:
        TrainingError: as `check_run_folder`; or another process works there.
    """
    if not is_first():
        check_run_folder(out, resume=resume)  # or it would wait for a first one that was refused
        yield
        return
    is_new = not out.is_dir()
    made = [folder for folder in (out, *out.parents) if not folder.exists()]
    if is_new:
        check_run_folder(out, resume=resume)
    with _locked(out):
        check_run_folder(out, resume=resume)
        known = (out / FRAMES).exists()
        for left in out.glob(".*.partial"):
            shutil.rmtree(left) if left.is_dir() else left.unlink(missing_ok=True)
        try:
            yield
        except (KeyboardInterrupt, SystemExit):
            if (out / LAST).is_file():
                sys.stderr.write(
                    f"\nwhat was learnt until the last saving is in {out}; the same command goes on from there (pretrain and finetune: with "
                    "--resume)\n"
                )
            raise
        finally:
            if not known and not (out / LAST).is_file():
                shutil.rmtree(out / FRAMES, ignore_errors=True)
            if is_new and [path.name for path in out.iterdir()] == [_LOCK]:
                (out / _LOCK).unlink()
                with contextlib.suppress(OSError):  # somebody else has put something there
                    for folder in made:
                        folder.rmdir()


@contextmanager
def _locked(out: Path) -> Iterator[None]:
    """A killed process lets go by itself, once the processes that it started have noticed."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        lock = os.open(out / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC)
    except OSError as error:
        raise TrainingError(f"{out} cannot be written: {error.strerror}; choose another --out") from error
    try:
        until_s = time.monotonic() + _PATIENCE_S
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if time.monotonic() > until_s:
                    raise TrainingError(f"another process trains in {out}; wait for it, or choose another --out") from error
                time.sleep(0.2)
            except OSError as error:
                raise TrainingError(f"{out} cannot be locked: {error.strerror}; choose an --out on another disk") from error
        yield
    finally:
        os.close(lock)


def refuse_unwritable(folder: Path) -> None:
    """Whether files can be made in a folder, there or not yet.

    Raises:
        TrainingError: they cannot.
    """
    parent = next(path for path in (folder, *folder.parents) if path.exists())
    try:
        with tempfile.TemporaryDirectory(dir=parent):
            pass
    except OSError as error:
        raise TrainingError(f"{folder} cannot be written: {parent}: {error.strerror}; choose another place") from error


def check_run_folder(out: Path, *, resume: bool) -> None:
    """Whether a run can start, or go on, in a folder.

    Raises:
        TrainingError: an unwritable place, nothing to resume, or a folder that holds a run or what one made.
    """
    refuse_unwritable(out)
    last = out / LAST
    if resume and not last.is_file():
        raise TrainingError(f"{out} holds no {LAST} to resume from; leave out --resume to start")
    if not resume and last.is_file():
        raise TrainingError(f"{out} holds a run already; go on with --resume, or choose another --out")
    if not resume and (made := [name for name in RESULTS if (out / name).exists()]):
        raise TrainingError(f"{out} holds the {made[0]} of a finished run; choose another --out")
