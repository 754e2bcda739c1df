"""Make one edit of the trial."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from functools import cached_property
from statistics import fmean
from typing import TYPE_CHECKING, Any

import torch

from lightning_neuralgate.data.collator import QueryRow
from lightning_neuralgate.data.ordinary import FORMS, Form, ordinary_questions
from lightning_neuralgate.data.targets import answer_rows
from lightning_neuralgate.demo.experiment import EditSettings
from lightning_neuralgate.demo.measured import VALIDATION_SEED, MeasuredExperiment
from lightning_neuralgate.gate.keys import InputCovariance
from lightning_neuralgate.gate.neural_gate import NeuralGate
from lightning_neuralgate.metrics.functional import is_refusal

if TYPE_CHECKING:
    from benchmarks.trial_arms import Arm

_SETTINGS = {field.name for field in fields(EditSettings)}


class TrialExperiment(MeasuredExperiment):
    """An experiment that makes the edits of arms."""

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
        self.retention = self.retention_sets[chosen.retention_forms]
        callbacks = [] if arm.callbacks is None else list(arm.callbacks(self, chosen, more))
        self.edit(None, "trial", chosen, callbacks)
        if "scale" in more:
            layer = chosen.layer
            base, weight = self._base_weights[layer], self._projection(layer).weight
            weight.data.copy_(base + more["scale"] * (weight.data - base))
        return chosen

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
