"""Batches from PyTorch's loader processes, whose mishaps are sentences."""

from __future__ import annotations

import signal
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from edge.errors import TrainingError
from runtime.errors import first_line

_REMEDIES = "take fewer --workers or a smaller --batch, or give more shared memory (docker run --shm-size)"
_OURS_WITHIN_S = 1.0  # a signal to a group reaches all of it at once, nearly
# A batch and the names of the damaged frames that were met on the way to it; or why there is none, a value because an exception
# would come out of a loader process with its whole traceback as its message.
Made = tuple[tuple[torch.Tensor, ...], list[str]] | TrainingError


def batches_of(dataset: torch.utils.data.Dataset[Made], **options: Any) -> Iterator[tuple[tuple[torch.Tensor, ...], list[str]]]:
    """What PyTorch's DataLoader gives.

    Raises:
        TrainingError: one that the dataset gave, or a process was killed.
    """
    with without_advice(), signals_wait():
        made = iter(torch.utils.data.DataLoader(dataset, batch_size=None, collate_fn=_handed_over, **options))
    with killed_told():
        for found in made:
            if isinstance(found, TrainingError):
                raise found
            yield found


@contextmanager
def signals_wait() -> Iterator[None]:
    """Within, Ctrl-C and SIGTERM wait for the end: while a process is forked Python drops what their handlers raise.

    The processes that are made go on ignoring Ctrl-C, which a terminal sends to all: we end them.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    asked: list[int] = []
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    kept = {number: handler for number, handler in handlers.items() if handler is not None}  # None: one that is not Python's
    for number in kept:
        signal.signal(number, lambda number, _: asked.append(number))
    try:
        yield
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)
    if asked:
        signal.raise_signal(asked[0])


@contextmanager
def without_advice() -> Iterator[None]:
    """Within, a DataLoader has as many processes as the user asked for, whatever the number of cores."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="This DataLoader will create")
        yield


def _handed_over(made: Any) -> Any:
    """A `Made` into shared memory, while a lack of it can be told: the thread that does so later would drop the batch for good."""
    if torch.utils.data.get_worker_info() is None or isinstance(made, TrainingError):
        return made
    try:
        for view in made[0]:
            view.share_memory_()
    except RuntimeError as error:
        return TrainingError(f"no shared memory for a batch ({first_line(error)}); {_REMEDIES}")
    return made


@contextmanager
def killed_told() -> Iterator[None]:
    """Within, a loader process that was killed is a sentence; where one was asked to end with all of its group, as systemd and
    terminals ask, so were we.

    PyTorch raises it from a signal's handler, so that it can come out of anything that the main thread does meanwhile.

    Raises:
        TrainingError: instead of PyTorch's error.
        SystemExit: after SIGTERM, as if it had reached this process first.
    """
    try:
        try:
            yield
        except RuntimeError as error:
            if "DataLoader worker (pid" not in f"{error}":  # one that met a mistake of ours tells its traceback
                raise
            if f"{signal.strsignal(signal.SIGTERM)}" in f"{error} {error.__cause__}":
                if any(isinstance(each, SystemExit) for each in _behind(error)):  # we left already when PyTorch told
                    raise SystemExit(128 + signal.SIGTERM) from error
                time.sleep(_OURS_WITHIN_S)  # our own SIGTERM ends this
            raise TrainingError(f"a process that makes views was killed ({first_line(error)}); {_REMEDIES}") from error
    except SystemExit:
        if threading.current_thread() is threading.main_thread():
            signal.signal(
                signal.SIGCHLD, signal.SIG_DFL
            )  # that they end with us is no news, which would come out of our own end
        raise


def _behind(error: BaseException | None) -> Iterator[BaseException]:
    """What was being handled when it was raised, the latest first."""
    while error is not None:
        yield error
        error = error.__context__
