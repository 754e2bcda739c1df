"""Records as prompts for generation, distributed over processes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from lightning.pytorch import LightningDataModule
from typing_extensions import override

from lightning_neuralgate.data.collator import PrivacyPairCollator, QueryRow
from lightning_neuralgate.data.records import PrivacyRecord, RetentionItem
from lightning_neuralgate.data.sampler import ResumableLoader, ResumableSampler
from lightning_neuralgate.errors import DataFormatError


def question_rows(record: PrivacyRecord) -> list[QueryRow]:
    """Return all distinct queries of a record as prompts, alternating between sensitive and benign."""
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


def prompts_loader(
    records: Sequence[PrivacyRecord],
    processor: Any,
    batch_size: int = 8,
    limit: int | None = None,
    rank: int = 0,
    world: int = 1,
    num_workers: int = 0,
) -> ResumableLoader:
    """Return a loader of left-padded prompt batches with this process's share of the records' queries.

    Args:
        records: the records; subjects alternate, so that the first few batches cover all of them.
        processor: the model's processor.
        batch_size: prompts per batch.
        limit: use only this many queries, the first ones.
        rank: rank of this process.
        world: number of processes; where queries do not divide evenly, some are repeated with `counted` False.
        num_workers: DataLoader workers.
    """
    rows = [row for record in _alternate_subjects(records) for row in question_rows(record)][:limit]
    return _loader(rows, processor, batch_size, rank, world, num_workers)


def ordinary_rows(
    records: Sequence[PrivacyRecord] = (), questions: Sequence[RetentionItem] = (), texts: Sequence[str] = ()
) -> list[QueryRow]:
    """Return prompts that an edit should not affect: benign queries of records, questions, and texts without a picture."""
    benign = [row for record in records for row in question_rows(record) if row.role == "benign"]
    plain = [RetentionItem(query=text) for text in texts]
    return [*benign, *(QueryRow(item.query, "retention", item.image) for item in (*questions, *plain))]


class PromptDataModule(LightningDataModule):
    """Prompts for `Trainer.predict`, in left-padded batches as in `prompts_loader`; each process gets its own share.

    Args:
        rows: the prompts.
        processor: the model's processor.
        batch_size: prompts per batch and process.
        num_workers: DataLoader workers.

    Raises:
        DataFormatError: there are no prompts.
    """

    def __init__(self, rows: Sequence[QueryRow], processor: Any, batch_size: int = 8, num_workers: int = 0) -> None:
        super().__init__()
        if not rows:
            raise DataFormatError("there are no prompts")
        self.rows, self.processor, self.batch_size, self.num_workers = rows, processor, batch_size, num_workers

    @override
    def predict_dataloader(self) -> ResumableLoader:
        rank, world = getattr(self.trainer, "global_rank", 0), getattr(self.trainer, "world_size", 1)
        return _loader(self.rows, self.processor, self.batch_size, rank, world, self.num_workers)


def _loader(
    rows: Sequence[QueryRow], processor: Any, batch_size: int, rank: int, world: int, num_workers: int
) -> ResumableLoader:
    return ResumableLoader(
        rows,
        ResumableSampler(len(rows), shuffle=False, rank=rank, world=world),
        partial(replace, counted=False),
        batch_size=batch_size,
        num_workers=num_workers,
        collate_fn=PrivacyPairCollator(processor, "left"),
    )


def _alternate_subjects(records: Sequence[PrivacyRecord]) -> list[PrivacyRecord]:
    seen: Counter[str] = Counter()
    rounds = []
    for record in records:
        rounds.append(seen[record.subject])
        seen[record.subject] += 1
    return [record for _, record in sorted(zip(rounds, records, strict=True), key=lambda pair: pair[0])]
