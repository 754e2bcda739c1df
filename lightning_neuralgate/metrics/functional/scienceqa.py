"""ScienceQA-IMG, multiple-choice questions about a picture: accuracy by LLaVA's parsing rule.

    accuracy = right answers / answers

Questions: Lu et al. 2022 (arXiv 2209.09513), only those with an image. Parsing rule for the chosen letter: Liu et al. 2023,
repository haotian-liu/LLaVA, `llava/eval/eval_science_qa.py`. An answer without a choice is wrong.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from lightning_neuralgate.errors import DataFormatError
from lightning_neuralgate.metrics.functional.refusal import RefusalVariant, _as_list, _refusal_flags
from lightning_neuralgate.metrics.functional.tally import Tally, answer_shares, check_lengths, unstratified

OPTIONS = "ABCDE"
# the last dot matches any character, as in LLaVA's own pattern: "The answer is A" at the very end does not match
_STATED = re.compile(r"The answer is ([A-Z]).")
# columns: right, refused, unparsed, right and not refused, 1
SCIENCEQA_COLUMNS = 5
_FLAGS = {"accuracy": (0,), "refused": (1,), "unparsed": (2,), "refusal_aware_accuracy": (3,)}


class ScienceQaScores(NamedTuple):
    """ScienceQA's figures, shares in [0, 1]; NaN over zero answers.

    Attributes:
        accuracy: share of right answers.
        refused: share of answers that refuse.
        unparsed: share of answers without a choice; they count as wrong.
        refusal_aware_accuracy: share of answers that are right and do not refuse.
        n: number of answers.
    """

    accuracy: float
    refused: float
    unparsed: float
    refusal_aware_accuracy: float
    n: int


def scienceqa_choice(answer: str, choices_count: int) -> str | None:
    """Return the letter that an answer chooses by LLaVA's rule, or None.

    Tried in this order: the answer is only a letter from A to E; it starts with such a letter, a period and a space; it
    contains `The answer is X` followed by one more character exactly once. A letter beyond the choices is no choice. "B."
    alone, " B", "(B)" and "b" do not match.

    Args:
        answer: generated text without the prompt.
        choices_count: number of choices, from 1 to 5.

    Raises:
        DataFormatError: the number of choices is not 1 to 5.

    Example:
        >>> [scienceqa_choice(answer, 3) for answer in ("B", "B. Paris", "So: The answer is C.", "B.", "D")]
        ['B', 'B', 'C', None, None]
    """
    if not isinstance(choices_count, int | np.integer) or not 1 <= choices_count <= len(OPTIONS):
        raise DataFormatError(f"{choices_count!r} choices; LLaVA's rule supports 1 to {len(OPTIONS)}")
    if answer[:1] and answer[0] in OPTIONS and (len(answer) == 1 or answer[1:3] == ". "):
        letter = answer[0]
    else:
        stated = _STATED.findall(answer)
        if len(stated) != 1:
            return None
        letter = stated[0]
    return letter if letter in OPTIONS[:choices_count] else None


def _true_letter(truth: int | str, choices_count: int, index: int) -> str:
    letters = OPTIONS[:choices_count]
    if isinstance(truth, int | np.integer) and not isinstance(truth, bool) and 0 <= truth < len(letters):
        return letters[truth]
    if isinstance(truth, str) and len(truth) == 1 and truth in letters:
        return truth
    raise DataFormatError(
        f"`truths` value {index} is {truth!r}; expected a letter of {letters} or its index, 0 to {len(letters) - 1}"
    )


def scienceqa_tally(
    answers: str | Sequence[str],
    truths: int | str | Sequence[int | str],
    choices_counts: int | Sequence[int],
    refusals: RefusalVariant | Sequence[bool] = "prefix",
) -> Tally:
    """Return each answer's contribution to ScienceQA's figures; arguments and errors as in `scienceqa`."""
    answers = _as_list(answers)
    truths = [truths] if isinstance(truths, int | str) else list(truths)
    counts = [choices_counts] if isinstance(choices_counts, int) else list(choices_counts)
    check_lengths(answers=answers, truths=truths, choices_counts=counts)
    rows = np.zeros((len(answers), SCIENCEQA_COLUMNS))
    refused = _refusal_flags(answers, refusals)
    for index, (answer, truth, count, refuses) in enumerate(zip(answers, truths, counts, refused, strict=True)):
        try:
            choice = scienceqa_choice(answer, count)
        except DataFormatError as error:
            raise DataFormatError(f"`choices_counts` value {index}: {error}") from error
        right = choice == _true_letter(truth, count, index)
        rows[index] = right, refuses, choice is None, right and not refuses, 1
    return unstratified(rows, scienceqa_figures, _FLAGS)


def scienceqa_figures(sums: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
    """Compute the fields of `ScienceQaScores` from the sums of a `scienceqa_tally`, shape (..., 1, columns) -> (...)."""
    return answer_shares(*np.moveaxis(sums[..., 0, :], -1, 0))


def scienceqa(
    answers: str | Sequence[str],
    truths: int | str | Sequence[int | str],
    choices_counts: int | Sequence[int],
    refusals: RefusalVariant | Sequence[bool] = "prefix",
) -> ScienceQaScores:
    """Compute ScienceQA's figures.

    Args:
        answers: one answer or N answers.
        truths: the correct choice for each question, as a letter or as a 0-based index like in the data files.
        choices_counts: number of choices of each question.
        refusals: keyword list that defines a refusal (see `is_refusal`), or N verdicts from another judge.

    Raises:
        DataFormatError: the lengths differ, an answer is not a string, a truth is not among the choices, a number of
            choices is not 1 to 5, or a verdict is neither true nor false.
        ValueError: the variant is unknown.

    Example:
        >>> scienceqa(["A", "B. Paris", "Sorry.", "The answer is C."], [0, 0, 1, "C"], [2, 2, 2, 3])
        ScienceQaScores(accuracy=0.5, refused=0.25, unparsed=0.25, refusal_aware_accuracy=0.5, n=4)
    """
    tally = scienceqa_tally(answers, truths, choices_counts, refusals)
    return ScienceQaScores(**{name: float(value) for name, value in tally.compute().items()}, n=len(tally.rows))
