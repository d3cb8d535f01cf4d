"""report.json and report.html: everything that was measured on the way, for programs and for people."""

from __future__ import annotations

import json
from pathlib import Path

from converters.report_charts import charts_of
from converters.report_comparison import compare, pictures_of
from converters.report_data import Findings, Report, report_of
from converters.report_html import html_of


def write_report(folder: Path, findings: Findings, *, with_pictures: bool = True) -> None:
    """Writes report.json and report.html into `folder`; the same findings give the same bytes.

    `with_pictures` shows the frames where INT8 differs most: what a camera saw then travels with the bundle.
    """
    gate = findings.gate
    comparison = compare(findings.all_runs, findings.preferred, gate) if gate else None
    pictures = pictures_of(comparison, gate) if comparison and gate else []
    report = report_of(findings, comparison, tuple(picture.frame for picture in pictures))
    (folder / "report.json").write_text(json_of(report), encoding="utf-8")
    (folder / "report.html").write_text(html_of(report, charts_of(report), pictures if with_pictures else []), encoding="utf-8")


def json_of(report: Report) -> str:
    """report.json's text."""
    from pydantic import TypeAdapter  # builds the schema of all parts: only where a report is written

    return json.dumps(TypeAdapter(Report).dump_python(report, mode="json"), indent=1) + "\n"
