"""The errors a user can meet. One sentence each: what came, what was expected, what to do.

EdgeloopError            anything the kit refuses; command lines print it and exit with 2
├── ConfigError          edge.yaml: unknown keys, wrong values
├── SourceError          a camera, video or folder that gives no frames
│   └── SourceRefusedError   waiting does not help: wrong password, unknown codec, a pipeline that is none
├── BundleError          a bundle that is missing, altered, or of another schema version
│   └── SignatureError   a bundle that is unsigned or signed by someone else, a key that is no key
├── CacheError           an engine cache that cannot be written or belongs to someone else
├── PoolError            a pool that is empty, damaged, full or unwritable
├── SinkError            a place for results that cannot be written
├── ServerError          an address that cannot be served on
├── BackendError         an engine that is missing or refuses the graph
│   └── DeviceLostError  a GPU that this process can no longer use
└── MissingPackageError  an optional package that is not installed
"""

from __future__ import annotations

import re


class EdgeloopError(Exception):
    """A mistake or a limit that the user can do something about."""

    exit_code = 2


class ConfigError(EdgeloopError):
    """The configuration file has problems; the message lists all of them with their place."""


class SourceError(EdgeloopError):
    """A frame source cannot be opened or read."""


class SourceRefusedError(SourceError):
    """A source that answers, but refuses us or cannot be decoded; asking again soon is no use."""


class BundleError(EdgeloopError):
    """A bundle cannot be trusted or understood."""


class SignatureError(BundleError):
    """A bundle's signature is missing or wrong, or the key to sign or check it with cannot be used."""


class CacheError(EdgeloopError):
    """The cache of engines cannot be used."""


class PoolError(EdgeloopError):
    """A pool cannot be opened, read or written."""


class SinkError(EdgeloopError):
    """Results cannot be written."""


class ServerError(EdgeloopError):
    """The HTTP server cannot listen."""


class BackendError(EdgeloopError):
    """An inference engine is missing or cannot run the bundle."""


class DeviceLostError(BackendError):
    """The GPU failed in a way that ends its context: every later call of this process fails too, a new process is fine.

    The daemon answers with a restart of its own process; nothing else helps.
    """


class MissingPackageError(EdgeloopError):
    """An optional package is not installed."""

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(f"{package} is not installed; install it with: pip install 'edgeloop[{extra}]'")


def first_line(error: BaseException) -> str:
    """What a foreign exception says, for a sentence of ours: its first line, or its kind where it says nothing.

    OpenVINO begins with places in its source and says what is wrong in the last line.
    """
    lines = str(error).strip().splitlines() or [type(error).__name__]
    line = lines[-1 if lines[0].startswith("Exception from ") else 0]
    return re.sub(r"/onnxruntime_src/.*\) ", "", line)  # ONNX Runtime's source line and the signature of a C++ function
