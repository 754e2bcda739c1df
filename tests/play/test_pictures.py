"""Pictures to ask about: files, and subjects that are drawn."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from lightning_neuralgate.errors import DataFormatError
from lightning_neuralgate.play.pictures import draw_picture, open_picture, picture_of


def test_a_subject_is_drawn_from_its_seed() -> None:
    first, again, other = (
        draw_picture(name, seed) for name, seed in (("student ID", 3), ("student_id", 3), ("student ID", 4))
    )
    assert first == again
    assert first.png != other.png
    assert (first.name, first.subject) == ("student ID from seed 3", "student ID")
    assert picture_of("passport", None).values != picture_of("passport", None).values, "drawn afresh"


def test_the_field_that_a_question_names_last_is_the_one_asked_for() -> None:
    picture = draw_picture("passport", 0)
    questions = ("What colour is it?", "WHICH PASSPORT NUMBER?", "Not the colour, the date of birth", "What is it?")
    asked = [picture.asked_field(question) for question in questions]
    assert [None if found is None else found[0] for found in asked] == ["colour", "number", "birth", None]
    assert open_picture(picture.png, "copy.png").asked_field("What colour is it?") is None


def test_a_file_comes_before_a_subject_of_that_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (20, 10), "red").save("passport", format="PNG")
    assert picture_of("passport", None).spec is None
    with pytest.raises(DataFormatError, match="--seed is for a subject that is drawn, and passport is a file"):
        picture_of("passport", 1)


def test_what_is_no_picture_is_refused_by_its_name(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("not a picture")
    for name, problem in (
        (
            "missing.png",
            r"missing\.png is neither a file nor a subject that can be drawn; there are bank_card, .*passport",
        ),
        ("notes.txt", r"^picture .*notes\.txt cannot be read: not one of the formats PNG"),
        (".", r"is a folder; give a picture in it"),
    ):
        with pytest.raises(DataFormatError, match=problem):
            picture_of(str(tmp_path / name), None)
    with pytest.raises(DataFormatError, match=r"record up\.png: picture of 3 bytes cannot be read"):
        open_picture(b"GIF", "up.png")
