"""The map of `edge embed`: every frame as a thumbnail where the network puts it, and what it takes for alike."""

from __future__ import annotations

import html

import numpy as np
from numpy.typing import NDArray

from converters.html_page import figure, page
from edge.collapse import Spread, spread_of
from edge.embed import Embedded, neighbour_plane, principal_plane

_WIDE, _HIGH, _SIDE = 920, 640, 28
_QUERIES, _ANSWERS = 6, 5
_STYLE = (
    "<style>body{max-width:66rem}svg{border:1px solid #d8dee4;overflow:visible}"
    "svg image{transform-box:fill-box;transform-origin:center}"
    "svg image:hover{transform:scale(4)}"
    ".alike{display:grid;grid-template-columns:repeat(6,auto);gap:.3rem;justify-content:start;margin-bottom:1.5rem}"
    ".alike img{width:88px}.alike img:nth-child(6n+1){outline:3px solid #0969da}</style>"
)


def embed_page(found: Embedded, seed: int = 0) -> str:
    """One HTML file without scripts: for each network its spread, two maps and nearest frames."""
    import torch

    parts = [_STYLE, f"<h1>{len(found.names)} frames as networks see them</h1>"]
    for title, vectors in found.vectors.items():
        spread = spread_of(torch.from_numpy(vectors))
        parts += [
            f"<h2>{html.escape(title)}</h2>",
            _told_spread(spread, vectors.shape[1]),
            figure(_map(found, principal_plane(vectors)), "The two directions in which frames differ most (PCA)."),
            figure(
                _map(found, neighbour_plane(vectors, seed)),
                "Frames that look alike to the network lie near each other (t-SNE).",
            ),
            "<p>Frames, framed blue, and those that the network takes for most alike:</p>",
            _alike(found, vectors, seed),
        ]
    return page("embedding", "".join(parts))


def _told_spread(spread: Spread, dimensions: int) -> str:
    return (
        f"<p>Effective rank {spread.effective_rank:.1f} of {dimensions} dimensions, spread {spread.deviation:.2f} "
        "(0: all frames are one point, about 1: all directions are used alike).</p>"
    )


def _map(found: Embedded, plane: NDArray[np.float32]) -> str:
    places = (plane + 1) / 2 * [_WIDE - _SIDE, _HIGH - _SIDE]
    images = [
        f'<image href="{thumbnail}" x="{x:.0f}" y="{y:.0f}" width="{_SIDE}" height="{_SIDE}"><title>{html.escape(told)}</title></image>'
        for thumbnail, (x, y), told in zip(found.thumbnails, places.tolist(), _told(found), strict=True)
    ]
    return f'<svg viewBox="0 0 {_WIDE} {_HIGH}" role="img" aria-label="map of frames">{"".join(images)}</svg>'


def _alike(found: Embedded, vectors: NDArray[np.float32], seed: int) -> str:
    asked = np.random.default_rng(seed).permutation(len(vectors))[:_QUERIES]
    told = _told(found)
    cells = []
    for index in asked.tolist():
        nearest = np.argsort(-(vectors @ vectors[index]), kind="stable")
        answers = [other for other in nearest.tolist() if other != index][:_ANSWERS]
        cells += [
            f'<img src="{found.thumbnails[each]}" alt="{html.escape(told[each])}" title="{html.escape(told[each])}">'
            for each in (index, *answers)
        ]
    return f'<div class="alike">{"".join(cells)}</div>'


def _told(found: Embedded) -> list[str]:
    return [f"{camera} {name}" for camera, name in zip(found.cameras, found.names, strict=True)]
