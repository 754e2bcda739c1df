"""`PrivacyPairDataModule`: the batches of locating, editing and evaluating."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

from lightning.pytorch import LightningDataModule
from typing_extensions import override

from lightning_neuralgate.data.collator import PrivacyPairCollator, QueryRow
from lightning_neuralgate.data.pictures import ROOM
from lightning_neuralgate.data.prompts import not_counted, prompts_loader
from lightning_neuralgate.data.records import (
    PrivacyRecord,
    QueryPair,
    RecordSplits,
    RetentionItem,
    records_checksum,
)
from lightning_neuralgate.data.sampler import ResumableLoader, RowOrder
from lightning_neuralgate.data.splits import check_no_leakage
from lightning_neuralgate.data.targets import fill_targets
from lightning_neuralgate.errors import DataFormatError
from lightning_neuralgate.prefix_cache.layout import LAYOUT, LayoutProvider

LEAD_INS = (
    "Please take a close look.",
    "Here is something I found today.",
    "I have one question for you.",
    "Think about it before you reply.",
    "A friend sent me this.",
)
"""Short sentences put in front of the sensitive query while locating; with the bare query they make six contexts."""


def locate_rows(record: PrivacyRecord) -> list[QueryRow]:
    """The seven rows of one record in stage 1: its first sensitive query in six contexts, and the paired benign one."""
    pair = record.pairs[0]
    sensitive = [_sensitive_row(record, pair, context) for context in ("", *LEAD_INS)]
    return [*sensitive, _benign_row(record, pair)]


def edit_rows(record: PrivacyRecord, pair: QueryPair) -> list[QueryRow]:
    """The two rows of one query pair in stage 2."""
    return [_sensitive_row(record, pair), _benign_row(record, pair)]


def _sensitive_row(record: PrivacyRecord, pair: QueryPair, context: str = "") -> QueryRow:
    return QueryRow(pair.sensitive, "sensitive", record.image, record.subject, pair.refusal, context, record.record_id)


def _benign_row(record: PrivacyRecord, pair: QueryPair) -> QueryRow:
    if not pair.benign_target:
        raise DataFormatError(
            f"record {record.record_id}: the benign query '{pair.benign}' has no target; make them with fill_targets()"
        )
    return QueryRow(pair.benign, "benign", record.image, record.subject, pair.benign_target, record_id=record.record_id)


class PrivacyPairDataModule(LightningDataModule):
    """PrivacyPair records as batches, for `PrivacyLocatorModule` and `PrivacyEditModule` alike.

    The module that is fitted says by its `data_view` what a training batch is: `records` (records, seven rows each) or
    `pairs` (query pairs, two rows each, with retention rows behind them). Validation batches are prompts of the test
    split. Benign targets that are missing are made once, with the unedited model, and cached on disk.

    On several devices each gets a share of its own. Where the shares come out uneven, rows come again; those of records and
    prompts are then marked as not `counted`. A run that is resumed in the middle of an epoch goes on with its next batch.

    Args:
        splits: edit, test and unseen-subject records; nothing may leak between them.
        processor: the model's processor.
        retention: ordinary questions for the edit's retention term.
        records_per_batch: records in a batch of stage 1, learnt side by side: more keep a GPU busy, and take more memory.
        pairs_per_batch: query pairs in a training batch of stage 2.
        retention_per_batch: retention rows added to each of them; by default one, if there is any retention.
        shuffle: shuffle query pairs every epoch; off for the paper's schedule.
        eval_batch_size: prompts in a validation batch.
        padding_side: of training batches; prompts to be answered are always padded on the left.
        num_workers: DataLoader workers.
        images: False asks the training queries without their pictures, to see what the text alone does.
        seed: seeds the order of query pairs, which follows from it and the epoch, and the retention rows drawn for each
            batch, which depend on the epoch, the process and the pairs of that batch, so that workers and devices draw each
            their own.

    Raises:
        DataLeakError: a test record, picture or query is used in the edit.
        DataFormatError: no edit records.
    """

    def __init__(
        self,
        splits: RecordSplits,
        processor: Any,
        retention: Sequence[RetentionItem] = (),
        pairs_per_batch: int = 4,
        retention_per_batch: int | None = None,
        shuffle: bool = True,
        eval_batch_size: int = 8,
        padding_side: Literal["left", "right"] = "left",
        num_workers: int = 0,
        images: bool = True,
        seed: int = 0,
        records_per_batch: int = 1,
        picture_room: int = ROOM,
    ) -> None:
        super().__init__()
        check_no_leakage(splits)
        if retention_per_batch is None:
            retention_per_batch = 1 if retention else 0
        if not splits.edit:
            raise DataFormatError("there are no edit records")
        if retention_per_batch and not retention:
            raise DataFormatError(f"retention_per_batch is {retention_per_batch}, but no retention items were given")
        if min(pairs_per_batch, eval_batch_size, records_per_batch) < 1:
            raise ValueError("pairs_per_batch, eval_batch_size and records_per_batch must be at least 1")
        self.splits = splits
        self.processor = processor
        self.retention = list(retention)
        self.pairs_per_batch = pairs_per_batch
        self.records_per_batch = records_per_batch
        self.retention_per_batch = retention_per_batch
        self.shuffle = shuffle
        self.eval_batch_size = eval_batch_size
        self.num_workers = num_workers
        self.collate_training = PrivacyPairCollator(processor, padding_side, picture_room)
        self.images = images
        self.seed = seed

    @property
    def identity(self) -> dict[str, Any]:
        """What batches are made of, as JSON can hold it: two modules of one identity make the same."""
        return {
            "records": records_checksum(self.splits.edit),
            "retention": records_checksum(self.retention),
            "pairs_per_batch": self.pairs_per_batch,
            "retention_per_batch": self.retention_per_batch,
            "shuffle": self.shuffle,
            "padding_side": self.collate_training.padding_side,
            "images": self.images,
            "seed": self.seed,
        }

    @override
    def prepare_data(self) -> None:
        """Make missing benign and retention targets (one process does, into the cache that all read)."""
        self._fill_targets()

    @override
    def setup(self, stage: str) -> None:
        self._fill_targets()

    def _fill_targets(self) -> None:
        module = getattr(self.trainer, "lightning_module", None)
        if module is not None and hasattr(module, "model"):
            edit, self.retention = fill_targets(self.splits.edit, self.retention, module.model, self.processor)
            self.splits = self.splits._replace(edit=edit)

    @override
    def train_dataloader(self) -> ResumableLoader:
        module = getattr(self.trainer, "lightning_module", None)
        if getattr(module, "data_view", "pairs") == "records":
            return self.records_dataloader()
        return self.pairs_dataloader()

    def records_dataloader(self) -> ResumableLoader:
        """Stage 1: `records_per_batch` edit records a batch, seven rows each."""
        rows = [locate_rows(record) for record in self.splits.edit]
        return self._loader(
            rows, self.records_per_batch, partial(_record_batch, self.collate_training), False, not_counted
        )

    def pairs_dataloader(self) -> ResumableLoader:
        """Stage 2: `pairs_per_batch` query pairs a batch, two rows each, then the retention rows."""
        rows = [edit_rows(record, pair) for record in self.splits.edit for pair in record.pairs]
        if not self.images:
            rows = [[replace(row, image=None) for row in group] for group in rows]
        collate = _PairBatches(
            self.collate_training, self.retention, self.retention_per_batch, self.seed, self._place_in_time
        )
        return self._loader(rows, self.pairs_per_batch, collate, self.shuffle)

    def _place_in_time(self) -> tuple[int, int]:
        """The epoch, and this process's rank."""
        return (0, 0) if self.trainer is None else (self.trainer.current_epoch, self.trainer.global_rank)

    @override
    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Add the layout of shared prefixes to a training batch, while reading its values forces no device sync."""
        module = getattr(self.trainer, "lightning_module", None)
        if self.trainer is None or not self.trainer.training or not isinstance(module, LayoutProvider):
            return batch
        layout = module.batch_layout(batch)
        return batch if layout is None else {**batch, LAYOUT: layout}

    @override
    def val_dataloader(self) -> ResumableLoader:
        return prompts_loader(
            self.splits.test, self.processor, self.eval_batch_size, None, *self._place(), num_workers=self.num_workers
        )

    def _place(self) -> tuple[int, int]:
        """This process's rank, and the number of processes."""
        return getattr(self.trainer, "global_rank", 0), getattr(self.trainer, "world_size", 1)

    def _loader(self, rows: list[Any], batch_size: int, collate: Any, shuffle: bool, *again: Any) -> ResumableLoader:
        order = RowOrder(len(rows), shuffle, self.seed, *self._place())
        return ResumableLoader(
            rows, order, *again, batch_size=batch_size, collate_fn=collate, num_workers=self.num_workers
        )


def _record_batch(collate: PrivacyPairCollator, groups: list[list[QueryRow]]) -> dict[str, Any]:
    counted = [rows for rows in groups if rows[0].counted]
    # what another process has, too, is run only where there is nothing else to run
    return collate([row for rows in counted or groups for row in rows])


@dataclass
class _PairBatches:
    """Puts query pairs and the retention rows drawn for them into a batch, in this process or in a worker's.

    Attributes:
        collate: makes the batch.
        retention: what is drawn from.
        per_batch: how many are drawn.
        seed: seeds what is drawn.
        place: gives the epoch, and this process's rank.
    """

    collate: PrivacyPairCollator
    retention: list[RetentionItem]
    per_batch: int
    seed: int
    place: Callable[[], tuple[int, int]]

    def __getstate__(self) -> dict[str, Any]:
        # a worker is started for an epoch; the Trainer, and with it the model, stays behind
        return {**self.__dict__, "place": partial(tuple, self.place())}

    def __call__(self, groups: list[list[QueryRow]]) -> dict[str, Any]:
        rng = random.Random(self._address(groups))
        kept = rng.sample(self.retention, min(self.per_batch, len(self.retention)))
        for item in kept:
            if not item.target:
                raise DataFormatError(
                    f"the retention question '{item.query}' has no target; make it with fill_targets()"
                )
        retention = [QueryRow(item.query, "retention", item.image, target=item.target) for item in kept]
        return self.collate([row for group in groups for row in group] + retention)

    def _address(self, groups: list[list[QueryRow]]) -> str:
        """What tells a batch from all others, wherever it is put together: seed, epoch, process and its own rows."""
        epoch, rank = self.place()
        content = "/".join(f"{row.record_id}:{row.query}" for group in groups for row in group)
        return f"{self.seed}/{epoch}/{rank}/{content}"
