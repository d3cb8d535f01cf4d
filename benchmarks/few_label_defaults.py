"""What sparing the layers below gives where labels are few: `--freeze` and `--layer-decay` from COCO weights, beside neither.

The smallest fraction of each set of `studies/*.yaml`, every seed; the runs with neither are those of the studies. Goes on where
it was cut.
"""

from __future__ import annotations

import json
import statistics
import sys
from typing import Any

from benchmarks.common import RESULTS, WORK, write_result
from benchmarks.studies import PLANS, load
from edge.study import study
from edge.study_file import RESULT_FILE

ARM = "coco"
VARIANTS: dict[str, dict[str, float]] = {"--freeze 0.3": {"freeze": 0.3}, "--layer-decay 0.9": {"layer_decay": 0.9}}


def main() -> None:
    runs: list[dict[str, Any]] = []
    for name in sys.argv[1:] or sorted(path.stem for path in PLANS.glob("*.yaml")):
        whole = load(name)
        fraction = min(whole.fractions)
        known = json.loads((RESULTS / f"study_{name}.json").read_text(encoding="utf-8"))["records"]
        without = {each["seed"]: each for each in known if each["arm"] == ARM and each["fraction"] == fraction}
        for variant, setting in VARIANTS.items():
            finetune = whole.finetune.model_copy(update=setting)
            plan = whole.model_copy(update={"finetune": finetune, "arms": {ARM: whole.arms[ARM]}, "fractions": [fraction]})
            out = WORK / "few-label-defaults" / name / variant.strip("-").replace(" ", "-")
            study(plan, out)
            for path in sorted(out.glob(f"*/seed*/*/{RESULT_FILE}")):
                found = json.loads(path.read_text(encoding="utf-8"))
                before = without[found["seed"]]
                told = {key: found[key] for key in ("set", "fraction", "seed", "labels")}
                gain = {key: round(found[key] - before[key], 5) for key in ("map50_95", "f1")}
                runs.append(
                    {**told, "variant": variant, "map50_95": found["map50_95"], "f1": found["f1"], "over_neither": gain}
                )
    gains = {variant: [run["over_neither"] for run in runs if run["variant"] == variant] for variant in VARIANTS}
    means = {
        variant: {key: round(statistics.mean(each[key] for each in values), 5) for key in ("map50_95", "f1")}
        for variant, values in gains.items()
    }
    write_result("few_label_defaults", {"runs": runs, "mean_over_neither": means})


if __name__ == "__main__":
    main()
