"""What every epoch of a run gave: JSON lines, a table for spreadsheets, and TensorBoard's scalars where that is installed."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

LOG, TABLE, BOARD = "log.jsonl", "log.csv", "tensorboard"


class RunLog:
    """The logs of one run folder; one event file for each process that went on with it, as TensorBoard wants them."""

    def __init__(self, out: Path, told: int = 0) -> None:
        """Nothing is written yet.

        Args:
            out: the run folder.
            told: how many epochs an earlier process has logged.
        """
        self._out, self._told = out, told
        self._board: SummaryWriter | None = None

    def write(self, figures: Sequence[Mapping[str, float]]) -> None:
        """Brings the logs up to date.

        Args:
            figures: what all epochs so far gave, each with its `epoch` from 1.
        """
        if not figures:
            return
        (self._out / LOG).write_text("".join(json.dumps(line) + "\n" for line in figures), encoding="utf-8")
        columns = list(dict.fromkeys(name for line in figures for name in line))
        with (self._out / TABLE).open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            writer.writerows(figures)
        self._show(figures[self._told :])
        self._told = len(figures)

    def close(self) -> None:
        """After the last epoch."""
        if self._board:
            self._board.close()

    def _show(self, figures: Sequence[Mapping[str, float]]) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            return
        self._board = self._board or SummaryWriter(str(self._out / BOARD))
        for line in figures:
            for name, value in line.items():
                self._board.add_scalar(name, value, int(line["epoch"]))
        self._board.flush()
