"""Errors of the converters.

EdgeloopError (runtime.errors)
├── CheckpointError   a file of weights that is missing, unsafe, or of another architecture
└── ConversionError   a graph that cannot be exported, changed or quantised
"""

from __future__ import annotations

from runtime.errors import EdgeloopError


class CheckpointError(EdgeloopError):
    """A checkpoint cannot be used."""


class ConversionError(EdgeloopError):
    """A model cannot be converted."""
