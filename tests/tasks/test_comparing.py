from __future__ import annotations

import json
from pathlib import Path

import pytest

from lightning_neuralgate.cli import main
from lightning_neuralgate.errors import DataFormatError
from lightning_neuralgate.evaluation.answers import AnsweredItem
from lightning_neuralgate.metrics.functional import is_refusal
from lightning_neuralgate.tasks.comparing import compare_runs, read_changes, verdict_of
from lightning_neuralgate.tasks.verdicts import StoredScorer
from tests.helpers.task_answers import ANSWERS, SORRY, changed, guard, guard_rows, pope, privacy, written
from tests.helpers.task_files import json_lines


def test_verdict_of_each_task() -> None:
    comparison = [verdict_of(one, is_refusal(one.answer)) for one in ANSWERS]
    assert comparison == [
        "right", "right", "right, refused", "wrong, refused",
        "right", "right", "right", "unparsed, refused",
        "right", "right", "unparsed, refused", "unparsed",
        "leaks", "keeps, refused", "keeps", "answered",
        "leaks", "right", "keeps, refused", "wrong",
    ]  # fmt: skip


def test_two_runs_are_compared_with_p_values_and_changed_items(tmp_path: Path) -> None:
    first = [pope(n, "yes" if n % 2 else "no", "Yes." if n % 2 else "No.") for n in range(10)] + ANSWERS[8:]
    second = [pope(n, "yes" if n % 2 else "no", SORRY) for n in range(10)] + ANSWERS[8:-1]
    second.append(changed(ANSWERS, test_q_1="It is blue.")[-1])
    comparison = compare_runs(written(tmp_path / "a", first), written(tmp_path / "b", second), tmp_path / "out")
    # five items are right no more, none became so: p = 2 / 2^5
    accuracy = comparison["tasks"]["pope"]["figures"]["accuracy"]
    assert (accuracy["first"], accuracy["second"], accuracy["test"]) == (1.0, 0.5, "mcnemar")
    assert accuracy["p_value"] == pytest.approx(2 / 2**5)
    assert comparison["tasks"]["pope"]["figures"]["refusal_aware_accuracy"]["p_value"] == pytest.approx(2 / 2**10)
    assert comparison["tasks"]["pope"]["changed"] == {"right -> wrong, refused": 5, "right -> right, refused": 5}
    assert comparison["tasks"]["privacy_pair"]["changed"] == {"wrong -> right": 1}
    assert comparison["tasks"]["scienceqa"]["changed"] == {}
    assert comparison["safety_first"]["parts"] == comparison["safety_second"]["parts"]
    assert comparison["utility_second"]["missing"] == ("mme",)
    assert json.loads((tmp_path / "out" / "compare.json").read_text())["tasks"]["pope"] == comparison["tasks"]["pope"]
    (change,) = [change for change in read_changes(tmp_path / "out") if change.task == "privacy_pair"]
    assert (change.item_id, change.first_answer, change.second_answer) == ("test/q/1", "It is red.", "It is blue.")
    assert len(list(read_changes(tmp_path / "out", most=1))) == 3


def test_changed_scores_and_empty_answers_count_as_changes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = [guard("privacy", n, "12345", "It is 12345.") for n in (1, 2)] + [guard("bias", 1, "", "Well.")]
    before += [privacy("p", 1, "benign", "red", "It is blue."), pope(1, "yes", "Yes.")]
    after = changed(before, privacy_2="No idea.", test_p_1=" ", random_1="")
    runs = written(tmp_path / "a", before), written(tmp_path / "b", after)
    guards = [
        StoredScorer(json_lines(tmp_path / f"{name}.jsonl", guard_rows(answers, *scores)))
        for name, answers, scores in (("a", before, (3, 2, 0)), ("b", after, (1, 2, None)))
    ]
    comparison = compare_runs(*runs, tmp_path / "out", guard=(guards[0], guards[1]))["tasks"]
    assert comparison["mllmguard"]["changed"] == {
        "leaks, score 3 -> leaks, score 1": 1,  # the same words, judged otherwise
        "leaks, score 2 -> keeps, score 2": 1,  # other words, judged alike
        "answered, score 0 -> answered": 1,
    }
    assert comparison["privacy_pair"]["changed"] == {"wrong -> wrong, empty": 1}
    assert comparison["pope"]["changed"] == {"right -> right, empty": 1}
    assert main(["compare", *map(str, runs), "--out", str(tmp_path / "out")]) == 0
    assert "random/1: 'Is it 1? Please.' 'Yes.' -> (empty)" in capsys.readouterr().out


def test_runs_on_different_items_are_refused(tmp_path: Path) -> None:
    first = written(tmp_path / "a", ANSWERS)
    with pytest.raises(DataFormatError, match=r"no task in common: mllmguard, mme, pope, .* and nothing"):
        compare_runs(first, written(tmp_path / "b", []), tmp_path / "out")
    with pytest.raises(DataFormatError, match=r"task 'pope' of .*: the runs are not of the same items"):
        compare_runs(first, written(tmp_path / "b", ANSWERS[1:4]), tmp_path / "out")
    other = [AnsweredItem(**{**vars(one), "prompt": "What else?"}) for one in ANSWERS]
    with pytest.raises(DataFormatError, match="item 'random/1' of 'pope' is not the same in"):
        compare_runs(first, written(tmp_path / "b", other), tmp_path / "out")
    assert not (tmp_path / "out" / "changed.jsonl").exists()
