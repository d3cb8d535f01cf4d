"""study.json: what the runs of a study were made with, so that all of them have been made with the same."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from edge.errors import TrainingError
from edge.study_plan import Cell, PretrainPlan, StudyPlan
from runtime.files import write_atomically

RESULT_FILE, RUN = "result.json", "run"  # in a run's folder
_MAY_GROW = ("sets", "arms", "fractions", "seeds")


def records_of(out: Path) -> dict[Cell, dict[str, Any]]:
    """What every run so far gave, those included that are no longer in the plan."""
    found = (json.loads(path.read_text(encoding="utf-8")) for path in sorted(out.glob(f"*/seed*/*/{RESULT_FILE}")))
    return {Cell(record["set"], record["arm"], record["fraction"], record["seed"]): record for record in found}


def same_plan(plan: StudyPlan, out: Path, digests: Mapping[str, str]) -> None:
    """Writes the plan beside its results; a study may grow by sets, arms, fractions and seeds, not change what was run.

    What was begun and has become something else is removed.

    Args:
        plan: as it is asked for.
        out: the study's folder.
        digests: of each set's labels, and of each checkpoint that the plan names.

    Raises:
        TrainingError: `out` holds results of other budgets.
    """
    path, now = out / "study.json", plan.resolved()
    if path.is_file():
        before = json.loads(path.read_text(encoding="utf-8"))
        known = before.get("digests", {})  # none of an earlier version
        renewed = {key for key, each in digests.items() if known.get(key, each) != each}
        earlier = {name: _as_now(each, before.get("weights")) for name, each in before["arms"].items()}
        arms = {name for name, each in now["arms"].items() if earlier.get(name, each) != each}

        done = list(records_of(out))
        changed = [told for key in now if key not in _MAY_GROW for told in _differences(key, before.get(key), now[key])]
        changed += [f"sets.{name}" for name, each in now["sets"].items() if before["sets"].get(name, each) != each]
        changed += [f"arms.{name}" for name in arms & {cell.arm for cell in done}]
        changed += [
            f"content of {key}"
            for key in renewed
            if key.startswith("sets.") or any(_may_use(plan, cell, {key}) for cell in done)
        ]
        if changed:
            raise TrainingError(f"{out} holds a study with other {', '.join(sorted(changed))}; choose another --out or name")

        for cell, folder in _begun(out):
            if cell not in done and (cell.arm in arms or _may_use(plan, cell, renewed)):
                shutil.rmtree(folder)
        now |= {kind: {**before[kind], **now[kind]} for kind in ("sets", "arms")}
        digests = {**known, **digests}
    write_atomically(path, json.dumps({**now, "digests": dict(digests)}, indent=2).encode())


def _may_use(plan: StudyPlan, cell: Cell, paths: set[str]) -> bool:
    """Whether a run begins as or learns from one of them; of an arm that the plan has no more, nobody knows."""
    if cell.arm not in plan.arms:
        return bool(paths)
    return not paths.isdisjoint(map(str, plan.files_of(cell)))


def _begun(out: Path) -> Iterator[tuple[Cell, Path]]:
    """Runs with a folder, and that folder."""
    for folder in out.glob(f"*/seed*/*/{RUN}"):
        name, seed, run = folder.parent.relative_to(out).parts
        arm, _, fraction = run.rpartition("-")
        yield Cell(name, arm, float(fraction), int(seed.removeprefix("seed"))), folder


def _differences(key: str, before: Any, now: Any) -> list[str]:
    """Each setting that changed, with what it was and is."""
    if isinstance(before, dict) and isinstance(now, dict):
        return [told for part in now for told in _differences(f"{key}.{part}", before.get(part), now[part])]
    return [] if before == now else [f"{key} ({before} → {now})"]


def _as_now(arm: dict[str, Any], weights: str | None) -> dict[str, Any]:
    """A resolved arm of an earlier version, which did not know all settings: those were off; the plan's weights stood apart."""
    ssl = PretrainPlan.model_validate({"interpolate": 1.0, **arm["ssl"]}).model_dump() if arm["ssl"] else arm["ssl"]
    return {"from": weights if arm["start"] == "coco" else None, "teacher": None, **arm, "ssl": ssl}
