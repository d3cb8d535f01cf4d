"""Reading single values of `/sys`, any of which may be missing, forbidden or asleep."""

from __future__ import annotations

from pathlib import Path

_COLDEST, _HOTTEST = -100.0, 250.0  # °C; sensors of parts that are off say -256 or -274 (Tegra), broken ones anything


def text(path: Path) -> str | None:
    """What a file says; None where it cannot be read (sensors of parts that are off answer EAGAIN, ENODATA or EIO)."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return None


def number(path: Path) -> int | None:
    """An integer; None where there is none."""
    try:
        return int(text(path) or "")
    except ValueError:
        return None


def celsius(path: Path) -> float | None:
    """°C of a file in thousandths; None where no real temperature stands in it."""
    millidegrees = number(path)
    value = None if millidegrees is None else millidegrees / 1000
    return value if value is not None and is_temperature(value) else None


def is_temperature(value_celsius: float) -> bool:
    """Whether a sensor can have felt this."""
    return _COLDEST < value_celsius < _HOTTEST


def numbered(folder: Path, prefix: str) -> list[Path]:
    """The entries `prefix0`, `prefix1`, … in order of their numbers."""
    found = [path for path in folder.glob(f"{prefix}*") if path.name.removeprefix(prefix).isdigit()]
    return sorted(found, key=lambda path: int(path.name.removeprefix(prefix)))


def unused(name: str, seen: set[str]) -> str:
    """`name`, or `name 2`, `name 3` … where it is taken; remembers it in `seen`."""
    number = 1
    while (chosen := name if number == 1 else f"{name} {number}") in seen:
        number += 1
    seen.add(chosen)
    return chosen
