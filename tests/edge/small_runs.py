"""Runs of a few steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from converters.checkpoint import load_checkpoint
from edge.finetune_request import FinetuneRequest
from edge.pretrain_request import PretrainRequest


def pretrain_request(pool: Path, out: Path, **changes: object) -> PretrainRequest:
    small = {"method": "simclr", "part": "backbone", "imgsz": 64, "batch": 8, "epochs": 2}
    return PretrainRequest(pool, out, **{**small, **changes})  # type: ignore[arg-type]


def finetune_request(data: Path, out: Path, **changes: object) -> FinetuneRequest:
    return FinetuneRequest(data, out, **{"imgsz": 64, "batch": 4, "epochs": 2, **changes})  # type: ignore[arg-type]


def same_weights(first: Path, second: Path) -> bool:
    a, b = load_checkpoint(first).state, load_checkpoint(second).state
    return set(a) == set(b) and all(torch.equal(a[key], b[key]) for key in a)


def plan_of(folder: Path, **changes: Any) -> dict[str, Any]:
    return {
        "imgsz": 64, "pretrain": {"epochs": 1, "batch": 8, "imgsz": 64, "method": "dense"}, "finetune": {"steps": 2, "batch": 4},
        "fractions": [0.8], "seeds": [0], "sets": {"line": {"folder": str(folder)}},
        "arms": {"scratch": {}, "ssl": {"ssl": True}, "ssl+pool": {"ssl": {"method": "simclr", "part": "backbone"}, "pool": True}},
        **changes,
    }  # fmt: skip
