"""`edge study` on the data sets of the shared folder, as `studies/*.yaml` plan them: does learning without labels pay there?

A study goes on where it was cut, on another machine from the results file, which has what is there so far. Weights and data
lie in the shared folder, so the plans name them relative to it. LightlyTrain's arm joins once `python -m benchmarks.lightly_train
weights --study WORK/studies/NAME` made its weights from the pools that the first run left.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
from pathlib import Path

import yaml

from benchmarks.common import DATA, RESULTS, WORK, write_result
from edge.study import study
from edge.study_plan import Cell, StudyPlan
from runtime.files import write_atomically

PLANS = Path(__file__).parent / "studies"
_FIXED = ("model", "weights", "imgsz", "pretrain", "finetune")  # what every run depends on


def load(name: str) -> StudyPlan:
    """The plan with its paths made absolute."""
    plan = yaml.safe_load((PLANS / f"{name}.yaml").read_text(encoding="utf-8"))
    plan["weights"] = str(DATA / plan["weights"])
    for each in plan["sets"].values():
        each |= {key: str(DATA / each[key]) for key in ("folder", "unlabeled") if key in each}
    for arm, spec in list(plan["arms"].items()):
        if isinstance(ssl := spec.get("ssl"), dict) and "teacher" in ssl:
            ssl["teacher"] = str(DATA / ssl["teacher"])
        if "weights" in spec:
            spec["weights"] = str(WORK / "studies" / name / spec["weights"])
            own = StudyPlan.model_validate(plan)
            if not all(own.weights_of(own.arms[arm], each, seed).is_file() for each in own.sets for seed in own.seeds):
                sys.stderr.write(f"{name}: no weights yet for the arm {arm}, which is left out\n")
                del plan["arms"][arm]
    return StudyPlan.model_validate(plan)


def take_up(name: str, out: Path) -> None:
    """Puts the runs that the results file has into a work folder that lacks them, if they are of the same plan."""
    path = RESULTS / f"study_{name}.json"
    if not path.is_file():
        return
    known = json.loads(path.read_text(encoding="utf-8"))
    before, now = known["plan"], yaml.safe_load((PLANS / f"{name}.yaml").read_text(encoding="utf-8"))
    kept = 0
    for record in known["records"]:
        of_both = [(each["arms"].get(record["arm"]), each["sets"].get(record["set"])) for each in (before, now)]
        same = of_both[0] == of_both[1] and all(before[key] == now[key] for key in _FIXED)
        result = out / Cell(record["set"], record["arm"], record["fraction"], record["seed"]).name / "result.json"
        if same and not result.is_file():
            result.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(result, (json.dumps(record) + "\n").encode())
            kept += 1
    sys.stderr.write(f"{name}: {kept} of {len(known['records'])} runs taken up from {path.name}\n")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("names", nargs="*", default=sorted(path.stem for path in PLANS.glob("*.yaml")))
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    for name in parser.parse_args().names:
        out = WORK / "studies" / name
        take_up(name, out)
        try:
            study(load(name), out)
        finally:  # also when it is cut
            done = sorted(out.glob("*/seed*/*/result.json"))
            plan = yaml.safe_load((PLANS / f"{name}.yaml").read_text(encoding="utf-8"))
            if done:
                records = [json.loads(path.read_text(encoding="utf-8")) for path in done]
                write_result(f"study_{name}", {"plan": plan, "records": records})


if __name__ == "__main__":
    main()
