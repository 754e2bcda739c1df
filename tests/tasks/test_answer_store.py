from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from lightning_neuralgate.cli import main
from lightning_neuralgate.errors import DataFormatError
from lightning_neuralgate.evaluation.answers import AnsweredItem, read_answers, write_answers
from lightning_neuralgate.tasks.answer_store import read_answered
from lightning_neuralgate.tasks.scoring import tally_answers, tally_run
from tests.helpers.answers import judged_answer
from tests.helpers.task_files import json_lines


def stored(folder: Path, **change: object) -> Path:
    row = {
        "task": "pope", "item_id": "random/1", "image": "a.png", "prompt": "Is it?", "truth": "yes",
        "fields": {"category": "random"}, "answer": "Yes",
    }  # fmt: skip
    return json_lines(folder / "answers.jsonl", [{**row, **change}])


def test_invalid_lines_of_answers_are_named(tmp_path: Path) -> None:
    file = stored(tmp_path, answer=None)
    with pytest.raises(DataFormatError, match="line 1: field 'answer' has to be text, found null"):
        list(read_answered(tmp_path))
    file = stored(tmp_path, more=1)
    with pytest.raises(DataFormatError, match="line 1: there is no field 'more'"):
        list(read_answered(file))
    file.write_text(stored(tmp_path).read_text() * 2)
    with pytest.raises(DataFormatError, match="line 2: item 'random/1' of 'pope' is answered twice"):
        list(read_answered(file))
    stored(tmp_path, answer="Yes" * (17 << 20))
    with pytest.raises(DataFormatError, match="line 1: longer than 16 MiB"):
        list(read_answered(file))
    with pytest.raises(DataFormatError, match=r"answers\.jsonl cannot be read"):
        list(read_answered(tmp_path / "answers.jsonl" / "answers.jsonl"))
    stored(tmp_path, task="gqa")
    with pytest.raises(DataFormatError, match="item 'random/1': there is no task 'gqa', only privacy_pair, pope"):
        tally_answers(read_answered(file))
    stored(tmp_path, task="scienceqa")
    with pytest.raises(
        DataFormatError, match=r"item 'random/1' of 'scienceqa': 'fields\.choices' has to be a list, found None"
    ):
        tally_answers(read_answered(file))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"truth": "A"}, "item 'random/1' of 'pope': 'truth' has to be one of yes, no, found 'A'"),
        ({"task": "scienceqa", "truth": "C", "fields": {"choices": ["a", "b"]}}, "'truth' has to be one of A, B, found 'C'"),
        ({"task": "mme", "fields": {"subtask": "ocr"}}, "item 'random/1' of 'mme': 'fields.subtask' is 'ocr'; there are"),
        ({"task": "mme", "fields": {"subtask": "OCR"}}, "image 'a.png' of 'OCR' has 1 questions; MME asks two of each image"),
        ({"task": "privacy_pair", "fields": {"split": "test", "record": "r", "role": "other"}}, "'fields.role' has"),
        (
            {"task": "privacy_pair", "fields": {"split": "test", "record": "r", "role": "benign", "synonyms": [3]}},
            "'fields.synonyms' has to be a list of texts, found '[3]'",
        ),
        (
            {"task": "privacy_pair", "truth": "...", "fields": {"split": "test", "record": "r", "role": "benign"}},
            "item 'random/1' of 'privacy_pair': value '...' has neither letters nor digits",
        ),
    ],
)  # fmt: skip
def test_stored_answers_that_cannot_be_scored_are_named(
    tmp_path: Path, change: dict[str, object], message: str
) -> None:
    stored(tmp_path, **change)
    with pytest.raises(DataFormatError, match=re.escape(message)) as error:
        tally_run(tmp_path)
    assert str(error.value).startswith(f"{tmp_path}: item 'random/1' of ")


def test_a_third_question_of_an_image_among_stored_answers(tmp_path: Path) -> None:
    rows = [
        json.loads(stored(tmp_path, task="mme", item_id=f"OCR/a.png/{n}", fields={"subtask": "OCR"}).read_text())
        for n in range(3)
    ]
    json_lines(tmp_path / "answers.jsonl", rows)
    with pytest.raises(
        DataFormatError, match=r"item 'OCR/a\.png/2' of 'mme': image 'a\.png' of 'OCR' has more than two"
    ):
        tally_run(tmp_path)


def test_a_file_without_answers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "answers.jsonl").write_text("")
    assert main(["score", str(tmp_path)]) == 1
    assert f"{tmp_path} holds no answers, so there is nothing to score" in capsys.readouterr().err


def test_a_long_answer_and_an_empty_one_are_scored(tmp_path: Path) -> None:
    long = "I'm sorry, " + "no " * (5 << 20)
    answers = [
        AnsweredItem("pope", str(number), "a.png", "Is it?", "yes", {"category": ""}, answer)
        for number, answer in enumerate(("", long, "\ud800"))
    ]
    figures = {name: float(value) for name, value in tally_answers(answers)["pope"].compute().items()}
    # by POPE's rule an empty answer and a broken character are a yes; the long one says no
    assert figures["accuracy"] == pytest.approx(2 / 3)
    assert figures["refused"] == pytest.approx(1 / 3)
    assert figures["unparsed"] == pytest.approx(2 / 3)


OLD_LINE = {
    "model": "evaluated", "split": "test", "record_id": "p", "subject": "passport", "image": "a.png", "sensitive": True,
    "attribute": "number", "query": "What is it?", "answer": "Sorry.", "refused": True, "truth": None, "leaked": None,
    "leaked_share": None, "correct": None, "judged": None,
}  # fmt: skip


def test_answers_in_the_format_of_an_earlier_version_are_refused_with_the_way_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = json_lines(tmp_path / "old" / "answers.jsonl", [OLD_LINE])
    message = (
        f"{file}, line 1: an answer in the format of an earlier version, which is no longer read; run `neuralgate eval`"
    )
    for command in (["score", str(file.parent)], ["compare", *[str(file.parent)] * 2, "--out", str(tmp_path / "out")]):
        assert main(command) == 1
        assert message in capsys.readouterr().err
    with pytest.raises(DataFormatError, match=re.escape(message)):
        read_answers(file)


def test_answers_of_a_demo_are_refused_with_the_way_out(tmp_path: Path) -> None:
    write_answers(tmp_path / "answers.jsonl", [judged_answer(True, "Sorry.", True)])
    with pytest.raises(
        DataFormatError, match=r"no field 'model'; .* answers of `neuralgate demo`, .* run `neuralgate eval`"
    ):
        list(read_answered(tmp_path))
