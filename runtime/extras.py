"""Which extra of the kit brings which module, so that a missing one is told with what to install."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.util import find_spec

from runtime.errors import MissingPackageError

# Module → extra. A module that several extras bring stands with the one that most devices want.
EXTRAS = {
    "onnxruntime": "cpu",
    "openvino": "cpu",
    "pycuda": "pycuda",
    "tensorrt": "tensorrt",
    "tensorrt_rtx": "tensorrt-rtx",
    "onnx": "convert",
    "nncf": "convert",
    "onnxslim": "convert",
    "matplotlib": "convert",
    "faster_coco_eval": "convert",
    "torch": "train",
    "torchvision": "train",
    "ultralytics": "train",
    "lightly": "train",
    "cryptography": "sign",
}


def missing_package(error: ImportError) -> MissingPackageError | None:
    """The sentence for a failed import of a module that an extra brings; None for any other."""
    module = (error.name or "").partition(".")[0]
    if module not in EXTRAS or find_spec(module) is not None:  # it is there, and something of its own is not
        return None
    return MissingPackageError(_package(module), EXTRAS[module])


def require(modules: Iterable[str], extra: str) -> None:
    """Looks whether modules are installed, without importing them.

    Raises:
        MissingPackageError: one is not; `extra` brings all of them.
    """
    for module in modules:
        if find_spec(module) is None:
            raise MissingPackageError(_package(module), extra)


def _package(module: str) -> str:
    return module.replace("_", "-")
