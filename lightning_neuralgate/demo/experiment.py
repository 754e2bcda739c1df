"""One seed's rendered records and a model, on which gates are located and edits made, measured and taken back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

from lightning_neuralgate.data.datamodule import PrivacyPairDataModule
from lightning_neuralgate.data.prompts import question_rows
from lightning_neuralgate.data.records import PrivacyRecord, RecordSplits, RetentionItem
from lightning_neuralgate.data.rendering.dataset import ORDINARY_ITEMS, render_retention, render_splits
from lightning_neuralgate.data.targets import fill_targets
from lightning_neuralgate.edit.editor import PrivacyEditModule, Schedule
from lightning_neuralgate.evaluation.answers import JudgedAnswer
from lightning_neuralgate.evaluation.rates import Judge
from lightning_neuralgate.gate.autograd import Scope
from lightning_neuralgate.gate.callback import NeuralGateCallback
from lightning_neuralgate.gate.neural_gate import NeuralGate
from lightning_neuralgate.hf.decoder import find_decoder
from lightning_neuralgate.judges.probe import RefusalJudge
from lightning_neuralgate.locate.locator import PrivacyLocatorModule
from lightning_neuralgate.models.loading import EMBEDDED, load_model
from lightning_neuralgate.tasks.evaluate import evaluate

Precision = Literal["auto", "32-true", "bf16-mixed"]
SPLITS = ("test", "unseen_attributes", "unseen_subjects")
LEARNING_RATES = {"smol-llava": 6e-3, "smol-minigpt": 1e-2}
"""By embedded model, for mini-batches; see docs/sweep.md."""


@dataclass(frozen=True)
class EditSettings:
    """What is rendered, located and edited, and how.

    Attributes:
        model: `smol-llava`, `smol-minigpt`, a folder or a hub repository.
        layer: decoder layer that is located and edited.
        tau: dimensions with an activity rate above it stay open.
        scope: positions at which the gate applies.
        subjects: edited subjects: shipped specs or YAML files.
        unseen: subjects kept for the end.
        edit_records: edit records per subject.
        edit_pairs: query pairs per edit record.
        test_records: test records per subject; `unseen_attributes` has as many.
        test_pairs: query pairs per test record.
        schedule: `minibatch`, or `paper` for pair by pair.
        epochs: passes over the edit pairs.
        pairs_per_batch: query pairs in a mini-batch.
        lr: learning rate of Adam; null for what suits an embedded model in mini-batches (`LEARNING_RATES`), and else the
            schedule's own.
        alpha: weight of the benign term.
        retention_weight: weight of the retention term.
        retention_per_batch: retention questions in a mini-batch.
        public_questions: half of the retention questions ask for what nobody keeps secret in the edit's own words
            (`render_retention`); without, all are ordinary questions.
        images: show the pictures in the edit's queries; without them the edit is made on text alone.
        judge: ask the second judge of refusals, too.
        precision: of the edit's forward and backward passes, and of answering: a precision of the Trainer, or `auto` for
            bf16-mixed where the hardware multiplies bfloat16 and 32-true elsewhere.
    """

    model: str = EMBEDDED
    layer: int = 10
    tau: float = 0.5
    scope: Scope = "subject_last"
    subjects: Sequence[str] = (
        "passport",
        "student_id",
        "receipt",
        "business_card",
        "government_document",
        "medical_record",
    )
    unseen: Sequence[str] = ("driver_licence", "bank_card", "military_vehicle")
    edit_records: int = 2
    edit_pairs: int = 6
    test_records: int = 2
    test_pairs: int = 2
    schedule: Schedule = "minibatch"
    epochs: int = 4
    pairs_per_batch: int = 3
    lr: float | None = None
    alpha: float = 1.25
    retention_weight: float = 0.25
    retention_per_batch: int = 1
    public_questions: bool = True
    images: bool = True
    judge: bool = True
    precision: Precision = "auto"

    def resolved(self) -> EditSettings:
        """These settings with the learning rate that will be used, where it was left open and is known."""
        if self.lr is not None or self.schedule != "minibatch":
            return self
        return replace(self, lr=LEARNING_RATES.get(self.model))


def has_bfloat16() -> bool:
    """Whether the hardware multiplies bfloat16 itself; where it does not, bfloat16 is far slower than float32."""
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    # newer than the oldest torch that serves
    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


class Experiment:
    """The model with its records. `edit` always starts from the unedited weights.

    Args:
        out: folder for `data/` (records and pictures) and `logs/`.
        seed: of data and training.
        settings: what to render, and which model and layer.

    Attributes:
        shows_progress: whether bars are shown.
    """

    def __init__(self, out: Path, seed: int, settings: EditSettings) -> None:
        self.out, self.seed, self.settings = out, seed, settings.resolved()
        self.data = out / "data"
        seed_everything(seed, verbose=False)
        self.model, self.processor = load_model(settings.model)
        self._base = {settings.layer: self._projection(settings.layer).weight.detach().clone()}
        self.precision = _resolved(settings.precision)
        self.shows_progress = True
        self.splits = RecordSplits([], [], [], [])
        self.retention: list[RetentionItem] = []

    def _projection(self, layer: int) -> Any:
        return find_decoder(self.model).output_projection(layer)

    @cached_property
    def judge(self) -> Judge | None:
        """The second judge of refusals, loaded on first use; None where the settings ask for none."""
        return RefusalJudge.load() if self.settings.judge else None

    @property
    def tested(self) -> dict[str, list[PrivacyRecord]]:
        """Records by test split; splits without records are left out."""
        return {name: records for name in SPLITS if (records := getattr(self.splits, name))}

    def render(self) -> None:
        """Draw the records and the retention pictures."""
        s = self.settings
        self.splits = render_splits(
            self.data, self.seed, s.edit_records, s.test_records, s.edit_pairs, s.test_pairs, s.subjects, s.unseen
        )
        self.retention = render_retention(self.data, self.seed) if s.retention_per_batch else []

    def fill_targets(self) -> None:
        """Ask the unedited model what it says to the benign and the retention questions."""
        edit, self.retention = fill_targets(self.splits.edit, self.retention, self.model, self.processor)
        self.splits = self.splits._replace(edit=edit)

    def locate(
        self, records: Sequence[PrivacyRecord] | None = None, cache_dir: Path | None = None, name: str | None = "locate"
    ) -> NeuralGate:
        """Stage 1, in the layer of the settings, in full precision: its many short passes would mostly cast weights.

        Args:
            records: all edit records when left out.
            cache_dir: folder that what is located is kept in, and taken from where it is there already.
            name: of the log; None for no log.
        """
        self.reset()
        locator = PrivacyLocatorModule(self.model, [self.settings.layer], cache_dir=cache_dir)
        trainer = Trainer(
            max_epochs=1,
            logger=False if name is None else self._loggers(name),
            limit_val_batches=0,
            enable_progress_bar=self.shows_progress,
            **_COMMON,
        )
        splits = self.splits if records is None else self.splits._replace(edit=list(records))
        trainer.fit(locator, datamodule=PrivacyPairDataModule(splits, self.processor))
        return locator.gate

    def reset(self) -> None:
        """Take an edit back."""
        with torch.no_grad():
            for layer, weight in self._base.items():
                self._projection(layer).weight.copy_(weight)

    def edit(self, gate: NeuralGate | None, name: str, settings: EditSettings | None = None) -> PrivacyEditModule:
        """Stage 2, from the unedited weights.

        Args:
            gate: None for an ungated edit.
            name: of the log.
            settings: others than the workbench's own, for its model and records.
        """
        s = settings or self.settings
        self.reset()
        self._base.setdefault(s.layer, self._projection(s.layer).weight.detach().clone())
        seed_everything(self.seed, verbose=False)
        paper = s.schedule == "paper"
        data = PrivacyPairDataModule(
            self.splits,
            self.processor,
            self.retention if s.public_questions else self.retention[:ORDINARY_ITEMS],
            pairs_per_batch=1 if paper else s.pairs_per_batch,
            retention_per_batch=0 if paper or s.retention_weight == 0 else s.retention_per_batch,
            shuffle=not paper,
            images=s.images,
            seed=self.seed,
        )
        editor = PrivacyEditModule(
            self.model,
            [s.layer],
            self.processor,
            schedule=s.schedule,
            lr=s.lr,
            alpha=s.alpha,
            retention_weight=s.retention_weight,
        )
        trainer = Trainer(
            max_epochs=s.epochs,
            callbacks=[] if gate is None else [NeuralGateCallback(gate, s.scope, s.tau)],
            logger=self._loggers(f"edit-{name}"),
            limit_val_batches=2,
            check_val_every_n_epoch=2,
            enable_progress_bar=self.shows_progress,
            precision=_resolved(s.precision),
            **_COMMON,
        )
        trainer.fit(editor, datamodule=data)
        return editor

    def weight_change(self, layer: int) -> dict[str, float]:
        """What the edit did to a layer's projection: relative norm of the change, and the share of rows that moved."""
        base = self._base[layer]
        change = self._projection(layer).weight.detach() - base
        return {
            "weight_change": float(change.norm() / base.norm()),
            "rows_changed": float((change != 0).any(1).float().mean()),
        }

    def answer(self, name: str, splits: Mapping[str, Sequence[PrivacyRecord]] | None = None) -> list[JudgedAnswer]:
        """Answers of the model as it is now to the test queries, judged by both judges."""
        with torch.autocast(self.model.device.type, torch.bfloat16, enabled=self.precision == "bf16-mixed"):
            return evaluate(
                self.model,
                self.processor,
                self.tested if splits is None else splits,
                self.data,
                name,
                batch_size=_ANSWERED_AT_ONCE,
                judge=self.judge,
                progress=self.shows_progress,
            )

    @staticmethod
    def batch_ends(records: Sequence[PrivacyRecord]) -> list[int]:
        """How many records have been answered after each batch that does not end within a record, and after the last.

        Records that are answered in parts that end here are answered in the same batches, and so in the same words.
        """
        asked = accumulate(len(question_rows(record)) for record in records)
        return [count for count, rows in enumerate(asked, 1) if rows % _ANSWERED_AT_ONCE == 0 or count == len(records)]

    def _loggers(self, stage: str) -> list[Any]:
        folder = self.out / "logs"
        return [TensorBoardLogger(folder, name=stage, version=""), CSVLogger(folder, name=stage, version="csv")]


def _resolved(precision: Precision) -> Literal["32-true", "bf16-mixed"]:
    if precision == "auto":
        return "bf16-mixed" if has_bfloat16() else "32-true"
    return precision


_ANSWERED_AT_ONCE = 24
"""Each step of an answer reads all weights once, however many queries it serves."""

_COMMON: dict[str, Any] = {
    "accelerator": "auto",
    "devices": 1,
    "enable_checkpointing": False,
    "enable_model_summary": False,
    "num_sanity_val_steps": 0,
    "log_every_n_steps": 1,
}
