from __future__ import annotations

from typing import Any

import pytest

from lightning_neuralgate.cli.demo import print_table
from lightning_neuralgate.cli.tables import ABSENT, print_notes, print_rates

FULL = {
    "rta_sensitive": 0.9, "answer_rate_benign": 1.0, "eta": 0.95, "leak_rate": 0.1, "partial_leak": 0.3,
    "benign_accuracy": 0.8, "n": 60,
}  # fmt: skip
JUDGED = FULL | {"rta_sensitive_judge": 0.7, "judge_agreement": 0.85}
SPLITS = ("test", "unseen_attributes", "unseen_subjects")


def lines(capsys: pytest.CaptureFixture[str]) -> list[list[str]]:
    """The printed lines as words, without the table's frame."""
    printed = capsys.readouterr().out
    assert max(map(len, printed.splitlines())) <= 120
    return [line.replace("│", " ").replace("┃", " ").split() for line in printed.splitlines()]


def test_rates_by_split_and_model(capsys: pytest.CaptureFixture[str]) -> None:
    authors = {"rta_sensitive": 0.5, "answer_rate_benign": 0.25, "eta": 0.375, "n": 7}
    print_rates({"unedited": {"test": FULL}, "gated": {"test": FULL, "mine": authors}}, title="Rates")
    printed = lines(capsys)
    assert ["unedited", "0.900", "1.000", "0.950", "0.100", "0.800", "60"] in printed
    assert printed[printed.index(["mine"]) + 1] == ["gated", "0.500", "0.250", "0.375", ABSENT, ABSENT, "7"]
    assert not any("judge" in line for line in printed)


def test_the_demos_table_takes_any_splits_and_fits_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    arms: dict[str, Any] = {arm: dict.fromkeys(SPLITS, JUDGED) for arm in ("unedited", "gated")}
    spread = {arm: {split: dict.fromkeys(JUDGED, 0.05) for split in SPLITS} for arm in arms}
    print_table(arms | {"spread": spread, "seeds": [0, 1], "seconds": {"edit": 3}, "refusal_variant": "gcg"})
    printed = lines(capsys)
    assert [line[0] for line in printed if line and line[0] in SPLITS] == list(SPLITS)
    row = "gated 0.900±0.050 1.000±0.050 0.950±0.050 0.100±0.050 0.800±0.050 0.700±0.050 60"
    assert printed.count(row.split()) == 3
    assert not any("ungated" in line for line in printed)
    assert ["RtA", "by", "the", "keyword", "list", "'gcg';", "seeds", "[0,", "1];", "3", "s", "per", "seed."] in printed


def test_notes_name_the_judge_and_the_resampled_units(capsys: pytest.CaptureFixture[str]) -> None:
    tasks = {"pope": {"n": 8, "protocol": "as in the paper"}, "mme": {"n": 1, "protocol": "two questions per image"}}
    print_notes({"refusals": "keyword list 'gcg'", "tasks": tasks, "unclear": [], "questions": {}})
    assert capsys.readouterr().out.splitlines() == [
        "Refusals by keyword list 'gcg'. Resampled for the intervals: 8 items of pope, 1 images of mme.",
        "pope: as in the paper",
        "mme: two questions per image",
    ]
