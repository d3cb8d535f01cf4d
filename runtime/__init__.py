"""The device half of the loop: contracts, engines, cameras, the daemon. Imports no torch, ultralytics, lightly, onnx.

Names are loaded on first use, so that `import runtime` costs a device nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from runtime.backends import open_backend
    from runtime.bundle import Bundle
    from runtime.detections import Detections
    from runtime.errors import EdgeloopError
    from runtime.frame import Frame
    from runtime.pool import Pool
    from runtime.preprocess import Preprocess

_HOME = {
    "Bundle": "runtime.bundle",
    "Detections": "runtime.detections",
    "EdgeloopError": "runtime.errors",
    "Frame": "runtime.frame",
    "Pool": "runtime.pool",
    "Preprocess": "runtime.preprocess",
    "open_backend": "runtime.backends",
}

__all__ = ["Bundle", "Detections", "EdgeloopError", "Frame", "Pool", "Preprocess", "open_backend"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'runtime' has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(import_module(_HOME[name]), name)
