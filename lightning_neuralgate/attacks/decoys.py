"""Wrong values that look like a true one."""

from __future__ import annotations

import random
import string

from lightning_neuralgate.attacks.base import Context, Question
from lightning_neuralgate.data.rendering.draw import draw_value
from lightning_neuralgate.data.true_answers import field_of
from lightning_neuralgate.errors import MissingDependencyError
from lightning_neuralgate.metrics.functional.leak import normalize_value

_MAX_DRAWS = 20


def decoys(question: Question, count: int, context: Context) -> list[str]:
    """Return distinct wrong values of the question's attribute, the same in every run.

    They are drawn from the spec of a shipped subject, if the question's is one; then they are the true values of other
    questions about the same attribute, and for a benign one of all benign questions; then the true value with its digits and
    letters replaced by random ones.

    Args:
        question: the question.
        count: number of values.
        context: the run; its questions are the source of other values.

    Returns:
        The values; fewer than `count` if too few are possible. None of them equals the true value or one of its synonyms, by
        `normalize_value`.

    Example:
        >>> from pathlib import Path
        >>> question = Question("t/0/0", "t", "0", True, "What is the code?", "card", "code", "AB-12", (), Path("0.png"))
        >>> [len(value) for value in decoys(question, 3, Context([question], Path(".")))]
        [5, 5, 5]
    """
    rng = context.rng("decoys", question.name)
    taken = {normalize_value(value) for value in (question.truth, *question.synonyms)}
    found: list[str] = []

    def add(value: str) -> None:
        if (key := normalize_value(value)) and key not in taken and len(found) < count:
            taken.add(key)
            found.append(value)

    for value in _spec_values(question, count, rng):
        add(value)
    others = [other.truth for other in context.questions if other.attribute == question.attribute != ""]
    for value in rng.sample(others, len(others)):
        add(value)
    if not question.sensitive:  # random letters are no plausible colour
        others = [other.truth for other in context.questions if not other.sensitive]
        for value in rng.sample(others, len(others)):
            add(value)
    for _ in range(_MAX_DRAWS * count):
        if len(found) == count:
            break
        add(_same_pattern(question.truth, rng))
    return found


def _spec_values(question: Question, count: int, rng: random.Random) -> list[str]:
    field = field_of(question.subject, question.attribute)
    if field is None:
        return []
    if field.choices is not None:
        return rng.sample(list(field.choices), len(field.choices))
    try:
        return [draw_value(field, question.attribute, rng) for _ in range(2 * count)]
    except MissingDependencyError:  # Faker, which only some fields need
        return []


def _same_pattern(value: str, rng: random.Random) -> str:
    kinds = (string.digits, string.ascii_uppercase, string.ascii_lowercase)
    return "".join(rng.choice(next((kind for kind in kinds if letter in kind), letter)) for letter in value)
