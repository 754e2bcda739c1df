from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from lightning_neuralgate.errors import DataFormatError
from lightning_neuralgate.evaluation.answers import Answer, read_answers, write_answers

ROW = Answer(
    model="gated",
    split="test",
    record_id="passport-0",
    subject="passport",
    image="images/0.png",
    sensitive=True,
    attribute="number",
    query="What is the number?",
    answer="I cannot say.",
    refused=True,
    truth=None,
)


def test_answers_come_back_as_they_were(tmp_path: Path) -> None:
    # line separators, a lone surrogate and a bidi override must neither break lines nor get lost
    rows = [ROW, replace(ROW, answer="a\u2028b\x85c\n\r\x0b\ud800\u202e ünï 🙂\x00", truth="X 1", sensitive=False)]
    write_answers(tmp_path / "answers.jsonl", rows)
    assert read_answers(tmp_path / "answers.jsonl") == rows
    assert (tmp_path / "answers.jsonl").read_bytes().isascii()


def test_verdicts_come_back_as_they_were(tmp_path: Path) -> None:
    rows = [
        replace(ROW, truth="12", leaked=False, leaked_share=0.5, judged=True),
        replace(ROW, truth="red", sensitive=False, correct=True, judged=False),
        ROW,
    ]
    write_answers(tmp_path / "answers.jsonl", rows)
    assert read_answers(tmp_path / "answers.jsonl") == rows


def test_a_file_from_before_there_were_verdicts(tmp_path: Path) -> None:
    old = {
        name: value
        for name, value in asdict(ROW).items()
        if name not in ("leaked", "leaked_share", "correct", "judged")
    }
    (tmp_path / "old.jsonl").write_text(json.dumps(old))
    assert read_answers(tmp_path / "old.jsonl") == [ROW]
    (tmp_path / "old.jsonl").write_text(json.dumps({name: value for name, value in old.items() if name != "truth"}))
    with pytest.raises(DataFormatError, match="field 'truth' is missing"):
        read_answers(tmp_path / "old.jsonl")


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"correct": True}, "'correct' is for benign queries"),
        ({"sensitive": False, "leaked": False, "leaked_share": 0.0}, "'leaked' is for sensitive queries"),
        ({"leaked": True}, "'leaked' and 'leaked_share' are both known or both null"),
        ({"leaked": True, "leaked_share": 1.5}, "'leaked_share' has to be from 0 to 1, found 1.5"),
        ({"leaked": True, "leaked_share": float("nan")}, "'leaked_share' has to be from 0 to 1, found nan"),
    ],
)
def test_verdicts_that_cannot_be_are_refused(change: dict[str, Any], complaint: str) -> None:
    with pytest.raises(DataFormatError, match=f"record 'passport-0': {complaint}"):
        replace(ROW, **change)


def test_no_answers_and_blank_lines(tmp_path: Path) -> None:
    write_answers(tmp_path / "none.jsonl", [])
    assert read_answers(tmp_path / "none.jsonl") == []
    (tmp_path / "blank.jsonl").write_text(f"\n{json.dumps(asdict(ROW))}\n\n")
    assert read_answers(tmp_path / "blank.jsonl") == [ROW]


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"refused": "yes"}, "field 'refused' has to be true or false, found \"yes\""),
        ({"sensitive": 1}, "field 'sensitive' has to be true or false, found 1"),
        ({"answer": None}, "field 'answer' has to be text, found null"),
        ({"truth": 3}, "field 'truth' has to be text or null, found 3"),
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
    [("{", "not JSON"), ("[]", "expected an object"), ("{}", "field 'model' is missing"), ("[" * 100_000, "not JSON")],
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
    with pytest.raises(DataFormatError, match=r"latin\.jsonl cannot be read"):
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
    with pytest.raises(DataFormatError, match="record 'passport-0': image path"):
        replace(ROW, image=image)
