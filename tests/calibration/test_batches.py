from __future__ import annotations

from pathlib import Path

import numpy as np

from calibration.batches import PoolBatches
from runtime.pool import Pool
from runtime.preprocess import Preprocess


def test_pool_batches__the_runtimes_own_letterbox(pool_dir: Path) -> None:
    preprocess = Preprocess((64, 96))
    with Pool.open(pool_dir) as pool:
        entries = pool.entries()[:5]
        batches = PoolBatches(pool, entries, preprocess, batch=2)
        canvases = list(batches)
        assert len(batches) == len(canvases) == 3
        expected = preprocess.buffer()
        for index, entry in enumerate(entries):
            preprocess.letterbox(pool.read(entry), expected[0])
            np.testing.assert_array_equal(canvases[index // 2][index % 2], expected[0])
        np.testing.assert_array_equal(canvases[2][1], canvases[2][0])  # the last batch is filled with its own frames
        assert len(list(batches)) == 3  # NNCF iterates more than once
