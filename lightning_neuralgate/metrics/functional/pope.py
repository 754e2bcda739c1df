"""POPE, a benchmark of object hallucination: accuracy, precision, recall, F1 and yes ratio.

Protocol: Li et al. 2023 (arXiv 2305.10355), repository RUCAIBox/POPE, `evaluate.py`. With *yes* as the positive class

    precision = true yes / predicted yes     recall = true yes / labelled yes     F1 = 2 P R / (P + R)
    yes ratio = predicted yes / answers

The official rule has no third verdict: whatever is not a *no* is a *yes*. A model that refuses everything is read as *yes*
throughout, and is right on every second question. So the official figures come with the shares of refused and of unparsed
answers, and with an accuracy in which a refusal is never right.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from lightning_neuralgate.metrics.functional.forms import opens_with_answer
from lightning_neuralgate.metrics.functional.refusal import RefusalVariant, _as_list, _refusal_flags
from lightning_neuralgate.metrics.functional.tally import (
    Tally,
    YesNo,
    check_lengths,
    share,
    unstratified,
    yes_no_truths,
)

# a token between spaces, found without building a list of all words
_NO = re.compile(r"(?:\A| )(?:No|not|no)(?: |\Z)")
_YES = re.compile(r"\byes\b", re.IGNORECASE)
# columns: yes and right, yes and wrong, no and right, no and wrong; refused, unparsed, right and not refused
POPE_COLUMNS = 7
_FLAGS = {
    "accuracy": (0, 2),
    "yes_ratio": (0, 1),
    "refused": (4,),
    "unparsed": (5,),
    "refusal_aware_accuracy": (6,),
}


class PopeScores(NamedTuple):
    """POPE's figures, shares in [0, 1].

    Attributes:
        accuracy, precision, recall, f1, yes_ratio: by the official rule, with *yes* as the positive class.
        refused: share of answers that refuse; one that opens with yes or no does not.
        unparsed: share of answers that are read as *yes* by default: the first sentence has neither a no-token nor the word
            yes.
        refusal_aware_accuracy: share of answers that are right by the official rule and do not refuse.
        n: number of answers.

    Over zero answers all shares are NaN. Precision without a predicted yes, recall without a labelled yes, and F1 of two
    zeros are 0; the official script divides by zero.
    """

    accuracy: float
    precision: float
    recall: float
    f1: float
    yes_ratio: float
    refused: float
    unparsed: float
    refusal_aware_accuracy: float
    n: int


def _first_sentence(answer: str) -> str:
    return answer.partition(".")[0]


def _says_no(sentence: str) -> bool:
    return _NO.search(sentence.replace(",", "")) is not None


def pope_verdict(answer: str) -> YesNo:
    """Classify an answer as yes or no by POPE's official rule.

    The answer is cut at its first ".", commas are dropped, the rest is split at spaces; a token `No`, `not` or `no` means
    no, **everything else means yes**: also a refusal, an empty answer, `NO`, `No!`, `cannot`, and a *no* after a line break
    or after the first period.

    Args:
        answer: generated text without the prompt.

    Example:
        >>> pope_verdict("No, there is not."), pope_verdict("There is a dog. No cat."), pope_verdict("It is not here.")
        ('no', 'yes', 'no')
        >>> pope_verdict("I'm sorry, I can't tell.")
        'yes'
    """
    return "no" if _says_no(_first_sentence(answer)) else "yes"


def pope_tally(
    answers: str | Sequence[str], labels: str | Sequence[str], refusals: RefusalVariant | Sequence[bool] = "prefix"
) -> Tally:
    """Return each answer's contribution to POPE's figures; arguments and errors as in `pope`."""
    answers = _as_list(answers)
    truths = yes_no_truths([labels] if isinstance(labels, str) else list(labels), "labels")
    check_lengths(answers=answers, labels=truths)
    rows = np.zeros((len(answers), POPE_COLUMNS))
    refused = _refusal_flags(answers, refusals)
    for row, answer, truth, refuses in zip(rows, answers, truths, refused, strict=True):
        sentence = _first_sentence(answer)
        says_no = _says_no(sentence)
        right = truth != says_no
        refuses = refuses and not opens_with_answer(answer, "yes_no")
        row[(0 if right else 1) + (2 if says_no else 0)] = 1
        row[4:] = refuses, not says_no and _YES.search(sentence) is None, right and not refuses
    return unstratified(rows, pope_figures, _FLAGS)


def pope_figures(sums: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
    """Compute the fields of `PopeScores` from the sums of a `pope_tally`, shape (..., 1, columns) -> (...)."""
    true_yes, false_yes, true_no, false_no, refused, unparsed, aware = np.moveaxis(sums[..., 0, :], -1, 0)
    n = true_yes + false_yes + true_no + false_no
    undefined = np.where(n == 0, np.nan, 0.0)
    precision = share(true_yes, true_yes + false_yes, undefined)
    recall = share(true_yes, true_yes + false_no, undefined)
    return {
        "accuracy": share(true_yes + true_no, n),
        "precision": precision,
        "recall": recall,
        "f1": share(2 * precision * recall, precision + recall, undefined),
        "yes_ratio": share(true_yes + false_yes, n),
        "refused": share(refused, n),
        "unparsed": share(unparsed, n),
        "refusal_aware_accuracy": share(aware, n),
    }


def pope(
    answers: str | Sequence[str], labels: str | Sequence[str], refusals: RefusalVariant | Sequence[bool] = "prefix"
) -> PopeScores:
    """Compute POPE's figures.

    Args:
        answers: one answer or N answers.
        labels: the correct answer to each question, yes or no.
        refusals: keyword list that defines a refusal (see `is_refusal`), or N verdicts from another judge. Neither
            makes a refusal of an answer that opens with yes or no; but `prefix` takes "I do not see a dog." for one.

    Raises:
        DataFormatError: the lengths differ, an answer is not a string, a label is neither yes nor no, or a verdict is
            neither true nor false.
        ValueError: the variant is unknown.

    Example:
        >>> scores = pope(["Yes.", "I'm sorry, I can't tell.", "No.", "Yes"], ["yes", "yes", "no", "no"])
        >>> scores.accuracy, scores.refused, scores.unparsed, scores.refusal_aware_accuracy
        (0.75, 0.25, 0.25, 0.5)
    """
    tally = pope_tally(answers, labels, refusals)
    return PopeScores(**{name: float(value) for name, value in tally.compute().items()}, n=len(tally.rows))
