"""The model is trained on a little data after the edit, which may bring back what the edit hides."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from lightning_neuralgate.attacks.base import AttackNotApplicable, Context, Question, WeightAttack
from lightning_neuralgate.attacks.weights.changing import (
    changeable_model,
    decoder_of,
    every_second,
    load_unedited,
    only_training,
    plain_row,
    restored,
    unedited_values,
)
from lightning_neuralgate.data.collator import PrivacyPairCollator, QueryRow
from lightning_neuralgate.data.targets import answer_rows
from lightning_neuralgate.data.true_answers import true_answer
from lightning_neuralgate.errors import ModelLayoutError
from lightning_neuralgate.hf.forward import batch_nll

_LR = 1e-4
_BATCH = 4
_CLAUSES = {"benign": "the unedited model's answers to benign questions", "leaks": "true answers about other subjects"}


class Relearned(WeightAttack):
    """Train the edited MLP output projections with AdamW (learning rate 1e-4, batches of 4).

    The projections are those that differ from the unedited model's; all of them if none does, or if the run has no
    unedited model. A run with fewer steps is the beginning of one with more.

    The further figures are the number of steps and of questions that were trained on. Those questions are not scored.

    Args:
        what: "benign" trains on the unedited model's answers to every second benign question; "leaks" on true answers to
            the sensitive questions about half of the subjects, so that the other half shows whether the edit is undone for
            subjects that were not trained on.
        steps: optimizer steps.
    """

    suite = "full"

    def __init__(self, what: Literal["benign", "leaks"], steps: int) -> None:
        self.what, self.steps = what, steps
        self.name = f"relearned_{what}_{steps}"
        self.clause = f"after {steps} training steps on {_CLAUSES[what]}"

    def skips(self, question: Question, context: Context) -> bool:
        """Return whether the question is trained on."""
        return question in self._trained_questions(context)

    @contextmanager
    def changed(self, model: Any, processor: Any, context: Context) -> Iterator[Mapping[str, float]]:
        """Train the model.

        Raises:
            AttackNotApplicable: see `changeable_model` and `decoder_of`; there are too few questions, no unedited model (for
                benign answers) or one with other parameters, or the loss is not finite.
        """
        model = changeable_model(model)
        questions = self._trained_questions(context)
        if not questions:
            needed = "sensitive questions about two subjects" if self.what == "leaks" else "benign questions"
            raise AttackNotApplicable(f"training needs {needed}")
        unedited = None if self.what == "leaks" and context.load_unedited is None else load_unedited(context)
        projections = _edited_projections(model, unedited)
        rows = _leaking_rows(questions) if self.what == "leaks" else _benign_rows(questions, unedited, processor)
        del unedited  # frees its memory before training
        rng = context.rng("relearned", self.what)
        order: list[QueryRow] = []
        while len(order) < self.steps * _BATCH:
            order += rng.sample(rows, len(rows))
        batches = [order[_BATCH * step : _BATCH * (step + 1)] for step in range(self.steps)]
        with restored() as keep:
            for parameter in projections:
                keep(parameter)
            with only_training(model, projections), torch.inference_mode(False), torch.enable_grad():
                _train(model, projections, PrivacyPairCollator(processor), batches)
            yield {"steps": self.steps, "trained_on": len(rows)}

    def _trained_questions(self, context: Context) -> list[Question]:
        if self.what == "benign":
            return every_second(context.questions, sensitive=False)
        sensitive = [question for question in context.questions if question.sensitive]
        trained = sorted({question.subject for question in sensitive})[1::2]
        return [question for question in sensitive if question.subject in trained]


def _edited_projections(model: PreTrainedModel, unedited: PreTrainedModel | None) -> list[nn.Parameter]:
    layout = decoder_of(model)
    edited: Collection[str] = () if unedited is None else unedited_values(model, unedited)
    chosen, every = [], []
    for layer in range(layout.num_layers):
        with suppress(ModelLayoutError):  # a layer with a mixture of experts
            parameters = list(layout.output_projection(layer).parameters())
            every += parameters
            if any(name.startswith(f"{layout.projection_path(layer)}.") for name in edited):
                chosen += parameters
    return list(dict.fromkeys(chosen or every))


def _leaking_rows(questions: Sequence[Question]) -> list[QueryRow]:
    return [
        plain_row(question, "".join(true_answer(question.subject, question.attribute, question.truth)))
        for question in questions
    ]


def _benign_rows(questions: Sequence[Question], unedited: Any, processor: Any) -> list[QueryRow]:
    answers = answer_rows(unedited, processor, [plain_row(question) for question in questions])
    rows = [
        plain_row(question, answer.strip())
        for question, answer in zip(questions, answers, strict=True)
        if answer.strip()
    ]
    if not rows:
        raise AttackNotApplicable("the unedited model's answers to all benign questions are empty")
    return rows


def _train(
    model: Any, parameters: Sequence[nn.Parameter], collate: PrivacyPairCollator, batches: Sequence[Sequence[QueryRow]]
) -> None:
    """Minimize the mean NLL of the targets, one step per batch."""
    # in half precision a step would be rounded away, so the optimizer has copies in float32
    copies = [parameter.detach().float().clone() for parameter in parameters]
    optimizer = torch.optim.AdamW(copies, lr=_LR)
    for rows in batches:
        batch = {
            key: value.to(model.device) if isinstance(value, Tensor) else value for key, value in collate(rows).items()
        }
        loss = batch_nll(model, batch).mean()
        if not loss.isfinite():
            raise AttackNotApplicable(f"the training loss is {float(loss.detach())}: load the model in float32")
        for copy, gradient in zip(copies, torch.autograd.grad(loss, parameters), strict=True):
            copy.grad = gradient.float()
        optimizer.step()
        for parameter, copy in zip(parameters, copies, strict=True):
            parameter.detach().copy_(copy)
