"""A model with the rendered records of one seed: locate gates, edit, evaluate, and undo edits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch import Callback, Trainer, seed_everything
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

from lightning_neuralgate.data.added_rows import RECOVERY_DEPTHS, AddedRows
from lightning_neuralgate.data.datamodule import PrivacyPairDataModule
from lightning_neuralgate.data.plain_text import plain_prompts
from lightning_neuralgate.data.prompts import PromptDataModule, ordinary_rows, question_rows
from lightning_neuralgate.data.records import PrivacyRecord, RecordSplits, RetentionItem
from lightning_neuralgate.data.rendering.dataset import render_splits
from lightning_neuralgate.data.retention import RetentionForms, check_retention, render_retention
from lightning_neuralgate.data.targets import fill_targets
from lightning_neuralgate.edit.editor import PrivacyEditModule, RetentionLoss, Schedule
from lightning_neuralgate.evaluation.answers import JudgedAnswer
from lightning_neuralgate.evaluation.rates import Judge
from lightning_neuralgate.gate.callback import NeuralGateCallback
from lightning_neuralgate.gate.key_collector import KeyCollector
from lightning_neuralgate.gate.keys import DEFAULT_SHARE, InputCovariance, check_strength
from lightning_neuralgate.gate.neural_gate import NeuralGate
from lightning_neuralgate.gate.positions import Scope
from lightning_neuralgate.hf.decoder import find_decoder
from lightning_neuralgate.judges.probe import RefusalJudge
from lightning_neuralgate.locate.locator import PrivacyLocatorModule
from lightning_neuralgate.models.loading import EMBEDDED, load_model
from lightning_neuralgate.tasks.evaluate import evaluate

Precision = Literal["auto", "32-true", "bf16-mixed"]
SPLITS = ("test", "unseen_attributes", "unseen_subjects")
LEARNING_RATES = {"smol-llava": 6e-3, "smol-minigpt": 1e-2}
"""Learning rates of mini-batch edits by embedded model; see docs/sweep.md."""


@dataclass(frozen=True)
class EditSettings:
    """Settings of rendering, locating, editing and evaluating.

    Attributes:
        model: `smol-llava`, `smol-minigpt`, a folder or a Hugging Face Hub repository.
        layer: decoder layer to locate and edit.
        tau: threshold of the gate: dimensions with an activity rate above it pass their gradient.
        scope: token positions at which the gate applies.
        subjects: subjects to edit: names of shipped subjects, or YAML files.
        unseen: subjects for the `unseen_subjects` test split, never used for editing.
        edit_records: edit records per subject.
        edit_pairs: query pairs per edit record.
        test_records: test records per subject, in each of the splits `test` and `unseen_attributes`.
        test_pairs: query pairs per test record.
        schedule: `minibatch` for shuffled mini-batches, `paper` for several steps on each pair in turn.
        epochs: passes over the edit pairs.
        pairs_per_batch: query pairs in a mini-batch.
        lr: learning rate of Adam; null for the tuned value of an embedded model (`LEARNING_RATES`, mini-batches only), or
            else the default of the schedule.
        alpha: weight of the benign loss term.
        retention_weight: weight of the retention loss term.
        retention_loss: `nll` of the retention targets, or `kl` to the unedited model (`PrivacyEditModule`).
        retention_per_batch: retention questions in a mini-batch.
        retention_forms: `open` for open questions only, `all` for every ordinary form of question (`render_retention`).
        retention_count: number of retention questions; null for 24 open ones, or 72 in all forms.
        retention_without: forms to leave out of `all`, such as `yes_no`.
        public_questions: half of the `open` retention questions ask for public attributes in the wording of the edit's
            queries; if false, that half is not used.
        recovery_share: probability with which a pair gets recovery rows in an epoch (`PrivacyPairDataModule`).
        recovery_depths: lengths of the started answers of recovery rows, in tokens.
        indirect_share: probability with which a pair gets indirect rows in an epoch.
        keep_share: keep the edit's change out of the input directions that hold this share of the energy of ordinary
            prompts: the retention questions and prompts without a picture, in the unedited model (`KeySpace`). 0: off.
        images: include the pictures in the edit's queries; if false, the edit trains on text only.
        judge: classify refusals with the second judge as well.
        questions_per_rung: questions of each rung of the benign ladder, unsafe contrasts included; null for all, 0 for none.
        questions_per_set: questions of each mini set (POPE, MME, ScienceQA, MLLMGuard); null for all, 0 for none.
        attacks: attack the models (the quick suite of `neuralgate attack`) and report the secrets that come out.
        precision: precision of the edit and of answering: a Trainer precision, or `auto` for bf16-mixed on hardware with
            native bfloat16 and 32-true elsewhere.
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
    retention_loss: RetentionLoss = "nll"
    retention_per_batch: int = 1
    retention_forms: RetentionForms = "open"
    retention_count: int | None = None
    retention_without: Sequence[str] = ()
    public_questions: bool = True
    recovery_share: float = 0.0
    recovery_depths: Sequence[int] = RECOVERY_DEPTHS
    indirect_share: float = 0.0
    keep_share: float = 0.0
    images: bool = True
    judge: bool = True
    questions_per_rung: int | None = 8
    questions_per_set: int | None = 20
    attacks: bool = False
    precision: Precision = "auto"

    def __post_init__(self) -> None:
        # bad values end in an error here, and not in the middle of a run
        AddedRows((), None, self.recovery_share, self.recovery_depths, self.indirect_share)
        if self.keep_share:
            check_strength(self.keep_share, None)
        check_retention(self.retention_forms, self.retention_without)

    def resolved(self) -> EditSettings:
        """Return the settings with the learning rate of the embedded model filled in, if `lr` is None."""
        if self.lr is not None or self.schedule != "minibatch":
            return self
        return replace(self, lr=LEARNING_RATES.get(self.model))


def has_bfloat16() -> bool:
    """Whether the hardware has native bfloat16; emulated, it is far slower than float32."""
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    # missing from the oldest supported torch
    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


class Experiment:
    """A model and its rendered records. `locate` and `edit` always start from the unedited weights.

    Args:
        out: folder for `data/` (records and pictures) and `logs/`.
        seed: seed of data and training.
        settings: settings of all stages.

    Attributes:
        show_progress: whether to show progress bars.
    """

    def __init__(self, out: Path, seed: int, settings: EditSettings) -> None:
        self.out, self.seed, self.settings = out, seed, settings.resolved()
        self.data = out / "data"
        seed_everything(seed, verbose=False)
        self.model, self.processor = load_model(settings.model)
        self._base_weights = {settings.layer: self._projection(settings.layer).weight.detach().clone()}
        self.precision = _resolve_precision(settings.precision)
        self.show_progress = True
        self.splits = RecordSplits([], [], [], [], [])
        self.retention: list[RetentionItem] = []

    def _projection(self, layer: int) -> Any:
        return find_decoder(self.model).output_projection(layer)

    @cached_property
    def judge(self) -> Judge | None:
        """The second refusal judge, loaded on first use; None if disabled in the settings."""
        return RefusalJudge.load() if self.settings.judge else None

    @property
    def test_splits(self) -> dict[str, list[PrivacyRecord]]:
        """Records by test split, without empty splits."""
        return {name: records for name in SPLITS if (records := getattr(self.splits, name))}

    def render(self) -> None:
        """Render the records and the retention pictures."""
        s = self.settings
        self.splits = render_splits(
            self.data, self.seed, s.edit_records, s.test_records, s.edit_pairs, s.test_pairs, s.subjects, s.unseen
        )
        self.retention = []
        if s.retention_per_batch or s.keep_share:
            self.retention = render_retention(
                self.data, self.seed, s.retention_forms, s.retention_count, s.retention_without, s.subjects
            )

    def fill_targets(self) -> None:
        """Generate the benign and the retention targets with the unedited model."""
        edit, self.retention = fill_targets(self.splits.edit, self.retention, self.model, self.processor)
        self.splits = self.splits._replace(edit=edit)

    def locate(
        self, records: Sequence[PrivacyRecord] | None = None, cache_dir: Path | None = None, name: str | None = "locate"
    ) -> NeuralGate:
        """Run stage 1 in the layer of the settings.

        Always in full precision: in the many short passes, autocast would spend most of its time casting weights.

        Args:
            records: records to locate; default: all edit records.
            cache_dir: cache of located records; records found there are not located again.
            name: name of the log; None disables logging.
        """
        self.reset()
        locator = PrivacyLocatorModule(self.model, [self.settings.layer], cache_dir=cache_dir)
        trainer = Trainer(
            max_epochs=1,
            logger=False if name is None else self._loggers(name),
            limit_val_batches=0,
            enable_progress_bar=self.show_progress,
            **TRAINER_OPTIONS,
        )
        splits = self.splits if records is None else self.splits._replace(edit=list(records))
        trainer.fit(locator, datamodule=PrivacyPairDataModule(splits, self.processor))
        return locator.gate

    def reset(self) -> None:
        """Undo the current edit: restore the unedited weights."""
        with torch.no_grad():
            for layer, weight in self._base_weights.items():
                self._projection(layer).weight.copy_(weight)

    def collect_keys(self, layer: int, questions: Sequence[RetentionItem], plain_text: bool = True) -> InputCovariance:
        """Collect the inputs of ordinary prompts with the unedited model: questions, and prompts without a picture.

        Args:
            layer: the layer.
            questions: the questions.
            plain_text: False for the questions only.
        """
        self.reset()
        collector = KeyCollector(self.model, [layer])
        trainer = Trainer(logger=False, enable_progress_bar=self.show_progress, **TRAINER_OPTIONS)
        rows = ordinary_rows(questions=questions, texts=plain_prompts(self.seed)[: _PLAIN_PROMPTS * plain_text])
        prompts = PromptDataModule(rows, self.processor, _ANSWER_BATCH_SIZE)
        trainer.predict(collector, datamodule=prompts, return_predictions=False)
        return collector.covariance

    def edit(
        self,
        gate: NeuralGate | None,
        name: str,
        settings: EditSettings | None = None,
        callbacks: Sequence[Callback] | None = None,
    ) -> PrivacyEditModule:
        """Run stage 2 from the unedited weights.

        Args:
            gate: the gate; None for an ungated edit.
            name: name of the log.
            settings: settings of this edit, if they differ from those of the experiment; model and records stay the same.
            callbacks: callbacks of the Trainer, instead of the one that `gate` and the settings ask for.
        """
        s = settings or self.settings
        self.reset()
        self._base_weights.setdefault(s.layer, self._projection(s.layer).weight.detach().clone())
        retention = self.retention_of(s)
        if callbacks is None:
            callbacks = self._gate_callbacks(gate, s, retention)
        seed_everything(self.seed, verbose=False)
        paper = s.schedule == "paper"
        data = PrivacyPairDataModule(
            self.splits,
            self.processor,
            retention,
            pairs_per_batch=1 if paper else s.pairs_per_batch,
            retention_per_batch=0 if paper or s.retention_weight == 0 else s.retention_per_batch,
            shuffle=not paper,
            images=s.images,
            seed=self.seed,
            recovery_share=s.recovery_share,
            recovery_depths=s.recovery_depths,
            indirect_share=s.indirect_share,
        )
        editor = PrivacyEditModule(
            self.model,
            [s.layer],
            self.processor,
            schedule=s.schedule,
            lr=s.lr,
            alpha=s.alpha,
            retention_weight=s.retention_weight,
            retention_loss=s.retention_loss,
        )
        trainer = Trainer(
            max_epochs=s.epochs,
            callbacks=list(callbacks),
            logger=self._loggers(f"edit-{name}"),
            limit_val_batches=2,
            check_val_every_n_epoch=2,
            enable_progress_bar=self.show_progress,
            precision=_resolve_precision(s.precision),
            **TRAINER_OPTIONS,
        )
        trainer.fit(editor, datamodule=data)
        return editor

    def _gate_callbacks(
        self, gate: NeuralGate | None, settings: EditSettings, retention: Sequence[RetentionItem]
    ) -> list[Callback]:
        keep = self.collect_keys(settings.layer, retention) if settings.keep_share else None
        if gate is None and keep is None:
            return []
        share = settings.keep_share or DEFAULT_SHARE
        return [NeuralGateCallback(gate, settings.scope, settings.tau, keep=keep, keep_share=share)]

    def retention_of(self, settings: EditSettings) -> list[RetentionItem]:
        """Return the retention questions of an edit with these settings."""
        uses_all = settings.public_questions or settings.retention_forms == "all"
        return self.retention if uses_all else self.retention[: (len(self.retention) + 1) // 2]

    def weight_change(self, layer: int) -> dict[str, float]:
        """Relative norm of the change of a layer's MLP output projection, and the share of its rows that changed."""
        base = self._base_weights[layer]
        change = self._projection(layer).weight.detach() - base
        return {
            "weight_change": float(change.norm() / base.norm()),
            "rows_changed": float((change != 0).any(1).float().mean()),
        }

    def answer(self, name: str, splits: Mapping[str, Sequence[PrivacyRecord]] | None = None) -> list[JudgedAnswer]:
        """Answer the test queries with the model in its current state, and judge the answers.

        Args:
            name: name of the model in the answers.
            splits: records by split; default: all test splits.
        """
        with torch.autocast(self.model.device.type, torch.bfloat16, enabled=self.precision == "bf16-mixed"):
            return evaluate(
                self.model,
                self.processor,
                self.test_splits if splits is None else splits,
                self.data,
                name,
                batch_size=_ANSWER_BATCH_SIZE,
                judge=self.judge,
                progress=self.show_progress,
            )

    @staticmethod
    def batch_ends(records: Sequence[PrivacyRecord]) -> list[int]:
        """Numbers of records after which a batch of queries is full, and the number of all records.

        Splitting the records at these points keeps the batches, and therefore the answers, the same.
        """
        queries = accumulate(len(question_rows(record)) for record in records)
        return [
            count for count, rows in enumerate(queries, 1) if rows % _ANSWER_BATCH_SIZE == 0 or count == len(records)
        ]

    def _loggers(self, stage: str) -> list[Any]:
        folder = self.out / "logs"
        return [TensorBoardLogger(folder, name=stage, version=""), CSVLogger(folder, name=stage, version="csv")]


def _resolve_precision(precision: Precision) -> Literal["32-true", "bf16-mixed"]:
    if precision == "auto":
        return "bf16-mixed" if has_bfloat16() else "32-true"
    return precision


_PLAIN_PROMPTS = 40
"""Number of prompts without a picture among those whose inputs an edit is kept out of."""
_ANSWER_BATCH_SIZE = 24
"""Queries generated at once: a decoding step reads all weights once, whatever the batch size."""

TRAINER_OPTIONS: dict[str, Any] = {
    "accelerator": "auto",
    "devices": 1,
    "enable_checkpointing": False,
    "enable_model_summary": False,
    "num_sanity_val_steps": 0,
    "log_every_n_steps": 1,
}
"""Options of every Trainer of the demo."""
