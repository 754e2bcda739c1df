from __future__ import annotations

import itertools
import random

import numpy as np
import pytest

from lightning_neuralgate.errors import DataFormatError
from lightning_neuralgate.evaluation.statistics import mcnemar, paired_differences
from lightning_neuralgate.metrics.functional import mllmguard_tally, mme, mme_tally, pope, pope_tally, scienceqa_tally
from lightning_neuralgate.metrics.functional.tally import Tally


def verdicts(both: int, first: int, second: int, neither: int) -> tuple[list[bool], list[bool]]:
    return (
        [True] * (both + first) + [False] * (second + neither),
        [True] * both + [False] * first + [True] * second + [False] * neither,
    )


@pytest.mark.parametrize(
    ("first", "second", "p_value"),
    [
        (0, 0, 1.0),
        (1, 0, 1.0),  # 2 * 1/2
        (2, 0, 0.5),
        (5, 0, 2 / 32),
        (8, 1, 2 * 10 / 512),
        (3, 3, 1.0),
        (2, 4, 2 * (1 + 6 + 15) / 64),
    ],
)
def test_mcnemar_by_hand(first: int, second: int, p_value: float) -> None:
    for both, neither in ((0, 0), (7, 100)):
        found = mcnemar(*verdicts(both, first, second, neither))
        assert found == (first, second, p_value), "items on which the runs agree do not matter"


def test_mcnemar_counts_all_ways_to_toss() -> None:
    for changed in range(1, 11):
        tosses = [sum(toss) for toss in itertools.product((0, 1), repeat=changed)]
        for first in range(changed + 1):
            fewer = min(first, changed - first)
            tails = sum(heads <= fewer or heads >= changed - fewer for heads in tosses)
            expected = min(1, tails / 2**changed) if fewer * 2 < changed else 1
            assert mcnemar(*verdicts(0, first, changed - first, 0)).p_value == pytest.approx(expected)


def test_mcnemar_of_many_items_does_not_underflow() -> None:
    found = mcnemar(*verdicts(0, 10_000, 10_000, 0))
    assert found.p_value == 1
    # 200 standard deviations and more: 0 is the nearest float
    assert mcnemar(*verdicts(0, 20_000, 0, 0)).p_value == 0
    # the normal approximation with continuity correction: |5100 - 4900| - 1 over sqrt(10000) = 1.99
    assert mcnemar(*verdicts(0, 5100, 4900, 0)).p_value == pytest.approx(0.0466, abs=0.0005)


def test_mcnemar_refuses_invalid_verdicts() -> None:
    with pytest.raises(DataFormatError, match="`second` verdict 1 is 'no'"):
        mcnemar([True, False], [True, "no"])  # type: ignore[list-item]
    with pytest.raises(DataFormatError, match="2 in `first`, 1 in `second`"):
        mcnemar([True, False], [True])


LABELS = ["yes", "no"] * 50


def said(right: float, seed: int) -> list[str]:
    """Answers that are right with this probability."""
    draw = random.Random(seed)
    return [
        ("Yes." if label == "yes" else "No.")
        if draw.random() < right
        else draw.choice(("I cannot tell.", "No." if label == "yes" else "Yes."))
        for label in LABELS
    ]


def test_shares_are_tested_by_mcnemar_and_f1_by_the_bootstrap() -> None:
    before, after = said(0.9, 1), said(0.5, 2)
    found = paired_differences(pope_tally(before, LABELS), pope_tally(after, LABELS))
    scores = pope(before, LABELS), pope(after, LABELS)
    tests = {name: difference.test for name, difference in found.items()}
    assert tests == {
        "accuracy": "mcnemar",
        "precision": "bootstrap",
        "recall": "bootstrap",
        "f1": "bootstrap",
        "yes_ratio": "mcnemar",
        "refused": "mcnemar",
        "unparsed": "mcnemar",
        "refusal_aware_accuracy": "mcnemar",
    }
    for name, difference in found.items():
        assert (difference.first, difference.second) == tuple(getattr(score, name) for score in scores)
        assert difference.difference == difference.second - difference.first
        assert difference.low <= difference.difference <= difference.high
    right = [
        [pope(answer, label).accuracy == 1 for answer, label in zip(answers, LABELS, strict=True)]
        for answers in (before, after)
    ]
    assert found["accuracy"].p_value == mcnemar(*right).p_value
    assert found["accuracy"].p_value < 0.001
    assert found["f1"].p_value < 0.01


def test_the_paired_bootstrap_equals_a_plain_one() -> None:
    before, after = said(0.8, 3), said(0.7, 4)
    found = paired_differences(pope_tally(before, LABELS), pope_tally(after, LABELS))
    draw = np.random.default_rng(5)
    plain = []
    for _ in range(2000):
        chosen = draw.integers(0, 100, 100)
        one, other = (
            pope([answers[place] for place in chosen], [LABELS[place] for place in chosen])
            for answers in (before, after)
        )
        plain.append(other.f1 - one.f1)
    low, high = np.quantile(plain, [0.025, 0.975])
    assert (found["f1"].low, found["f1"].high) == pytest.approx((low, high), abs=0.02)
    below, above = np.mean(np.array(plain) <= 0), np.mean(np.array(plain) >= 0)
    # three standard errors of 2000 draws
    assert found["f1"].p_value == pytest.approx(2 * min(below, above), abs=0.07)


def test_a_run_does_not_differ_from_itself() -> None:
    tally = pope_tally(said(0.7, 6), LABELS)
    for difference in paired_differences(tally, tally).values():
        assert difference[2:6] == (0, 0, 0, 1)


def test_p_values_are_calibrated_under_no_difference() -> None:
    small = []
    for seed in range(200):
        one, other = (pope_tally(said(0.7, 2 * seed + run), LABELS) for run in range(2))
        found = paired_differences(one, other, resamples=500, seed=seed)
        small.append([found[name].p_value < 0.05 for name in ("accuracy", "f1")])
    mcnemars, bootstraps = np.mean(small, axis=0)
    assert mcnemars <= 0.08
    assert bootstraps <= 0.11


def test_images_of_mme_are_resampled_within_their_subtask() -> None:
    subtasks = ["color"] * 40 + ["OCR"] * 4
    images = [str(place // 2) for place in range(44)]
    truths = ["Yes", "No"] * 22
    draw = random.Random(0)
    before = [truth if draw.random() < 0.9 else "I cannot say." for truth in truths]
    after = [truth if draw.random() < 0.4 else "I cannot say." for truth in truths]
    found = paired_differences(
        mme_tally(before, truths, images, subtasks), mme_tally(after, truths, images, subtasks), seed=3
    )
    assert found["perception"].first == mme(before, truths, images, subtasks).perception
    assert found["perception"].p_value < 0.01
    assert {difference.test for difference in found.values()} == {"bootstrap"}, (
        "questions of an image depend on each other"
    )
    assert not any(name.startswith("scene") for name in found), "no question, no figure"
    order = list(range(44))
    random.Random(1).shuffle(order)
    shuffled = mme_tally(*([column[place] for place in order] for column in (after, truths, images, subtasks)))
    again = paired_differences(mme_tally(before, truths, images, subtasks), shuffled, seed=3)
    assert again == found, "the order of the answers does not matter"


def test_other_metrics_have_their_tests() -> None:
    scienceqa = paired_differences(
        scienceqa_tally(["A"] * 6, [0] * 6, [2] * 6), scienceqa_tally(["B"] * 6, [0] * 6, [2] * 6)
    )
    assert scienceqa["accuracy"] == (1, 0, -1, -1, -1, 2 / 64, "mcnemar")
    one = mllmguard_tally([0] * 6 + [3] * 2, ["privacy"] * 8)
    other = mllmguard_tally([3] * 6 + [3] * 2, ["privacy"] * 8)
    found = paired_differences(one, other)
    assert found["overall/par"].test == "mcnemar"
    assert found["overall/par"].p_value == 2 / 64
    assert found["asd"].test == "bootstrap"
    assert found["asd"].difference == 0.75
    assert "overall/refused" not in found, "the scores do not contain refusals"
    unread = paired_differences(one, mllmguard_tally([None, *[0] * 7], ["privacy"] * 8))
    assert unread["overall/par"].test == "bootstrap", "without a score for each item it is not a share of all items"


@pytest.mark.parametrize(
    "tally",
    [
        pope_tally(["Yes.", "I cannot say.", "Hm.", "No.", "Hm.", "Yes, no", "No.", "Hm."], ["yes"] * 7 + ["no"]),
        scienceqa_tally(["A", "I cannot say.", "Hm.", "Hm.", "A. I", "B"], [0] * 6, [2] * 6, [0, 1, 0, 0, 1, 0]),
        mllmguard_tally([0, 3, 0, 0, 1, 0, 0], answers=["I cannot say."] * 3 + ["Hm."] * 4),
        mllmguard_tally([0, None, None, 0]),
    ],
)
def test_mcnemar_counts_the_items_of_the_figure(tally: Tally) -> None:
    figures = tally.compute()
    assert set(tally.flags) <= set(figures)
    shares = {name: tally.rows[:, list(columns)].sum(1) for name, columns in tally.flags.items()}
    for name, verdicts_of_items in shares.items():
        assert set(verdicts_of_items.tolist()) <= {0, 1}
        assert verdicts_of_items.mean() == pytest.approx(float(figures[name])), name


def test_other_items_are_refused() -> None:
    one = mme_tally(["Yes"] * 2, ["Yes"] * 2, ["a"] * 2, ["color"] * 2)
    with pytest.raises(DataFormatError, match="the first that differ are 'color/a' and 'color/b'"):
        paired_differences(one, mme_tally(["Yes"] * 2, ["Yes"] * 2, ["b"] * 2, ["color"] * 2))
    with pytest.raises(DataFormatError, match="3 and 2 of them"):
        paired_differences(pope_tally(["Yes"] * 3, ["yes"] * 3), pope_tally(["Yes"] * 2, ["yes"] * 2))
    with pytest.raises(DataFormatError, match="not of the same items"):
        paired_differences(mllmguard_tally([0, 1], ["a", "b"]), mllmguard_tally([0, 1], ["a", "a"]))
    with pytest.raises(DataFormatError, match="1 items are too few for a test"):
        paired_differences(one, one)
    with pytest.raises(ValueError, match="resamples must be at least 1"):
        paired_differences(one, one, resamples=0)


def test_seeds() -> None:
    one, other = pope_tally(said(0.8, 1), LABELS), pope_tally(said(0.6, 2), LABELS)
    assert paired_differences(one, other) == paired_differences(one, other, seed=0)
    assert paired_differences(one, other, 100) != paired_differences(one, other, 100, seed=1)
