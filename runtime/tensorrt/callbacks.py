"""What TensorRT calls while it builds: a logger that remembers, and a progress monitor.

An exception that leaves a callback crosses C++ frames and ends the process, so `Held` keeps it until the build is over.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from types import TracebackType
from typing import TYPE_CHECKING

from runtime.tensorrt.surface import TensorRT

if TYPE_CHECKING:  # typings/tensorrt: the module itself is an extra
    import tensorrt

log = logging.getLogger(__name__)

Progress = Callable[[str, float], object]  # phase in TensorRT's words, share of the build's steps (not of its time), 0 to 1


class Held:
    """Keeps the first exception of the callbacks, Ctrl-C included.

    Attributes:
        error: what was raised; the build is asked to end.
    """

    def __init__(self) -> None:
        self.error: BaseException | None = None

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> bool:
        self.error = self.error or error
        return True

    def release(self) -> None:
        """Raises what was kept, if anything was."""
        if self.error is not None:
            raise self.error


@dataclass
class Told:
    """What TensorRT said since the last `clear`.

    Attributes:
        errors: its error messages, each on one line.
        held: what logging raised.
    """

    errors: list[str] = field(default_factory=list)
    held: Held = field(default_factory=Held)

    def clear(self) -> None:
        """Forgets it."""
        self.errors, self.held = [], Held()


@cache
def process_logger(trt: TensorRT) -> tuple[tensorrt.ILogger, Told]:
    """The process's logger for TensorRT, and what it was told.

    One for all builders and runtimes: TensorRT keeps the first that it is given and ignores every other, so an error of
    the second build would be told to the first one's logger. Its errors come back in our exceptions, hence no level of
    their own here.
    """
    loud = (trt.ILogger.Severity.INTERNAL_ERROR, trt.ILogger.Severity.ERROR)
    told = Told()

    class Remembering(trt.ILogger):  # type: ignore[name-defined,misc]  # mypy knows no bases that are arguments
        def __init__(self) -> None:
            trt.ILogger.__init__(self)  # pybind11 wants the base by name

        def log(self, severity: tensorrt.ILogger.Severity, msg: str) -> None:
            with told.held:
                line = " ".join(msg.split())
                if severity in loud:
                    told.errors.append(line)
                log.debug("TensorRT: %s", line)

    logger: tensorrt.ILogger = Remembering()
    return logger, told


def progress_monitor(trt: TensorRT, held: Held, progress: Progress) -> tensorrt.IProgressMonitor:
    """A monitor that tells `progress`, and that ends the build once something is held."""
    phases = Phases(progress)

    class Monitor(trt.IProgressMonitor):  # type: ignore[name-defined,misc]  # as above
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            with held:
                phases.start(phase_name, parent_phase, num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            with held:
                phases.step(phase_name, step)
            return held.error is None

        def phase_finish(self, phase_name: str) -> None:
            with held:
                phases.finish(phase_name)

    monitor: tensorrt.IProgressMonitor = Monitor()
    return monitor


class Phases:
    """Nested phases made one share that only grows: a phase counts for one step of its parent."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._open: dict[str, tuple[str | None, int, int]] = {}  # name → parent, steps, steps done
        self._share = 0.0
        self._lock = threading.Lock()  # TensorRT may call from several threads

    def start(self, name: str, parent: str | None, steps: int) -> None:
        """A phase of `steps` steps begins inside `parent`, or outermost."""
        with self._lock:
            self._open[name] = (parent, max(steps, 1), 0)
            self._tell(name)

    def step(self, name: str, index: int) -> None:
        """Step `index`, counted from 0, is done."""
        with self._lock:
            if name in self._open:
                parent, steps, done = self._open[name]
                self._open[name] = (parent, steps, max(done, index + 1))
                self._tell(name)

    def finish(self, name: str) -> None:
        """The phase is over, whatever steps it left out."""
        with self._lock:
            self._open.pop(name, None)

    def _tell(self, name: str) -> None:
        outermost = [self._done(root) for root, (parent, _, _) in self._open.items() if parent not in self._open]
        self._share = max(self._share, min(outermost, default=0.0))
        self._progress(name, self._share)

    def _done(self, name: str) -> float:
        _, steps, done = self._open[name]
        inner = max((self._done(child) for child, (parent, _, _) in self._open.items() if parent == name), default=0.0)
        return min((done + inner) / steps, 1.0)
