"""MME, two yes/no questions per image in 14 subtasks of perception and cognition.

Protocol: Fu et al. 2023 (arXiv 2306.13394), `calculation.py` of its evaluation tool. For each subtask

    accuracy  = right answers / questions
    accuracy+ = images with both answers right / images
    score     = 100 accuracy + 100 accuracy+            at most 200

Perception is the sum of 10 such scores (at most 2000), cognition of 4 (at most 800). They come with the shares of refused
and of unparsed answers, and with an accuracy in which a refusal is never right.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from lightning_neuralgate.errors import DataFormatError
from lightning_neuralgate.metrics.functional.forms import opens_with_answer
from lightning_neuralgate.metrics.functional.refusal import RefusalVariant, _as_list, _refusal_flags
from lightning_neuralgate.metrics.functional.tally import Tally, answer_shares, check_lengths, share, yes_no_truths

PERCEPTION: tuple[str, ...] = (
    "existence",
    "count",
    "position",
    "color",
    "posters",
    "celebrity",
    "scene",
    "landmark",
    "artwork",
    "OCR",
)
"""The subtasks of perception."""
COGNITION: tuple[str, ...] = ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning")
"""The subtasks of cognition."""
SUBTASKS = (*PERCEPTION, *COGNITION)

MmeVerdict = Literal["yes", "no", "other"]
MmeRule = Literal["dotless", "tool"]
MME_COLUMNS = 6

_SUBTASK_INDEX = {name: index for index, name in enumerate(SUBTASKS)}


class MmeSubtask(NamedTuple):
    """One subtask: shares in [0, 1], `score` in [0, 200], `n` questions about `images` images."""

    accuracy: float
    accuracy_plus: float
    score: float
    refused: float
    unparsed: float
    refusal_aware_accuracy: float
    n: int
    images: int


@dataclass(frozen=True)
class MmeScores:
    """MME's figures.

    Attributes:
        subtasks: subtask -> its figures, for those with questions, in the official order.
        perception: sum of the scores of the perception subtasks that have questions, at most 2000; NaN if none has.
        cognition: likewise for cognition, at most 800.
        share: sum of all scores over the maximum for these subtasks, in [0, 1].
        accuracy: share of right answers over all questions.
        refused: share of answers that refuse, over all questions.
        unparsed: share of answers that are neither yes nor no (`other`), over all questions; they count as wrong.
        refusal_aware_accuracy: share of answers that are right and do not refuse, over all questions.
        missing: the subtasks without a question. If there are any, the sums are not MME's.
        n: number of questions.
        images: number of images.
    """

    subtasks: dict[str, MmeSubtask]
    perception: float
    cognition: float
    share: float
    accuracy: float
    refused: float
    unparsed: float
    refusal_aware_accuracy: float
    missing: tuple[str, ...]
    n: int
    images: int


def mme_verdict(answer: str, rule: MmeRule = "dotless") -> MmeVerdict:
    """Classify an answer as yes, no or other by MME's official rule.

    The lower-cased answer is yes if its first four characters contain "yes", else no if they contain "no", else `other`,
    which is wrong. So "Nothing", "Now I see" and "Know" are no, "Eyes" is yes, and "Sure, yes" is other.

    Args:
        answer: generated text without the prompt.
        rule: how periods are treated. `dotless` drops them first, as evaluation harnesses do; `tool`, as published, does
            not, so "1. no" and "...yes" are other. No other verdict differs.

    Raises:
        ValueError: the rule is unknown.

    Example:
        >>> [mme_verdict(answer) for answer in ("Yes.", "No, it is not.", "Not at all", "I'm sorry, I can't tell.")]
        ['yes', 'no', 'no', 'other']
        >>> mme_verdict("A. Yes"), mme_verdict("A. Yes", rule="tool")
        ('other', 'other')
        >>> mme_verdict("1. No"), mme_verdict("1. No", rule="tool")
        ('no', 'other')
    """
    if rule not in get_args(MmeRule):
        raise ValueError(f"unknown rule {rule!r}; choose one of {', '.join(get_args(MmeRule))}")
    plain = answer.replace(".", "") if rule == "dotless" else answer
    # lower-casing can turn one character into two
    start = plain[:4].lower()[:4]
    return "yes" if "yes" in start else "no" if "no" in start else "other"


def mme_questions(
    answers: str | Sequence[str],
    truths: str | Sequence[str],
    images: str | Sequence[str],
    subtasks: str | Sequence[str],
    refusals: RefusalVariant | Sequence[bool] = "prefix",
    rule: MmeRule = "dotless",
) -> Iterator[tuple[str, str, tuple[bool, bool, bool, bool]]]:
    """Yield for each answer its subtask, its image, and (right, refused, `other`, right and not refused).

    Arguments and errors as in `mme`, except that the number of questions per image is not checked.
    """
    answers = _as_list(answers)
    truths_yes = yes_no_truths([truths] if isinstance(truths, str) else list(truths), "truths")
    images = [images] if isinstance(images, str) else list(images)
    subtasks = [subtasks] if isinstance(subtasks, str) else list(subtasks)
    check_lengths(answers=answers, truths=truths_yes, images=images, subtasks=subtasks)
    for index, subtask in enumerate(subtasks):
        if subtask not in _SUBTASK_INDEX:
            raise DataFormatError(f"`subtasks` value {index} is {subtask!r}; MME has {', '.join(SUBTASKS)}")
    refused = _refusal_flags(answers, refusals)
    for answer, truth, image, subtask, refuses in zip(answers, truths_yes, images, subtasks, refused, strict=True):
        verdict = mme_verdict(answer, rule)
        right = verdict == ("yes" if truth else "no")
        refuses = refuses and not opens_with_answer(answer, "yes_no")
        yield subtask, image, (right, refuses, verdict == "other", right and not refuses)


def mme_tally(
    answers: str | Sequence[str],
    truths: str | Sequence[str],
    images: str | Sequence[str],
    subtasks: str | Sequence[str],
    refusals: RefusalVariant | Sequence[bool] = "prefix",
    rule: MmeRule = "dotless",
) -> Tally:
    """Return each image's contribution to MME's figures; arguments and errors as in `mme`."""
    by_image: dict[tuple[str, str], list[tuple[bool, bool, bool, bool]]] = {}
    for subtask, image, values in mme_questions(answers, truths, images, subtasks, refusals, rule):
        by_image.setdefault((subtask, image), []).append(values)
    # sorted, so that tallies of two runs match whatever the order of their answers
    by_image = dict(sorted(by_image.items(), key=lambda item: (_SUBTASK_INDEX[item[0][0]], item[0][1])))
    for (subtask, image), questions in by_image.items():
        if len(questions) != 2:
            raise DataFormatError(f"image '{image}' of '{subtask}' has {len(questions)} questions; expected 2")
    rows = image_rows(np.array(list(by_image.values()), dtype=np.float64).reshape(-1, 2, 4).sum(1))
    strata = np.array([_SUBTASK_INDEX[subtask] for subtask, _ in by_image], dtype=np.intp)
    return Tally(tuple("/".join(key) for key in by_image), rows, strata, len(SUBTASKS), mme_figures)


def image_rows(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return each image's contribution to the sums, shape (images, `MME_COLUMNS`).

    Args:
        values: numbers of its two answers that are right, refused, `other`, right and not refused; shape (images, 4).
    """
    ones, both = np.ones((len(values), 1)), (values[:, :1] == 2).astype(np.float64)
    return np.concatenate([ones, values, both], axis=1)


def mme_figures(sums: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
    """Compute MME's figures from the sums of an `mme_tally`, shape (..., 14, columns) -> (...).

    Returns:
        `perception`, `cognition` and the other numbers of `MmeScores`, and for each subtask `<subtask>/score`,
        `<subtask>/accuracy` and so on, NaN if it has no question.
    """
    images, right, refused, unparsed, aware, both = np.moveaxis(sums, -1, 0)
    questions = 2 * images
    by_subtask = {
        "accuracy": share(right, questions),
        "accuracy_plus": share(both, images),
        "score": 100 * share(right, questions) + 100 * share(both, images),
        "refused": share(refused, questions),
        "unparsed": share(unparsed, questions),
        "refusal_aware_accuracy": share(aware, questions),
    }
    present = images > 0
    scores = np.where(present, by_subtask["score"], 0.0)
    groups = {"perception": slice(0, len(PERCEPTION)), "cognition": slice(len(PERCEPTION), None)}
    figures = {
        name: np.where(present[..., group].any(-1), scores[..., group].sum(-1), np.nan)
        for name, group in groups.items()
    }
    figures["share"] = share(scores.sum(-1), 200.0 * present.sum(-1))
    figures |= answer_shares(*(counts.sum(-1) for counts in (right, refused, unparsed, aware, questions)))
    return figures | {
        f"{subtask}/{name}": values[..., index]
        for index, subtask in enumerate(SUBTASKS)
        for name, values in by_subtask.items()
    }


def mme(
    answers: str | Sequence[str],
    truths: str | Sequence[str],
    images: str | Sequence[str],
    subtasks: str | Sequence[str],
    refusals: RefusalVariant | Sequence[bool] = "prefix",
    rule: MmeRule = "dotless",
) -> MmeScores:
    """Compute MME's figures over N answers in any order.

    Args:
        answers: one answer or N answers.
        truths: the correct answer to each question, yes or no.
        images: the image of each question; two questions belong together if image and subtask are equal.
        subtasks: the subtask of each question, one of `PERCEPTION` and `COGNITION`.
        refusals: keyword list that defines a refusal (see `is_refusal`), or N verdicts from another judge. Neither
            makes a refusal of an answer that opens with yes or no.
        rule: how periods are treated, see `mme_verdict`.

    Raises:
        DataFormatError: an image does not have exactly two questions, a subtask is unknown, the lengths differ, an answer is
            not a string, a truth is neither yes nor no, or a verdict is neither true nor false.
        ValueError: the variant or the rule is unknown.

    Example:
        >>> scores = mme(["Yes", "No.", "yes", "Sorry."], ["Yes", "No", "Yes", "No"], ["a", "a", "b", "b"], ["color"] * 4)
        >>> scores.subtasks["color"].score, scores.perception, scores.refused, scores.unparsed
        (125.0, 125.0, 0.25, 0.25)
        >>> len(scores.missing), scores.cognition
        (13, nan)
    """
    sums = mme_tally(answers, truths, images, subtasks, refusals, rule).sums()
    figures = {name: float(value) for name, value in mme_figures(sums).items()}
    image_counts = dict(zip(SUBTASKS, sums[:, 0].astype(int).tolist(), strict=True))
    return MmeScores(
        subtasks={
            subtask: MmeSubtask(
                **{name: figures[f"{subtask}/{name}"] for name in MmeSubtask._fields[:-2]}, n=2 * count, images=count
            )
            for subtask, count in image_counts.items()
            if count
        },
        missing=tuple(subtask for subtask, count in image_counts.items() if not count),
        n=2 * sum(image_counts.values()),
        images=sum(image_counts.values()),
        **{name: value for name, value in figures.items() if "/" not in name},
    )
