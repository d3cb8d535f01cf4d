"""edge.yaml: read once into one frozen tree; every problem is reported together with its line."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from runtime.errors import ConfigError
from runtime.pool import DEFAULT_QUOTA_BYTES
from runtime.sources.uri import is_live
from runtime.yaml_keys import DuplicateKey, duplicate_keys

FPS_MAX = "max"


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ImagesConfig(_Strict):
    """A folder of images, replayed."""

    kind: Literal["images"]
    path: str
    loop: bool = False


class OpenCVConfig(_Strict):
    """A video file, a V4L2 device (`/dev/video0`) or a stream URL (`rtsp://…`)."""

    kind: Literal["opencv"]
    uri: str
    loop: bool = False

    @field_validator("uri")
    @classmethod
    def _an_address_ends_at_white_space(cls, uri: str) -> str:
        if "://" in uri and any(character.isspace() for character in uri):  # else logs could not tell where a password ends
            raise ValueError("an address holds no white space; write a blank in it as %20")
        return uri


class SimulatedConfig(_Strict):
    """The built-in inspection line; see `runtime.sources.simulated.Line`."""

    kind: Literal["simulated"]
    seed: int = Field(default=0, ge=0)
    size_wh: tuple[Annotated[int, Field(ge=64, le=2048)], Annotated[int, Field(ge=64, le=2048)]] = (256, 256)
    frames: Annotated[int, Field(gt=0)] | None = None
    start: int = Field(default=0, ge=0)
    light: float = Field(default=0.0, ge=0, le=1)
    light_drift: float = Field(default=0.0, ge=0, le=1)


SourceConfig = Annotated[ImagesConfig | OpenCVConfig | SimulatedConfig, Field(discriminator="kind")]


class CameraConfig(_Strict):
    """One camera. `fps`: none = the source's own rate; a number; `max` = as fast as the model goes, nothing dropped."""

    source: SourceConfig
    fps: Annotated[float, Field(gt=0, le=1000)] | Literal["max"] | None = None

    @property
    def live(self) -> bool:
        """Whether frames that nobody takes are gone."""
        return isinstance(self.source, OpenCVConfig) and is_live(self.source.uri)

    @model_validator(mode="after")
    def _a_live_camera_cannot_wait(self) -> CameraConfig:
        if self.live and self.fps is not None:
            raise ValueError("fps is for files and folders; a live camera sets its own rate, so remove it")
        return self


class ModelConfig(_Strict):
    """Which bundle, and how it is run. `auto` takes what the bundle measured as best."""

    bundle: str
    trust_key: str | None = None  # a public key; bundles that its owner did not sign are refused
    engine: Literal["auto", "onnxruntime", "openvino"] = "auto"
    precision: Literal["auto", "fp32", "int8"] = "auto"
    threads: int = Field(default=0, ge=0, le=256)  # 0: as many as this process may use
    confidence: Annotated[float, Field(ge=0, le=1)] | None = None
    reload_s: float = Field(default=1.0, gt=0, le=3600)


class CollectConfig(_Strict):
    """Which frames are kept, and how many bytes of them."""

    pool: str
    quota_mb: float = Field(default=DEFAULT_QUOTA_BYTES / 1e6, gt=0, le=1e9)
    every_n: int = Field(default=100, ge=1)
    below_confidence: float = Field(default=0.4, ge=0, le=1)
    min_interval_s: float = Field(default=0.0, ge=0, le=1e9)


class JsonlConfig(_Strict):
    """One JSON object a line and frame."""

    kind: Literal["jsonl"]
    path: str


class PicturesConfig(_Strict):
    """Every n-th frame with its boxes drawn, as JPEG files; at most `limit` of them."""

    kind: Literal["pictures"]
    path: str
    every_n: int = Field(default=100, ge=1)
    limit: int = Field(default=100, ge=1)


SinkConfig = Annotated[JsonlConfig | PicturesConfig, Field(discriminator="kind")]


class ServerConfig(_Strict):
    """Where health, metrics and status are served. Whoever reaches it may read all of them."""

    host: str = "127.0.0.1"
    port: int = Field(default=8080, ge=0, le=65535)  # 0: any free one, told in the log


class EdgeConfig(_Strict):
    """The whole of edge.yaml."""

    model: ModelConfig
    cameras: dict[Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")], CameraConfig] = Field(min_length=1)
    sinks: list[SinkConfig] = Field(default_factory=list)
    collect: CollectConfig | None = None
    server: ServerConfig | None = None


def load_config(path: str | Path) -> EdgeConfig:
    """Reads edge.yaml. Relative paths in it are relative to the working directory.

    Raises:
        ConfigError: no such file, no YAML, or any key or value that is not understood or comes twice; all are listed.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no UTF-8 text"
        raise ConfigError(f"{path} cannot be read: {reason}; start from deploy/edge.yaml") from error
    try:
        document, tree = yaml.safe_load(text), yaml.compose(text, Loader=yaml.SafeLoader)
    except (yaml.YAMLError, RecursionError, ValueError) as error:  # ValueError: a date like 2024-13-45
        place = getattr(error, "problem_mark", None)
        line = f":{place.line + 1}" if place else ""
        raise ConfigError(f"{path}{line}: not valid YAML: {getattr(error, 'problem', error)}; fix that line") from error
    if not isinstance(document, dict):
        raise ConfigError(f"{path} holds no mapping; start from deploy/edge.yaml")
    problems = [_twice(path, found) for found in duplicate_keys(tree)]
    try:
        config = EdgeConfig.model_validate(document)
    except ValidationError as error:
        problems += [_problem(path, tree, dict(item)) for item in error.errors()]
        raise _listed(path, problems) from error
    if problems:
        raise _listed(path, problems)
    return config


def _listed(path: str | Path, problems: list[str]) -> ConfigError:
    head = f"{path} has {len(problems)} problem{'s' if len(problems) > 1 else ''}; deploy/edge.yaml shows every key:"
    return ConfigError("\n  ".join([head, *problems]))


def _twice(path: str | Path, found: DuplicateKey) -> str:
    what = "camera names must differ" if found.path[:-1] == ("cameras",) else "a key may come once"
    return f"{path}:{found.line}: {'.'.join(found.path)}: {what}; line {found.first_line} has it already"


def _problem(path: str | Path, tree: yaml.Node | None, item: dict[str, object]) -> str:
    loc = tuple(item["loc"]) if isinstance(item["loc"], tuple) else ()
    line, keys = _place(tree, loc)
    message = "unknown key" if item["type"] == "extra_forbidden" else str(item["msg"]).removeprefix("Value error, ")
    return f"{path}:{line}: {'.'.join(keys) + ': ' if keys else ''}{message}"


def _place(node: yaml.Node | None, loc: tuple[int | str, ...]) -> tuple[int, list[str]]:
    """The line of a pydantic location, and its keys without the union tags that pydantic adds."""
    line = 1 if node is None else node.start_mark.line + 1
    keys: list[str] = []
    for step, part in enumerate(loc):
        if isinstance(node, yaml.MappingNode):
            match = next(((key, value) for key, value in node.value if key.value == str(part)), None)
            if match is None:
                if step == len(loc) - 1:  # a missing key has no place of its own; a union tag is not last
                    keys.append(str(part))
                continue
            line, node = match[0].start_mark.line + 1, match[1]
            keys.append(str(part))
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
            node = node.value[part]
            line = node.start_mark.line + 1
            keys.append(str(part))
    return line, keys
