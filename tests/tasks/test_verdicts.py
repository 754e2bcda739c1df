from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lightning_neuralgate.cli import main
from lightning_neuralgate.errors import DataFormatError
from lightning_neuralgate.judges.llm import LlmScorer
from lightning_neuralgate.tasks.judge_options import JudgeOptions
from lightning_neuralgate.tasks.scoring import tally_answers, task_scores
from lightning_neuralgate.tasks.verdicts import (
    KeywordListJudge,
    LeakScorer,
    MemoizedJudge,
    StoredScorer,
    WrappedJudge,
    named_refusal_judge,
)
from tests.helpers.task_answers import ANSWERS, SORRY, changed, figures, guard_rows, written
from tests.helpers.task_files import json_lines


def test_other_keyword_lists_and_judges_of_refusals() -> None:
    assert figures(ANSWERS, refusals=KeywordListJudge("xstest"))["pope"]["refused"] == 0.5, (
        "'No, there is none.' refuses by that list, but opens with the answer"
    )
    prompts: list[str] = []

    def judge(queries: Any, answers: Any) -> list[bool]:
        prompts.extend(queries)
        return [True for answer in answers]

    assert figures(ANSWERS[:4], refusals=named_refusal_judge(judge, "mine"))["pope"]["refused"] == 0.5
    assert prompts == [one.prompt for one in ANSWERS[2:4]], "of answers that do not open with yes or no"


def test_stored_scores_of_mllmguard(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = guard_rows(ANSWERS, 3, "Score: 1, since it is polite.", "Who knows?", 0)
    file = json_lines(tmp_path / "judge.jsonl", rows)
    guard = StoredScorer(file)
    assert guard.scores == {"privacy/1": 3.0, "privacy/2": 1.0, "legality/1": None, "legality/2": 0.0}
    scores = figures(ANSWERS, guard=guard)["mllmguard"]
    assert (scores["privacy/asd"], scores["legality/asd"], scores["legality/unparsed"]) == (
        pytest.approx(2 / 3),
        0,
        0.5,
    )
    folder = written(tmp_path / "a", ANSWERS)
    assert main(["score", str(folder), "--judge.guard_scores", str(file)]) == 0
    assert "mllmguard: ASD and PAR, scores of a judge, from judge.jsonl" in capsys.readouterr().out
    for row, message in (
        ({"item_id": "a", "answer": ""}, "expected 'item_id', 'answer'"),
        ({"item_id": "a", "score": 1}, "expected 'item_id', 'answer'"),
        ({"item_id": "a", "answer": "", "score": True}, "expected 'item_id', 'answer'"),
        (rows[0], "is scored twice"),
    ):
        json_lines(file, [*rows, row])
        with pytest.raises(DataFormatError, match=f"line 5: .*{message}"):
            StoredScorer(file)


def test_stored_scores_belong_to_one_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    after = changed(ANSWERS, privacy_1="I cannot share that.")
    runs = [str(written(tmp_path / name, answers)) for name, answers in (("before", ANSWERS), ("after", after))]
    files = [
        str(json_lines(tmp_path / name / "judge.jsonl", guard_rows(answers, *scores)))
        for name, answers, scores in (("before", ANSWERS, (3, 0, 0, None)), ("after", after, (0, 0, 3, 3)))
    ]
    compare = ["compare", *runs, "--out", str(tmp_path / "out"), "--judge.guard_scores"]
    assert main([*compare, f"[{files[0]}, {files[1]}]"]) == 0
    scores = json.loads((tmp_path / "out" / "compare.json").read_text())
    # privacy 3 and 0, legality 0 alone; then privacy 0 and 0, legality 3 and 3
    asd = scores["tasks"]["mllmguard"]["figures"]["asd"]
    assert (asd["first"], asd["second"]) == ((1 / 2 + 0) / 2, (0 + 1) / 2)
    assert scores["guard"] == ["scores of a judge, from judge.jsonl"] * 2
    capsys.readouterr()
    for value, expected in (
        (files[0], "there are 2 runs and 1 files in --judge.guard_scores; give a list of 2"),
        (
            f"[{files[1]}, {files[0]}]",
            f"{files[1]} holds another answer to item 'privacy/1'; scores belong to the answers",
        ),
    ):
        assert main([*compare, value]) == 1
        assert expected in capsys.readouterr().err
    json_lines(Path(files[0]), guard_rows(ANSWERS, 3, 0, 0, 0)[1:])
    assert main(["score", runs[0], "--judge.guard_scores", files[0]]) == 1
    assert f"{files[0]} holds no score of item 'privacy/1'" in capsys.readouterr().err
    assert main(["score", runs[0], "--judge.guard_scores", files[0], "--judge.guard", "true"]) == 1
    assert "give one of the two" in capsys.readouterr().err


def test_a_memoized_judge_is_called_once_per_answer() -> None:
    prompts: list[str] = []

    def judge(queries: Any, answers: Any) -> list[bool]:
        prompts.extend(answers)
        return [answer == SORRY for answer in answers]

    remembered = MemoizedJudge(named_refusal_judge(judge, "mine"))
    first, again = (tally_answers(ANSWERS, remembered)["pope"].compute()["refused"] for _ in range(2))
    assert first == again == 0.5
    assert len(prompts) == len(ANSWERS) - 8, "two answers to POPE, three to MME and three to ScienceQA open with one"
    assert remembered.name == "mine"


def test_a_chat_model_scores_mllmguard() -> None:
    scorer = LlmScorer(lambda prompt: "Score: 2" if "12345" in prompt else "hm")
    tallies = tally_answers(ANSWERS, guard=WrappedJudge(scorer, "a chat model"))
    scores = task_scores(tallies, "", "a chat model", resamples=10)["tasks"]["mllmguard"]
    assert scores["figures"]["privacy/asd"] == pytest.approx(2 / 3)
    assert scores["figures"]["overall/unparsed"] == 0.75
    assert scores["protocol"] == "ASD and PAR, a chat model"


def test_judges_from_options(tmp_path: Path) -> None:
    assert JudgeOptions().refusal_judge("gcg").name == "keyword list 'gcg'"
    assert [one.name for one in JudgeOptions().guard_scorers(2)] == [LeakScorer.name] * 2
    for options, message in (
        (JudgeOptions("classifier"), r"name the classifier: --judge\.name"),
        (JudgeOptions("llm", name="m"), r"needs --judge\.url and --judge\.name"),
        (JudgeOptions("classifier", name=str(tmp_path)), r"which labels of .* mean a refusal is not known"),
    ):
        with pytest.raises(DataFormatError, match=message):
            options.refusal_judge("prefix")
    local = JudgeOptions("llm", name="m", url="http://localhost:1/v1", key_variable=None, guard=True)
    assert local.refusal_judge("prefix").name == "chat model 'm'"
    assert local.guard_scorers()[0].name == "scores of chat model 'm'"
    with pytest.raises(DataFormatError, match=r"needs --judge\.url"):
        JudgeOptions(guard=True).guard_scorers()
