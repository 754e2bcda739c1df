"""Records as prompts to be answered, shared out over processes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from lightning_neuralgate.data.collator import PrivacyPairCollator, QueryRow
from lightning_neuralgate.data.records import PrivacyRecord
from lightning_neuralgate.data.sampler import ResumableLoader, RowOrder


def question_rows(record: PrivacyRecord) -> list[QueryRow]:
    """All queries of a record as prompts to be answered, sensitive and benign in turn, each once."""
    common: dict[str, Any] = {"image": record.image, "subject": record.subject, "record_id": record.record_id}
    rows = [
        row
        for pair in record.pairs
        for row in (
            QueryRow(pair.sensitive, "sensitive", truth=pair.sensitive_truth, **common),
            QueryRow(pair.benign, "benign", truth=pair.benign_truth, synonyms=pair.benign_synonyms, **common),
        )
    ]
    return list(dict.fromkeys(rows))


def not_counted(rows: Sequence[QueryRow]) -> list[QueryRow]:
    """Rows that another process has, too: they are run, since every process has to, and that is all."""
    return [replace(row, counted=False) for row in rows]


def prompts_loader(
    records: Sequence[PrivacyRecord],
    processor: Any,
    batch_size: int = 8,
    limit: int | None = None,
    rank: int = 0,
    world: int = 1,
    num_workers: int = 0,
) -> ResumableLoader:
    """This process's share of the records' queries, as left-padded batches of prompts.

    Args:
        records: the records; their subjects take turns, so that the first few batches show all of them.
        processor: the model's processor.
        batch_size: prompts in a batch.
        limit: at most so many queries, the first ones.
        rank: this process.
        world: number of processes; where the queries do not go round, some come again, not `counted`.
        num_workers: DataLoader workers.
    """
    rows = [row for record in _subjects_in_turn(records) for row in question_rows(record)][:limit]
    return ResumableLoader(
        [[row] for row in rows],
        RowOrder(len(rows), shuffle=False, rank=rank, world=world),
        not_counted,
        batch_size=batch_size,
        num_workers=num_workers,
        collate_fn=partial(_collate, PrivacyPairCollator(processor, "left")),
    )


def _collate(collator: PrivacyPairCollator, groups: Sequence[list[QueryRow]]) -> dict[str, Any]:
    return collator([row for group in groups for row in group])


def _subjects_in_turn(records: Sequence[PrivacyRecord]) -> list[PrivacyRecord]:
    seen: Counter[str] = Counter()
    turns = []
    for record in records:
        turns.append(seen[record.subject])
        seen[record.subject] += 1
    return [record for _, record in sorted(zip(turns, records, strict=True), key=lambda pair: pair[0])]
