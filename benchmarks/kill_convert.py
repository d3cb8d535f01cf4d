"""kill -9 of `edge-convert` a hundred times at random instants: is there ever a bundle that verifies and is wrong?

A quarter of the conversions make INT8 too, the others FP32 only, which leaves more kills for the writing. Each is killed
at a random point of a whole one's time (INT8: of its second half), measured once before. Whatever is visible afterwards must verify, carry its own
digest as its name, and hold the FP32 graph and the calibration key of an undisturbed conversion; with INT8, the INT8 file.
(INT8's own bytes depend on measured times: which layers are cheap enough to be float.)
"""

from __future__ import annotations

import os
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import torch

from benchmarks.common import SEED, WORK, write_result
from converters.checkpoint import Checkpoint, save_checkpoint
from converters.convert import release
from converters.examine import verify_bundle
from converters.gate import Bars
from converters.request import ConvertRequest
from edge.yolo import build_detector
from runtime.bundle import CURRENT, Bundle
from runtime.pool import Pool, Seen
from runtime.sources.simulated import CLASS_NAMES, Line

KILLS = 100
SIDE = 64
NO_BARS = Bars(
    agreement=0, at_threshold=0, mean_iou=0, score_shift=1, boxes=0
)  # fresh weights; what is refused is not asked here


def child(request: ConvertRequest, bundles: Path) -> int:
    """Starts a conversion in a forked process, so that importing torch is not what gets killed."""
    pid = os.fork()
    if pid == 0:
        with Path(os.devnull).open("w") as null:
            os.dup2(null.fileno(), 2)
            os.dup2(null.fileno(), 1)
            torch.set_num_threads(1)
            release(request, bundles, lambda _: None)
        os._exit(0)
    return pid


def fingerprint(bundle: Bundle) -> tuple[str, str | None]:
    """What every conversion of one request has in common."""
    calibration = bundle.manifest.calibration
    return bundle.manifest.files["model.fp32.onnx"], calibration.key if calibration else None


def wrong_bundles(bundles: Path, expected: set[tuple[str, str | None]]) -> tuple[list[str], int]:
    """Visible bundles that are not what a whole conversion makes, and how many with INT8 were seen."""
    wrong, with_int8 = [], 0
    for path in bundles.iterdir():
        if path.name.startswith(".") or path.name == CURRENT:
            continue
        verify_bundle(path, None)
        bundle = Bundle.open(path)
        int8 = any(row.precision == "int8" for row in bundle.manifest.variants)
        with_int8 += int8
        whole = fingerprint(bundle) in expected and int8 == (bundle.manifest.calibration is not None)
        if bundle.digest[:16] != path.name or not whole:
            wrong.append(path.name)
    if (bundles / CURRENT).exists():
        Bundle.open(bundles / CURRENT)
    return wrong, with_int8


def main() -> None:
    folder = WORK / "kill-convert"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    detector = build_detector("yolo11n", CLASS_NAMES, seed=SEED)
    save_checkpoint(folder / "detector.pt", Checkpoint("yolo11n", CLASS_NAMES, detector.state_dict(), imgsz=SIDE))
    line = Line(SEED, (96, 96))
    with Pool.create(folder / "pool") as pool:
        for index in range(24):
            pool.add(line.image(index * 5), Seen("line", float(index), "benchmark"))
    requests = {
        "FP32": ConvertRequest(folder / "detector.pt"),
        "INT8": ConvertRequest(folder / "detector.pt", folder / "pool", frames=4, confidence=0.001, bars=NO_BARS),
    }
    whole_s = {}
    for kind, request in requests.items():
        start = time.monotonic()
        os.waitpid(child(request, folder / "whole"), 0)
        whole_s[kind] = time.monotonic() - start
    expected = {fingerprint(Bundle.open(path)) for path in (folder / "whole").iterdir()}
    rng, finished, wrong, seen_int8 = np.random.default_rng(SEED), 0, list[str](), 0
    for index in range(KILLS):
        kind = "INT8" if index % 4 == 0 else "FP32"
        pid = child(requests[kind], folder / "bundles")
        earliest = 0.5 if kind == "INT8" else 0.0  # a bundle with INT8 is written in the last tenth of its time
        time.sleep(float(rng.uniform(earliest, 1.05)) * whole_s[kind])
        done, _ = os.waitpid(pid, os.WNOHANG)
        if done:
            finished += 1
        else:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        if (folder / "bundles").exists():
            found, with_int8 = wrong_bundles(folder / "bundles", expected)
            wrong, seen_int8 = wrong + found, seen_int8 + with_int8
            if index % 4 == 3:  # the others go on in a folder with leftovers
                shutil.rmtree(folder / "bundles")
    figures = {
        "conversions": KILLS,
        "killed": KILLS - finished,
        "finished_before": finished,
        "wrong_bundles": len(wrong),
        "times_an_int8_bundle_was_seen": seen_int8,
        "whole_s": whole_s,
    }
    write_result("kill_convert", figures)


if __name__ == "__main__":
    main()
