"""MME: two yes/no questions an image, in 14 subtasks of perception and cognition.

Protocol: Fu et al. 2023 (arXiv 2306.13394), `calculation.py` of its evaluation tool. For a subtask

    accuracy  = right answers / questions
    accuracy+ = images with both answers right / images
    score     = 100 accuracy + 100 accuracy+            at most 200

Perception is the sum of 10 such scores (2000), cognition of 4 (800). ExtraJudge them stand the shares of refused and of
unparsed answers, and an accuracy in which a refusal is never right.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from lightning_neuralgate.errors import DataFormatError
from lightning_neuralgate.metrics.functional.refusal import RefusalVariant, _as_list, _refusal_flags
from lightning_neuralgate.metrics.functional.tally import Tally, check_lengths, share, yes_no_truths

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

_PLACES = {name: place for place, name in enumerate(SUBTASKS)}


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
        perception: sum of the scores of the perception subtasks that have questions, 2000 at most; NaN if none has.
        cognition: the same for cognition, 800 at most.
        share: sum of all scores over the highest that these subtasks allow, in [0, 1].
        accuracy: share of right answers over all questions.
        refused: share of answers that refuse, over all questions.
        unparsed: share of answers that are neither yes nor no (`other`), over all questions; they count as wrong.
        refusal_aware_accuracy: share of answers that are right and do not refuse, over all questions.
        missing: the subtasks without a question. As long as there is one, the sums are not MME's.
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
    """What an answer says, by MME's rule.

    The lower-cased answer is yes if "yes" stands in its first four characters, else no if "no" does, else `other`, which
    is wrong. So "Nothing", "Now I see" and "Know" say no, "Eyes" says yes, and "Sure, yes" says neither.

    Args:
        answer: what the model said, without the prompt.
        rule: what happens to periods. `dotless` drops them first, as evaluation harnesses do; `tool`, the tool as it is
            published, does not, and so finds nothing in "1. no" and "...yes". No other verdict differs.

    Raises:
        ValueError: an unknown rule.

    Example:
        >>> [mme_verdict(answer) for answer in ("Yes.", "No, it is not.", "Not at all", "I'm sorry, I can't tell.")]
        ['yes', 'no', 'no', 'other']
        >>> mme_verdict("A. Yes"), mme_verdict("A. Yes", rule="tool")
        ('other', 'other')
        >>> mme_verdict("1. No"), mme_verdict("1. No", rule="tool")
        ('no', 'other')
    """
    if rule not in get_args(MmeRule):
        raise ValueError(f"there is no rule {rule!r}: choose one of {', '.join(get_args(MmeRule))}")
    plain = answer.replace(".", "") if rule == "dotless" else answer
    # some characters are two when lower-cased
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
    """Of each answer its subtask, its image, and whether it is right, refuses, is `other`, and is right without refusing.

    Arguments and errors as in `mme`, but that images are not looked at together.
    """
    told = _as_list(answers)
    known = yes_no_truths([truths] if isinstance(truths, str) else list(truths), "truths")
    pictures = [images] if isinstance(images, str) else list(images)
    parts = [subtasks] if isinstance(subtasks, str) else list(subtasks)
    check_lengths(answers=told, truths=known, images=pictures, subtasks=parts)
    for place, subtask in enumerate(parts):
        if subtask not in _PLACES:
            raise DataFormatError(f"`subtasks` value {place} is {subtask!r}; MME has {', '.join(SUBTASKS)}")
    refused = _refusal_flags(told, refusals)
    verdicts = [mme_verdict(answer, rule) for answer in told]
    rights = [verdict == ("yes" if truth else "no") for verdict, truth in zip(verdicts, known, strict=True)]
    values = zip(
        rights,
        refused,
        (verdict == "other" for verdict in verdicts),
        (right and not refuses for right, refuses in zip(rights, refused, strict=True)),
        strict=True,
    )
    return zip(parts, pictures, values, strict=True)


def mme_tally(
    answers: str | Sequence[str],
    truths: str | Sequence[str],
    images: str | Sequence[str],
    subtasks: str | Sequence[str],
    refusals: RefusalVariant | Sequence[bool] = "prefix",
    rule: MmeRule = "dotless",
) -> Tally:
    """What each image adds to MME's figures; arguments and errors as in `mme`."""
    found: dict[tuple[str, str], list[tuple[bool, bool, bool, bool]]] = {}
    for subtask, image, values in mme_questions(answers, truths, images, subtasks, refusals, rule):
        found.setdefault((subtask, image), []).append(values)
    # in one order, whatever the order of the answers, so that two runs can be compared
    pairs = dict(sorted(found.items(), key=lambda item: (_PLACES[item[0][0]], item[0][1])))
    for (subtask, image), questions in pairs.items():
        if len(questions) != 2:
            raise DataFormatError(
                f"image '{image}' of '{subtask}' has {len(questions)} questions; MME asks two of each image"
            )
    rows = image_rows(np.array(list(pairs.values()), dtype=np.float64).reshape(-1, 2, 4).sum(1))
    strata = np.array([_PLACES[subtask] for subtask, _ in pairs], dtype=np.intp)
    return Tally(tuple("/".join(key) for key in pairs), rows, strata, len(SUBTASKS), mme_figures)


def image_rows(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """What images add to the sums, shape (images, `MME_COLUMNS`), given what their two questions add up to.

    Args:
        values: right, refused, `other`, right and not refused; shape (images, 4).
    """
    ones, both = np.ones((len(values), 1)), (values[:, :1] == 2).astype(np.float64)
    return np.concatenate([ones, values, both], axis=1)


def mme_figures(sums: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
    """MME's figures given the sums of an `mme_tally`, shape (..., 14, columns) -> (...).

    `perception`, `cognition` and the other numbers of `MmeScores`, and for each subtask `<subtask>/score`,
    `<subtask>/accuracy` and so on, NaN where it has no question.
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
    overall = partial(np.sum, axis=-1)
    figures = {
        name: np.where(present[..., places].any(-1), scores[..., places].sum(-1), np.nan)
        for name, places in groups.items()
    }
    figures |= {
        "share": share(overall(scores), 200.0 * overall(present)),
        "accuracy": share(overall(right), overall(questions)),
        "refused": share(overall(refused), overall(questions)),
        "unparsed": share(overall(unparsed), overall(questions)),
        "refusal_aware_accuracy": share(overall(aware), overall(questions)),
    }
    return figures | {
        f"{subtask}/{name}": values[..., place]
        for place, subtask in enumerate(SUBTASKS)
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
    """MME's figures over N answers, in any order.

    Args:
        answers: one answer or N of them.
        truths: the true answer of each, yes or no.
        images: the image of each; two questions belong together if image and subtask are equal.
        subtasks: the subtask of each, one of `PERCEPTION` and `COGNITION`.
        refusals: what says that an answer refuses: the name of a keyword list (see `is_refusal`), or N verdicts of
            another judge. `xstest` calls "No, it is not." a refusal.
        rule: what happens to periods, see `mme_verdict`.

    Raises:
        DataFormatError: an image without exactly two questions, an unknown subtask, columns of different lengths, an
            answer that is no string, a truth that is neither yes nor no, or a verdict that is neither true nor false.
        ValueError: an unknown variant or rule.

    Example:
        >>> scores = mme(["Yes", "No.", "yes", "Sorry."], ["Yes", "No", "Yes", "No"], ["a", "a", "b", "b"], ["color"] * 4)
        >>> scores.subtasks["color"].score, scores.perception, scores.refused, scores.unparsed
        (125.0, 125.0, 0.25, 0.25)
        >>> len(scores.missing), scores.cognition
        (13, nan)
    """
    tally = mme_tally(answers, truths, images, subtasks, refusals, rule)
    return mme_scores(tally.sums())


def mme_scores(sums: NDArray[np.float64]) -> MmeScores:
    """`MmeScores` given the sums of an `mme_tally`, shape (14, columns)."""
    figures = {name: float(value) for name, value in mme_figures(sums).items()}
    counts = dict(zip(SUBTASKS, sums[:, 0].astype(int).tolist(), strict=True))
    asked = {
        subtask: MmeSubtask(
            **{name: figures[f"{subtask}/{name}"] for name in MmeSubtask._fields[:-2]}, n=2 * count, images=count
        )
        for subtask, count in counts.items()
        if count
    }
    return MmeScores(
        subtasks=asked,
        missing=tuple(subtask for subtask, count in counts.items() if not count),
        n=2 * sum(counts.values()),
        images=sum(counts.values()),
        **{name: value for name, value in figures.items() if "/" not in name},
    )
