from __future__ import annotations

import random

import pytest

from lightning_neuralgate.data.decoys import decoy_values
from lightning_neuralgate.metrics.functional.leak import normalize_value


@pytest.mark.parametrize(
    ("subject", "attribute", "truth", "others", "pattern"),
    [
        ("passport", "passport number", "482136", [], "######"),
        ("passport", "colour", "red", [], ""),
        ("visa", "code", "AB-12", [], "??-##"),
        ("visa", "code", "AB-12", ["CD-34", "ab 12"], "??-##"),
    ],
)
def test_decoys_are_distinct_wrong_and_of_the_same_kind(
    subject: str, attribute: str, truth: str, others: list[str], pattern: str
) -> None:
    found = decoy_values(subject, attribute, truth, others, 3, random.Random(1))
    assert found == decoy_values(subject, attribute, truth, others, 3, random.Random(1))
    assert len({normalize_value(value) for value in [truth, *found]}) == 4
    assert not pattern or all(_kind(value) == pattern for value in found)
    assert not others or "CD-34" in found


def _kind(value: str) -> str:
    return "".join("#" if char.isdigit() else "?" if char.isalpha() else char for char in value)


def test_choices_are_the_only_decoys_of_their_attribute() -> None:
    assert decoy_values("passport", "orientation", "portrait", ["sideways"], 3, random.Random(0)) == ["landscape"]


def test_a_value_without_letters_and_digits_to_replace_has_no_decoys() -> None:
    assert decoy_values("visa", "place", "東京", [], 3, random.Random(0)) == []
