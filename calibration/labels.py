"""Labelled images in YOLO's layout: `images/a.jpg` beside `labels/a.txt` with `class cx cy w h`, 0 to 1.

A data set is a `data.yaml` as Ultralytics writes it (`names`, `train`, `val`; folders or lists of files). A folder that
holds only `images/`, `labels/` and `names` is split first, see `split_dataset`.
"""

from __future__ import annotations

import math
import os
import random
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from calibration.errors import DataError
from runtime.detections import Detections
from runtime.files import write_atomically
from runtime.images import IMAGE_SUFFIXES, list_images
from runtime.yaml_keys import duplicate_keys
from runtime.yaml_text import NotYamlError, parse_yaml

_SHOWN = 5  # problems told one by one before the rest is only counted


@dataclass(frozen=True, slots=True)
class LabeledImage:
    """One image and its boxes.

    Attributes:
        path: the image file.
        class_id: int32 (n,).
        cxcywh: float32 (n, 4), centre and size as shares of width and height, 0 to 1.
    """

    path: Path
    class_id: NDArray[np.int32]
    cxcywh: NDArray[np.float32]

    def truth(self, size_wh: tuple[int, int]) -> Detections:
        """The boxes in pixels of an image of that size, with confidence 1."""
        size = np.array([*size_wh, *size_wh], np.float32)
        centre, half = self.cxcywh[:, :2], self.cxcywh[:, 2:] / 2
        xyxy = np.concatenate([centre - half, centre + half], axis=1) * size
        return Detections(xyxy.astype(np.float32), np.ones(len(xyxy), np.float32), self.class_id)


@dataclass(frozen=True, slots=True)
class Dataset:
    """Class names with the images to train on and the held-out ones."""

    names: tuple[str, ...]
    train: tuple[LabeledImage, ...]
    val: tuple[LabeledImage, ...]


def load_dataset(data_yaml: Path) -> Dataset:
    """Reads a `data.yaml` with `names`, `train` and `val`, and checks every label.

    Raises:
        DataError: a key, image or label that is missing or wrong; label problems are told with file and line.
    """
    names, train, val = _read_parts(data_yaml, ("train", "val"))
    if not train:
        raise DataError(f"{data_yaml}: `train` names no image; list at least one labelled image")
    return Dataset(names, train, val)


def load_held_out(data_yaml: Path) -> Dataset:
    """Like `load_dataset`, without the training images: they need not be there.

    Raises:
        DataError: as above.
    """
    names, val = _read_parts(data_yaml, ("val",))
    return Dataset(names, (), val)


def _read_parts(data_yaml: Path, keys: Sequence[str]) -> tuple[Any, ...]:
    content = _read_yaml(data_yaml)
    names = _names(content, data_yaml)
    base = data_yaml.parent / str(content.get("path", "."))
    parts = []
    for key in keys:
        if key not in content:
            raise DataError(f"{data_yaml} has no `{key}`; split the folder first with: edge split {data_yaml.parent} --out DIR")
        paths = _image_paths(base, content[key], data_yaml)
        each_once = {os.path.abspath(path): path for path in paths}.values()  # noqa: PTH100  a link has labels of its own
        part = read_labels(list(each_once), len(names))
        if part and not any(len(item.class_id) for item in part):
            expected = _label_path(part[0].path)
            raise DataError(
                f"{data_yaml}: none of the {len(part)} images of `{key}` has a box; their labels are expected like {expected}"
            )
        parts.append(part)
    return (names, *parts)


def tell_unlabelled(dataset: Dataset) -> None:
    """On stderr, how many images have no label file: one that was lost looks like an image without objects."""
    paths = [item.path for item in (*dataset.train, *dataset.val)]
    if without := [path for path in paths if not _label_path(path).is_file()]:
        sys.stderr.write(
            f"{len(without)} of {len(paths)} images have no label file and count as showing nothing; the first of them would be "
            f"{_label_path(without[0])}\n"
        )


def split_dataset(folder: Path, out: Path, pattern: str, labels: int, val_share: float, seed: int) -> Path:
    """Splits `folder` (images/, labels/, data.yaml with names) by groups and writes `out/data.yaml`.

    Args:
        folder: the data set.
        out: where data.yaml, train.txt, val.txt and rest.txt go.
        pattern: regular expression on the file's stem; what its first group (or the whole match) gives is one board,
            photo or scene, and never stands on both sides.
        labels: how many training images keep their labels; 0 for all. The others are listed in rest.txt.
        val_share: share of the images to hold out, 0 to 1; whole groups, so it is met approximately.
        seed: of the draw.

    Returns:
        The path of the new data.yaml.

    Raises:
        DataError: unusable folder or pattern, or fewer than two groups.
    """
    if out.resolve() == folder.resolve():
        raise DataError(f"--out {out} is the data set itself, whose data.yaml would be overwritten; choose another folder")
    names = _names(_read_yaml(folder / "data.yaml"), folder / "data.yaml")
    paths = list_images(folder / "images")
    groups = grouped(paths, pattern)
    if len(groups) < 2:
        raise DataError(
            f"--group '{pattern}' puts all {len(paths)} images of {folder} into one group; choose a pattern that tells scenes apart"
        )
    order = sorted(groups)
    random.Random(seed).shuffle(order)
    val: list[Path] = []
    while order and len(val) < val_share * len(paths) and len(order) > 1:
        val += groups[order.pop()]
    train = sorted(path for key in order for path in groups[key])
    random.Random(seed + 1).shuffle(train)
    kept = train[: labels or len(train)]
    for part, items in (("training", kept), ("held-out", val)):
        if not any(len(item.class_id) for item in read_labels(items, len(names))):
            raise DataError(
                f"none of the {len(items)} {part} images has a box; their labels are expected like {_label_path(items[0])}"
            )
    _write_split(out, names, {"train": kept, "val": sorted(val), "rest": train[len(kept) :]})
    return out / "data.yaml"


def write_dataset(out: Path, names: Sequence[str], train: Sequence[Path], val: Sequence[Path]) -> Path:
    """Writes a data.yaml for images that are split already; returns its path."""
    _write_split(out, tuple(names), {"train": list(train), "val": list(val)})
    return out / "data.yaml"


def read_labels(paths: Sequence[Path], classes: int) -> tuple[LabeledImage, ...]:
    """Reads the label file of each image; a missing one means an image without objects.

    Raises:
        DataError: lines that are no label, values out of range, unknown classes; told together.
    """
    problems: list[str] = []
    items = [LabeledImage(path, *_read_label(_label_path(path), classes, problems.append)) for path in paths]
    if problems:
        more = f"\n  … and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
        listed = "\n  ".join(problems[:_SHOWN])
        raise DataError(
            f"{len(problems)} label problem(s); a label line is `class cx cy w h` with 0 ≤ values ≤ 1:\n  {listed}{more}"
        )
    return tuple(items)


def _read_label(path: Path, classes: int, report: Callable[[str], None]) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    rows = []
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        problem, row = _parse_row(line, classes)
        if problem:
            report(f"{path}:{number}: {problem}")
        else:
            rows.append(row)
    table = np.array(rows, np.float32).reshape(-1, 5)
    return table[:, 0].astype(np.int32), table[:, 1:].copy()


def _parse_row(line: str, classes: int) -> tuple[str, tuple[float, ...]]:
    """A problem in words, or an empty string and the five numbers."""
    try:
        row = tuple(float(part) for part in line.split())
    except ValueError:
        return f"not numbers: {line.strip()[:60]!r}", ()
    if len(row) != 5:
        return f"{len(row)} numbers where 5 are expected", ()
    if not all(math.isfinite(value) for value in row):
        return "a number that is not finite", ()
    if row[0] != int(row[0]) or not 0 <= row[0] < classes:
        return f"class {row[0]:g} is unknown: data.yaml names classes 0 to {classes - 1}", ()
    if not all(0 <= value <= 1 for value in row[1:]) or row[3] <= 0 or row[4] <= 0:
        return f"box {' '.join(f'{value:g}' for value in row[1:])} is out of range", ()
    return "", row


def _label_path(image: Path) -> Path:
    """`…/images/a.jpg` → `…/labels/a.txt`, the last folder called images counting."""
    parts = list(image.parts)
    for index in range(len(parts) - 2, -1, -1):
        if parts[index] == "images":
            parts[index] = "labels"
            break
    return Path(*parts).with_suffix(".txt")


def _read_yaml(path: Path) -> dict[str, object]:
    try:
        content, tree = parse_yaml(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}; a data set has a data.yaml with `names`") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path} cannot be read: it is no UTF-8 text; a data set has a data.yaml with `names`") from error
    except NotYamlError as error:
        raise DataError(f"{path}{error.place}: not valid YAML: {error}; fix that line") from error
    if twice := duplicate_keys(tree):
        raise DataError(
            f"{path}:{twice[0].line}: {'.'.join(twice[0].path)} comes twice; line {twice[0].first_line} has it already"
        )
    if not isinstance(content, dict):
        raise DataError(f"{path} holds no mapping; expected `names`, `train` and `val`")
    return content


def _names(content: dict[str, object], path: Path) -> tuple[str, ...]:
    names = content.get("names")
    listed = [str(name) for name in (names.values() if isinstance(names, dict) else names if isinstance(names, list) else ())]
    if len(set(listed)) < len(listed):
        raise DataError(f"{path} names a class twice; each class has one name and one number")
    if isinstance(names, dict) and set(names) == set(range(len(names))) and names:
        return tuple(str(names[index]) for index in range(len(names)))
    if isinstance(names, list) and names:
        return tuple(str(name) for name in names)
    raise DataError(f"{path} has no usable `names`; expected a list, or a mapping from 0, 1, 2 … to names")


def _image_paths(base: Path, value: object, data_yaml: Path) -> list[Path]:
    if isinstance(value, list):
        return [path for each in value for path in _image_paths(base, each, data_yaml)]
    target = base / str(value)
    if target.is_dir():
        return list_images(target)
    try:
        lines = target.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"{data_yaml} names {target}, which is neither a folder of images nor a list of files; fix the path"
        ) from error
    paths = [target.parent / line.strip() for line in lines if line.strip()]
    missing = [path for path in paths if path.suffix.lower() not in IMAGE_SUFFIXES or not path.is_file()]
    if missing:
        raise DataError(
            f"{target} lists {len(missing)} of {len(paths)} images that do not exist, first {missing[0]}; fix the list"
        )
    return paths


def grouped(paths: Sequence[Path], pattern: str) -> dict[str, list[Path]]:
    """The images of each board, photo or scene, see `split_dataset`.

    Raises:
        DataError: no regular expression, or one that an image's name does not match.
    """
    try:
        expression = re.compile(pattern)
    except re.error as error:
        raise DataError(f"--group '{pattern}' is no regular expression: {error}; try '^(\\d+)'") from error
    groups: dict[str, list[Path]] = {}
    for path in paths:
        key = group_of(path, expression.pattern)
        if key is None:
            raise DataError(f"--group '{pattern}' does not match {path.name}; every file name must belong to a group")
        groups.setdefault(key, []).append(path)
    return groups


def group_of(path: Path, pattern: str) -> str | None:
    """The board, photo or scene of an image: the pattern's first group, or its whole match; None without a match."""
    match = re.search(pattern, path.stem)
    if match is None:
        return None
    return match[1] if match.re.groups else match[0]


def _write_split(out: Path, names: Sequence[str], lists: dict[str, list[Path]]) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name, paths in lists.items():
            write_atomically(out / f"{name}.txt", "".join(f"{path.absolute()}\n" for path in paths).encode())
        content = {"names": dict(enumerate(names)), "train": "train.txt", "val": "val.txt"}
        write_atomically(out / "data.yaml", yaml.safe_dump(content, sort_keys=False).encode())
    except OSError as error:
        raise DataError(f"{out} cannot be written: {error.strerror}; choose another --out") from error
