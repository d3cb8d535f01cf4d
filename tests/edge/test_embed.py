from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from edge.commands import looking
from edge.embed import EmbedRequest, embed, neighbour_plane, principal_plane
from edge.embed_page import embed_page
from runtime.errors import PoolError
from tests.conftest import fill_pool


def test_planes__two_heaps_lie_apart() -> None:
    rng = np.random.default_rng(0)
    vectors = np.concatenate([rng.normal(0, 0.1, (20, 8)), rng.normal(2, 0.1, (20, 8))]).astype(np.float32)
    for plane in (principal_plane(vectors), neighbour_plane(vectors, 0)):
        assert plane.shape == (40, 2)
        assert float(np.abs(plane).max()) == pytest.approx(1)
        apart = np.linalg.norm(plane[:20].mean(0) - plane[20:].mean(0))
        assert apart > 3 * max(plane[:20].std(), plane[20:].std()) or apart > 1


def test_embed__a_page_without_scripts_and_without_network(pool_dir: Path) -> None:
    found = embed(EmbedRequest(pool_dir, {"a <b>": (), "other": ()}, imgsz=64, frames=9))
    assert set(found.vectors) == {"a <b>", "other"}
    for vectors in found.vectors.values():
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-5)
    text = embed_page(found)
    assert "a &lt;b&gt;" in text
    assert "<script" not in text
    assert not re.search(r"(src|href)=\"(?!data:)", text)
    assert text.count("<image ") == 2 * 2 * len(found.names)


def test_embed_command__checkpoints_that_end_alike_are_shown_each(pool_dir: Path, checkpoint: Path, tmp_path: Path) -> None:
    inits = [tmp_path / name / "run" / "detector.pt" for name in ("before", "after")]
    for path in inits:
        path.parent.mkdir(parents=True)
        shutil.copy(checkpoint, path)
    looking.embed(pool_dir, tmp_path / "maps" / "map.html", inits, imgsz=64, frames=5)
    text = (tmp_path / "maps" / "map.html").read_text()
    assert "<h2>before/run/detector.pt</h2>" in text
    assert "<h2>after/run/detector.pt</h2>" in text
    with pytest.raises(PoolError):
        looking.embed(tmp_path / "nowhere", tmp_path / "other" / "map.html", inits, imgsz=64, frames=5)
    assert not (tmp_path / "other").exists()


def test_embed__an_empty_pool(tmp_path: Path) -> None:
    fill_pool(tmp_path / "pool", 0)
    with pytest.raises(PoolError, match="is empty"):
        embed(EmbedRequest(tmp_path / "pool", {"x": ()}))
