"""Errors of calibration and evaluation.

EdgeloopError (runtime.errors)
└── DataError   images or labels that cannot be used
"""

from __future__ import annotations

from runtime.errors import EdgeloopError


class DataError(EdgeloopError):
    """Images or labels cannot be used."""
