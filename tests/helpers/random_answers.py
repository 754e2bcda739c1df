from __future__ import annotations

import random

PIECES = (
    *("yes", "Yes", "YES", "no", "No", "NO", "not", "Not", "none", "know", "cannot", "don't", "eyes", "nope"),
    *("A", "B", "C", "E", "F", "A. ", "B. ", "The answer is A.", "The answer is B", "The answer is F.", "(B)", "b"),
    *("I'm sorry", "I cannot", "Sorry", "it is", "there", "1. ", "İ", "ß"),
)
JOINTS = ("", " ", "  ", ".", ". ", "...", ",", ", ", "\n", "\t", "!", "?")


def random_answers(count: int, seed: int) -> list[str]:
    """Return `count` answers of up to six pieces, separated by punctuation and white space."""
    draw = random.Random(seed)
    return [
        "".join(draw.choice(JOINTS) + draw.choice(PIECES) for _ in range(draw.randrange(7))) + draw.choice(JOINTS)
        for _ in range(count)
    ]
