"""Which TensorRT is installed: the full module or TensorRT-RTX, and of which generation."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from importlib import import_module
from typing import cast

from runtime.errors import BackendError, MissingPackageError, first_line
from runtime.manifest import Form
from runtime.tensorrt.surface import TensorRT

AUTO = "auto"
# Name in edge.yaml, which is also the extra, → module. `auto` takes the first: it is the one with the widest hardware.
MODULES = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}
# NVIDIA: "strong typing fully available from 10.12; upgrade before migrating on 10.11 or earlier".
_STRONG_FROM = (10, 12)


@dataclass(frozen=True, slots=True)
class Flavour:
    """A TensorRT module.

    Attributes:
        name: a key of `MODULES`.
        version: all of its parts, such as `10.13.0.35`; plans of any other are not read.
        trt: the module.
    """

    name: str
    version: str
    trt: TensorRT = field(repr=False, compare=False)

    @property
    def major_minor(self) -> tuple[int, int]:
        """The generation; RTX counts on its own."""
        major, minor = self.version.split(".")[:2]
        return int(major), int(minor)

    @property
    def rtx(self) -> bool:
        """Whether it is TensorRT-RTX."""
        return self.name == "tensorrt-rtx"

    @property
    def baked_precision(self) -> bool:
        """Whether the graph itself must hold the precision (strong typing), since builder flags do not set it."""
        if self.rtx or self.major_minor >= (11, 0):
            return True
        return hasattr(self.trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED") and self.major_minor >= _STRONG_FROM

    @property
    def form(self) -> Form:
        """Which of a bundle's files it takes; see `runtime.manifest`."""
        return "tensorrt-strong" if self.baked_precision else "tensorrt"


def flavour_of(trt: TensorRT) -> Flavour:
    """What a module is."""
    return Flavour("tensorrt-rtx" if trt.__name__ == "tensorrt_rtx" else "tensorrt", trt.__version__, trt)


def wants_baked_precision(trt: TensorRT) -> bool:
    """Whether `trt` needs the file with FP16 baked in (10.12, 11, RTX) rather than float32 and builder flags (8.5 to 10.11)."""
    return flavour_of(trt).baked_precision


def load_flavour(name: str = AUTO) -> Flavour:
    """Imports TensorRT; `auto` takes the first of `MODULES` that is installed.

    Raises:
        MissingPackageError: it is not installed.
        BackendError: unknown name, or a module that is installed but does not load.
    """
    if name != AUTO and name not in MODULES:
        raise BackendError(f"unknown TensorRT {name!r}; there are {', '.join(MODULES)}")
    for candidate in MODULES if name == AUTO else (name,):
        if trt := _module(candidate):
            return Flavour(candidate, trt.__version__, trt)
    wanted = "tensorrt" if name == AUTO else name
    raise MissingPackageError(wanted, wanted)


def installed_flavours() -> tuple[list[Flavour], list[BackendError]]:
    """Every TensorRT of this device, and why others that are installed do not load."""
    found, broken = [], []
    for name in MODULES:
        with contextlib.suppress(MissingPackageError):
            try:
                found.append(load_flavour(name))
            except BackendError as error:
                broken.append(error)
    return found, broken


def _module(name: str) -> TensorRT | None:
    try:
        module = import_module(MODULES[name])
    except ModuleNotFoundError as error:
        if error.name == MODULES[name]:
            return None
        raise BackendError(f"{name} does not load: {error}; install it again") from error
    except (ImportError, OSError, RuntimeError) as error:  # a library of its own or of CUDA is missing
        raise BackendError(f"{name} does not load: {first_line(error)}; install it again") from error
    # A folder named `tensorrt` on the path, such as a package of stubs, imports too, as an empty namespace.
    return cast(TensorRT, module) if hasattr(module, "Builder") else None
