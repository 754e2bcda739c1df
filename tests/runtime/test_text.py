from __future__ import annotations

import pytest

from lightning_neuralgate.runtime.text import csv_text, fold, printable


def test_folding_maps_each_character_to_its_source() -> None:
    text = "\ufb01 re\u0301\u200b \uff21\u1100\u1161 \u00df"
    folded = fold(text)
    assert folded.text == "fi re a\uac00 ss"
    assert [text[slice(*folded.source_span(place, place + 1))] for place in (0, 1, 4, 6, 7, 9, 10)] == [
        "\ufb01", "\ufb01", "e\u0301", "\uff21", "\u1100\u1161", "\u00df", "\u00df",
    ]  # fmt: skip


def test_marks_that_change_a_letter_are_kept() -> None:
    for first, second in (("\u304b", "\u304c"), ("\u0915\u093f", "\u0915\u0940"), ("\u0e01", "\u0e01\u0e48")):
        assert fold(first).text != fold(second).text
    assert fold("\u0451\u043b\u043a\u0430").text == fold("\u0435\u043b\u043a\u0430").text
    assert fold("\u0643\u064e\u062a\u064e\u0628").text == fold("\u0643\u062a\u0628").text


@pytest.mark.parametrize(
    "attack", ["\x1b]0;title\x07", "\x1b[2J", "\x9b31m", "\r", "\x08\x08", "\u202e", "\u2066", "\ud800", "\x00"]
)
def test_control_sequences_are_escaped(attack: str) -> None:
    shown = printable(f"red {attack}text")
    assert shown.isprintable()
    assert shown.startswith("red \\") and shown.endswith("text")  # noqa: PT018


def test_line_breaks_stay_unless_a_single_line_is_needed() -> None:
    assert printable("a\n\tb") == "a\n\tb"
    assert printable("a\n\tb", single_line=True) == "a\\n\\tb"


@pytest.mark.parametrize("cell", ["=cmd|' /C calc'!A0", "+1", "-1+2", "@SUM(A1)", " =1", "\t=1", "\r=1"])
def test_cells_that_a_spreadsheet_would_compute_are_quoted(cell: str) -> None:
    assert csv_text(cell) == f"'{cell}"
