"""The README's picture shows the questions and answers of a stored run, in a light and a dark theme."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from lightning_neuralgate.errors import DataFormatError
from lightning_neuralgate.evaluation.answers import read_answers, write_answers
from recipes.draw_readme_picture import SCALE, THEMES, WIDTH, choose_questions, main
from tests.demo.report.data import answers


@pytest.fixture
def run(tmp_path: Path) -> Path:
    write_answers(tmp_path / "run" / "answers.jsonl", answers(tmp_path / "run" / "data", records=2))
    return tmp_path / "run"


def test_light_and_dark_pictures_are_drawn_from_a_run(run: Path, tmp_path: Path) -> None:
    main(["--run", str(run), "--out", str(tmp_path / "images")])
    pictures = [Image.open(tmp_path / "images" / f"answers-{theme}.png") for theme in THEMES]
    assert all(picture.width == WIDTH * SCALE for picture in pictures)
    assert len({picture.tobytes() for picture in pictures}) == len(THEMES)


def test_first_passport_is_shown_with_two_sensitive_questions_and_a_benign_one(run: Path) -> None:
    questions = choose_questions(read_answers(run / "answers.jsonl"), None, "gated")
    assert [question.before.sensitive for question in questions] == [True, True, False]
    assert {question.before.record_id for question in questions} == {"passport-0"}
    assert {(question.before.model, question.after.model) for question in questions} == {("unedited", "gated")}


def test_unknown_record_is_an_error_that_names_it(run: Path) -> None:
    with pytest.raises(DataFormatError, match="record 'passport-9'"):
        choose_questions(read_answers(run / "answers.jsonl"), "passport-9", "gated")
