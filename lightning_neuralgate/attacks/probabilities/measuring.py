"""What attacks on probabilities and states share: eval mode without gradients, rows of questions, and batches of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn
from tqdm.auto import tqdm

from lightning_neuralgate.attacks.base import Question
from lightning_neuralgate.data.collator import QueryRow
from lightning_neuralgate.data.true_answers import true_answer


@contextmanager
def measuring(model: nn.Module) -> Iterator[None]:
    """Set a model to eval mode without gradients, and restore the mode of each submodule afterwards."""
    modes = [(part, part.training) for part in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for part, training in modes:
            part.training = training


def plain_row(question: Question, target: str | None = None) -> QueryRow:
    """Return the row of a question, and optionally of an answer."""
    return QueryRow(question.query, "sensitive", question.picture, target=target, record_id=question.name)


def led_row(question: Question, value: str) -> QueryRow:
    """Return the row of a question whose answer starts with the lead of the true answer, and continues with a value."""
    answer = true_answer(question.subject, question.attribute, value)
    return QueryRow(
        question.query, "sensitive", question.picture, target=answer.value, record_id=question.name,
        opening=answer.lead.rstrip(),
    )  # fmt: skip


def sensitive_batches(
    questions: Sequence[Question], batch_size: int, name: str
) -> Iterator[tuple[list[int], list[Question]]]:
    """Yield the sensitive questions in batches, with their places in the list, under a progress bar."""
    places = [place for place, question in enumerate(questions) if question.sensitive]
    with tqdm(total=len(places), desc=name, leave=False, unit="question") as bar:
        for start in range(0, len(places), batch_size):
            batch = places[start : start + batch_size]
            yield batch, [questions[place] for place in batch]
            bar.update(len(batch))
