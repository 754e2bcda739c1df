"""Bounds of subject, sign and scene specs: what a hostile or mistyped spec could ask for is refused, with file and field."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from lightning_neuralgate.data.rendering.draw import render
from lightning_neuralgate.data.rendering.spec import load_subject_spec
from lightning_neuralgate.errors import DataFormatError

SPEC = """
subject: ticket
colour_field: colour
test_templates: ["Which {attribute} has this {subject}?"]
fields:
  colour: {sensitive: false, phrase: colour, answer: "It is {value}.", choices: {red: "#ff0000"}}
  code: {sensitive: true, phrase: code, answer: "It is {value}.", pattern: "##-??"}
  owner: {sensitive: true, phrase: owner, answer: "It is {value}.", faker: last_name}
  born: {sensitive: true, phrase: birth, answer: "It is {value}.", years: [1950, 2000], date_format: "%d.%m.%Y"}
  from: {sensitive: true, phrase: country, answer: "It is {value}.", choices: [Norway, Sweden]}
layouts:
  only: {size: [0.9, 0.5], elements: [{draw: value, field: code, box: [0.1, 0.2, 0.9, 0.6]}]}
"""
BOX = "box: [0.1, 0.2, 0.9, 0.6]"
WRONG = {
    "NO": ("[Norway, Sweden]", "[NO, SE]", "fields.from.choices: .*choice 1 is the boolean False; put it in quotes"),
    "numbers": ("[Norway, Sweden]", "[one, 2]", "choice 2 is the number 2; put it in quotes"),
    "dates": ("[Norway, Sweden]", "[2020-01-02]", "choice 1 is the date 2020-01-02; put it in quotes"),
    "nothing": ("[Norway, Sweden]", "[~]", "choice 1 is empty; put it in quotes"),
    "NO as a key": ('{red: "#ff0000"}', '{NO: "#ff0000"}', "choice 1 is the boolean False; put it in quotes"),
    "an unquoted colour": ('{red: "#ff0000"}', "{red: 112233}", "found the number 112233; put text in quotes"),
    "a colour by name": ('{red: "#ff0000"}', "{red: rot}", "fields.colour.choices"),
    "twice": ("[Norway, Sweden]", "[Norway, Norway]", "the choice 'Norway' is given twice"),
    "a key twice": ('{red: "#ff0000"}', '{red: "#ff0000", red: "#00ff00"}', "the key 'red' is given twice"),
    "no choices": ("[Norway, Sweden]", "[]", "fields.from.choices"),
    "an empty choice": ("[Norway, Sweden]", "['']", "fields.from.choices"),
    "an empty pattern": ('"##-??"', '""', "fields.code.pattern"),
    "a long pattern": ('"##-??"', '"' + "#" * 100 + '"', "fields.code.pattern"),
    "a year after the calendar": ("[1950, 2000]", "[1950, 9999]", "fields.born.years"),
    "the year 0": ("[1950, 2000]", "[0, 2000]", "fields.born.years"),
    "a wide date": ("%d.%m.%Y", "%999999999d", "fields.born.date_format"),
    "Faker's own method": ("faker: last_name", "faker: add_provider", "fields.owner.faker: Faker has no provider"),
    "arguments": ("faker: last_name", "faker: enum", "fields.owner.faker: Faker has no provider"),
    "bytes": ("faker: last_name", "faker: binary", "fields.owner.faker: Faker has no provider"),
    "a misspelled provider": ("faker: last_name", "faker: lastname", "fields.owner.faker: Faker has no provider"),
    "a format of 3 GB": ('"It is {value}.", pattern', '"{value:>3000000000}", pattern', "must contain {value}"),
    "another brace": ('"It is {value}.", pattern', '"{value} of {owner}", pattern', "no other braces"),
    "an attribute": ('"It is {value}.", pattern', '"{value} {value.__class__}", pattern', "no other braces"),
    "a template's brace": ("this {subject}?", "this {subject} {0}?", "no other braces"),
    "a huge box": (BOX, "box: [-1e9, 0, 1, 1]", "elements.0.value.box.0"),
    "a tall box": (BOX, "box: [0, 0, 1, 1e9]", "elements.0.value.box.3"),
    "infinity": (BOX, "box: [0, 0, 1, .inf]", "not valid YAML"),
    "a box turned round": (BOX, "box: [0.9, 0.2, 0.1, 0.6]", "left < right"),
    "a wide picture": ("size: [0.9, 0.5]", "size: [150, 150]", "layouts.only.size.0"),
    "no size": ("size: [0.9, 0.5]", "size: [0, -1]", "layouts.only.size.0"),
    "no layouts": ("layouts:\n", "layouts: {}\nmore:\n", "layouts"),
    "a long subject": ("subject: ticket", "subject: " + "t" * 300, "subject"),
    "a control character": ("subject: ticket", 'subject: "a\\nb"', "subject"),
    "a background by name": ("colour_field", "variations: {backgrounds: [blue]}\ncolour_field", "backgrounds.0"),
    "a negative light": ("colour_field", "variations: {light: [-5, 1]}\ncolour_field", "light.0"),
    "an emblem without a shape": (
        "elements: [", "elements: [{draw: emblem, field: from, box: [0, 0, 1, 1]}, ", "such as 'Norway'; the shapes are star"
    ),
    "many elements": (
        "elements: [", "elements: [" + "{draw: photo, box: [0, 0, 1, 1]}, " * 300, "layouts.only.elements"
    ),
    "many fields": (
        "fields:\n",
        "fields:\n"
        + "".join(f"  f{n}: {{sensitive: true, phrase: a, answer: '{{value}}', pattern: '#'}}\n" for n in range(200)),
        "fields: ",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_wrong_values_are_refused_with_file_line_and_field(tmp_path: Path, name: str) -> None:
    old, new, reason = WRONG[name]
    assert old in SPEC
    (tmp_path / "own.yaml").write_text(SPEC.replace(old, new, 1))
    with pytest.raises(DataFormatError) as caught:
        load_subject_spec(tmp_path / "own.yaml")
    assert re.match(rf"{re.escape(str(tmp_path / 'own.yaml'))}(, line \d+)?: .*{reason}", str(caught.value)), (
        caught.value
    )


def test_the_spec_without_changes_can_be_drawn(tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text(SPEC)
    spec = load_subject_spec(tmp_path / "own.yaml")
    assert set(render(spec, 0, 64).values) == set(spec.fields)
