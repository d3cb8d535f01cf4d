"""Writes the figures of README.md and of the files in docs/ from the JSON files in `results/`, between two marker lines."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.common import RESULTS, ROOT
from benchmarks.daemon_figures import daemon_figures, rival_rows
from benchmarks.training_figures import gains, study_figures, training_figures

START, END = "<!-- figures: written by python -m benchmarks.readme -->\n", "<!-- end of figures -->\n"


SAMPLERS_NOTE = (
    "Calibration draws of yolo11n under OpenVINO, plain NNCF without mending, 5 seeds: the pool is 126 pictures of COCO among 800 "
    "frames of four videos; losses are on coco_val2017, agreement is the worse of coco_val2017 and held-out video frames. The "
    "default is the sampler with the best worst agreement; the mAP differences of a few tenths of a point are noise of 128 images."
)
RANGES_NOTE = (
    "Plain NNCF without mending, 64 calibration frames, 128 labelled images; the cpu form under OpenVINO, the TensorRT form under "
    "ONNX Runtime as a proxy."
)
SEARCH_NOTE = (
    "yolo11n at 320 px with one layer made to saturate (`benchmarks/accuracy_control.py`): the kit's search beside NNCF's, with the "
    "same frames and the same bar."
)
FAMILIES_NOTE = (
    "Largest difference from the original on four photographs. Random weights were rescaled for this until rounding alone no longer "
    "moved boxes by pixels in torch itself (see `benchmarks/families.py`), so their score column is weak evidence; the rows with real "
    "weights are the strong ones."
)
STUDIES_NOTE = (
    "The machine is that of the last run; the runs were made over several sessions with the code of their time. Methods, rates, "
    "interpolation and what a teacher teaches were chosen in smaller runs on seed 0 of these sets. LightlyTrain's arm has its own settings "
    "but for size, epochs, batch, optimizer and pictures from 0 to 1 (`benchmarks/lightly_train.py`). coco+teacher is to have the pool "
    "labelled by a detector that was fine-tuned on the same labels at twice the size, in as many steps on top of the arm's own; frames "
    "take part from the first step on and teach where objects end as well, which they do not in the other arms with the pool. In those, on "
    "neu_det, and on apple_bbch81 but for seed 2 with 10 and 25 % of the labels, the run's own average looked at the pool once, in the "
    "others four times, as it does now. ssl starts halfway between fresh weights and what was learnt without labels (Ash and Adams 2020), "
    "ssl-whole from the whole of it; distill, halfway as well, learnt from yolov8n's COCO weights what its neck makes of the same frames, "
    "with a budget and a rate of its own (above each table), so it knows what COCO's labels taught, which ssl does not."
)


def load(name: str) -> dict[str, Any]:
    """One result file."""
    found: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    return found


def machine_line(*results: str) -> str:
    """Where the figures of these files come from, each machine once."""
    files: dict[str, list[str]] = {}
    for result in results:
        if (RESULTS / f"{result}.json").exists():
            files.setdefault(_machine(load(result)["machine"]), []).append(f"`{result}.json`")
    lines = [f"{', '.join(names)}: {machine}" for machine, names in files.items()] if len(files) > 1 else list(files)
    return f"{'. '.join(lines)}. Shared machines: compare ratios, not milliseconds."


def _machine(told: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {told[name]}" for name in ("torch", "ultralytics", "onnxruntime", "openvino", "nncf"))
    return f"{told['cpu']} ({told['cpu features']}), {told['memory']}; {versions}"


def accuracy_rows() -> list[str]:
    """The COCO weights as deployed against Ultralytics' own validation."""
    rows = ["| mAP50-95 on 128 images of COCO val2017, 640 px | yolo11n | yolov8n |", "|---|---|---|"]
    results = load("coco_parity")
    for name in results["yolo11n"]["accuracy"]:
        if name in ("bundle int8, onnxruntime", "bundle int8, openvino"):
            continue  # of an earlier recipe; today's are in convert_int8
        values = [f"{results[model]['accuracy'][name]['map50_95']:.4f}" for model in ("yolo11n", "yolov8n")]
        rows.append(f"| {name} | {' | '.join(values)} |")
    return rows


def int8_rows() -> list[str]:
    """What `edge-convert` makes of the COCO weights: every file under every engine."""
    rows = [
        "| `edge-convert`, COCO weights, 640 px | engine | mAP50-95 | loss (95 % interval) | F1 at 0.25 | loss | p50 | layers in float |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, run in load("convert_int8").items():
        if name in ("machine", "seed"):
            continue
        for row in run["measurements"]:
            labeled = row["labeled"]
            if row["refused"] or (row["precision"] == "fp32" and "tensorrt" in name):
                continue
            low, high = labeled["map50_95_drop_interval"]
            proxy = row["form"] not in ("any", "cpu")
            floats = (
                run["int8"].get("tensorrt" if proxy else "cpu", {}).get("float_layers", [])
                if row["precision"] == "int8"
                else []
            )
            time = "–" if proxy else f"{row['latency_p50_ms']:.1f} ms"
            map_drop = "–" if row["precision"] == "fp32" else f"{labeled['map50_95_drop']:+.4f} ({low:+.4f} to {high:+.4f})"
            f1_drop = "–" if row["precision"] == "fp32" else f"{labeled['f1_drop']:+.4f}"
            rows.append(
                f"| {name.split(',')[0]}, {row['precision']}{', ' + row['form'] if proxy else ''} | {row['engine']}{' as a proxy' if proxy else ''} "
                f"| {labeled['map50_95']:.4f} | {map_drop} | {labeled['f1']:.4f} | {f1_drop} | {time} | {len(floats)} |"
            )
    return rows


def conversion_line() -> str:
    """Time and memory of whole conversions, and how much faster INT8 is."""
    told = []
    for name, run in load("convert_int8").items():
        if name in ("machine", "seed"):
            continue
        speed = f", INT8 {run['times_fp32']:.2f} times as fast as the fastest FP32" if run["times_fp32"] else ""
        busy = " beside other jobs" if name.endswith("tensorrt") else ""  # only their accuracy was asked for
        told.append(f"{name} {run['seconds']:.0f} s{busy}, {run['peak_mb'] / 1000:.1f} GB{speed}")
    frames = "126 pool frames and 128 labelled gate images, which the search does not look at"
    return f"The whole of `edge-convert --target …` with {frames}: {'; '.join(told)}. {kill_line()}"


def kill_line() -> str:
    """Conversions that were killed."""
    if not (RESULTS / "kill_convert.json").exists():
        return ""  # not measured
    kills = load("kill_convert")
    return (
        f"`kill -9` of conversions: {kills['killed']} killed, {kills['finished_before']} finished before; "
        f"bundles that verify and are wrong: {kills['wrong_bundles']}."
    )


def sampler_rows() -> list[str]:
    """Calibration draws: mean and worst of the seeds."""
    rows = [
        "| sampler | frames | draws | mAP50-95 loss, mean | worst | F1 loss, worst | F1 against FP32, worst |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, row in load("calibration_samplers")["table"].items():
        sampler, count = name.removesuffix(" frames").split(", ")
        rows.append(
            f"| {sampler} | {count} | {row['draws']} | {row['mean_map50_95_drop']:+.4f} | {row['worst_map50_95_drop']:+.4f} "
            f"| {row['worst_f1_drop']:+.4f} | {row['worst_agreement']:.4f} |"
        )
    return rows


def range_rows() -> list[str]:
    """NNCF's ways to estimate the activations' ranges."""
    rows = [
        "| ranges of activations | model, form | F1 against FP32 | mAP50-95 loss | F1 loss |",
        "|---|---|---|---|---|",
    ]
    for name, row in load("range_estimators")["results"].items():
        model, form, estimator = name.split(", ", 2)
        rows.append(
            f"| {estimator} | {model}, {form} | {row['f1_against_fp32']:.4f} | {row['map50_95_drop']:+.4f} | {row['f1_drop']:+.4f} |"
        )
    return rows


def search_rows() -> list[str]:
    """The kit's search beside NNCF's, on a model made to fail."""
    found = load("accuracy_control")
    rows = [
        "| search | seconds | F1 against FP32 | gate | p50 | layers in INT8 | the layer made to fail |",
        "|---|---|---|---|---|---|---|",
    ]
    for name in ("ours", "nncf.quantize_with_accuracy_control"):
        row = found[name]
        rows.append(
            f"| {name} | {row['seconds']:.0f} | {row['f1_against_fp32']:.4f} | {row['refused'] or 'holds'} "
            f"| {row['latency_p50_ms']:.1f} ms | {row['layers_in_int8']} | {'INT8' if row['broken_layer_in_int8'] else 'float'} |"
        )
    return rows


def family_rows() -> list[str]:
    """Each family's graph against its original, and through the daemon."""
    parity = load("families")["models"]
    daemon: dict[str, Any] = (
        load("families_daemon") if (RESULTS / "families_daemon.json").exists() else {"models": {}, "images": 0}
    )
    rows = ["| model | weights | boxes within | scores within | frames through `edge run` |", "|---|---|---|---|---|"]
    for name, row in parity.items():
        ran = daemon["models"].get(name, {}).get("processed")
        told = f"{ran} of {daemon['images']}" if ran is not None else "–"
        rows.append(f"| {name} | {row['weights']} | {row['max_box_px']:.2g} px | {row['max_score']:.1g} | {told} |")
    return rows


def other_lines() -> str:
    """Start-up, imports, kills."""
    startup, kills = load("startup"), load("kill9")
    first = "; ".join(
        f"{name}: {' / '.join(f'{value:.2f}' for value in values)} s"
        for name, values in startup["process start to first frame done, s"].items()
    )
    imports = ", ".join(
        f"`{name}` {startup[name]['median_s']:.2f} s (most {startup[name]['max_s']:.2f})"
        for name in ("import runtime", "edge run --help")
    )
    return (
        f"Process start to first frame done: {first}. {imports}, neither loads torch, ultralytics or onnx. "
        f"`kill -9` of the collecting daemon {kills['kills']} times: pool opened, index and files agreed {kills['pool_opened_and_agreed']} times."
    )


def demo_rows() -> list[str]:
    """The loop on the simulated line and on real sets."""
    rows = [
        "| `edge demo` | labels | without SSL: mAP50-95, F1 | with SSL | live F1 in drifted light, before → after the refresh | refresh | total |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, title in (
        ("simulated", "simulated line"),
        ("deeppcb_coco", "DeepPCB, from COCO weights"),
        ("neu_det_coco", "NEU-DET, from COCO weights"),
    ):
        if not (RESULTS / f"demo_{name}.json").exists():
            continue  # not measured
        summary = load(f"demo_{name}")
        arms = [f"{arm['map50_95']:.3f}, {arm['f1']:.3f}" for arm in summary["arms"].values()]
        live = summary["live_f1"]
        told = f"{live['released']:.2f} → {live['refreshed']:.2f}" if "refreshed" in live else f"{live.get('released', 0):.2f}"
        verdict = "published" if summary["refresh"]["publish"] else "kept the old one"
        rows.append(
            f"| {title} | {summary['labels']} | {arms[0]} | {arms[1]} | {told} | {verdict} | {summary['seconds']:.0f} s |"
        )
    return rows


def write_between_marks(path: Path, parts: list[str]) -> None:
    """Replaces what stands between the two marker lines."""
    head, rest = path.read_text(encoding="utf-8").split(START)
    path.write_text(head + START + "\n" + "\n\n".join(parts) + "\n\n" + END + rest.split(END)[1], encoding="utf-8")


def main() -> None:
    readme = [
        machine_line("rivals"),
        gains(),
        demo_rows(),
        accuracy_rows(),
        int8_rows(),
        conversion_line(),
        rival_rows(load("rivals")),
        other_lines(),
    ]
    write_between_marks(ROOT / "README.md", [part if isinstance(part, str) else "\n".join(part) for part in readme])
    convert = [
        machine_line("rivals"), "\n".join(sampler_rows()), SAMPLERS_NOTE, "\n".join(range_rows()), RANGES_NOTE,
        "\n".join(search_rows()), SEARCH_NOTE, "\n".join(family_rows()), FAMILIES_NOTE,
    ]  # fmt: skip
    write_between_marks(ROOT / "docs" / "edge-convert.md", convert)
    write_between_marks(ROOT / "docs" / "edge-run.md", [machine_line("rivals"), "\n".join(daemon_figures()).rstrip()])
    training = machine_line("methods", "kill_pretrain", "shards", "lightly_train", "memory")
    write_between_marks(ROOT / "docs" / "self-supervision.md", [training, "\n".join(training_figures()).rstrip()])
    studies = machine_line(*(f"study_{name}" for name in ("neu_det", "apple", "deeppcb")))
    write_between_marks(ROOT / "docs" / "study.md", [studies, STUDIES_NOTE, "\n".join(study_figures()).rstrip()])


if __name__ == "__main__":
    main()
