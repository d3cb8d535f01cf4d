"""100,000 frames in shards: how soon the first batch is there, whether memory stays flat over a whole pass, and whether views are
made faster than a model learns from them.

The frames are simulated, each another one. The pass has no model in it; the model's rate is measured in the same process on
the same core, with the dense method and with SimCLR on the backbone.
"""

from __future__ import annotations

import argparse
import io
import itertools
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import cv2

from benchmarks.common import ROOT, WORK, write_result
from edge.shards import INDEX, Shard, ShardIndex
from runtime.sources.simulated import Line

FRAMES, PER_SHARD, SIDE = 100_000, 1000, 320
IMGSZ, BATCH = 224, 64
FOLDER = WORK / "shards-100k"
LOOKS = 20  # at the memory

PASS = """
import json, os, sys, time
def began():
    ticks = float(open("/proc/self/stat").read().rsplit(")", 1)[1].split()[19])
    return time.time() - float(open("/proc/uptime").read().split()[0]) + ticks / os.sysconf("SC_CLK_TCK")
def resident_mb():
    return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6
started = began()
url, imgsz, batch, looks, most = sys.argv[1], *map(int, sys.argv[2:6])
import torch
torch.set_num_threads(1)
from edge.methods import Settings, build_method
from edge.shard_loader import ShardLoader
from edge.shards import ShardSet
from edge.trunk import Trunk
from edge.view_loader import LoaderSpec
from edge.yolo import build_detector
shards = ShardSet.open(url)
found = {}
for name, part in (("dense", "neck"), ("simclr", "backbone")):
    detector = build_detector("yolo11n", ["object"], 0).to(memory_format=torch.channels_last)
    trunk = Trunk(detector, "yolo11n", part)
    method = build_method(name, trunk, Settings(imgsz, batch, len(shards), 100)).to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(method.parameters())
    found[name] = method, optimizer
loader = ShardLoader(shards, found["dense"][0].views, LoaderSpec(batch, 0))
batches = loader.epoch(0)
views = next(batches)
first_s = time.time() - started
rates = {}
for name, (method, optimizer) in found.items():
    method.train()
    for step in range(3):
        begin = time.monotonic()
        optimizer.zero_grad()
        method(*views).backward()
        optimizer.step()
        rates.setdefault(name, []).append(batch / (time.monotonic() - begin))
del found, method, optimizer
memory, seen = [], batch
begin = time.monotonic()
steps = min(loader.steps, most // batch)
for step, views in enumerate(batches, 2):
    seen += batch
    if step % max(1, steps // looks) == 0:
        memory.append((seen, round(resident_mb(), 1)))
        sys.stderr.write(f"{seen} frames, {memory[-1][1]} MB\\n")
    if step >= steps:
        break
print(json.dumps({"first_batch_s": first_s, "frames_seen": seen, "loader_images_per_s": (seen - batch) / (time.monotonic() - begin),
                  "model_images_per_s": rates, "resident_mb": memory}))
"""


def make() -> None:
    """The shards. Made once."""
    if (FOLDER / INDEX).is_file():
        return
    FOLDER.mkdir(parents=True, exist_ok=True)
    line, numbers = Line(3, (SIDE, SIDE)), itertools.count()
    shards = []
    for index in range(FRAMES // PER_SHARD):
        shards.append(Shard(name=f"shard-{index:06d}.tar", frames=PER_SHARD))
        with tarfile.open(FOLDER / shards[-1].name, "w") as tar:
            for number in itertools.islice(numbers, PER_SHARD):
                data = cv2.imencode(".jpg", line.image(number))[1].tobytes()
                member = tarfile.TarInfo(f"{number:08d}.jpg")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
        sys.stderr.write(f"{index + 1} shards\n")
    (FOLDER / INDEX).write_text(ShardIndex(shards=tuple(shards)).model_dump_json(indent=2), encoding="utf-8")


def whole_pass(most: int) -> dict[str, Any]:
    """One pass in a process of its own."""
    arguments = [FOLDER, IMGSZ, BATCH, LOOKS, most]
    done = subprocess.run(
        [sys.executable, "-c", PASS, *map(str, arguments)], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True
    )
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--most", type=int, default=FRAMES, help="frames of the pass")
    arguments = parser.parse_args()
    make()
    found = whole_pass(arguments.most)
    memory = found["resident_mb"]
    fastest = {name: max(values) for name, values in found["model_images_per_s"].items()}
    write_result(
        "shards",
        {"frames": FRAMES, "megabytes": round(sum(path.stat().st_size for path in Path(FOLDER).glob("*.tar")) / 1e6), "side": SIDE,
         "imgsz": IMGSZ, "batch": BATCH, "cores": len(os.sched_getaffinity(0)), **found,
         "first_batch_s": round(found["first_batch_s"], 2), "loader_images_per_s": round(found["loader_images_per_s"], 1),
         "model_images_per_s": {name: [round(v, 1) for v in values] for name, values in found["model_images_per_s"].items()},
         "loader_over_model": {name: round(found["loader_images_per_s"] / value, 2) for name, value in fastest.items()},
         "growth_mb_after_a_fifth": round(memory[-1][1] - memory[len(memory) // 5][1], 1)},
    )  # fmt: skip


if __name__ == "__main__":
    main()
