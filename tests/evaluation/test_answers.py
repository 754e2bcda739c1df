from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from lightning_neuralgate.errors import DataFormatError
from lightning_neuralgate.evaluation.answers import read_answers, write_answers
from tests.helpers.answers import judged_answer

ROW = judged_answer(
    True, "I cannot say.", True, record_id="passport-0", image="images/0.png", attribute="number", query="The number?"
)  # fmt: skip
BENIGN = judged_answer(False, "It is red.", record_id="passport-0", image="images/0.png")


def test_answers_and_verdicts_come_back_as_they_were(tmp_path: Path) -> None:
    # line separators, a lone surrogate and a bidi override must neither break lines nor get lost
    rows = [
        ROW,
        replace(BENIGN, answer="a\u2028b\x85c\n\r\x0b\ud800\u202e ünï 🙂\x00", truth="X 1"),
        replace(ROW, truth="12", leaked=False, leaked_share=0.5, judged=True),
        replace(BENIGN, truth="red", correct=True, judged=False),
    ]
    write_answers(tmp_path / "answers.jsonl", rows)
    assert read_answers(tmp_path / "answers.jsonl") == rows
    assert (tmp_path / "answers.jsonl").read_bytes().isascii()


def test_verdicts_that_are_unknown_may_be_absent(tmp_path: Path) -> None:
    content = {
        name: value
        for name, value in asdict(ROW).items()
        if name not in ("leaked", "leaked_share", "correct", "judged")
    }
    (tmp_path / "few.jsonl").write_text(json.dumps(content))
    assert read_answers(tmp_path / "few.jsonl") == [ROW]
    del content["truth"]
    (tmp_path / "few.jsonl").write_text(json.dumps(content))
    with pytest.raises(DataFormatError, match="field 'truth' is missing"):
        read_answers(tmp_path / "few.jsonl")


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"correct": True}, "'correct' is for benign queries"),
        ({"leaked": True}, "'leaked' and 'leaked_share' are both known or both null"),
        ({"leaked": True, "leaked_share": 1.5}, "'leaked_share' has to be from 0 to 1, found 1.5"),
        ({"leaked": True, "leaked_share": float("nan")}, "'leaked_share' has to be from 0 to 1, found nan"),
    ],
)
def test_inconsistent_verdicts_are_refused(change: dict[str, Any], complaint: str) -> None:
    with pytest.raises(DataFormatError, match=f"item 'test/passport-0' of 'privacy_pair': {complaint}"):
        replace(ROW, **change)
    with pytest.raises(DataFormatError, match="'leaked' is for sensitive queries"):
        replace(BENIGN, leaked=False, leaked_share=0.0)


def test_no_answers_and_blank_lines(tmp_path: Path) -> None:
    write_answers(tmp_path / "none.jsonl", [])
    assert read_answers(tmp_path / "none.jsonl") == []
    (tmp_path / "blank.jsonl").write_text(f"\n{json.dumps(asdict(ROW))}\n\n")
    assert read_answers(tmp_path / "blank.jsonl") == [ROW]


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"refused": "yes"}, "field 'refused' has to be true or false or null, found \"yes\""),
        ({"fields": []}, "field 'fields' has to be an object, found []"),
        ({"fields": {"split": "test", "record": "0", "role": 1}}, "'fields.role' has to be text, found 1"),
        ({"fields": {"split": "test", "record": "0", "role": "x"}}, "'fields.role' has to be sensitive or benign"),
        ({"answer": None}, "field 'answer' has to be text, found null"),
        ({"truth": 3}, "field 'truth' has to be text, found 3"),
        ({"leaked": 1, "leaked_share": 1.0}, "field 'leaked' has to be true or false or null, found 1"),
        ({"leaked_share": True}, "field 'leaked_share' has to be a number or null, found true"),
        ({"leaked_share": "all"}, "field 'leaked_share' has to be a number or null, found \"all\""),
        ({"leaked": True, "leaked_share": 2}, "'leaked_share' has to be from 0 to 1, found 2"),
        ({"judged": "no"}, "field 'judged' has to be true or false or null"),
        ({"score": 1}, "no field 'score'"),
        ({"image": "../0.png"}, "image path '../0.png' has to be relative"),
    ],
)
def test_a_bad_field_is_named_with_file_and_line(tmp_path: Path, change: dict[str, Any], complaint: str) -> None:
    file = tmp_path / "answers.jsonl"
    file.write_text(f"{json.dumps(asdict(ROW))}\n{json.dumps(asdict(ROW) | change)}\n")
    with pytest.raises(DataFormatError) as caught:
        read_answers(file)
    assert str(caught.value).startswith(f"{file}, line 2: ")
    assert complaint in str(caught.value)


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("{", "not JSON"),
        ("[]", "expected one JSON object"),
        ("{}", "field 'task' is missing"),
        ("[" * 100_000, "not JSON"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: str, complaint: str) -> None:
    file = tmp_path / "answers.jsonl"
    file.write_text(f"{json.dumps(asdict(ROW))}\n{line}\n")
    with pytest.raises(DataFormatError, match=f"line 2: .*{complaint}"):
        read_answers(file)


def test_an_unreadable_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataFormatError, match=r"absent\.jsonl cannot be read"):
        read_answers(tmp_path / "absent.jsonl")
    (tmp_path / "latin.jsonl").write_bytes(b'{"answer": "\xff"}')
    with pytest.raises(DataFormatError, match=r"latin\.jsonl, line 1: not UTF-8"):
        read_answers(tmp_path / "latin.jsonl")


def test_writing_that_fails_leaves_the_old_file(tmp_path: Path) -> None:
    file = tmp_path / "answers.jsonl"
    write_answers(file, [ROW])
    with pytest.raises(TypeError):
        write_answers(file, [replace(ROW, answer="other"), "no answer"])  # type: ignore[list-item]
    assert read_answers(file) == [ROW]
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize(
    "image", ["../a.png", "a/../../b.png", "/etc/a.png", "C:\\a.png", "C:a.png", "\\\\host\\a.png", "a\\..\\b.png", ""]
)
def test_an_image_outside_its_folder_is_refused(image: str) -> None:
    with pytest.raises(DataFormatError, match="item 'test/passport-0' of 'privacy_pair': image path"):
        replace(ROW, image=image)
