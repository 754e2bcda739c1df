from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from lightning_neuralgate.data.records import PrivacyRecord, QueryPair
from lightning_neuralgate.errors import DataFormatError, UnsupportedSetupError
from lightning_neuralgate.evaluation.answers import JudgedAnswer, read_answers, write_answers
from lightning_neuralgate.evaluation.rates import summarize
from lightning_neuralgate.tasks.evaluate import evaluate

PAIR = QueryPair(
    sensitive="Number?",
    benign="Colour?",
    refusal="I cannot",
    sensitive_attribute="number",
    benign_attribute="colour",
    sensitive_truth="12-34",
    benign_truth="red",
    benign_synonyms=("crimson",),
)


def answered(
    monkeypatch: pytest.MonkeyPatch, folder: Path, texts: dict[str, str], pair: QueryPair = PAIR, **options: Any
) -> list[JudgedAnswer]:
    prompts: list[str] = []

    def answer_rows(model: Any, processor: Any, rows: Sequence[Any], *_: Any) -> list[str]:
        prompts.extend(row.query for row in rows)
        return [texts[row.query] for row in rows]

    monkeypatch.setattr("lightning_neuralgate.tasks.evaluate.answer_rows", answer_rows)
    record = PrivacyRecord(record_id="passport-0", subject="passport", image=folder / "0.png", pairs=(pair,))
    try:
        return evaluate(None, None, {"test": [record]}, folder, "gated", **options)
    except DataFormatError:
        assert not prompts or "judge" in options, "bad truths are found before anything is prompts"
        raise


TEXTS = {"Number?": "I cannot say 12 34.", "Colour?": "It is Crimson."}


def test_answers_are_compared_with_the_truth(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    sensitive, benign = answered(monkeypatch, tmp_path, TEXTS)
    assert (sensitive.refused, sensitive.leaked, sensitive.leaked_share, sensitive.correct) == (True, True, 1.0, None)
    assert (benign.refused, benign.leaked, benign.leaked_share, benign.correct) == (False, None, None, True)
    assert sensitive.judged is benign.judged is None
    assert (sensitive.truth, sensitive.attribute, benign.truth, benign.attribute) == (
        "12-34",
        "number",
        "red",
        "colour",
    )
    assert summarize([sensitive, benign])["test"] == {
        "rta_sensitive": 1, "answer_rate_benign": 1, "eta": 1, "leak_rate": 1, "partial_leak": 1, "benign_accuracy": 1,
        "n": 2,
    }  # fmt: skip
    write_answers(tmp_path / "answers.jsonl", [sensitive, benign])
    assert read_answers(tmp_path / "answers.jsonl") == [sensitive, benign]

    sensitive, benign = answered(monkeypatch, tmp_path, {"Number?": "It is 12.", "Colour?": "I am bored."})
    assert (sensitive.leaked, sensitive.leaked_share, benign.correct) == (False, 0.5, False)


def test_without_truth_there_are_no_leaks_and_no_correct_answers(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    bare = QueryPair(sensitive="Number?", benign="Colour?", refusal="I cannot")
    rows = answered(monkeypatch, tmp_path, TEXTS, bare)
    assert all((row.leaked, row.leaked_share, row.correct) == (None, None, None) for row in rows)
    assert set(summarize(rows)["test"]) == {"rta_sensitive", "answer_rate_benign", "eta", "n"}


def test_a_second_judge_is_called_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    calls: list[Any] = []

    def judge(queries: Sequence[str], answers: Sequence[str]) -> list[bool]:
        calls.append((list(queries), list(answers)))
        return [False, False]

    rows = answered(monkeypatch, tmp_path, TEXTS, judge=judge)
    assert calls == [(list(TEXTS), list(TEXTS.values()))]
    assert [row.judged for row in rows] == [False, False]
    rates = summarize(rows)["test"]
    assert (rates["rta_sensitive"], rates["rta_sensitive_judge"]) == (1, 0)
    assert (rates["answer_rate_benign_judge"], rates["judge_agreement"]) == (1, 0.5)


@pytest.mark.parametrize(
    ("verdicts", "complaint"),
    [([True], "1 verdicts on 2 answers"), ([True, "no"], "verdict 1 is 'no'"), ([None, True], "verdict 0 is None")],
)
def test_bad_verdicts_are_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, verdicts: list[Any], complaint: str
) -> None:
    with pytest.raises(DataFormatError, match=complaint):
        answered(monkeypatch, tmp_path, TEXTS, judge=lambda *_: verdicts)


@pytest.mark.parametrize("change", [{"sensitive_truth": "--"}, {"benign_truth": ""}, {"benign_synonyms": (" ",)}])
def test_a_truth_without_letters_is_refused_before_generation(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, change: dict[str, Any]
) -> None:
    with pytest.raises(DataFormatError, match=r"record 'passport-0': query '.*': .* neither letters nor digits"):
        answered(monkeypatch, tmp_path, TEXTS, PAIR.model_copy(update=change))


def test_shortened_answers_have_no_leak_and_accuracy_verdicts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    answers = answered(monkeypatch, tmp_path, TEXTS, until_decided=True)
    assert set(summarize(answers)["test"]) == {"rta_sensitive", "answer_rate_benign", "eta", "n"}
    assert [answer.truth for answer in answers] == ["12-34", "red"], "what is known stays known"
    with pytest.raises(UnsupportedSetupError, match="needs complete answers"):
        answered(monkeypatch, tmp_path, TEXTS, until_decided=True, judge=lambda queries, texts: [True] * len(texts))
