"""What the command lines share: one sentence for a user's mistake, exit code 2, no traceback."""

from __future__ import annotations

import logging
import signal
import sys
import traceback
from types import FrameType
from typing import Any  # typer brings its own copy of click, whose Context has no public name

import typer
from typer.core import TyperGroup

from runtime.errors import EdgeloopError
from runtime.extras import missing_package
from runtime.threads import leave

_ENDED = {130: "interrupted", 128 + signal.SIGTERM: "ended by SIGTERM"}  # 130 is typer's exit code after Ctrl-C
_OPENCV_LIBRARIES = ("libGL.so", "libgthread-2.0.so", "libglib-2.0.so")  # of the system; a bare one lacks them


class Program:
    """A typer application whose refusals are sentences.

    Attributes:
        app: where commands are added.
    """

    def __init__(self, name: str, purpose: str, default: str | None = None) -> None:
        """`default` is the command that is meant when the first word names none."""

        class Group(TyperGroup):
            def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
                if default and args and args[0] not in self.commands and args[0] not in ("--help", "-h"):
                    args = [default, *args]
                return super().parse_args(ctx, args)

        self.name = name
        self.app = typer.Typer(
            name=name, help=purpose, cls=Group, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False
        )

    def run(self) -> None:
        """Runs the command line and exits: 0 done, 2 refused, 130 interrupted (by typer), 143 ended by SIGTERM."""
        logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
        signal.signal(signal.SIGTERM, _leave)
        code, told = self._call()
        if told:
            sys.stderr.write(f"{self.name}: {told}\n")
        leave(code)

    def _call(self) -> tuple[int, str]:
        """The exit code, and what a user is to know about it."""
        try:
            self.app(prog_name=self.name)
        except SystemExit as end:  # typer's way to return
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
            if code in _ENDED:
                sys.stderr.write("\n")  # below the progress
            return code, _ENDED.get(code, "")
        except EdgeloopError as error:
            return error.exit_code, f"{error}"
        except OSError as error:
            where = f"{error.filename}: " if error.filename else ""
            return 2, f"{where}{error.strerror or error}; check the path, its permissions and the free space"
        except ImportError as error:
            return 2, _what_to_install(error)
        except Exception:  # noqa: BLE001  a mistake of ours, whose traceback is to be reported
            traceback.print_exc()
            return 1, ""
        return 0, ""


def _what_to_install(error: ImportError) -> str:
    if missing := missing_package(error):
        return str(missing)
    if any(library in str(error) for library in _OPENCV_LIBRARIES):
        return f"{error}; on Debian and Ubuntu: apt-get install libgl1 libglib2.0-0"
    return f"{error}; install edgeloop again, with the extras that you use"


def _leave(number: int, _: FrameType | None) -> None:
    """SIGTERM cleans up as Ctrl-C does; the daemon replaces this by its own way to end."""
    sys.exit(128 + number)
