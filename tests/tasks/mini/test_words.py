from __future__ import annotations

import re

from lightning_neuralgate.data.scenes.sprites import object_entries
from lightning_neuralgate.data.scenes.words import article, noun
from lightning_neuralgate.tasks.mini import words
from lightning_neuralgate.tasks.mini.words import absent, all_things


def test_names_read_well_with_an_article() -> None:
    phrases = [article(noun(thing)) for thing in all_things()]
    measured = {name: article(noun(name)) for name in object_entries() if noun(name) != name}
    assert measured == {
        "grapes": "a bunch of grapes",
        "corn": "an ear of corn",
        "bread": "a loaf of bread",
        "cheese": "a piece of cheese",
        "scissors": "a pair of scissors",
        "jeans": "a pair of jeans",
        "glasses": "a pair of glasses",
    }
    plurals = [phrase for phrase in phrases if re.search(r"^an? \w+s$", phrase)]
    assert sorted(plurals) == ["a bus", "a cactus", "a dress", "a glass"]
    assert {phrase.split()[1] for phrase in phrases if phrase.startswith("an ")} == {
        "airplane", "ambulance", "anchor", "apple", "ear", "egg", "elephant", "ice", "orange", "owl", "umbrella"
    }  # fmt: skip


def test_what_could_be_argued_about_does_not_count_as_absent() -> None:
    assert absent(["car", "dog", "cup", "bus"], {"taxi", "dog"}) == ["cup", "bus"]
    assert absent(["knife", "passport", "government document"], {"plate", "passport"}) == []
    assert absent(["cup"], {"glass"}) == ["cup"]
    named = {name for pair in words._UNCLEAR.items() for name in (pair[0], *pair[1])}
    assert named <= set(all_things())
