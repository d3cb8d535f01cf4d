from __future__ import annotations

import html
import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from converters.layers import int8_layers
from converters.report import write_report
from converters.report_data import Findings
from runtime.bundle import Bundle
from tests.conftest import ROOT
from tests.converters.report_parts import FIRST, FRAMES, HOSTILE, SECOND, THIRD, chain, findings_of, unmeasured

Written = tuple[dict[str, Any], str]


def written(folder: Path, findings: Findings) -> Written:
    folder.mkdir()
    write_report(folder, findings)
    return json.loads((folder / "report.json").read_text()), (folder / "report.html").read_text()


class Cells(HTMLParser):
    """The text of all table rows, and all tags and attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self._open = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "tr":
            self.rows.append([])
        self._open = tag in ("td", "th")
        if self._open:
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        self._open = False

    def handle_data(self, data: str) -> None:
        if self._open:
            self.rows[-1][-1] += data


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Written:
    return written(tmp_path_factory.mktemp("report") / "good", findings_of(labeled=True))


def test_write_report__the_page_shows_the_files_numbers(good: Written) -> None:
    told, text = good
    rows = Cells(text).rows
    for row in told["measurements"]:
        shown = next(cells for cells in rows if cells[:3] == [row["precision"], row["form"], row["engine"]])
        assert [float(cell) for cell in shown[5:10]] == pytest.approx(
            [row[name] for name in ("latency_p50_ms", "latency_p99_ms", "f1_against_fp32", "mean_iou", "mean_score_shift")],
            abs=5e-3,
        )
        assert float(shown[13]) == row["labeled"]["map50_95"]
    layers = told["int8"]["cpu"]["layers"]
    for layer in layers:
        gain = told["int8"]["cpu"]["sensitivity"][layer["stretch"]]["gain"]
        assert [layer["name"], layer["precision"], str(layer["stretch"] + 1), f"{gain:+.4f}"] in rows
    assert [THIRD, "+0.2500", "+1.50", "0.9800", "-0.0100", "holds"] in rows
    assert ["farthest candidate, cosine distance", str(told["calibration"]["radius"]) + "00"] in rows
    assert f"<strong>INT8 on openvino</strong>. {html.escape(told['preferred']['reason'])}" in text


def test_write_report__what_the_file_holds(good: Written) -> None:
    told, _ = good
    comparison = told["comparison"]
    assert comparison["worst_frames"][0]["name"] == f"frame 5 {HOSTILE}"
    assert len(comparison["worst_frames"]) == 4
    assert comparison["matched"] == 2 * FRAMES - 1 == len(comparison["scores"])
    assert comparison["scores"][0] == [0.8, 0.78]
    assert comparison["worst_frames"][0]["distance"] == pytest.approx((0.8 + 0.02) / 1.6, abs=1e-4)
    assert [(layer["name"], layer["precision"]) for layer in told["int8"]["cpu"]["layers"]] == [
        (FIRST, "int8"), (SECOND, "int8"), (THIRD, "float"),
    ]  # fmt: skip
    curves = {(curve["precision"], curve["engine"]): curve["values"] for curve in told["precision_recall"]}
    assert curves["fp32", "onnxruntime"] == [1.0] * 101
    assert curves["int8", "openvino"][:96] == [1.0] * 96  # 23 of 24 boxes
    assert curves["int8", "openvino"][96:] == [0.0] * 5
    assert [point[2] for point in told["calibration"]["map"]["points"]] == [True, False, True, False, False]
    assert told["bars"]["agreement"] == 0.97
    assert told["device"]["engines"] == {"openvino": "2026.4"}


def test_write_report__nothing_from_outside_is_markup_and_nothing_is_fetched(good: Written) -> None:
    _, text = good
    seen = Cells(text)
    assert "script" not in {tag for tag, _ in seen.tags}
    assert HOSTILE not in text
    addresses = set(re.findall(r"\w+://[^\s\"'<)]+", text))
    assert addresses <= {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}  # names of vocabularies
    links = [
        value or ""
        for _, attributes in seen.tags
        for name, value in attributes.items()
        if name in ("src", "href", "xlink:href")
    ]
    assert links
    assert all(link.startswith(("data:image/jpeg;base64,", "#")) for link in links)
    assert sum(link.startswith("data:") for link in links) == 8
    assert text.count("<svg") == 5


def test_write_report__the_same_findings_the_same_bytes(good: Written, tmp_path: Path) -> None:
    assert written(tmp_path / "again", findings_of(labeled=True)) == good


def test_write_report__without_pictures_no_frame_travels(tmp_path: Path) -> None:
    write_report(tmp_path, findings_of(labeled=True), with_pictures=False)
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "data:image/jpeg" not in text
    assert "--no-pictures" in text
    assert json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))["comparison"]["worst_frames"]


@pytest.mark.parametrize(
    ("findings", "pictures", "charts", "says"),
    [
        (findings_of(holds=False), 8, 5, "The gate does not hold"),
        (findings_of(labeled=False), 8, 4, "F1 vs FP32"),
        (unmeasured(), 0, 0, "nothing was measured"),
    ],
    ids=["refused", "unlabeled", "no pool"],
)
def test_write_report__less_to_tell(findings: Findings, pictures: int, charts: int, says: str, tmp_path: Path) -> None:
    told, text = written(tmp_path / "odd", findings)
    assert says in text
    assert text.count("data:image/jpeg") == pictures
    assert text.count("<svg") == charts
    assert "edgeloop[convert]" not in text
    assert (told["comparison"] is None) == (findings.gate is None)


def test_write_report__without_matplotlib_tables_remain(tmp_path: Path) -> None:
    program = (
        "import sys; sys.modules['matplotlib'] = None\n"
        "from pathlib import Path\nfrom converters.report import write_report\n"
        "from tests.converters.report_parts import findings_of\nwrite_report(Path(sys.argv[1]), findings_of())"
    )
    subprocess.run([sys.executable, "-c", program, str(tmp_path)], cwd=ROOT, check=True, timeout=120)
    text = (tmp_path / "report.html").read_text()
    assert "edgeloop[convert]" in text
    assert "<svg" not in text
    assert ["second", "int8", "1", "-0.1250"] in Cells(text).rows


def test_write_report__of_a_real_conversion(bundle: Bundle) -> None:
    told = json.loads((bundle.path / "report.json").read_text())
    assert told["measurements"] == [row.model_dump(mode="json") for row in bundle.manifest.parity]
    assert told["preferred"] == bundle.manifest.preferred.model_dump()
    assert len(told["calibration"]["map"]["points"]) == told["calibration"]["candidates"] == 18
    floats = {
        layer["layer"] if "layer" in layer else layer["name"]
        for layer in told["int8"]["cpu"]["layers"]
        if layer["precision"] == "float"
    }
    assert {name.rsplit("/", 1)[-1] for name in floats} >= {"MatMul", "MatMul_1"}  # attention is never quantised
    assert len(floats) < len(told["int8"]["cpu"]["layers"]) / 2
    assert {"report.json", "report.html"} <= set(bundle.manifest.files)


def test_int8_layers__through_a_concatenation() -> None:
    assert int8_layers(chain(quantised=True)) == {FIRST, SECOND}
    assert int8_layers(chain(quantised=False)) == set()
