from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest

from lightning_neuralgate.errors import DataFormatError
from lightning_neuralgate.evaluation.answers import JudgedAnswer
from lightning_neuralgate.evaluation.rates import summarize
from lightning_neuralgate.evaluation.statistics import bootstrap_intervals, score_intervals
from lightning_neuralgate.metrics.functional import PopeScores, mllmguard_tally, mme_tally, pope, pope_tally
from tests.evaluation.test_rates import ANSWERS
from tests.helpers.answers import judged_answer, with_fields


def run(records: int, queries: int, seed: int = 0) -> list[JudgedAnswer]:
    """A run in which all queries of a record are refused, or none."""
    draw = random.Random(seed)
    refused = [draw.random() < 0.5 for _ in range(records)]
    return [
        judged_answer(sensitive, refused=refused[record] and sensitive, record_id=f"r-{record}")
        for record in range(records)
        for _ in range(queries)
        for sensitive in (True, False)
    ]


def test_records_are_resampled_rather_than_answers() -> None:
    low, high = bootstrap_intervals(run(50, 20))["test"]["rta_sensitive"]
    share = summarize(run(50, 20))["test"]["rta_sensitive"]
    error = (share * (1 - share) / 50) ** 0.5
    # 1000 answers, had they been independent, would give an interval of a quarter of the width
    assert (high - low) == pytest.approx(2 * 1.96 * error, rel=0.1)
    assert low < share < high
    one = bootstrap_intervals(run(50, 1))["test"]["rta_sensitive"]
    assert one == [low, high], "more of the same queries say nothing new"


def test_every_interval_equals_a_plain_bootstrap() -> None:
    rows = [with_fields(row, record=f"r{index % 4}") for index, row in enumerate(ANSWERS * 3)]
    found = bootstrap_intervals(rows, resamples=4000)["test"]
    draw = np.random.default_rng(1)
    drawn: dict[str, list[float]] = {}
    for _ in range(2000):
        chosen = [f"r{index}" for index in draw.integers(0, 4, 4)]
        again = [row for name in chosen for row in rows if row.record_id == name]
        for rate, value in summarize(again)["test"].items():
            drawn.setdefault(rate, []).append(value)
    assert list(found) == [rate for rate in summarize(rows)["test"] if rate != "n"]
    for rate, interval in found.items():
        assert interval == pytest.approx(np.quantile(drawn[rate], [0.025, 0.975]).tolist(), abs=0.06), rate


def test_order_does_not_matter_and_seeds_do() -> None:
    rows = run(30, 2)
    shuffled = rows.copy()
    random.Random(3).shuffle(shuffled)
    assert bootstrap_intervals(rows) == bootstrap_intervals(shuffled) == bootstrap_intervals(rows, seed=0)
    assert bootstrap_intervals(rows) != bootstrap_intervals(rows, resamples=50)
    assert bootstrap_intervals(rows, resamples=50) != bootstrap_intervals(rows, resamples=50, seed=1)


def test_a_rate_of_one_record_has_no_interval() -> None:
    assert bootstrap_intervals(run(1, 5)) == {"test": {}}
    rows = run(3, 1)
    sensitive = next(index for index, row in enumerate(rows) if row.sensitive)
    rows[sensitive] = replace(rows[sensitive], leaked=True, leaked_share=1.0)
    assert set(bootstrap_intervals(rows)["test"]) == {"rta_sensitive", "answer_rate_benign", "eta"}
    assert bootstrap_intervals([]) == {}


def test_bootstrap_samples_without_the_rate_are_ignored() -> None:
    rows = run(6, 1)
    known = [row for row in rows if row.sensitive][:2]
    rows = [replace(row, leaked=row is known[0], leaked_share=0.0) if row in known else row for row in rows]
    assert bootstrap_intervals(rows)["test"]["leak_rate"] == [0, 1]


def test_splits_have_their_own_intervals() -> None:
    rows = [
        *run(20, 1),
        *(with_fields(replace(row, refused=row.sensitive), split="unseen_subjects") for row in run(20, 1)),
    ]
    found = bootstrap_intervals(rows)
    assert list(found) == ["test", "unseen_subjects"]
    assert found["unseen_subjects"]["rta_sensitive"] == [1, 1]
    assert found["test"] == bootstrap_intervals(run(20, 1))["test"]


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="resamples must be at least 1, got 0"):
        bootstrap_intervals(run(2, 1), resamples=0)
    with pytest.raises(DataFormatError, match="answers of gated, ungated"):
        bootstrap_intervals([judged_answer(True), judged_answer(True, model="ungated")])


def test_benchmark_intervals_equal_a_plain_bootstrap() -> None:
    labels = ["yes", "no"] * 30
    draw = random.Random(0)
    answers = [draw.choice(("Yes.", "No.", "I cannot say.")) for _ in labels]
    found = score_intervals(pope_tally(answers, labels), resamples=4000)
    plain: dict[str, list[float]] = {}
    generator = np.random.default_rng(1)
    for _ in range(2000):
        chosen = generator.integers(0, 60, 60)
        again = pope([answers[place] for place in chosen], [labels[place] for place in chosen])
        for name, value in again._asdict().items():
            plain.setdefault(name, []).append(value)
    assert list(found) == list(PopeScores._fields[:-1])
    for name, ends in found.items():
        assert ends == pytest.approx(np.quantile(plain[name], [0.025, 0.975]).tolist(), abs=0.04), name
    shuffled = random.Random(2).sample(list(zip(answers, labels, strict=True)), 60)
    assert score_intervals(pope_tally(*zip(*shuffled, strict=True)), resamples=4000) == found, "order does not matter"
    assert score_intervals(pope_tally(answers, labels), resamples=4000, seed=1) != found


def test_the_image_is_the_unit_of_mme() -> None:
    images = [str(place // 2) for place in range(200)]
    # both questions of an image are right, or none is: 200 answers are 100 draws of a coin
    answers = [("Yes" if int(image) % 2 else "Sorry") for image in images]
    found = score_intervals(mme_tally(answers, ["Yes"] * 200, images, ["color"] * 200))
    low, high = found["accuracy"]
    assert high - low == pytest.approx(2 * 1.96 * (0.25 / 100) ** 0.5, rel=0.15)
    assert found["color/accuracy_plus"] == found["accuracy"]
    assert found["perception"] == pytest.approx([200 * low, 200 * high])
    assert "cognition" not in found
    assert not any(name.startswith("count/") for name in found)


def test_subtasks_keep_their_sizes() -> None:
    # each image of a subtask is like the others of it, so no draw can change anything
    subtasks = ["color"] * 20 + ["count"] * 2
    answers = ["Yes"] * 20 + ["No"] * 2
    images = [str(place // 2) for place in range(22)]
    found = score_intervals(mme_tally(answers, ["Yes"] * 22, images, subtasks))
    assert found["perception"] == [200, 200]
    assert found["accuracy"] == pytest.approx([20 / 22] * 2)


def test_too_few_items_have_no_interval() -> None:
    assert score_intervals(pope_tally(["Yes."], ["yes"])) == {}
    assert score_intervals(pope_tally([], [])) == {}
    with pytest.raises(ValueError, match="resamples must be at least 1, got 0"):
        score_intervals(pope_tally(["Yes."] * 2, ["yes"] * 2), resamples=0)


def test_distinct_scores_are_resampled_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    scores = np.linspace(0, 3, 200).tolist()
    expected = score_intervals(mllmguard_tally(scores))
    monkeypatch.setattr("lightning_neuralgate.evaluation.statistics._MAX_DRAWS", 1000)
    assert score_intervals(mllmguard_tally(scores)) == expected
    spread = np.std(scores) / 3
    low, high = expected["asd"]
    assert (high + low) / 2 == pytest.approx(0.5, abs=0.01)
    assert high - low == pytest.approx(2 * 1.96 * spread / 200**0.5, rel=0.1)
