"""`edge study` on the data sets of the shared folder, as `studies/*.yaml` plan them: does learning without labels pay there?

A study goes on where it was cut; the results file has what is there so far. Weights and data lie in the shared folder, so the
plans name them relative to it. LightlyTrain's arm joins once `python -m benchmarks.lightly_train weights --study WORK/studies/NAME`
made its weights from the pools that the first run left.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
from pathlib import Path

import yaml

from benchmarks.common import DATA, WORK, write_result
from edge.study import StudyPlan, study

PLANS = Path(__file__).parent / "studies"


def load(name: str) -> StudyPlan:
    """The plan with its paths made absolute."""
    plan = yaml.safe_load((PLANS / f"{name}.yaml").read_text(encoding="utf-8"))
    plan["weights"] = str(DATA / plan["weights"])
    for each in plan["sets"].values():
        each |= {key: str(DATA / each[key]) for key in ("folder", "unlabeled") if key in each}
    for arm, spec in list(plan["arms"].items()):
        if "weights" in spec:
            spec["weights"] = str(WORK / "studies" / name / spec["weights"])
            own = StudyPlan.model_validate(plan)
            if not all(own.weights_of(own.arms[arm], each, seed).is_file() for each in own.sets for seed in own.seeds):
                sys.stderr.write(f"{name}: no weights yet for the arm {arm}, which is left out\n")
                del plan["arms"][arm]
    return StudyPlan.model_validate(plan)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("names", nargs="*", default=sorted(path.stem for path in PLANS.glob("*.yaml")))
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    for name in parser.parse_args().names:
        out = WORK / "studies" / name
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
