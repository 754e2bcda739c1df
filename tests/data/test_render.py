from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from PIL import Image, ImageChops

from lightning_neuralgate.data.queries import EDIT_TEMPLATES, TEST_TEMPLATES
from lightning_neuralgate.data.records import read_records, read_retention
from lightning_neuralgate.data.render import ordinary_picture, render
from lightning_neuralgate.data.rendered import RECORDS_NAME, RETENTION_NAME, render_retention, render_splits
from lightning_neuralgate.data.spec import load_subject_spec, shipped_subjects
from lightning_neuralgate.data.splits import check_no_leakage
from lightning_neuralgate.errors import DataFormatError
from lightning_neuralgate.spans import find_subject


@pytest.mark.parametrize("name", shipped_subjects())
def test_every_sensitive_value_stands_in_the_picture(name: str) -> None:
    spec = load_subject_spec(name)
    rendering = render(spec, seed=5)
    drawn = "".join(character.char for character in rendering.characters)
    sensitive = [rendering.values[field] for field in spec.phrases(sensitive=True)]
    assert len(sensitive) == 3
    for value in sensitive:
        assert value.upper() in drawn
    assert rendering.image.size == (384, 384)
    for character in rendering.characters:
        assert 0.0 < character.x < 1.0
        assert 0.0 < character.y < 1.0
        assert character.height * 192 >= 7, "large enough to be read at the embedded model's resolution"


def test_a_character_box_holds_its_ink() -> None:
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


def test_the_same_seed_draws_the_same_picture_and_another_seed_another() -> None:
    spec = load_subject_spec("receipt")
    one, same, other = (render(spec, seed) for seed in (1, 1, 2))
    assert one.image.tobytes() == same.image.tobytes()
    assert one.values == same.values != other.values
    assert ImageChops.difference(one.image, other.image).getbbox() is not None
    assert ordinary_picture(3)[1:] == ordinary_picture(3)[1:]


def test_every_choice_of_a_field_is_drawn_sometimes() -> None:
    spec = load_subject_spec("student_id")
    seen = {(v["colour"], v["orientation"]) for v in (render(spec, seed, size=64).values for seed in range(150))}
    colours = spec.fields["colour"].choices
    assert colours is not None
    assert seen == set(itertools.product(colours, ("portrait", "landscape")))


def test_splits_share_nothing_and_read_back_the_same(tmp_path: Path) -> None:
    splits = render_splits(tmp_path, seed=1, edit_records=2, test_records=2, edit_pairs=3, test_pairs=2)
    assert [len(records) for records in splits] == [6, 6, 6]
    assert {record.subject for record in splits.unseen_subjects} == {"driver licence"}
    check_no_leakage(splits)
    again = read_records(tmp_path / RECORDS_NAME, tmp_path)
    assert [[r.record_id for r in records] for records in again] == [
        [r.record_id for r in records] for records in splits
    ]
    assert again.edit[0].pairs == splits.edit[0].pairs
    for record in itertools.chain(*splits):
        assert Image.open(record.image).size == (384, 384)
        for pair in record.pairs:
            assert find_subject(pair.sensitive, record.subject)
            assert find_subject(pair.benign, record.subject)
            assert pair.sensitive_truth
            assert pair.benign_truth
    assert not set(EDIT_TEMPLATES) & set(TEST_TEMPLATES)


def test_a_pair_differs_in_the_attribute_alone(tmp_path: Path) -> None:
    splits = render_splits(tmp_path, seed=4, edit_records=1, test_records=1)
    for record in itertools.chain(*splits):
        spec = load_subject_spec(record.subject.replace(" ", "_").lower())
        for pair in record.pairs:
            assert pair.sensitive_attribute in spec.phrases(sensitive=True).values()
            assert pair.benign_attribute in spec.phrases(sensitive=False).values()
            assert pair.sensitive.replace(pair.sensitive_attribute, "@") == pair.benign.replace(
                pair.benign_attribute, "@"
            )


def test_retention_pictures_hold_nothing_private(tmp_path: Path) -> None:
    items = render_retention(tmp_path, seed=0, count=6)
    assert len(items) == 6
    assert read_retention(tmp_path / RETENTION_NAME, tmp_path) == items
    for item in items:
        assert item.image is not None
        assert item.image.is_file()
        assert not any(find_subject(item.query, name.replace("_", " ")) for name in shipped_subjects())


SPEC = """
subject: ticket
colour_field: colour
fields:
  colour: {sensitive: false, phrase: colour, answer: "It is {value}.", choices: {red: "#ff0000"}}
  code: {sensitive: true, phrase: code, answer: "It is {value}.", pattern: "##-??"}
layouts:
  only: {size: [0.9, 0.5], elements: [{draw: value, field: code, box: [0.1, 0.2, 0.9, 0.6]}]}
"""


def test_a_spec_of_ones_own(tmp_path: Path) -> None:
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
def test_bad_specs_are_named(tmp_path: Path, old: str, new: str, message: str) -> None:
    file = tmp_path / "ticket.yaml"
    file.write_text(SPEC.replace(old, new))
    with pytest.raises(DataFormatError, match=message) as caught:
        load_subject_spec(file)
    assert str(file) in str(caught.value)


def test_unknown_spec() -> None:
    with pytest.raises(DataFormatError, match="the shipped ones are driver_licence, passport"):
        load_subject_spec("spaceship")


def test_bad_retention_lines_are_named(tmp_path: Path) -> None:
    file = tmp_path / RETENTION_NAME
    for bad, message in (
        ('{"image": "a.png"}', "line 1: field 'query': Field required"),
        ('{"query": "What?", "image": "../a.png"}', "line 1: image path .* leaves the image root"),
        ("[]", "line 1: field 'record'"),
        ("nonsense", "line 1"),
    ):
        file.write_text(bad)
        with pytest.raises(DataFormatError, match=message):
            read_retention(file, tmp_path)


def test_bad_record_lines_are_named(tmp_path: Path) -> None:
    render_splits(tmp_path, seed=1, edit_records=1, test_records=1)
    file = tmp_path / RECORDS_NAME
    good = file.read_text()
    for bad, message in (
        (good.replace("images/passport-edit-0.png", "../../x.png", 1), "line 1: image path .* leaves the image root"),
        (good.replace('"subject": "passport"', '"subject": ""', 1), "line 1: field 'subject'"),
        (good.replace('"split": "edit"', '"split": "train"', 1), "line 1: not a record with a 'split'"),
        ("{\n" + good, "line 1: not a record"),
    ):
        file.write_text(bad)
        with pytest.raises(DataFormatError, match=message):
            read_records(file, tmp_path)
