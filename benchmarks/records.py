"""Records for the benchmarks."""

from __future__ import annotations

from lightning_neuralgate.data.records import PrivacyRecord, QueryPair


def with_benign_targets(records: list[PrivacyRecord]) -> list[PrivacyRecord]:
    """Use the true value as benign target; the text of the targets does not matter for timing."""
    return [record.model_copy(update={"pairs": tuple(map(_with_target, record.pairs))}) for record in records]


def _with_target(pair: QueryPair) -> QueryPair:
    return pair.model_copy(update={"benign_target": f"It is {pair.benign_truth}"})
