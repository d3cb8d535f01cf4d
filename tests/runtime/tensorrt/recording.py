"""A module that looks like TensorRT and writes down what is called, for the generations that cannot be installed here.

Its surface is read from the stubs of 10.13 (`typings/tensorrt`): classes, methods with their number of arguments,
attributes, enum members. What is not there raises AttributeError, as in pybind11's classes. The other generations are
that surface less what facts say they lack. It builds nothing: what TensorRT really does with a graph is tested with
`tensorrt_rtx`.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any, cast

from runtime.tensorrt.surface import TensorRT
from tests.runtime.tensorrt.stub_cut import COMMITTED

# What a generation lacks of 10.13's surface, from NVIDIA's bindings at the tags of these versions (BF16, INT4 and FP4 from
# memory; the kit uses none of them).
_NOT_BEFORE_86 = {
    "IBuilderConfig.builder_optimization_level", "IBuilderConfig.hardware_compatibility_level", "IBuilderConfig.max_aux_streams",
    "IBuilderConfig.plugins_to_serialize", "BuilderFlag.VERSION_COMPATIBLE", "BuilderFlag.EXCLUDE_LEAN_RUNTIME", "BuilderFlag.FP8",
    "HardwareCompatibilityLevel",
}  # fmt: skip
_NOT_BEFORE_9 = {
    "NetworkDefinitionCreationFlag.STRONGLY_TYPED", "IProgressMonitor", "IBuilderConfig.progress_monitor",
    "ParserError.node_name", "ParserError.node_operator", "ParserError.local_function_stack",
}  # fmt: skip
_NOT_BEFORE_10 = {
    "BuilderFlag.STRIP_PLAN", "BuilderFlag.WEIGHTLESS", "BuilderFlag.REFIT_IDENTICAL", "BuilderFlag.WEIGHT_STREAMING",
    "BuilderFlag.INT4", "BuilderFlag.BF16",
}  # fmt: skip
_NOT_BEFORE_1013 = {
    "HardwareCompatibilityLevel.SAME_COMPUTE_CAPABILITY", "BuilderFlag.EDITABLE_TIMING_CACHE",
    "IBuilderConfig.tiling_optimization_level", "ICudaEngine.create_runtime_config", "BuilderFlag.FP4",
}  # fmt: skip
_GONE_IN_11 = {
    "NetworkDefinitionCreationFlag.EXPLICIT_BATCH", "BuilderFlag.FP16", "BuilderFlag.INT8", "BuilderFlag.BF16", "BuilderFlag.FP8",
    "BuilderFlag.INT4", "BuilderFlag.FP4", "BuilderFlag.OBEY_PRECISION_CONSTRAINTS", "BuilderFlag.PREFER_PRECISION_CONSTRAINTS",
    "IBuilderConfig.int8_calibrator", "IBuilderConfig.set_calibration_profile", "IBuilderConfig.quantization_flags",
    "IBuilderConfig.set_quantization_flag", "ITensor.set_dynamic_range", "ITensor.dynamic_range", "Builder.platform_has_fast_fp16",
    "Builder.platform_has_fast_int8", "Builder.platform_has_tf32", "ICudaEngine.device_memory_size",
    "INetworkDefinition.has_implicit_batch_dimension",
}  # fmt: skip
LACKS = {
    "8.5.2.2": _NOT_BEFORE_86 | _NOT_BEFORE_9 | _NOT_BEFORE_10 | _NOT_BEFORE_1013,
    "8.6.2.3": _NOT_BEFORE_9 | _NOT_BEFORE_10 | _NOT_BEFORE_1013,
    "10.3.0.30": _NOT_BEFORE_1013,
    "10.13.0.35": set[str](),
    "11.0.0.114": _GONE_IN_11,
}


@dataclass
class Record:
    """What was called, in order, and what to answer instead of the default for a return type.

    `answers` maps `Class.method` to a value, or to a function of the arguments.
    """

    calls: list[tuple[str, tuple[Any, ...]]] = field(default_factory=list)
    answers: dict[str, Any] = field(default_factory=dict)

    def of(self, name: str) -> list[tuple[Any, ...]]:
        return [arguments for called, arguments in self.calls if called == name]

    @property
    def flags(self) -> set[str]:
        return {str(arguments[0]) for arguments in self.of("IBuilderConfig.set_flag")}


def recording(version: str) -> tuple[TensorRT, Record]:
    """A TensorRT of that version, which builds b"plan" of anything."""
    record = Record()
    record.answers = {
        "Builder.build_serialized_network": lambda *_: b"plan",
        "OnnxParser.parse_from_file": True,
        "IBuilderConfig.set_timing_cache": True,
        "ITimingCache.serialize": lambda: b"timings",
    }
    module = ModuleType("tensorrt")
    source = COMMITTED.read_text(encoding="utf-8")
    for node in ast.parse(source).body:
        if isinstance(node, ast.ClassDef) and node.name not in LACKS[version]:
            setattr(module, node.name, _class(node, node.name, LACKS[version], record, module, source.splitlines()))
    vars(module)["__version__"] = version
    return cast(TensorRT, module), record


class _Fake:
    """Refuses attributes that the stubs do not name; subclasses made in Python may have their own, as with pybind11."""

    surface: frozenset[str] = frozenset()
    record: Record
    own_name: str

    def __setattr__(self, name: str, value: object) -> None:
        if "surface" in vars(type(self)):
            if name not in self.surface:
                raise AttributeError(f"{self.own_name!r} object has no attribute {name!r}")
            self.record.calls.append((f"{self.own_name}.{name} =", (value,)))
        object.__setattr__(self, name, value)


class _Member(int):
    """A member of an enum of pybind11."""

    def __new__(cls, name: str, value: int) -> _Member:
        member = super().__new__(cls, value)
        member.name = name
        return member

    name: str

    def __str__(self) -> str:
        return self.name


def _class(node: ast.ClassDef, path: str, lacks: set[str], record: Record, module: ModuleType, lines: list[str]) -> type:
    body: dict[str, Any] = {}
    settable: set[str] = set()
    for name, part in _members(node):
        where = f"{path}.{name}"
        if where in lacks:
            continue
        if isinstance(part, ast.ClassDef):
            body[name] = _class(part, where, lacks, record, module, lines)
        elif isinstance(part, ast.AnnAssign):
            value = re.search(r"# value = <.*: (\d+)>", lines[part.lineno - 1])
            if value:
                body[name] = _Member(name, int(value[1]))
            else:
                settable.add(name)
                body[name] = None
        elif any(isinstance(decorator, ast.Name) and decorator.id == "property" for decorator in part.decorator_list):
            body[name] = _property(where, part, record, module)
        else:
            body[name] = _method(where, part, record, module)
    return type(node.name, (_Fake,), {**body, "surface": frozenset(settable), "record": record, "own_name": path})


def _members(node: ast.ClassDef) -> Iterator[tuple[str, Any]]:
    for part in node.body:
        if isinstance(part, ast.AnnAssign) and isinstance(part.target, ast.Name) and not part.target.id.startswith("__"):
            yield part.target.id, part
        elif isinstance(part, ast.ClassDef) or (isinstance(part, ast.FunctionDef) and not part.name.startswith("__")):
            yield part.name, part
        elif isinstance(part, ast.FunctionDef) and part.name == "__init__":
            yield "__init__", part


def _property(where: str, node: ast.FunctionDef, record: Record, module: ModuleType) -> property:
    return property(lambda self: _answer(where, node, (), record, module))


def _method(where: str, node: ast.FunctionDef, record: Record, module: ModuleType) -> Callable[..., Any]:
    most = len(node.args.args) - 1
    least = most - len(node.args.defaults)

    def method(self: object, *arguments: Any) -> Any:
        if not least <= len(arguments) <= most:
            raise TypeError(f"{where}() takes {least} to {most} arguments, not {len(arguments)}")
        record.calls.append((where, arguments))
        return None if node.name == "__init__" else _answer(where, node, arguments, record, module)

    return method


def _answer(where: str, node: ast.FunctionDef, arguments: tuple[Any, ...], record: Record, module: ModuleType) -> Any:
    if where in record.answers:
        answer = record.answers[where]
        return answer(*arguments) if callable(answer) else answer
    returns = ast.unparse(node.returns) if node.returns else "None"
    if returns in vars(module):
        return object.__new__(getattr(module, returns))
    return {"bool": True, "int": 0, "str": ""}.get(returns)
