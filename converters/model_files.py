"""The files of a conversion: each a precision, in the form for a family of engines, at a static batch size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx

from converters.gate import Candidate, candidates_of
from converters.graph_cleanup import with_batch
from converters.half_floats import with_half_floats
from converters.quantizer_passes import with_float_weights
from runtime.device import engines_here
from runtime.manifest import Form, Precision, Variant


@dataclass(frozen=True, eq=False)
class ModelFile:
    """A graph and where it is written.

    Attributes:
        precision, form, batch, float_layers: see `runtime.manifest.Variant`.
        model: the graph.
        path: its file, in the staging folder.
    """

    precision: Precision
    form: Form
    model: onnx.ModelProto
    path: Path
    batch: int = 1
    float_layers: tuple[str, ...] = ()

    @classmethod
    def write(
        cls,
        folder: Path,
        precision: Precision,
        form: Form,
        model: onnx.ModelProto,
        batch: int = 1,
        float_layers: Sequence[str] = (),
    ) -> ModelFile:
        """Writes the graph under the name that its kind has."""
        parts = ["model", precision, *([form] if form != "any" else []), *([f"b{batch}"] if batch > 1 else [])]
        path = folder / (".".join(parts) + ".onnx")
        path.write_bytes(model.SerializeToString(deterministic=True))
        return cls(precision, form, model, path, batch, tuple(float_layers))

    def again(self) -> ModelFile:
        """Written once more, where another file took its place."""
        return ModelFile.write(self.path.parent, self.precision, self.form, self.model, self.batch, self.float_layers)

    @property
    def variant(self) -> Variant:
        """Its line in the manifest."""
        return Variant(
            precision=self.precision,
            form=self.form,
            batch=self.batch,
            file=self.path.name,
            float_layers=list(self.float_layers),
        )

    def candidates(self) -> list[Candidate]:
        """The file under each installed engine that it is for."""
        engines = list(engines_here())
        return candidates_of([(self.precision, self.form, self.batch, self.path)], engines)


def rebatched(file: ModelFile, batch: int) -> ModelFile:
    """The same file for a larger batch."""
    return ModelFile.write(file.path.parent, file.precision, file.form, with_batch(file.model, batch), batch, file.float_layers)


def shipped_files(int8: ModelFile) -> list[ModelFile]:
    """The files of a family's INT8 graph: itself for CPUs.

    For TensorRT both forms: float weights behind Q/DQ pairs for weak typing, FP16 baked in for strong typing.
    """
    if int8.form == "cpu":
        return [int8]
    weak, strong = forms_of(int8.model, int8.form)
    folder, floats = int8.path.parent, int8.float_layers
    return [
        ModelFile.write(folder, "int8", "tensorrt", weak, 1, floats),
        ModelFile.write(folder, "int8", "tensorrt-strong", strong, 1, floats),
    ]


def forms_of(int8: onnx.ModelProto, form: Form) -> tuple[onnx.ModelProto, ...]:
    """The graphs of those files."""
    return (int8,) if form == "cpu" else (with_float_weights(int8), with_half_floats(int8))
