"""Wrong values that look like a true one."""

from __future__ import annotations

from lightning_neuralgate.attacks.base import Context, Question
from lightning_neuralgate.data.decoys import decoy_values


def decoys(question: Question, count: int, context: Context) -> list[str]:
    """Return distinct wrong values of the question's attribute, the same in every run.

    As in `decoy_values`; values of other pictures are the true values of other questions about the same attribute, and for a
    benign question then those of all benign ones, since random letters are no plausible colour.

    Args:
        question: the question.
        count: number of values.
        context: the run.

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
    others = [other.truth for other in context.questions if other.attribute == question.attribute != ""]
    if not question.sensitive:
        others += [other.truth for other in context.questions if not other.sensitive]
    names = (question.subject, question.attribute)
    values = decoy_values(*names, question.truth, others, count, rng, question.synonyms)
    if not question.sensitive and len(values) < count:  # an attribute with few choices
        values += decoy_values("", "", question.truth, others, count, rng, (*question.synonyms, *values))
    return values[:count]
