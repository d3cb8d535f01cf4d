from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from edge.study_report import mean_and_half, notes, plot, rows_of, table, verdicts

RECORDS: list[dict[str, Any]] = [
    {"set": "steel", "fraction": 0.1, "arm": arm, "seed": seed, "images": 5, "others": 20, "map50_95": value, "f1": 2 * value}
    for arm, values in (
        ("scratch", (0.10, 0.14, 0.12)), ("coco", (0.30, 0.34, 0.32)), ("coco+ssl", (0.33, 0.37, 0.34)), ("ssl", (0.20, 0.38, 0.31)),
    )
    for seed, value in enumerate(values)
]  # fmt: skip


def test_rows_of__means_intervals_and_gains_seed_by_seed() -> None:
    rows = {row.arm: row for row in rows_of(RECORDS, [0.1])}
    assert rows["coco"].map50_95 == pytest.approx((0.32, 4.303 * 0.02 * math.sqrt(1 / 3 + 0.25)), rel=1e-3)
    assert rows["coco"].f1[0] == pytest.approx(0.64)
    assert math.isnan(rows["coco"].over_baseline[0])
    assert rows["coco"].over_floor[0] == pytest.approx(0.2)
    gain, half = rows["coco+ssl"].over_baseline
    assert gain == pytest.approx((0.03 + 0.03 + 0.02) / 3)
    assert rows["coco+ssl"].f1_over_baseline == pytest.approx((2 * gain, 2 * half))
    assert half < gain, "paired seeds: beyond the interval though the means overlap"
    gain, half = rows["ssl"].over_baseline
    assert half > abs(gain)
    told = table(list(rows.values()))
    assert (
        "| steel | 10 % | coco+ssl | 0.347 ± 0.068 | +2.7 ± 1.9 ▲ | +22.7 ± 1.9 ▲ | 0.693 ± 0.137 | +5.3 ± 3.8 ▲ | 3 |" in told
    )
    assert "▲" not in told.split("| ssl |")[1].split("|")[2]


def test_rows_of__over_all_fractions_seed_by_seed() -> None:
    more = [{**record, "fraction": 0.25, "map50_95": record["map50_95"] + 0.1} for record in RECORDS]
    rows = {row.arm: row for row in rows_of([*RECORDS, *more[:-1]], [0.1, 0.25]) if row.fraction is None}
    assert rows["coco"].map50_95[0] == pytest.approx(0.37)
    assert rows["coco+ssl"].over_baseline == pytest.approx(
        (0.08 / 3, 4.303 * 0.01 / math.sqrt(3) * math.sqrt(1 / 3 + 0.25)), rel=1e-3
    )
    assert rows["ssl"].seeds == 2, "a seed that lacks a fraction is no mean"
    assert "| steel | all | coco |" in table(list(rows.values()))
    for fractions in ([0.1], [0.1, 0.25]):
        assert not any(row.fraction is None for row in rows_of(RECORDS, fractions)), (
            "no mean of one, nor of what is not complete"
        )


def test_mean_and_half__of_one_seed_there_is_no_interval() -> None:
    assert mean_and_half([0.5], 0.25)[0] == 0.5
    assert math.isnan(mean_and_half([0.5], 0.25)[1])
    assert math.isnan(mean_and_half([], 0.25)[0])


def test_rows_of__the_more_is_held_out_the_wider_the_interval() -> None:
    usual = gains(RECORDS)
    assert usual[0][1] == pytest.approx(4.303 * 0.02 * math.sqrt(1 / 3 + 0.25), rel=1e-3)
    half = [
        {**record, "images": 10 + 10 * record["seed"]} for record in RECORDS
    ]  # the seeds hold out 1/2, 1 and 3/2 of the others
    for wide, narrow in zip(gains(half), usual, strict=True):
        assert wide[1] / narrow[1] == pytest.approx(math.sqrt((1 / 3 + 1) / (1 / 3 + 0.25)))
    over_fractions = [*half, *({**record, "fraction": 0.25} for record in half)]
    assert gains(over_fractions, None) == [pytest.approx(gauge) for gauge in gains(half)]


def gains(records: list[dict[str, Any]], fraction: float | None = 0.1) -> list[tuple[float, float]]:
    row = next(
        row for row in rows_of(records, [0.1] if fraction else [0.1, 0.25]) if row.arm == "coco" and row.fraction == fraction
    )
    return [row.map50_95, row.over_floor]


def test_rows_of__records_of_before_they_told_how_many_are_not_held_out() -> None:
    earlier = [{key: value for key, value in record.items() if key != "others"} | {"labels": 2} for record in RECORDS]
    assert gains(earlier) == [pytest.approx(gauge) for gauge in gains(RECORDS)]


def test_notes__whose_teacher_believed_nothing() -> None:
    records = [{**RECORDS[0], "last_look_boxes": count} for count in (0, 3)]
    (told,) = notes([*RECORDS, *records])
    assert told.startswith("scratch on steel with 10 %, seed 0: the teacher believed no box")


def test_notes__how_good_the_teachers_are() -> None:
    taught = [
        {
            **record,
            "arm": "taught",
            "fraction": share,
            "teacher_map50_95": 0.4 + share,
            "teacher_f1": 0.7,
            "teacher_seconds": seconds,
        }
        for share in (0.25, 0.1)
        for record, seconds in zip(RECORDS[:3], (60.0, 60.0, 6000.0), strict=True)
    ]
    (told,) = notes([*RECORDS, *taught])
    assert told.startswith(
        "The teachers of taught on steel have mAP50-95 / F1 0.500 / 0.700 with 10 %, 0.650 / 0.700 with 25 % of the"
    )
    assert told.endswith("training one took 60 s in the median.")


def test_verdicts__what_paid_and_what_did_not() -> None:
    (told,) = verdicts(rows_of(RECORDS, [0.1]))
    assert told.startswith(
        "steel with 10 %: the best arm beside coco is coco+ssl, over coco +2.7 points (beyond its interval of ± 1."
    )
    assert " in mAP50-95 and +5.3 points (beyond its interval of ± 3." in told
    assert "; ssl over scratch +17.7 points (within its interval of ± " in told
    assert told.endswith(") in mAP50-95.")
    assert "+3.0 points (one seed)" in verdicts(rows_of([record for record in RECORDS if record["seed"] == 0], [0.1]))[0]
    assert verdicts(rows_of([record for record in RECORDS if record["arm"] == "coco"], [0.1])) == []


def test_verdicts__of_a_study_that_is_not_complete_name_their_fraction() -> None:
    more = [{**record, "fraction": 0.25} for record in RECORDS]
    told = verdicts(rows_of([*RECORDS, *more], [0.1, 0.25, 0.5]))
    assert [each.split(":")[0] for each in told] == ["steel with 10 %", "steel with 25 %"]
    (over_both,) = verdicts(rows_of([*RECORDS, *more], [0.1, 0.25]))
    assert over_both.startswith("steel: ")


def test_plot__draws_every_arm(tmp_path: Path) -> None:
    plot(rows_of([*RECORDS, *({**record, "fraction": 0.25} for record in RECORDS)], [0.1, 0.25]), tmp_path / "plot.svg")
    drawn = (tmp_path / "plot.svg").read_text()
    assert drawn.startswith("<?xml")
    assert len(drawn) > 5000
