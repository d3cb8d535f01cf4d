"""A look into an ONNX file without the onnx package: does it keep its weights elsewhere?

A bundle's manifest vouches for the files that it names. An ONNX that points at other files (`external_data`) would make
an engine read bytes that nobody checked, from any path. Field numbers are those of onnx.proto.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from runtime.errors import BackendError

# Where tensors can hide, message by message: field number → kind of what is inside.
_INSIDE = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "function": {7: "node", 11: "attribute"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
}
_MODEL_GRAPH = 7
_TENSOR_EXTERNAL_DATA, _TENSOR_DATA_LOCATION = 13, 14
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


def refuse_external_data(path: Path) -> None:
    """Checks that an ONNX file holds all of its weights.

    Raises:
        BackendError: it points at other files, or is no ONNX.
    """
    try:
        model = memoryview(path.read_bytes())
        has_graph = any(number == _MODEL_GRAPH for number, _ in _fields(model))
        external = _is_external(model, "model")
    except (IndexError, ValueError, RecursionError) as error:
        raise BackendError(f"{path} is no ONNX file; convert the model again") from error
    except OSError as error:
        raise BackendError(f"{path} cannot be read: {error.strerror}; fetch the bundle again") from error
    if not has_graph:
        raise BackendError(f"{path} is no ONNX file; convert the model again")
    if external:
        raise BackendError(
            f"{path} keeps weights in other files (external data), which nothing vouches for; save it as one file"
        )


def _is_external(message: memoryview, kind: str) -> bool:
    if kind == "tensor":
        return any(
            number in (_TENSOR_EXTERNAL_DATA, _TENSOR_DATA_LOCATION) and bool(value) for number, value in _fields(message)
        )
    inside = _INSIDE[kind]
    return any(
        number in inside and isinstance(value, memoryview) and _is_external(value, inside[number])
        for number, value in _fields(message)
    )


def _fields(data: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Protobuf fields of a message: number, and an integer or the bytes. Raises ValueError or IndexError on other data."""
    position = 0
    while position < len(data):
        key, position = _varint(data, position)
        number, wire = key >> 3, key & 7
        if wire == _VARINT:
            value, position = _varint(data, position)
            yield number, value
            continue
        if wire == _BYTES:
            size, position = _varint(data, position)
        elif wire in (_FIXED64, _FIXED32):
            size = 8 if wire == _FIXED64 else 4
        else:
            raise ValueError(f"wire type {wire}")
        if position + size > len(data):
            raise ValueError("a field longer than its message")
        yield number, data[position : position + size]
        position += size


def _varint(data: memoryview, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7
        if shift > 63:
            raise ValueError("a varint of more than ten bytes")
