"""Lightning DataModule with the batches of locating (stage 1), editing (stage 2) and validation."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, NamedTuple

from lightning.pytorch import LightningDataModule
from typing_extensions import override

from lightning_neuralgate.data.added_rows import RECOVERY_DEPTHS, AddedRows
from lightning_neuralgate.data.collator import PrivacyPairCollator, QueryRow
from lightning_neuralgate.data.pictures import CACHE_BYTES
from lightning_neuralgate.data.prompts import prompts_loader
from lightning_neuralgate.data.records import PrivacyRecord, QueryPair, RecordSplits, RetentionItem, records_checksum
from lightning_neuralgate.data.sampler import ResumableLoader, ResumableSampler
from lightning_neuralgate.data.splits import check_no_leakage
from lightning_neuralgate.data.targets import fill_targets
from lightning_neuralgate.errors import DataFormatError
from lightning_neuralgate.gate.positions import TAIL_TOKENS, TWIN
from lightning_neuralgate.prefix_cache.layout import LAYOUT, LayoutProvider

LEAD_INS = (
    "Please take a close look.",
    "Here is something I found today.",
    "I have one question for you.",
    "Think about it before you reply.",
    "A friend sent me this.",
)
"""Lead-in sentences for the sensitive query in stage 1; together with the bare query they make six contexts."""


def locate_rows(record: PrivacyRecord) -> list[QueryRow]:
    """Return the seven rows of a record in stage 1: its first sensitive query in six contexts, and the paired benign one."""
    pair = record.pairs[0]
    sensitive = [_sensitive_row(record, pair, context) for context in ("", *LEAD_INS)]
    return [*sensitive, _benign_row(record, pair)]


def edit_rows(record: PrivacyRecord, pair: QueryPair) -> list[QueryRow]:
    """Return the two rows of a query pair in stage 2: the sensitive query, and the benign one."""
    return [_sensitive_row(record, pair), _benign_row(record, pair)]


def _sensitive_row(record: PrivacyRecord, pair: QueryPair, context: str = "") -> QueryRow:
    return QueryRow(pair.sensitive, "sensitive", record.image, record.subject, pair.refusal, context, record.record_id)


def _benign_row(record: PrivacyRecord, pair: QueryPair) -> QueryRow:
    if not pair.benign_target:
        raise DataFormatError(
            f"record {record.record_id}: the benign query '{pair.benign}' has no target; generate it with fill_targets()"
        )
    return QueryRow(pair.benign, "benign", record.image, record.subject, pair.benign_target, record_id=record.record_id)


def retention_row(item: RetentionItem) -> QueryRow:
    """Return the row of a retention question.

    Raises:
        DataFormatError: it has no target.
    """
    if not item.target:
        raise DataFormatError(f"the retention question '{item.query}' has no target; generate it with fill_targets()")
    return QueryRow(item.query, "retention", item.image, target=item.target, earlier=item.earlier)


class PrivacyPairDataModule(LightningDataModule):
    """Batches of PrivacyPair records, for both `PrivacyLocatorModule` and `PrivacyEditModule`.

    The fitted module chooses the training batches with its attribute `data_view`: "records" (stage 1, seven rows per record)
    or "pairs" (stage 2, two rows per query pair, followed by rows added to them, if any, and by retention rows; the default).
    Validation batches are prompts of the test split. Missing benign and retention targets are generated once, with the
    unedited model, and cached on disk.

    A batch of stage 2 has the keys `twin`, for each row the index of the sensitive or benign row that it belongs to (None for
    retention rows), and `tail_tokens`, for each row the number of tokens between question and target. Where rows may be
    added, because a share is above 0, it has `added`: for each row whether it was.

    Each process gets its own share of the data. Where rows do not divide evenly, some are repeated; repeated rows of records
    and prompts have `counted` False. Training that resumes within an epoch continues with its next batch.

    Args:
        splits: records for editing and testing; nothing may leak between them.
        processor: the model's processor.
        retention: general questions for the edit's retention term.
        pairs_per_batch: query pairs per training batch in stage 2.
        retention_per_batch: retention rows added to each of these batches; default: one if `retention` is given.
        shuffle: shuffle the query pairs every epoch; False for the paper's schedule.
        eval_batch_size: prompts per validation batch.
        padding_side: side on which training batches are padded; prompts are always padded on the left.
        num_workers: DataLoader workers.
        images: False drops the pictures from the training batches of stage 2, as an ablation.
        seed: seed of the order of query pairs (with the epoch), and of the retention rows drawn for each batch (with the
            epoch, the process and the pairs of the batch).
        records_per_batch: records per batch in stage 1, optimized side by side; more use a GPU better and take more memory.
        picture_cache_bytes: size of the cache of processed pictures; 0 turns it off.
        recovery_share: probability with which a pair gets two recovery rows in an epoch of stage 2, a sensitive and a benign
            one whose answers are started (`recovery_rows`). The plain rows stay.
        recovery_depths: lengths of the started answers, in tokens, of which one is drawn for each pair.
        indirect_share: probability with which a pair gets two indirect rows in an epoch of stage 2, a sensitive and a benign
            one in another form of question (`indirect_rows`). Rows without the subject's name are not gated.

    Raises:
        DataLeakError: something of a test record occurs in the edit records; see `check_no_leakage`.
        DataFormatError: there are no edit records, or retention rows are requested without `retention`.
        ValueError: a batch size is smaller than 1, a share is not in [0, 1], or a depth is smaller than 1.
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
        picture_cache_bytes: int = CACHE_BYTES,
        recovery_share: float = 0.0,
        recovery_depths: Sequence[int] = RECOVERY_DEPTHS,
        indirect_share: float = 0.0,
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
        self.collate_training = PrivacyPairCollator(processor, padding_side, picture_cache_bytes)
        self.images = images
        self.seed = seed
        tokenizer = getattr(processor, "tokenizer", processor)
        self.added_rows = AddedRows(splits.edit, tokenizer, recovery_share, recovery_depths, indirect_share, seed)

    @property
    def identity(self) -> dict[str, Any]:
        """JSON-serializable description of the training batches: data modules with equal identities yield the same ones."""
        return {
            "records": records_checksum(self.splits.edit),
            "retention": records_checksum(self.retention),
            "pairs_per_batch": self.pairs_per_batch,
            "retention_per_batch": self.retention_per_batch,
            "shuffle": self.shuffle,
            "padding_side": self.collate_training.padding_side,
            "images": self.images,
            "seed": self.seed,
            "recovery_share": self.added_rows.recovery_share,
            "recovery_depths": list(self.added_rows.recovery_depths),
            "indirect_share": self.added_rows.indirect_share,
        }

    @override
    def prepare_data(self) -> None:
        """Generate missing targets in one process, into the cache that all processes read in `setup`."""
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
        """Return the loader that the fitted module chooses with `data_view`; `pairs_dataloader` by default."""
        view = getattr(getattr(self.trainer, "lightning_module", None), "data_view", "pairs")
        return self.records_dataloader() if view == "records" else self.pairs_dataloader()

    def records_dataloader(self) -> ResumableLoader:
        """Return batches of stage 1: `records_per_batch` edit records, seven rows each."""
        rows = [locate_rows(record) for record in self.splits.edit]
        collate = partial(_collate_records, self.collate_training)
        return self._loader(rows, self.records_per_batch, collate, shuffle=False, mark_duplicate=_mark_duplicate)

    def pairs_dataloader(self) -> ResumableLoader:
        """Return batches of stage 2: `pairs_per_batch` query pairs, two rows each, then added and retention rows."""
        pairs = [PairRows(pair, edit_rows(record, pair)) for record in self.splits.edit for pair in record.pairs]
        if not self.images:
            pairs = [PairRows(pair, [replace(row, image=None) for row in rows]) for pair, rows in pairs]
        return self._loader(pairs, self.pairs_per_batch, self.pair_collator(), self.shuffle)

    def pair_collator(self) -> PairCollator:
        """Return the function that makes a batch of stage 2 of the rows of some query pairs."""
        return PairCollator(
            self.collate_training,
            self.added_rows,
            self.retention,
            self.retention_per_batch,
            self.seed,
            self._epoch_and_rank,
        )

    @override
    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Add the layout of shared prefixes to a training batch.

        Before the transfer, when reading its values needs no device sync.
        """
        module = getattr(self.trainer, "lightning_module", None)
        if self.trainer is None or not self.trainer.training or not isinstance(module, LayoutProvider):
            return batch
        layout = module.batch_layout(batch)
        return batch if layout is None else {**batch, LAYOUT: layout}

    @override
    def val_dataloader(self) -> ResumableLoader:
        return prompts_loader(
            self.splits.test, self.processor, self.eval_batch_size, None, *self._rank_and_world(), self.num_workers
        )

    def _epoch_and_rank(self) -> tuple[int, int]:
        return (0, 0) if self.trainer is None else (self.trainer.current_epoch, self.trainer.global_rank)

    def _rank_and_world(self) -> tuple[int, int]:
        return getattr(self.trainer, "global_rank", 0), getattr(self.trainer, "world_size", 1)

    def _loader(
        self, rows: list[Any], batch_size: int, collate: Any, shuffle: bool, mark_duplicate: Any = None
    ) -> ResumableLoader:
        order = ResumableSampler(len(rows), shuffle, self.seed, *self._rank_and_world())
        return ResumableLoader(
            rows, order, mark_duplicate, batch_size=batch_size, collate_fn=collate, num_workers=self.num_workers
        )


def _mark_duplicate(rows: list[QueryRow]) -> list[QueryRow]:
    return [replace(row, counted=False) for row in rows]


def _collate_records(collate: PrivacyPairCollator, groups: list[list[QueryRow]]) -> dict[str, Any]:
    counted = [rows for rows in groups if rows[0].counted]
    # duplicates of another process's records are only run where the batch would be empty without them
    return collate([row for rows in counted or groups for row in rows])


class PairRows(NamedTuple):
    """A query pair with its sensitive and its benign row."""

    pair: QueryPair
    rows: list[QueryRow]


@dataclass
class PairCollator:
    """Collate query pairs together with added rows and retention rows drawn for them, in this process or in a worker."""

    collate: PrivacyPairCollator
    added_rows: AddedRows
    retention: list[RetentionItem]
    retention_per_batch: int
    seed: int
    epoch_and_rank: Callable[[], tuple[int, int]]

    def __getstate__(self) -> dict[str, Any]:
        # workers are restarted every epoch; without the bound method, the Trainer and the model are not pickled
        return {**self.__dict__, "epoch_and_rank": partial(tuple, self.epoch_and_rank())}

    def __call__(self, pairs: list[PairRows]) -> dict[str, Any]:
        epoch, rank = self.epoch_and_rank()
        rows = [row for pair in pairs for row in pair.rows]
        added = [row for pair in pairs for row in self.added_rows.draw(*pair, epoch)] if self.added_rows.enabled else []
        retention = self._draw_retention(rows, epoch, rank)
        batch = self.collate([*rows, *added, *retention])
        # rows of pairs and added ones come in twos, a sensitive and a benign one
        batch[TWIN] = [row ^ 1 for row in range(len(rows) + len(added))] + [None] * len(retention)
        if isinstance(self.collate, PrivacyPairCollator):  # it may have been replaced by a function
            batch[TAIL_TOKENS] = self.collate.tail_tokens([*rows, *added, *retention])
        if self.added_rows.enabled:
            batch["added"] = [False] * len(rows) + [True] * len(added) + [False] * len(retention)
        return batch

    def _draw_retention(self, rows: list[QueryRow], epoch: int, rank: int) -> list[QueryRow]:
        # the draw depends on the batch alone and not on a shared stream, so any number of workers gives the same rows
        content = "/".join(f"{row.record_id}:{row.query}" for row in rows)
        rng = random.Random(f"{self.seed}/{epoch}/{rank}/{content}")
        drawn = rng.sample(self.retention, min(self.retention_per_batch, len(self.retention)))
        return [retention_row(item) for item in drawn]
