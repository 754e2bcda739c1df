from __future__ import annotations

import json
import re
import time
from pathlib import Path

import psutil
import pytest

from lightning_neuralgate.cli import main
from lightning_neuralgate.evaluation.answers import answer_line
from lightning_neuralgate.metrics.functional.mme import COGNITION, PERCEPTION
from lightning_neuralgate.tasks.answer_store import read_answered
from lightning_neuralgate.tasks.scoring import judges_agreement, tally_answers, task_scores
from lightning_neuralgate.tasks.verdicts import KeywordListJudge, WrappedJudge
from tests.helpers.task_answers import ANSWERS, SORRY, changed, figures, guard, many, privacy, written


def test_figures_of_all_tasks() -> None:
    scores = figures(ANSWERS)
    # the refusals count as yes: right where yes is true, but never in the refusal-aware accuracy
    expected = {
        "accuracy": 0.75, "precision": 2 / 3, "recall": 1.0, "f1": 0.8, "yes_ratio": 0.75, "refused": 0.5,
        "unparsed": 0.5, "refusal_aware_accuracy": 0.5,
    }  # fmt: skip
    assert scores["pope"] == pytest.approx(expected)
    assert scores["mme"]["perception"] == scores["mme"]["OCR/score"] == 125
    assert (scores["mme"]["accuracy"], scores["mme"]["refused"], scores["mme"]["unparsed"]) == (0.75, 0.25, 0.25)
    assert "cognition" not in scores["mme"], "there is no question of it"
    assert scores["scienceqa"] == {"accuracy": 0.5, "refused": 0.25, "unparsed": 0.5, "refusal_aware_accuracy": 0.5}
    assert scores["mllmguard"]["privacy/asd"] == 0.5
    assert scores["mllmguard"]["legality/asd"] == 0
    assert (scores["mllmguard"]["asd"], scores["mllmguard"]["par"]) == (0.25, 0.75)
    assert scores["mllmguard"]["overall/unparsed"] == 0.25, "without secret or judge there is no score"
    assert scores["privacy_pair"] == {
        "test/rta_sensitive": 0.5, "test/answer_rate_benign": 1.0, "test/eta": 0.75, "test/leak_rate": 0.5,
        "test/partial_leak": 0.5, "test/benign_accuracy": 0.5,
    }  # fmt: skip


def test_averages_have_their_parts() -> None:
    scores = task_scores(tally_answers(ANSWERS), "the list", resamples=50)
    assert scores["safety"] == {"value": 0.5, "parts": {"privacy_pair": 0.5, "mllmguard": 0.5}, "missing": ()}
    assert scores["utility"]["parts"] == {"scienceqa": 0.5, "mme": 0.625, "pope": 0.75}
    assert scores["utility"]["value"] == pytest.approx((0.5 + 0.625 + 0.75) / 3)
    scores = task_scores(tally_answers(ANSWERS[:4]), "the list", resamples=50)
    assert (scores["utility"]["value"], scores["utility"]["missing"]) == (None, ("scienceqa", "mme"))


def test_missing_parts_of_a_benchmark_are_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = written(tmp_path / "a", [*ANSWERS, guard("hallucination", 1, "", "A cat.")])
    assert main(["score", str(folder)]) == 0
    scores = json.loads((folder / "scores.json").read_text())["tasks"]
    assert scores["mme"]["missing"] == [name for name in (*PERCEPTION, *COGNITION) if name != "OCR"]
    assert scores["mllmguard"]["missing"] == ["bias", "toxicity"]
    assert scores["pope"]["missing"] == []
    line = "mllmguard: no answers of bias, toxicity; totals cover the remaining parts only"
    printed = capsys.readouterr().out
    assert line in printed
    assert "mme: no answers of existence, count, position" in printed
    assert main(["compare", str(folder), str(folder), "--out", str(tmp_path / "out")]) == 0
    assert line in capsys.readouterr().out
    assert (
        json.loads((tmp_path / "out" / "compare.json").read_text())["tasks"]["mme"]["missing"]
        == scores["mme"]["missing"]
    )


def test_the_order_of_answers_does_not_matter() -> None:
    one, other = (task_scores(tally_answers(list(answers)), "", resamples=200) for answers in (ANSWERS, ANSWERS[::-1]))
    for task in one["tasks"]:
        for kind in ("figures", "intervals"):
            assert one["tasks"][task][kind].keys() == other["tasks"][task][kind].keys()
            for name, value in one["tasks"][task][kind].items():
                assert other["tasks"][task][kind][name] == pytest.approx(value), (task, name)


def test_intervals_resample_records() -> None:
    # in record p both queries are leaked, in q none: only complete records are resampled, so 0, 1/2 and 1 are all there is
    answers = [
        privacy(record, n, "sensitive", "12345", scores)
        for record, scores in (("p", "12345"), ("q", "No."))
        for n in (0, 1)
    ]
    scores = task_scores(tally_answers(answers), "")["tasks"]["privacy_pair"]
    assert scores["intervals"]["test/leak_rate"] == [0, 1]
    assert scores["n"] == 2


def test_agreement_of_several_judges(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = written(tmp_path / "a", ANSWERS)
    assert main(["score", str(folder), "--beside", "[xstest, gcg]"]) == 0
    rows = json.loads((folder / "scores.json").read_text())["agreement"]
    scores = {(row["task"], row["first"], row["second"]): (row["kappa"], row["agreement"], row["n"]) for row in rows}
    prefix, xstest, gcg = (f"keyword list '{name}'" for name in ("prefix", "xstest", "gcg"))
    assert list(scores)[:3] == [("mllmguard", *pair) for pair in ((prefix, xstest), (prefix, gcg), (xstest, gcg))]
    # of four answers to MLLMGuard prefix and xstest call "I cannot share that." a refusal, gcg as well
    assert scores["mllmguard", prefix, xstest] == (1, 1, 4)
    # eight answers to the others open with yes, no or a choice, and no judge decides on those
    assert scores["pope", prefix, gcg] == (None, 1, 2)
    assert [row["n"] for row in rows if row["task"] == "all"] == [len(ANSWERS) - 8] * 3
    printed = capsys.readouterr().out
    assert "Cohen's kappa" in printed
    assert re.search(r"mllmguard .* 'prefix' .* 'xstest' .* 1\.000 .* 1\.000 .* 4", printed)
    assert main(["score", str(folder), "--beside", "[prefix]"]) == 1
    assert "keyword list 'prefix' is among the judges twice" in capsys.readouterr().err


def test_agreement_leaves_out_unclear_verdicts() -> None:
    unsure = WrappedJudge(
        lambda prompts, answers: [None if answer == "Well." else True for answer in answers], "unsure"
    )
    guarded = [answer for answer in ANSWERS if answer.task == "mllmguard"]
    (row,) = judges_agreement(guarded, [KeywordListJudge(), unsure])
    # the list calls one of the other three a refusal, the other judge all of them
    assert (row["kappa"], row["agreement"], row["n"]) == (0, 1 / 3, 3)
    (row,) = judges_agreement(guarded[3:], [KeywordListJudge(), unsure])
    assert (row["kappa"], row["agreement"], row["n"]) == (None, None, 0)


def test_score_and_compare_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = written(tmp_path / "before", ANSWERS)
    second = written(tmp_path / "after", changed(ANSWERS, random_1=SORRY, random_2=SORRY))
    assert main(["score", str(first), "--export", str(tmp_path / "export")]) == 0
    printed = capsys.readouterr().out
    assert "refusal_aware_accuracy" in printed
    assert "utility: scienceqa 0.500, mme 0.625, pope 0.750" in printed
    assert "not MLLMGuard's judge" in printed
    scores = json.loads((first / "scores.json").read_text())
    assert scores["tasks"]["pope"]["figures"]["accuracy"] == 0.75
    assert (tmp_path / "export" / "mme" / "OCR.txt").is_file()
    assert main(["score", str(first), "--variant", "gcg", "--judge.kind", "reader"]) == 1
    assert "--variant gcg names a keyword list, but --judge.kind reader uses none" in capsys.readouterr().err
    assert main(["score", str(first), "--variant", "gcg", "--out", str(tmp_path / "gcg")]) == 0
    assert "keyword list 'gcg'" in json.loads((tmp_path / "gcg" / "scores.json").read_text())["refusals"]
    capsys.readouterr()
    assert main(["compare", str(first), str(second), "--out", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    assert "1 right -> wrong, refused" in printed
    assert "random/2: 'Is it 2? Please.' 'No, there is none.' ->" in printed
    assert json.loads((tmp_path / "out" / "compare.json").read_text())["refusals"] == "keyword list 'prefix'"
    assert main(["score", str(tmp_path / "none")]) == 1
    assert "cannot be read" in capsys.readouterr().err


@pytest.mark.slow
def test_100000_answers_are_scored_in_ten_seconds_and_little_memory(tmp_path: Path) -> None:
    file = tmp_path / "answers.jsonl"
    with file.open("w", encoding="ascii") as lines:
        for one in many(100_000):
            lines.write(answer_line(one))
    process = psutil.Process()
    before, start = process.memory_info().rss, time.process_time()
    scores = task_scores(tally_answers(read_answered(file)), "")
    seconds, grown = time.process_time() - start, process.memory_info().rss - before
    assert {task: one["n"] for task, one in scores["tasks"].items()} == {
        "mllmguard": 20_000, "mme": 10_000, "pope": 20_000, "privacy_pair": 5_000, "scienceqa": 20_000
    }  # fmt: skip
    assert seconds < 10
    assert grown < 250 * 2**20
