"""The refresh journal: each step's inputs and output, so that a killed job goes on where it was."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from edge.errors import RefreshError
from runtime.files import write_atomically

JOURNAL = "journal.json"


class Journal:
    """Steps done so far, in a JSON file that is replaced whole."""

    def __init__(self, folder: Path) -> None:
        """Reads `folder/journal.json` if there is one.

        Raises:
            RefreshError: the file is damaged.
        """
        self._path = folder / JOURNAL
        self._steps: dict[str, dict[str, Any]] = {}
        if self._path.is_file():
            try:
                self._steps = json.loads(self._path.read_text(encoding="utf-8"))
                if not all(set(step) == {"inputs", "output"} for step in self._steps.values()):
                    raise ValueError("a step lacks its inputs or output")
            except (ValueError, AttributeError, TypeError) as error:
                raise RefreshError(f"{self._path} is damaged: {error}; remove {folder} and start the refresh again") from error

    def step(self, name: str, inputs: Mapping[str, str], action: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Runs `action` once: a step that is recorded with the same inputs gives its recorded output.

        Raises:
            RefreshError: the step is recorded with other inputs: this folder belongs to another refresh.
        """
        done = self._steps.get(name)
        if done is not None:
            changed = [key for key, value in inputs.items() if done["inputs"].get(key) != value]
            if changed:
                raise RefreshError(
                    f"{self._path} records step {name} with another {', '.join(changed)}; choose another --out for a new refresh"
                )
            output: dict[str, Any] = done["output"]
            return output
        output = action()
        self._steps[name] = {"inputs": dict(inputs), "output": output}
        write_atomically(self._path, (json.dumps(self._steps, indent=2) + "\n").encode())
        return output
