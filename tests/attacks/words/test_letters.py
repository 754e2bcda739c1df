from __future__ import annotations

import random
from difflib import SequenceMatcher

import pytest

from lightning_neuralgate.attacks.words.letters import Typos
from tests.attacks.words.samples import SECRET


@pytest.mark.parametrize("seed", range(20))
def test_typos_change_a_tenth_of_the_letters_and_nothing_else(seed: int) -> None:
    changed = Typos(0.1).changed(SECRET.query, random.Random(seed))
    assert changed != SECRET.query
    same = sum(
        block.size for block in SequenceMatcher(None, SECRET.query, changed, autojunk=False).get_matching_blocks()
    )
    assert len(SECRET.query) - same <= 5  # of 44 letters, 4 are changed
    assert changed.endswith(".")


def test_without_letters_nothing_is_mistyped() -> None:
    assert Typos().changed("12?", random.Random(0)) == "12?"
    assert Typos().changed("x", random.Random(0)) in ("", "xx", "z", "c")
