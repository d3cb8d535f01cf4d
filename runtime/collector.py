"""Collector: keeps every n-th frame and every frame the model is unsure of, within the pool's quota."""

from __future__ import annotations

import logging
from collections import Counter

from runtime.config import CollectConfig
from runtime.errors import PoolError
from runtime.pipeline import Result
from runtime.pool import Pool, Seen

log = logging.getLogger(__name__)


class Collector:
    """Adds frames to a pool. A disk that fills up costs frames, never detections.

    Attributes:
        kept: frames added.
        failed: frames that the disk refused.
    """

    def __init__(self, config: CollectConfig) -> None:
        """Opens the pool for writing.

        Raises:
            PoolError: it cannot be written.
        """
        self._config = config
        self._pool = Pool.create(config.pool, quota_bytes=round(config.quota_mb * 1e6))
        self._last_kept_s: dict[str, float] = {}
        self._seen: Counter[str] = Counter()  # frames that reached the model: indices have gaps where frames were dropped
        self.kept = 0
        self.failed = 0

    def reason(self, result: Result) -> str | None:
        """Why a frame is worth keeping, or None."""
        frame, confidence = result.frame, result.detections.confidence
        if self._seen[frame.camera] % self._config.every_n == 0:
            return "every_n"
        since_s = frame.captured_monotonic_s - self._last_kept_s.get(frame.camera, float("-inf"))
        unsure = len(confidence) > 0 and float(confidence.min()) < self._config.below_confidence
        return "low_confidence" if unsure and since_s >= self._config.min_interval_s else None

    def emit(self, result: Result) -> None:
        """Keeps the frame if it is worth it; a failing disk is logged once and counted."""
        reason = self.reason(result)
        self._seen[result.frame.camera] += 1
        if reason is None:
            return
        frame, confidence = result.frame, result.detections.confidence
        seen = Seen(
            frame.camera, frame.captured_wall_s, reason, frame.epoch, result.embedding,
            len(confidence), float(confidence.max()) if len(confidence) else None, result.bundle,
        )  # fmt: skip
        try:
            self.kept += self._pool.add(frame.image, seen) is not None
            self._last_kept_s[frame.camera] = frame.captured_monotonic_s
        except PoolError as error:
            if not self.failed:
                log.error("%s; detection goes on, frames are not collected", error)
            self.failed += 1

    def close(self) -> None:
        """Closes the pool."""
        self._pool.close()
