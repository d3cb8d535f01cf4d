"""Errors of training and evaluation.

EdgeloopError (runtime.errors)
├── DataError         images or labels that cannot be used
├── TrainingError     a run that cannot start, resume or go on
└── RefreshError      a refresh that lacks something it needs
"""

from __future__ import annotations

from runtime.errors import EdgeloopError


class DataError(EdgeloopError):
    """Images or labels cannot be used."""


class TrainingError(EdgeloopError):
    """A training run cannot start, resume or go on."""


class RefreshError(EdgeloopError):
    """A refresh lacks something that it needs."""
