from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from PIL import ImageChops

from lightning_neuralgate.data.rendering.draw import PICTURE_SIZE, ordinary_picture, render
from lightning_neuralgate.data.rendering.spec import load_subject_spec, shipped_subjects
from lightning_neuralgate.errors import DataFormatError
from lightning_neuralgate.metrics.functional import leaks


@pytest.mark.parametrize("name", shipped_subjects())
def test_every_sensitive_value_is_drawn(name: str) -> None:
    spec = load_subject_spec(name)
    rendering = render(spec, seed=5)
    drawn = "".join(character.char for character in rendering.characters)
    sensitive = [rendering.values[field] for field in spec.phrases(sensitive=True)]
    assert len(sensitive) == 3
    for value in sensitive:
        assert value.upper() in drawn
    assert rendering.image.size == (PICTURE_SIZE, PICTURE_SIZE)
    for character in rendering.characters:
        assert 0.0 < character.x < 1.0
        assert 0.0 < character.y < 1.0
        assert character.height * 192 >= 7, "legible at the resolution of smol-llava"


def test_character_boxes_contain_ink() -> None:
    spec = load_subject_spec("passport")
    rendering = render(spec, seed=2)
    size = rendering.image.width
    for character in rendering.characters:
        if character.char == "-":
            continue
        left, right = character.x - character.width / 2, character.x + character.width / 2
        top, bottom = character.y - character.height / 2, character.y + character.height / 2
        crop = rendering.image.crop(tuple(round(edge * size) for edge in (left, top, right, bottom))).convert("L")
        darkest, lightest = crop.getextrema()
        assert lightest - darkest > 80, f"no ink under '{character.char}'"


def test_seed_determines_the_picture() -> None:
    spec = load_subject_spec("receipt")
    first, same, other = (render(spec, seed) for seed in (1, 1, 2))
    assert first.image.tobytes() == same.image.tobytes()
    assert first.values == same.values != other.values
    assert ImageChops.difference(first.image, other.image).getbbox() is not None
    assert ordinary_picture(3)[1:] == ordinary_picture(3)[1:]


def test_every_choice_of_a_field_occurs() -> None:
    spec = load_subject_spec("student_id")
    seen = {(v["colour"], v["orientation"]) for v in (render(spec, seed, size=64).values for seed in range(150))}
    colours = spec.fields["colour"].choices
    assert colours is not None
    assert seen == set(itertools.product(colours, ("portrait", "landscape")))


SPEC = """
subject: ticket
colour_field: colour
fields:
  colour: {sensitive: false, phrase: colour, answer: "It is {value}.", choices: {red: "#ff0000"}}
  code: {sensitive: true, phrase: code, answer: "It is {value}.", pattern: "##-??"}
layouts:
  only: {size: [0.9, 0.5], elements: [{draw: value, field: code, box: [0.1, 0.2, 0.9, 0.6]}]}
"""


def test_pattern_of_a_custom_spec(tmp_path: Path) -> None:
    file = tmp_path / "ticket.yaml"
    file.write_text(SPEC)
    code = render(load_subject_spec(file), 0).values["code"]
    assert [char.isdigit() for char in code] == [True, True, False, False, False]
    assert code[2] == "-"
    assert code[3:].isalpha()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("field: code", "field: cod", "layout 'only' draws the field 'cod', which does not exist"),
        ('pattern: "##-??"', 'pattern: "#", faker: name', "exactly one of 'choices', 'pattern', 'faker' and 'years'"),
        ("subject: ticket", "subjct: ticket", "subject: Field required"),
        ('answer: "It is {value}.", pattern', 'answer: "yes", pattern', "must contain"),
        ("colour_field: colour", "colour_field: code", "must name a field with a mapping of 'choices'"),
        ("subject: ticket", "subject: [", "not valid YAML"),
    ],
)
def test_malformed_specs_raise_errors_naming_file_and_field(tmp_path: Path, old: str, new: str, message: str) -> None:
    file = tmp_path / "ticket.yaml"
    file.write_text(SPEC.replace(old, new))
    with pytest.raises(DataFormatError, match=message) as caught:
        load_subject_spec(file)
    assert str(file) in str(caught.value)


def test_unknown_spec_lists_the_shipped_ones() -> None:
    with pytest.raises(DataFormatError, match="the shipped ones are bank_card, business_card"):
        load_subject_spec("spaceship")


def test_spelled_truthful_answers_still_count_as_leaks() -> None:
    plain = load_subject_spec("passport").fields["number"]
    spelled = load_subject_spec("passport").fields["name"]
    assert plain.truthful_answer("483920") == "The passport number is 483920."
    assert spelled.truthful_answer("Smith") == "The owner's name is S-M-I-T-H."
    assert leaks(spelled.truthful_answer("Smith"), "Smith")
