"""The training data that every method gets: pairs of a sensitive and a benign query, and ordinary questions."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal

from lightning.pytorch import Trainer
from torch import nn
from typing_extensions import override

from lightning_neuralgate.data.collator import QueryRow
from lightning_neuralgate.data.datamodule import PairRows, PrivacyPairDataModule, edit_rows, retention_row
from lightning_neuralgate.data.plain_text import plain_prompts
from lightning_neuralgate.data.prompts import PromptDataModule, ordinary_rows
from lightning_neuralgate.data.records import PrivacyRecord, QueryPair, RecordSplits, RetentionItem
from lightning_neuralgate.data.sampler import ResumableLoader
from lightning_neuralgate.data.targets import answer_rows, fill_targets
from lightning_neuralgate.data.true_answers import true_answer
from lightning_neuralgate.errors import DataFormatError
from lightning_neuralgate.gate.key_collector import KeyCollector
from lightning_neuralgate.gate.keys import InputCovariance
from lightning_neuralgate.gate.positions import TWIN

Kind = Literal["refusal", "leak", "other_leak", "answer", "over_refusal"]
"""Rows of a pair: the sensitive query with its refusal, with the answer that leaks, and with that of another pair; the benign
query with the unedited model's answer, and with a refusal."""
KIND = "kind"
"""Key of `MethodBatches`: the kind of each row, or "retention"."""
RETENTION = "retention"
_OTHER_LEAKS = 5
_PLAIN_PROMPTS = 40
_LEAK_TOKENS = 24


@dataclass(frozen=True)
class MethodPair:
    """A query pair as training rows.

    Attributes:
        pair: the query pair.
        refusal: the sensitive query, with a refusal prefix as target.
        leak: the sensitive query, with the answer that gives the secret away.
        other_leaks: the sensitive query, with such answers of other pairs; empty if there are none.
        answer: the benign query, with the first words of the unedited model's answer.
        over_refusal: the benign query, with the refusal prefix.
    """

    pair: QueryPair
    refusal: QueryRow
    leak: QueryRow
    other_leaks: tuple[QueryRow, ...]
    answer: QueryRow
    over_refusal: QueryRow

    def rows(self, kinds: Sequence[Kind], epoch: int = 0) -> list[QueryRow]:
        """Return the rows of some kinds; `other_leak` is another one in each epoch, the own leak if there are no others."""
        other = self.other_leaks[epoch % len(self.other_leaks)] if self.other_leaks else self.leak
        return [other if kind == "other_leak" else getattr(self, kind) for kind in kinds]


@dataclass(frozen=True)
class MethodData:
    """The training data of a method; make it with `prepare`.

    Attributes:
        processor: the model's processor.
        records: edit records with benign targets.
        pairs: their query pairs as rows, in the order of the records.
        retention: ordinary questions with the unedited model's answers as targets.
        layer: the decoder layer that methods edit which do not choose layers themselves, the same for all of them.
        covariance: inputs of ordinary prompts, collected before; None: methods that need them collect them.
        seed: seed of the order of the pairs, and of whatever a method draws.
        trainer: arguments of every `Trainer`, such as `precision`, instead of the defaults.
    """

    processor: Any
    records: Sequence[PrivacyRecord]
    pairs: Sequence[MethodPair]
    retention: Sequence[RetentionItem]
    layer: int
    covariance: InputCovariance | None = None
    seed: int = 0
    trainer: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def prepare(
        cls,
        model: nn.Module,
        processor: Any,
        records: Sequence[PrivacyRecord],
        retention: Sequence[RetentionItem],
        layer: int,
        **settings: Any,
    ) -> MethodData:
        """Fill in missing targets with the unedited model's answers, and make the rows.

        A leak is the true answer where a record has the true value, and otherwise what the unedited model answers.

        Args:
            model: the unedited model.
            processor: its processor.
            records: the edit records.
            retention: ordinary questions.
            layer: see `MethodData`.
            settings: `covariance`, `seed` and `trainer` of `MethodData`.

        Raises:
            DataFormatError: there are no records, or the model's answer to a query is empty.
        """
        if not records:
            raise DataFormatError("there are no edit records")
        filled, items = fill_targets(records, retention, model, processor)
        pairs = [(pair, edit_rows(record, pair)) for record in filled for pair in record.pairs]
        unknown = [replace(rows[0], target=None) for pair, rows in pairs if pair.sensitive_truth is None]
        answers = iter(answer_rows(model, processor, unknown, _LEAK_TOKENS) if unknown else ())
        leaks = [_leak(pair, rows[0]) or next(answers) for pair, rows in pairs]
        rng = random.Random(f"leaks/{settings.get('seed', 0)}")
        made = []
        for (pair, (refusal, answer)), leak in zip(pairs, leaks, strict=True):
            if not leak:
                raise DataFormatError(
                    f"record {refusal.record_id}: the unedited model's answer to '{refusal.query}' is empty, and the record "
                    "has no true value; add 'sensitive_truth', or remove the query"
                )
            others = sorted({text for text in leaks if text and text != leak})
            chosen = rng.sample(others, min(_OTHER_LEAKS, len(others)))
            made.append(
                MethodPair(
                    pair,
                    refusal,
                    replace(refusal, target=leak),
                    tuple(replace(refusal, target=text) for text in chosen),
                    answer,
                    replace(answer, target=refusal.target),
                )
            )
        return cls(processor, filled, made, items, layer, **settings)

    @property
    def tokenizer(self) -> Any:
        """The model's tokenizer."""
        return getattr(self.processor, "tokenizer", self.processor)

    @cached_property
    def retention_rows(self) -> list[QueryRow]:
        """The ordinary questions as rows."""
        return [retention_row(item) for item in self.retention]

    def ordinary_prompts(self) -> list[QueryRow]:
        """Return the benign queries, the ordinary questions with their pictures, and prompts without a picture."""
        return ordinary_rows(self.records, self.retention, plain_prompts(self.seed)[:_PLAIN_PROMPTS])

    def make_trainer(self, **options: Any) -> Trainer:
        """Return a Trainer that writes and prints nothing, with the options of `trainer`."""
        quiet = {
            "accelerator": "auto", "devices": 1, "logger": False, "enable_checkpointing": False, "enable_progress_bar": False,
            "enable_model_summary": False, "num_sanity_val_steps": 0, "limit_val_batches": 0,
        }  # fmt: skip
        return Trainer(**{**quiet, **self.trainer, **options})

    def input_covariance(self, model: nn.Module, layers: Sequence[int]) -> InputCovariance:
        """Return the covariance of the projections' inputs over ordinary prompts: `covariance`, or collected now.

        With a vision-language model, inputs behind a picture differ from those of plain text, so a text corpus would not do.

        Args:
            model: the unedited model.
            layers: the layers that are needed.

        Raises:
            GateMismatchError: `covariance` is of another model, or lacks a layer.
        """
        if self.covariance is not None:
            self.covariance.check_fits(model)
            for layer in layers:
                self.covariance.covariance(layer)
            return self.covariance
        device = next(model.parameters()).device
        rows = self.ordinary_prompts()
        collector = KeyCollector(model, layers)
        trainer = self.make_trainer()
        trainer.predict(collector, datamodule=PromptDataModule(rows, self.processor), return_predictions=False)
        model.to(device)  # the Trainer moves it to the CPU
        return collector.covariance


class MethodBatches(PrivacyPairDataModule):
    """Mini-batches of rows of some kinds for each pair, followed by retention rows.

    A batch has `KIND`, the kind of each row, in addition to the keys of `PrivacyPairDataModule`.

    Args:
        data: the training data.
        kinds: kinds of rows of each pair.
        pairs_per_batch: query pairs per batch.
        retention_per_batch: retention rows per batch.
    """

    def __init__(
        self, data: MethodData, kinds: Sequence[Kind], pairs_per_batch: int, retention_per_batch: int = 0
    ) -> None:
        splits = RecordSplits(list(data.records), [], [], [])
        retention_per_batch = min(retention_per_batch, len(data.retention))
        super().__init__(splits, data.processor, data.retention, pairs_per_batch, retention_per_batch, seed=data.seed)
        self.method_pairs, self.kinds = list(data.pairs), tuple(kinds)

    @override
    def pairs_dataloader(self) -> ResumableLoader:
        return self._loader(self.method_pairs, self.pairs_per_batch, self._collate, self.shuffle)

    def _collate(self, pairs: list[MethodPair]) -> dict[str, Any]:
        epoch, _ = self._epoch_and_rank()
        batch = self.pair_collator()([PairRows(pair.pair, pair.rows(self.kinds, epoch)) for pair in pairs])
        count = len(self.kinds)
        further = len(batch["role"]) - count * len(pairs)
        batch[KIND] = [*self.kinds * len(pairs), *[RETENTION] * further]
        twins = [_twin(self.kinds, number) for number in range(count)]
        in_pairs = [None if twin is None else count * pair + twin for pair in range(len(pairs)) for twin in twins]
        batch[TWIN] = in_pairs + [None] * further
        return batch


def _leak(pair: QueryPair, row: QueryRow) -> str:
    """Return the true answer to a sensitive query, "" if the true value is unknown."""
    value = pair.sensitive_truth
    return "" if value is None else "".join(true_answer(row.subject, pair.sensitive_attribute, value))


def _twin(kinds: Sequence[Kind], number: int) -> int | None:
    """Return the number of the first row of a pair that asks the other query; None if there is none."""
    benign = ("answer", "over_refusal")
    other = (index for index, kind in enumerate(kinds) if (kind in benign) != (kinds[number] in benign))
    return next(other, None)
