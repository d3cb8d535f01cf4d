"""edge.yaml: read once into one frozen tree; every problem is reported together with its line."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic_core import ErrorDetails

from runtime.config_words import problem_of
from runtime.device import usable_cores
from runtime.errors import ConfigError
from runtime.pool import DEFAULT_QUOTA_BYTES
from runtime.sources.gstreamer import csi_pipeline, v4l2_pipeline
from runtime.sources.uri import is_live, redacted
from runtime.sources.video import OPEN_TIMEOUT_S, READ_TIMEOUT_S
from runtime.yaml_keys import DuplicateKey, duplicate_keys
from runtime.yaml_text import NotYamlError, parse_yaml

FPS_MAX = "max"
CameraName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ImagesConfig(_Strict):
    """A folder of images, replayed."""

    kind: Literal["images"]
    path: str
    loop: bool = False


_TimeoutS = Annotated[float, Field(gt=0, le=3600)]


_SCHEMES = ("rtsp", "rtsps", "http", "https", "rtmp", "rtmps", "udp", "tcp", "srt", "rtp")


class VideoConfig(_Strict):
    """A video file or a stream URL (`rtsp://…`, `http://…/mjpeg`)."""

    kind: Literal["video"]
    uri: str
    loop: bool = False
    transport: Literal["tcp", "udp"] = "tcp"
    open_timeout_s: _TimeoutS = OPEN_TIMEOUT_S
    read_timeout_s: _TimeoutS = READ_TIMEOUT_S

    @field_validator("uri")
    @classmethod
    def _an_address_ends_at_white_space(cls, uri: str) -> str:
        if "://" in uri and any(character.isspace() for character in uri):  # else logs could not tell where a password ends
            raise ValueError("an address holds no white space; write a blank in it as %20")
        if not uri:
            raise ValueError("an address is missing: a file, rtsp://…, http://…")
        scheme, _, rest = uri.partition("://")
        if rest and scheme not in _SCHEMES:
            raise ValueError(f"unknown protocol {scheme}; use one of {', '.join(_SCHEMES)}")
        if not rest and "@" in uri and ":" in uri:
            raise ValueError("this is neither a file nor an address; did you mean rtsp://…?")
        if not re.fullmatch(r"(?:[^/]*@)?(?:\[[^\]]*\]|[^:/]*)(?::\d{1,5})?(?:[/?].*)?", rest):
            raise ValueError("the port of the address is no number")
        if uri.startswith("/dev/"):  # FFmpeg waits in the driver without a timeout; a process can be killed
            raise ValueError(f"write a device as a word: `source: {uri}`, or as kind gstreamer")
        return uri

    @property
    def live(self) -> bool:
        """Whether frames that nobody takes are gone."""
        return is_live(self.uri)


class GStreamerConfig(_Strict):
    """A pipeline in gst-launch-1.0's notation, without its sink; `csi` 0, 1, … is a Jetson's CSI camera."""

    kind: Literal["gstreamer"]
    pipeline: str
    live: bool = True
    open_timeout_s: _TimeoutS = 2 * OPEN_TIMEOUT_S  # starting a driver takes longer than a handshake
    read_timeout_s: _TimeoutS = READ_TIMEOUT_S


class SimulatedConfig(_Strict):
    """The built-in inspection line; see `runtime.sources.simulated.Line`."""

    kind: Literal["simulated"]
    seed: int = Field(default=0, ge=0)
    size_wh: tuple[Annotated[int, Field(ge=64, le=2048)], Annotated[int, Field(ge=64, le=2048)]] = (256, 256)
    frames: Annotated[int, Field(gt=0)] | None = None
    start: int = Field(default=0, ge=0)
    light: float = Field(default=0.0, ge=0, le=1)
    light_drift: float = Field(default=0.0, ge=0, le=1)


def _from_text(source: object) -> object:
    """What a bare string in `source:` means, or a number: as in OpenCV and Ultralytics, that of a camera."""
    if isinstance(source, int) and not isinstance(source, bool) and source >= 0:
        source = f"/dev/video{source}"
    if not isinstance(source, str):
        return source
    if sensor := re.fullmatch(r"csi://(\d+)", source):
        return {"kind": "gstreamer", "pipeline": csi_pipeline(int(sensor[1]))}
    if source.startswith("/dev/"):
        return {"kind": "gstreamer", "pipeline": v4l2_pipeline(source)}
    if " ! " in source:
        return {"kind": "gstreamer", "pipeline": source}
    return {"kind": "images", "path": source} if source and Path(source).is_dir() else {"kind": "video", "uri": source}


SourceConfig = Annotated[
    ImagesConfig | VideoConfig | GStreamerConfig | SimulatedConfig, Field(discriminator="kind"), BeforeValidator(_from_text)
]
Unit = Annotated[float, Field(ge=0, le=1)]
Point = tuple[Unit, Unit]


class MotionConfig(_Strict):
    """Detect only when something moves, and every `every_s` seconds whatever happens.

    `threshold` is the share of the picture that must have changed.
    """

    threshold: float = Field(default=0.001, gt=0, lt=1)
    every_s: float = Field(default=10.0, gt=0, le=86400)


class CameraConfig(_Strict):
    """One camera.

    Attributes:
        source: a mapping with `kind`, or a string: a path, a URL, `csi://0`, a GStreamer pipeline.
        fps: none = the source's own rate; a number paces files and folders and caps live cameras; `max` = as fast as the
            model goes, nothing dropped (files and folders).
        region: left, top, right, bottom as shares of the picture; only that part is looked at.
        motion: none = every frame is looked at.
        zones: name → polygon, points as shares of the picture.
        track: whether objects keep an id from frame to frame (ByteTrack).
    """

    source: SourceConfig
    fps: Annotated[float, Field(gt=0, le=1000)] | Literal["max"] | None = None
    region: tuple[Unit, Unit, Unit, Unit] | None = None
    motion: MotionConfig | None = None
    zones: dict[CameraName, Annotated[list[Point], Field(min_length=3, max_length=100)]] = Field(default_factory=dict)
    track: bool = False

    @property
    def live(self) -> bool:
        """Whether frames that nobody takes are gone."""
        return isinstance(self.source, VideoConfig | GStreamerConfig) and self.source.live

    @model_validator(mode="after")
    def _makes_sense(self) -> CameraConfig:
        if self.live and self.fps == FPS_MAX:
            raise ValueError("fps: max is for files and folders, which can wait; give a live camera a number or nothing")
        if self.region and not (self.region[0] < self.region[2] and self.region[1] < self.region[3]):
            raise ValueError("region is left, top, right, bottom as shares of the picture; left < right, top < bottom")
        return self


class ModelConfig(_Strict):
    """Which bundle, and how it is run. `auto` takes what the bundle measured as best."""

    bundle: str
    trust_key: str | None = None  # a public key; bundles that its owner did not sign are refused
    engine: Literal["auto", "onnxruntime", "openvino", "onnxruntime-cuda", "tensorrt", "tensorrt-rtx"] = "auto"
    precision: Literal["auto", "fp32", "fp16", "int8"] = "auto"
    threads: int = Field(default=0, ge=0, le=256)  # 0: as many as this process may use
    streams: Annotated[int, Field(ge=1, le=256)] | Literal["auto"] = "auto"  # frames at once on a CPU
    confidence: Unit | dict[str, Unit] | None = None
    batch: Annotated[int, Field(ge=1, le=256)] | Literal["auto"] = "auto"
    batch_wait_ms: float = Field(default=5.0, ge=0, le=1000)
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
    cameras: dict[CameraName, CameraConfig] = Field(min_length=1)
    sinks: list[SinkConfig] = Field(default_factory=list)
    collect: CollectConfig | None = None
    server: ServerConfig | None = None

    @property
    def lossless(self) -> bool:
        """Whether no frame may be left out: files that are read as fast as they are looked at."""
        return all(camera.fps == FPS_MAX for camera in self.cameras.values())

    @property
    def streams(self) -> int:
        """Frames that a CPU looks at at once: one for each live camera, for files as many as it has threads."""
        threads = self.model.threads or usable_cores()
        asked = self.model.streams
        if asked == "auto":
            asked = threads if self.lossless else len(self.cameras)
        return min(asked, threads)

    @model_validator(mode="after")
    def _sinks_write_apart(self) -> EdgeConfig:
        paths = [sink.path for sink in self.sinks]
        if twice := sorted({path for path in paths if paths.count(path) > 1}):
            raise ValueError(f"two sinks write to {', '.join(twice)}; give each its own path")
        return self


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
        document, tree = parse_yaml(text)
    except NotYamlError as error:
        raise ConfigError(f"{path}{error.place}: not valid YAML: {error}; fix that line") from error
    if not isinstance(document, dict):
        raise ConfigError(f"{path} holds no mapping; start from deploy/edge.yaml")
    problems = [_twice(path, found) for found in duplicate_keys(tree)]
    try:
        config = EdgeConfig.model_validate(document)
    except ValidationError as error:
        problems += _problems(path, tree, error)
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


def _problems(path: str | Path, tree: yaml.Node | None, error: ValidationError) -> list[str]:
    """A sentence for each place where something is wrong."""
    places: dict[tuple[int, str], list[ErrorDetails]] = {}
    for item in error.errors():
        line, keys = _place(tree, item["loc"], missing=item["type"] == "missing")
        places.setdefault((line, ".".join(keys)), []).append(item)
    told = {
        place: problem_of(items)
        for place, items in places.items()
        # a value that may be of two types is wrong within one of them: it is not told as being of neither
        if not (any(other[1].startswith(f"{place[1]}.") for other in places) and all(_other_type(item) for item in items))
    }
    return [f"{path}:{line}: {keys + ': ' if keys else ''}{problem}" for (line, keys), problem in told.items()]


def _other_type(item: ErrorDetails) -> bool:
    return item["type"].endswith("_type") and item["loc"][-1] != "[key]"


def _place(node: yaml.Node | None, loc: tuple[int | str, ...], *, missing: bool) -> tuple[int, list[str]]:
    """The line of a pydantic location, and its keys without the tags that pydantic adds."""
    line = 1 if node is None else node.start_mark.line + 1
    keys: list[str] = []
    for step, part in enumerate(loc):
        if isinstance(node, yaml.MappingNode):
            match = next(((key, value) for key, value in node.value if key.value == str(part)), None)
            if match is None:
                if missing and step == len(loc) - 1:  # it has no place of its own
                    keys.append(str(part))
                continue
            line, node = match[0].start_mark.line + 1, match[1]
            keys.append(redacted(str(part)))
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
            node = node.value[part]
            line = node.start_mark.line + 1
            keys.append(str(part))
    return line, keys
