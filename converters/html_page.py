"""One HTML file that holds everything it shows: no network, no script. What the kit's reports share."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

import cv2
import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from matplotlib.figure import Figure  # an extra

_JPEG_QUALITY = 88
_STYLE = """
body{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:60rem;padding:0 1rem;color:#1b1f24;background:#fff}
.wide{overflow-x:auto}table{border-collapse:collapse;margin:.5rem 0 1.5rem}
td,th{padding:.25rem .8rem;border-bottom:1px solid #d8dee4;text-align:right;font-variant-numeric:tabular-nums}
td:first-child,th:first-child{text-align:left}.best{font-weight:600;background:#eef7ee}.bad{color:#a40e26}.bar{color:#57606a}
figure{margin:0 0 1.5rem}figcaption{color:#57606a}img,svg{max-width:100%;height:auto}
.pair{display:flex;flex-wrap:wrap;gap:.5rem}.pair img{flex:1 1 18rem;min-width:0;max-width:30rem}
"""


def page(title: str, body: str) -> str:
    """The whole document; `title` is escaped, `body` is HTML."""
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>Edgeloop: {html.escape(title)}</title>'
    return f'<!doctype html><html lang="en"><head>{head}<style>{_STYLE}</style></head><body>{body}</body></html>\n'


def table(rows: Sequence[Sequence[str]], head: Sequence[str] = (), kinds: Sequence[str] = ()) -> str:
    """A table of plain text, which is escaped; `kinds` are the rows' CSS classes: best, bad, bar or none."""
    lines = [_row("th", head, "")] if head else []
    lines += [_row("td", row, kinds[index] if kinds else "") for index, row in enumerate(rows)]
    return f'<div class="wide"><table>{"".join(lines)}</table></div>'


def figure(content: str, caption: str = "") -> str:
    """HTML with a caption of plain text."""
    told = f"<figcaption>{html.escape(caption)}</figcaption>" if caption else ""
    return f"<figure>{content}{told}</figure>"


def picture(image: NDArray[np.uint8], alt: str) -> str:
    """A BGR image (h, w, 3) as JPEG inside the page."""
    _, data = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])
    return f'<img alt="{html.escape(alt)}" src="data:image/jpeg;base64,{base64.b64encode(data.tobytes()).decode()}">'


def svg_of(drawn: Figure) -> str:
    """A chart as SVG, the same bytes for the same chart: bundles are named by their content."""
    import matplotlib  # as above

    data = io.StringIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))  # a date, and addresses of vocabularies
    with matplotlib.rc_context({"svg.hashsalt": "edgeloop"}):
        drawn.savefig(data, format="svg", metadata=nothing)
    text = data.getvalue()
    return text[text.index("<svg") :]


def _row(tag: str, cells: Sequence[str], kind: str) -> str:
    inside = "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells)
    return f'<tr class="{kind}">{inside}</tr>' if kind else f"<tr>{inside}</tr>"
