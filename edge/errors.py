"""Errors of training and evaluation.

EdgeloopError (runtime.errors)
├── TrainingError     a run that cannot start, resume or go on
│   └── StorageError  frames cannot be read for now; the run can be resumed
└── RefreshError      a refresh that lacks something it needs
"""

from __future__ import annotations

from runtime.errors import EdgeloopError


class TrainingError(EdgeloopError):
    """A training run cannot start, resume or go on."""


class StorageError(TrainingError):
    """Frames cannot be read for now; the run that asked for them can be resumed."""


class RefreshError(EdgeloopError):
    """A refresh lacks something that it needs."""
