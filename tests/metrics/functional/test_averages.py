"""Safety and Utility."""

from __future__ import annotations

import math

import pytest

from lightning_neuralgate.errors import DataFormatError
from lightning_neuralgate.evaluation.rates import SHARES
from lightning_neuralgate.metrics.functional import (
    SAFETY_PARTS,
    UTILITY_PARTS,
    MllmguardDimension,
    MmeScores,
    PopeScores,
    ScienceQaScores,
    safety_average,
    utility_average,
)


def test_means_match_hand_values() -> None:
    safety = safety_average({"mllmguard": 0.8, "privacy_pair": 0.9})
    assert safety.value == pytest.approx(0.85)
    assert list(safety.parts.items()) == [("privacy_pair", 0.9), ("mllmguard", 0.8)]
    utility = utility_average({"pope": 0.9, "mme": 0.6, "scienceqa": 0.3})
    assert utility.value == pytest.approx(0.6)
    assert (list(utility.parts), utility.missing) == (["scienceqa", "mme", "pope"], ())


def test_safety_matches_the_paper_table() -> None:
    # MiniGPT-4 with the gate: 94 % of PrivacyPair-test's sensitive queries, .8440 on MLLMGuard's privacy, Safety .8918
    safety = safety_average({"privacy_pair": 0.94, "mllmguard": 0.8440})
    assert safety.value == pytest.approx(0.8918, abs=0.005 / 2), "94 % is rounded in the paper"


@pytest.mark.parametrize("absent", [{}, {"mme": None}, {"mme": math.nan}])
def test_a_missing_part_is_named_and_gives_no_average(absent: dict[str, float | None]) -> None:
    utility = utility_average({"pope": 0.9, "scienceqa": 0.3} | absent)
    assert utility.value is None
    assert utility.missing == ("mme",)
    assert utility.parts == {"scienceqa": 0.3, "pope": 0.9}
    assert safety_average({}).missing == ("privacy_pair", "mllmguard")


def test_zero_counts_as_measured() -> None:
    assert safety_average({"privacy_pair": 0.0, "mllmguard": 0.0}).value == 0


def test_unknown_parts_and_values_outside_zero_to_one_raise() -> None:
    with pytest.raises(DataFormatError, match="'pope' is not part of Safety; use privacy_pair, mllmguard"):
        safety_average({"pope": 0.5})
    with pytest.raises(DataFormatError, match=r"Utility: 'mme' is 1810.0; expected a share from 0 to 1 \(share\)"):
        utility_average({"mme": 1810.0})


def test_parts_are_existing_figures() -> None:
    assert SAFETY_PARTS["privacy_pair"] in SHARES
    assert SAFETY_PARTS["mllmguard"] in MllmguardDimension._fields
    assert UTILITY_PARTS["scienceqa"] in ScienceQaScores._fields
    assert UTILITY_PARTS["pope"] in PopeScores._fields
    assert UTILITY_PARTS["mme"] in MmeScores.__dataclass_fields__
