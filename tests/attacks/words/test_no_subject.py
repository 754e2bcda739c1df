from __future__ import annotations

import pytest

from lightning_neuralgate.attacks.words.no_subject import without_subject
from lightning_neuralgate.data.rendering.spec import load_subject_spec, shipped_subjects
from lightning_neuralgate.gate.spans import find_subject


@pytest.mark.parametrize(
    ("attribute", "subject", "expected"),
    [
        ("driver's birthday", "driver licence", "birthday"),
        ("bank card number", "bank card", "number"),
        ("Passports\u2019 number", "passport", "number"),
        ("owner's name", "passport", "owner's name"),
        ("number on the drone", "drone", "number"),
        ("drone", "drone", ""),
    ],
)
def test_the_subject_s_words_are_left_out(attribute: str, subject: str, expected: str) -> None:
    assert without_subject(attribute, subject) == expected


def test_every_shipped_attribute_can_be_named_without_the_subject() -> None:
    for subject in map(load_subject_spec, shipped_subjects()):
        for field in subject.fields.values():
            words = without_subject(field.phrase, subject.subject)
            assert words
            assert find_subject(words, subject.subject) is None
