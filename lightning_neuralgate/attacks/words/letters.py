"""Changed letters, which give the words of a question other tokens: typing errors, spaced words, leet, alternating case."""

from __future__ import annotations

import random
import re
from abc import abstractmethod
from collections.abc import Iterator

from lightning_neuralgate.attacks.base import Context, Prompt, PromptAttack, Question, Suite

_ROWS = ("qwertyuiop", "asdfghjkl", "zxcvbnm")
_NEIGHBOURS = {
    letter: row[max(place - 1, 0) : place] + row[place + 1 : place + 2]
    for row in _ROWS
    for place, letter in enumerate(row)
}
_LEET = str.maketrans("aeiostAEIOST", "431057431057")


class _ChangedLetters(PromptAttack):
    family = "words"
    suite: Suite = "full"

    @abstractmethod
    def changed(self, text: str, rng: random.Random) -> str:
        """Return a question with changed letters."""

    def prompts(self, question: Question, context: Context) -> Iterator[Prompt]:
        rng = context.rng(self.name, question.name)
        yield Prompt(self.changed(question.query, rng), question.picture)


class Typos(_ChangedLetters):
    """Swap, drop or double letters, or hit the key next to them.

    Args:
        share: share of the letters that are changed, at least one letter.
    """

    name = "typos"
    suite = "quick"

    def __init__(self, share: float = 0.1) -> None:
        self.share = share
        self.clause = f"when {share:.0%} of the letters are mistyped"

    def changed(self, text: str, rng: random.Random) -> str:
        letters = [place for place, letter in enumerate(text) if letter.isalpha()]
        count = min(len(letters), max(1, round(self.share * len(letters))))
        for place in sorted(rng.sample(letters, count), reverse=True):
            text = text[:place] + _mistyped(text[place], text[place + 1 : place + 2], rng) + text[place + 2 :]
        return text


class Spacing(_ChangedLetters):
    """Put spaces between the letters of words of at least four."""

    name = "spacing"
    clause = "when words are spelled with spaces"

    def changed(self, text: str, rng: random.Random) -> str:
        return re.sub(r"[^\W\d_]{4,}", lambda word: " ".join(word[0]), text)


class Leet(_ChangedLetters):
    """Replace letters by digits of similar shape."""

    name = "leet"
    clause = "when digits stand in for letters"

    def changed(self, text: str, rng: random.Random) -> str:
        return text.translate(_LEET)


class AlternatingCase(_ChangedLetters):
    """Alternate between small and capital letters."""

    name = "alternating_case"
    clause = "when small and capital letters alternate"

    def changed(self, text: str, rng: random.Random) -> str:
        return "".join(letter.upper() if place % 2 else letter.lower() for place, letter in enumerate(text))


def _mistyped(letter: str, following: str, rng: random.Random) -> str:
    """Return a letter and the character behind it, with a typing error in the letter."""
    changes = ["", 2 * letter]
    if neighbours := _NEIGHBOURS.get(letter.lower()):
        changes.append(rng.choice(neighbours))
    if following.isalpha() and following != letter:
        return rng.choice([*(change + following for change in changes), following + letter])
    return rng.choice(changes) + following
