"""What sparing the layers below gives where labels are few: `--freeze` and `--layer-decay` from COCO weights, beside neither.

The smallest fraction of each set of `studies/*.yaml`, every seed, all runs on one machine. Goes on where it was cut.
"""

from __future__ import annotations

import sys
from typing import Any

from benchmarks.common import WORK, write_result
from benchmarks.studies import PLANS, load
from edge.study import study
from edge.study_plan import StudyPlan

ARM = "coco"
NEITHER = "neither"
VARIANTS: dict[str, dict[str, float]] = {
    NEITHER: {},
    "--freeze 0.3": {"freeze": 0.3},
    "--layer-decay 0.9": {"layer_decay": 0.9},
}


def main() -> None:
    names = sys.argv[1:] or sorted(path.stem for path in PLANS.glob("*.yaml"))
    runs: list[dict[str, Any]] = []
    for variant in VARIANTS:  # one after the other: a file that was cut has whole ones
        runs += [run for name in names for run in measured(name, variant)]
        without = {(run["set"], run["seed"]): run for run in runs if run["variant"] == NEITHER}
        for run in runs:
            neither = without[run["set"], run["seed"]]
            run["over_neither"] = {key: round(run[key] - neither[key], 5) for key in ("map50_95", "f1")}
        write_result("few_label_defaults", {"runs": runs})


def measured(name: str, variant: str) -> list[dict[str, Any]]:
    """A record for each seed of a set."""
    whole = load(name)
    changes = {"finetune": {**whole.finetune.model_dump(), **VARIANTS[variant]}, "fractions": [min(whole.fractions)]}
    plan = StudyPlan.model_validate({**whole.model_dump(exclude_unset=True), **changes, "arms": {ARM: {"start": "coco"}}})
    records = study(plan, WORK / "few-label-defaults" / name / variant.strip("-").replace(" ", "-"))
    told = ("set", "fraction", "seed", "labels", "map50_95", "f1")
    return [{**{key: record[key] for key in told}, "variant": variant} for record in records]


if __name__ == "__main__":
    main()
