"""`edge study` on the data sets of the shared folder, as `studies/*.yaml` plan them: does learning without labels pay there?

A study goes on where it was cut; the results file has what is there so far. Weights and data lie in the shared folder, so the
plans name them relative to it.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import yaml

from benchmarks.common import DATA, WORK, write_result
from edge.study import RESULTS, StudyPlan, study

PLANS = Path(__file__).parent / "studies"


def load(name: str) -> StudyPlan:
    """The plan with its paths made absolute."""
    plan = yaml.safe_load((PLANS / f"{name}.yaml").read_text(encoding="utf-8"))
    plan["weights"] = str(DATA / plan["weights"])
    for each in plan["sets"].values():
        each["folder"] = str(DATA / each["folder"])
    return StudyPlan.model_validate(plan)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("names", nargs="*", default=sorted(path.stem for path in PLANS.glob("*.yaml")))
    for name in parser.parse_args().names:
        out = WORK / "studies" / name
        try:
            study(load(name), out)
        finally:  # also when it is cut
            if (out / RESULTS).is_file():
                records = [json.loads(line) for line in (out / RESULTS).read_text(encoding="utf-8").splitlines()]
                plan = yaml.safe_load((PLANS / f"{name}.yaml").read_text(encoding="utf-8"))
                write_result(f"study_{name}", {"plan": plan, "records": records})


if __name__ == "__main__":
    main()
