"""MME's verdict rule and figures."""

from __future__ import annotations

import math
import random
from pathlib import Path
from typing import Any

import pytest

from lightning_neuralgate.errors import DataFormatError
from lightning_neuralgate.metrics.functional import COGNITION, PERCEPTION, MmeRule, mme, mme_verdict
from tests.helpers.random_answers import random_answers

# answer -> verdict by the rule "dotless", and by the rule "tool"
VERDICTS: dict[str, tuple[str, str]] = {
    "Yes": ("yes", "yes"),
    "yes.": ("yes", "yes"),
    "YES, it is": ("yes", "yes"),
    "No": ("no", "no"),
    "no, it is not": ("no", "no"),
    # the first four characters
    "Not at all": ("no", "no"),
    "Nothing": ("no", "no"),
    "None": ("no", "no"),
    "Now I see it": ("no", "no"),
    "Know that": ("no", "no"),
    "Eyes": ("yes", "yes"),
    "a yes": ("other", "other"),
    "a no": ("no", "no"),
    "It is. Yes": ("other", "other"),
    "Sure, yes": ("other", "other"),
    "There is no dog": ("other", "other"),
    "I cannot tell": ("other", "other"),
    "I'm sorry, I can't tell.": ("other", "other"),
    "": ("other", "other"),
    "  yes": ("other", "other"),
    " no": ("no", "no"),
    "\nyes": ("yes", "yes"),
    # periods before the word
    "1. no": ("no", "other"),
    "...yes": ("yes", "other"),
    ". . . . no": ("other", "other"),
    "n.o": ("no", "other"),
    "y.e.s": ("yes", "other"),
    # two characters when lower-cased
    "İ no": ("other", "other"),
}


@pytest.mark.parametrize("answer", VERDICTS)
def test_verdicts_match_hand_labels(answer: str) -> None:
    assert (mme_verdict(answer), mme_verdict(answer, "tool")) == VERDICTS[answer]


def test_subtask_counts() -> None:
    assert (len(PERCEPTION), len(COGNITION)) == (10, 4)
    assert not set(PERCEPTION) & set(COGNITION)


def test_figures_match_hand_counts() -> None:
    rows = [
        ("color", "a", "Yes", "Yes."),
        ("color", "b", "Yes", "yes"),
        ("color", "a", "No", "No."),
        ("color", "b", "No", "I'm sorry, but I can't say."),
        # the same file name in another subtask is another image
        ("count", "a", "Yes", "No."),
        ("count", "a", "No", "No."),
        ("code_reasoning", "x", "Yes", "Yes"),
        ("code_reasoning", "x", "No", "no"),
    ]
    subtasks, images, truths, answers = map(list, zip(*rows, strict=True))
    scores = mme(answers, truths, images, subtasks)
    # color: 3 of 4 questions, 1 of 2 images; count: 1 of 2, 0 of 1; code: all
    assert scores.subtasks["color"] == (0.75, 0.5, 125, 0.25, 0.25, 0.75, 4, 2)
    assert scores.subtasks["count"] == (0.5, 0, 50, 0, 0, 0.5, 2, 1)
    assert scores.subtasks["code_reasoning"] == (1, 1, 200, 0, 0, 1, 2, 1)
    assert list(scores.subtasks) == ["count", "color", "code_reasoning"], "in the official order"
    assert (scores.perception, scores.cognition) == (175, 200)
    assert scores.share == 375 / 600
    assert (scores.accuracy, scores.refused, scores.unparsed, scores.refusal_aware_accuracy) == (
        6 / 8,
        1 / 8,
        1 / 8,
        6 / 8,
    )
    assert (scores.n, scores.images) == (8, 4)
    assert set(scores.missing) == {*PERCEPTION, *COGNITION} - {"color", "count", "code_reasoning"}


def test_a_perfect_run_scores_2000_and_800() -> None:
    subtasks = [subtask for subtask in (*PERCEPTION, *COGNITION) for _ in range(4)]
    images = ["0", "0", "1", "1"] * 14
    scores = mme(["Yes", "No"] * 28, ["Yes", "No"] * 28, images, subtasks)
    assert (scores.perception, scores.cognition, scores.share, scores.missing) == (2000, 800, 1, ())


def test_refusals_are_never_right_in_the_refusal_aware_accuracy() -> None:
    # a refusal that the rule reads as no
    answers = ["No comment, I cannot tell.", "No."]
    scores = mme(answers, ["No", "No"], ["a", "a"], ["scene"] * 2, refusals=[True, False])
    assert (scores.perception, scores.accuracy, scores.refused, scores.unparsed) == (200, 1, 0.5, 0)
    assert scores.refusal_aware_accuracy == 0.5


def test_a_plain_no_is_never_a_refusal() -> None:
    for refusals in ("xstest", [True, True]):
        assert mme(["No, it is.", "Yes"], ["No", "Yes"], ["a", "a"], ["scene"] * 2, refusals).refused == 0  # type: ignore[arg-type]


def test_figures_over_zero_answers_are_nan() -> None:
    scores = mme([], [], [], [])
    assert math.isnan(scores.perception)
    assert math.isnan(scores.cognition)
    assert math.isnan(scores.accuracy)
    assert (scores.n, scores.subtasks, len(scores.missing)) == (0, {}, 14)


@pytest.mark.parametrize("count", [1, 3, 4])
def test_an_image_without_exactly_two_questions_raises(count: int) -> None:
    images = ["fine.png", "fine.png", *["odd.png"] * count]
    answers = ["Yes"] * len(images)
    with pytest.raises(DataFormatError, match=f"image 'odd.png' of 'OCR' has {count} questions; expected 2"):
        mme(answers, answers, images, ["OCR"] * len(images))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ((["Yes"] * 2, ["Yes", "No"], ["a"] * 2, ["colour"] * 2), "`subtasks` value 0 is 'colour'; MME has existence"),
        ((["Yes"] * 2, ["Yes", "N"], ["a"] * 2, ["color"] * 2), "`truths` value 1 is 'N'"),
        ((["Yes"] * 2, ["Yes"] * 2, ["a"], ["color"] * 2), "1 in `images`"),
        ((["Yes", 1], ["Yes"] * 2, ["a"] * 2, ["color"] * 2), "answer 1 is 1"),
    ],
)
def test_invalid_input_raises(row: Any, message: str) -> None:
    with pytest.raises(DataFormatError, match=message):
        mme(*row)
    with pytest.raises(ValueError, match="unknown rule 'loose'"):
        mme_verdict("yes", "loose")  # type: ignore[arg-type]


def write_results(folder: Path, rows: list[tuple[str, str, str, str]]) -> None:
    """Write result files in the official tool's format, with the two questions of an image adjacent."""
    for subtask in {row[0] for row in rows}:
        lines = sorted((row for row in rows if row[0] == subtask), key=lambda row: row[1])
        text = "".join(f"{image}\tq\t{truth}\t{answer}\n" for _, image, truth, answer in lines)
        (folder / f"{subtask}.txt").write_text(text, encoding="utf-8", newline="")


def official_scores(folder: Path, dotless: bool) -> tuple[float, float]:
    """Return perception and cognition of a folder of result files, implemented from the tool's description."""
    totals = []
    for subtasks in (PERCEPTION, COGNITION):
        total = 0.0
        for subtask in subtasks:
            with (folder / f"{subtask}.txt").open(encoding="utf-8", newline="") as file:
                lines = file.read().split("\n")[:-1]
            right_of_image, right, images = 0, 0, 0
            for index, line in enumerate(lines):
                _, _, truth, answer = line.split("\t")
                letters = [letter for letter in answer.lower() if not (dotless and letter == ".")][:4]
                start = "".join(letters)
                verdict = "yes" if start.find("yes") >= 0 else ("no" if start.find("no") >= 0 else "other")
                if verdict == truth.lower():
                    right_of_image, right = right_of_image + 1, right + 1
                if index % 2:
                    images += right_of_image == 2
                    right_of_image = 0
            total += 100 * right / len(lines) + 100 * images / (len(lines) / 2)
        totals.append(total)
    return totals[0], totals[1]


@pytest.mark.parametrize("rule", ["dotless", "tool"])
@pytest.mark.parametrize("seed", range(5))
def test_equals_an_independent_implementation_on_random_answers(tmp_path: Path, seed: int, rule: MmeRule) -> None:
    draw = random.Random(seed)
    keys = [
        (subtask, f"{draw.randrange(10**6)}-{image}")
        for subtask in (*PERCEPTION, *COGNITION)
        for image in range(draw.randrange(1, 15))
        for _ in range(2)
    ]
    keys = [keys[index - index % 2] for index in range(len(keys))]
    answers = [answer.replace("\t", " ").replace("\n", " ") for answer in random_answers(len(keys), seed)]
    rows = [(*key, draw.choice(("Yes", "No")), answer) for key, answer in zip(keys, answers, strict=True)]
    write_results(tmp_path, rows)
    draw.shuffle(rows)
    subtasks, images, truths, shuffled = map(list, zip(*rows, strict=True))
    scores = mme(shuffled, truths, images, subtasks, rule=rule)
    assert (scores.perception, scores.cognition) == pytest.approx(official_scores(tmp_path, rule == "dotless"))
    assert scores.n == len(rows)
