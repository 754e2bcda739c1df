"""Records to time: rendered ones, with something to say for an answer."""

from __future__ import annotations

from lightning_neuralgate.data.records import PrivacyRecord, QueryPair


def told(records: list[PrivacyRecord]) -> list[PrivacyRecord]:
    """Records with the truth as benign target: what is trained does not matter here."""
    return [record.model_copy(update={"pairs": tuple(map(_told, record.pairs))}) for record in records]


def _told(pair: QueryPair) -> QueryPair:
    return pair.model_copy(update={"benign_target": f"It is {pair.benign_truth}"})
