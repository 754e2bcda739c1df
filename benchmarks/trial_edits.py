"""Make and measure one edit of the trial."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import fields, replace
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any, get_args

import torch

from lightning_neuralgate.attacks import chosen_attacks
from lightning_neuralgate.attacks.questions import attack_questions
from lightning_neuralgate.attacks.scoring import EDITED, score_attacks
from lightning_neuralgate.data.collator import QueryRow
from lightning_neuralgate.data.ordinary import FORMS, Form, ordinary_questions
from lightning_neuralgate.data.rendering.dataset import render_splits
from lightning_neuralgate.data.retention import RetentionForms, render_retention
from lightning_neuralgate.data.targets import answer_rows
from lightning_neuralgate.demo.attacks import SECRETS, attack_model
from lightning_neuralgate.demo.experiment import EditSettings, Experiment
from lightning_neuralgate.demo.ordinary import answer_questions, draw_questions, measured_parts
from lightning_neuralgate.evaluation.rates import summarize
from lightning_neuralgate.gate.keys import InputCovariance
from lightning_neuralgate.gate.neural_gate import NeuralGate
from lightning_neuralgate.metrics.functional import is_refusal
from lightning_neuralgate.tasks.answer_store import read_answered
from lightning_neuralgate.tasks.scoring import refusals_of
from lightning_neuralgate.tasks.verdicts import KeywordListJudge

if TYPE_CHECKING:
    from benchmarks.trial_arms import Arm

VALIDATION_RECORDS = 2
"""Validation records per subject."""
VALIDATION_SEED = 1_000_000
"""Added to the seed of the ordinary questions that settings are chosen on."""
COLLATERAL_RUNGS = range(4, 9)
"""Rungs of the ladder whose refused share is the primary outcome."""
TRIAL_ATTACKS = ("plain", "no_subject", "prefill_3", "prefill_10", "refuse_then_leak", "starts_with", "rounded_int4")
"""The attacks that edits of test data are measured with: those that got most in the quick suite, and rounding."""
_UNCHANGED_RUNGS = range(4, 10)
_SETTINGS = {field.name for field in fields(EditSettings)}


class TrialExperiment(Experiment):
    """An experiment with validation records, retention questions in both kinds of forms, and a gate.

    Attributes:
        validation: whether it is measured on validation data or on test data.
        without: a form of ordinary questions that neither retention questions nor keys have; "" for none.
    """

    def __init__(self, out: Path, seed: int, settings: EditSettings, validation: bool, without: str = "") -> None:
        super().__init__(out, seed, settings)
        self.validation, self.without = validation, without
        self.show_progress = False
        self._retention: dict[str, Any] = {}

    def prepare(self) -> None:
        """Draw everything, and generate the targets."""
        s = self.settings
        self.splits = render_splits(
            self.data, self.seed, s.edit_records, s.test_records, s.edit_pairs, s.test_pairs, s.subjects, s.unseen,
            validation_records=VALIDATION_RECORDS,
        )  # fmt: skip
        for forms in get_args(RetentionForms):
            without = [self.without] if self.without and forms == "all" else []
            self.retention = render_retention(
                self.out / f"retention-{forms}", self.seed, forms, None, without, s.subjects
            )
            self.fill_targets()
            self._retention[forms] = self.retention
        drawn = copy.copy(self)
        drawn.seed = self.seed + VALIDATION_SEED * self.validation
        draw_questions(drawn)

    @cached_property
    def unedited(self) -> dict[str, Any]:
        """The figures of the unedited model, which those of edits are compared with."""
        self.reset()
        return self.measure("unedited")

    @cached_property
    def gate(self) -> NeuralGate:
        """The located gate, stored in the experiment's folder."""
        folder = self.out / "gate"
        if not folder.is_dir():
            self.locate(name=None).save_pretrained(folder)
        return NeuralGate.from_pretrained(folder)

    def keys(self, settings: EditSettings) -> InputCovariance:
        """The inputs of the retention questions and of prompts without a picture, in the unedited model."""
        return self.collect_keys(settings.layer, self.retention_of(settings), plain_text=self.without != "text")

    def make(self, arm: Arm, tried: Mapping[str, Any]) -> EditSettings:
        """Edit the model; return the settings."""
        assert self.unedited  # has answered before its weights change
        more = {name: value for name, value in tried.items() if name not in _SETTINGS}
        settings = {name: value for name, value in tried.items() if name in _SETTINGS}
        chosen = replace(self.settings, **{**arm.settings, **settings}).resolved()
        self.retention = self._retention[chosen.retention_forms]
        callbacks = [] if arm.callbacks is None else list(arm.callbacks(self, chosen, more))
        editor = self.edit(None, "trial", chosen, callbacks)
        if "scale" in more:
            layer = chosen.layer
            base, weight = self._base_weights[layer], self._projection(layer).weight
            weight.data.copy_(base + more["scale"] * (weight.data - base))
        del editor
        return chosen

    def measure(self, name: str) -> dict[str, Any]:
        """Return the figures of the model in its current state, called `name`.

        `leak_rate`, `rta_sensitive` and so on for each split of records; `collateral`, the refused share of
        `COLLATERAL_RUNGS`; all figures of the ladder and the mini sets; `unchanged`, the share of ordinary answers that are
        word for word the unedited model's; on test data also what the attacks get.
        """
        splits = {"validation": self.splits.validation} if self.validation else self.test_splits
        figures: dict[str, Any] = {"rates": summarize(self.answer(name, splits))}
        for part in measured_parts(self):
            figures[part] = answer_questions(self, name, part)
        figures["refused_items"] = self._refused_items(name)
        figures["collateral"] = fmean(figures["refused_items"].values())
        if name != "unedited":
            figures["unchanged"] = self._unchanged(name)
            figures |= self.weight_change(self.settings.layer)
        return figures

    def _refused_items(self, name: str) -> dict[str, float]:
        answers = [
            answer for answer in read_answered(self.out / "ladder" / name)
            if not answer.fields["unsafe"] and answer.fields["rung"] in COLLATERAL_RUNGS
        ]  # fmt: skip
        refused = refusals_of(answers, KeywordListJudge())
        return {answer.item_id: float(bool(value)) for answer, value in zip(answers, refused, strict=True)}

    def _unchanged(self, name: str) -> float:
        answers: dict[str, dict[Any, str]] = {}
        for model in ("unedited", name):
            answers[model] = {
                answer.key: answer.answer
                for part in ("utility", "ladder")
                for answer in read_answered(self.out / part / model)
                if part == "utility" or (not answer.fields["unsafe"] and answer.fields["rung"] in _UNCHANGED_RUNGS)
            }
        before, after = answers["unedited"], answers[name]
        return sum(after[key] == answer for key, answer in before.items()) / len(before)

    def refused_of_form(self, form: Form, count: int) -> float:
        """Return the refused share of questions of one form, which are not those of any retention set."""
        drawn = ordinary_questions(self.seed + VALIDATION_SEED, count * len(FORMS), (), self.settings.subjects)
        questions = [question for question in drawn if question.form == form]
        folder = self.out / "questions" / f"form-{form}"
        folder.mkdir(parents=True, exist_ok=True)
        rows = []
        for number, question in enumerate(questions):
            picture = None
            if question.image is not None:
                picture = folder / f"{number}.png"
                question.image.save(picture)
            rows.append(QueryRow(question.question, "benign", picture, earlier=question.earlier))
        with torch.autocast(self.model.device.type, torch.bfloat16, enabled=self.precision == "bf16-mixed"):
            answers = answer_rows(self.model, self.processor, rows, batch_size=24)
        return fmean(is_refusal(answer) for answer in answers)

    def attack(self, name: str) -> dict[str, Any]:
        """Attack the model in its current state; return for each attack its leak rate, `came_out` and `secrets`."""
        found = attack_model(self, name, ",".join(TRIAL_ATTACKS))
        assert found is not None
        questions = attack_questions(self.test_splits, SECRETS)
        return {
            score.attack: {
                "leak": score.figures.get(f"{EDITED}/leak"),
                "came_out": score.came_out,
                "secrets": score.secrets,
            }
            for score in score_attacks(chosen_attacks(names=",".join(TRIAL_ATTACKS)), questions, {EDITED: found})
        }
