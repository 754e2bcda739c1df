"""ScienceQA-IMG: multiple choice about a picture. The share of right answers, by LLaVA's way of reading them.

Questions: Lu et al. 2022 (arXiv 2209.09513); only those with an image count here. The rule that finds the chosen letter in
an answer: Liu et al. 2023, repository haotian-liu/LLaVA, `llava/eval/eval_science_qa.py`. An answer without a choice is
wrong.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from lightning_neuralgate.errors import DataFormatError
from lightning_neuralgate.metrics.functional.refusal import RefusalVariant, _as_list, _refusal_flags
from lightning_neuralgate.metrics.functional.tally import Tally, check_lengths, share, unstratified

OPTIONS = "ABCDE"
# the last dot stands for any character, as in LLaVA's own pattern: "The answer is A" at the very end is not found
_STATED = re.compile(r"The answer is ([A-Z]).")
# columns: right, refused, unparsed, right and not refused, one
SCIENCEQA_COLUMNS = 5
_FLAGS = {"accuracy": (0,), "refused": (1,), "unparsed": (2,), "refusal_aware_accuracy": (3,)}


class ScienceQaScores(NamedTuple):
    """ScienceQA's figures, shares in [0, 1]; NaN over zero answers.

    Attributes:
        accuracy: share of right answers.
        refused: share of answers that refuse.
        unparsed: share of answers in which no choice was found; they count as wrong.
        refusal_aware_accuracy: share of answers that are right and do not refuse.
        n: number of answers.
    """

    accuracy: float
    refused: float
    unparsed: float
    refusal_aware_accuracy: float
    n: int


def scienceqa_choice(answer: str, choices_count: int) -> str | None:
    """The letter that an answer chooses, by LLaVA's rule; None where it chooses none.

    In this order: the answer is a letter from A to E and nothing else; it starts with such a letter, a period and a
    space; `The answer is X` with one more character behind it stands in it exactly once. A letter beyond the choices is no
    choice. "B." alone, " B", "(B)" and "b" are not found.

    Args:
        answer: what the model said, without the prompt.
        choices_count: how many choices there were, from 1 to 5.

    Raises:
        DataFormatError: another number of choices.

    Example:
        >>> [scienceqa_choice(answer, 3) for answer in ("B", "B. Paris", "So: The answer is C.", "B.", "D")]
        ['B', 'B', 'C', None, None]
    """
    if not isinstance(choices_count, int | np.integer) or not 1 <= choices_count <= len(OPTIONS):
        raise DataFormatError(f"{choices_count!r} choices; LLaVA's rule knows 1 to {len(OPTIONS)}")
    if answer[:1] and answer[0] in OPTIONS and (len(answer) == 1 or answer[1:3] == ". "):
        letter = answer[0]
    else:
        stated = _STATED.findall(answer)
        if len(stated) != 1:
            return None
        letter = stated[0]
    return letter if letter in OPTIONS[:choices_count] else None


def _true_letter(truth: int | str, choices_count: int, place: int) -> str:
    letters = OPTIONS[:choices_count]
    if isinstance(truth, int | np.integer) and not isinstance(truth, bool) and 0 <= truth < len(letters):
        return letters[truth]
    if isinstance(truth, str) and len(truth) == 1 and truth in letters:
        return truth
    raise DataFormatError(
        f"`truths` value {place} is {truth!r}; expected a letter of {letters} or its place, 0 to {len(letters) - 1}"
    )


def scienceqa_tally(
    answers: str | Sequence[str],
    truths: int | str | Sequence[int | str],
    choices_counts: int | Sequence[int],
    refusals: RefusalVariant | Sequence[bool] = "prefix",
) -> Tally:
    """What each answer adds to ScienceQA's figures; arguments and errors as in `scienceqa`."""
    told = _as_list(answers)
    known = [truths] if isinstance(truths, int | str) else list(truths)
    counts = [choices_counts] if isinstance(choices_counts, int) else list(choices_counts)
    check_lengths(answers=told, truths=known, choices_counts=counts)
    rows = np.zeros((len(told), SCIENCEQA_COLUMNS))
    refused = _refusal_flags(told, refusals)
    for place, (answer, truth, count, refuses) in enumerate(zip(told, known, counts, refused, strict=True)):
        try:
            choice = scienceqa_choice(answer, count)
        except DataFormatError as error:
            raise DataFormatError(f"`choices_counts` value {place}: {error}") from error
        right = choice == _true_letter(truth, count, place)
        rows[place] = right, refuses, choice is None, right and not refuses, 1
    return unstratified(rows, scienceqa_figures, _FLAGS)


def scienceqa_figures(sums: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
    """The fields of `ScienceQaScores` given the sums of a `scienceqa_tally`, shape (..., 1, columns) -> (...)."""
    right, refused, unparsed, aware, n = np.moveaxis(sums[..., 0, :], -1, 0)
    return {
        "accuracy": share(right, n),
        "refused": share(refused, n),
        "unparsed": share(unparsed, n),
        "refusal_aware_accuracy": share(aware, n),
    }


def scienceqa(
    answers: str | Sequence[str],
    truths: int | str | Sequence[int | str],
    choices_counts: int | Sequence[int],
    refusals: RefusalVariant | Sequence[bool] = "prefix",
) -> ScienceQaScores:
    """ScienceQA's figures over N answers.

    Args:
        answers: one answer or N of them.
        truths: the right choice of each: its letter, or its place counted from 0 as in the data files.
        choices_counts: how many choices each question had.
        refusals: what says that an answer refuses: the name of a keyword list (see `is_refusal`), or N verdicts of
            another judge.

    Raises:
        DataFormatError: columns of different lengths, an answer that is no string, a truth that is none of the choices, a
            number of choices that the rule does not know, or a verdict that is neither true nor false.
        ValueError: an unknown variant.

    Example:
        >>> scienceqa(["A", "B. Paris", "Sorry.", "The answer is C."], [0, 0, 1, "C"], [2, 2, 2, 3])
        ScienceQaScores(accuracy=0.5, refused=0.25, unparsed=0.25, refusal_aware_accuracy=0.5, n=4)
    """
    tally = scienceqa_tally(answers, truths, choices_counts, refusals)
    return ScienceQaScores(**{name: float(value) for name, value in tally.compute().items()}, n=len(tally.rows))
