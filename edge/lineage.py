"""Which labels a file of weights has seen: its own, those of what it began as, and those of who taught it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

LABELS_SHA256 = "labels_sha256"  # of a detector: what it was fine-tuned on
_SEEN = "seen_labels_sha256"
UNKNOWN = "unknown"  # among those seen: a detector that does not say


def seen_labels(lineage: Mapping[str, str]) -> frozenset[str]:
    """Digests, as `edge.finetune.data_digest` makes them; none where the file does not say."""
    return frozenset((lineage.get(_SEEN) or lineage.get(LABELS_SHA256, "")).split())


def with_seen(lineage: Mapping[str, str], *more: Iterable[str]) -> dict[str, str]:
    """A lineage that tells of more labels beside its own."""
    seen = seen_labels(lineage).union(*more)
    return {**lineage, _SEEN: " ".join(sorted(seen))} if seen else dict(lineage)
