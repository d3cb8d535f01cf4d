"""Every family through `edge-convert` and `edge run`: does the daemon run what the converter makes? Random weights, 640 px."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from benchmarks.common import DATA, WORK, edge_run, write_result
from benchmarks.families import FAMILIES
from converters.convert import convert, to_stderr
from converters.request import ConvertRequest

IMAGES = 8


def main() -> None:
    folder = WORK / "families"
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "images").mkdir(parents=True)
    for path in sorted((DATA / "coco_val2017" / "images").iterdir())[:IMAGES]:
        shutil.copy(path, folder / "images")
    sources = {name: (Path(f"{name}.yaml"), 640) for name in FAMILIES}
    sources["bigisland_yolox_nano"] = (DATA / "weights" / "bigisland_yolox_nano.onnx", 416)
    found: dict[str, Any] = {}
    for name, (source, side) in sources.items():
        bundle = convert(ConvertRequest(source, imgsz=side), folder / name, to_stderr)
        config = {
            "model": {"bundle": str(bundle.path)},
            "cameras": {"folder": {"source": {"kind": "images", "path": str(folder / "images")}, "fps": "max"}},
        }
        summary = edge_run(folder / f"run-{name}", config)
        found[name] = {"processed": summary["cameras"]["folder"]["processed"], "nms": bundle.manifest.outputs.nms}
        print(name, found[name], flush=True)
    write_result("families_daemon", {"images": IMAGES, "models": found})


if __name__ == "__main__":
    main()
