"""Running a graph under ONNX Runtime while converting it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import onnx
from numpy.typing import NDArray

from converters.errors import ConversionError
from runtime.errors import MissingPackageError, first_line


class Session(Protocol):
    """What is used of onnxruntime's InferenceSession."""

    def run(self, outputs: Sequence[str] | None, inputs: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
        """Values of the named outputs; None: of all."""
        ...


def open_session(model: onnx.ModelProto) -> Session:
    """A session on the CPU.

    Raises:
        MissingPackageError: onnxruntime is not installed.
        ConversionError: ONNX Runtime refuses the graph.
    """
    try:
        import onnxruntime as ort  # an extra
    except ImportError as error:
        raise MissingPackageError("onnxruntime", "convert") from error
    options = ort.SessionOptions()
    options.log_severity_level = 4
    try:
        return _Translated(ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"]))
    except Exception as error:  # onnxruntime's exceptions share no base but this
        raise ConversionError(f"ONNX Runtime cannot load this graph ({first_line(error)}); export the model again") from error


class _Translated:
    """A session whose failures are ours."""

    def __init__(self, session: Any) -> None:
        self._session = session

    def run(self, outputs: Sequence[str] | None, inputs: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
        try:
            values: list[NDArray[Any]] = self._session.run(None if outputs is None else list(outputs), dict(inputs))
        except Exception as error:
            raise ConversionError(
                f"ONNX Runtime cannot run this graph ({first_line(error)}); export the model again"
            ) from error
        return [np.asarray(value) for value in values]
