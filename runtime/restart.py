"""A new process in place of this one, for errors that poison what only the process's end frees, such as a CUDA context.

exec() keeps the process id, so systemd, a container or a shell sees nothing of it, and it closes every descriptor that a
driver holds. Too many in a row are given to whoever supervises us, who can do more: reset the device, restart the machine.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Mapping

log = logging.getLogger(__name__)

_HISTORY = "EDGELOOP_RESTARTS"  # Unix times of the latest, by comma
_MOST, _WITHIN_S = 5, 600.0


def restarts(now_s: float, environ: Mapping[str, str] | None = None) -> list[float] | None:
    """The times of restarts in the last ten minutes, this one included; None when there were too many."""
    told = (os.environ if environ is None else environ).get(_HISTORY, "")
    before = [float(word) for word in told.split(",") if word.replace(".", "", 1).isdigit()]
    recent = [time_s for time_s in before if 0 <= now_s - time_s < _WITHIN_S]
    return [*recent, now_s] if len(recent) < _MOST else None


def restart_process(error: Exception) -> None:
    """Begins this command line anew in this process; returns when it was done too often, and the caller gives up."""
    history = restarts(time.time())
    if history is None:
        log.error("%s; %d restarts within ten minutes did not help", error, _MOST)
        return
    log.error("%s; restarting this process, time %d of %d within ten minutes", error, len(history), _MOST)
    os.environ[_HISTORY] = ",".join(f"{time_s:.3f}" for time_s in history)
    time.sleep(len(history) - 1)  # a driver that needs a moment gets it
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
