"""Forms of questions, and the answers that they ask for: yes or no, or one of some choices.

Judges of refusals are made for open questions. "No." is the right answer to many a yes/no question, and yet some of them take
it for a refusal (`xstest` lists "no." as an opening). So an answer that opens with what the form asks for is never a refusal.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal

from lightning_neuralgate.metrics.functional.tally import YesNo

AnswerForm = Literal["open", "yes_no", "choice"]
LETTERS = "ABCDEFGHIJ"
"""Letters of choices, the first one of the first choice."""
# an opening may be quoted, bold or in brackets
_BEFORE = r"[\s'\"\u201c\u201d\u2018\u2019*_(\[]*"
_OPENING_YES_NO = re.compile(rf"{_BEFORE}(yes|no)(?!\w|\s+(?:comment|idea)\b)", re.IGNORECASE)
_YES_NO = re.compile(r"\b(?:(yes)|(no|not))\b", re.IGNORECASE)
_OPENING_LETTER = re.compile(rf"{_BEFORE}([A-J])(?=[.):,*\]'\"\u201d\u2019]|\s*$)")
_STATED_LETTER = re.compile(r"\b(?:answer|option|choice) (?:is )?\(?([A-J])\b")


def opens_with_answer(answer: str, form: AnswerForm, choices: Sequence[str] = ()) -> bool:
    """Return whether an answer opens with what its question's form asks for, and so cannot be a refusal.

    That is the word yes or no (but not "no comment" or "no idea"), or the letter or the text of a choice. Open questions ask
    for nothing of the kind. What follows is not read: "No, I cannot see a dog." answers, and so does "No, I cannot say."

    Args:
        answer: generated text without the prompt.
        form: form of the question.
        choices: texts of the choices.

    Example:
        >>> opens_with_answer("No.", "yes_no"), opens_with_answer("No.", "open"), opens_with_answer("No comment.", "yes_no")
        (True, False, False)
        >>> [opens_with_answer(text, "choice", ["red", "blue"]) for text in ("B. blue", "Red.", "I cannot say.", "A red")]
        [True, True, False, False]
    """
    if form == "yes_no":
        return _OPENING_YES_NO.match(answer) is not None
    return form == "choice" and _opening_choice(answer, choices) is not None


def stated_yes_no(answer: str) -> YesNo | None:
    """Return the yes or no that an answer states, or None: its opening word, else the only one in its first sentence.

    In a first sentence, "not" counts as no.

    Args:
        answer: generated text without the prompt.

    Example:
        >>> [stated_yes_no(text) for text in ("Yes, it is.", "No", "The passport is not red.", "It is red.", "Yes or no?")]
        ['yes', 'no', 'no', None, 'yes']
    """
    if opening := _OPENING_YES_NO.match(answer):
        return "yes" if opening[1].lower() == "yes" else "no"
    found = {"yes" if yes else "no" for yes, _ in _YES_NO.findall(answer.partition(".")[0])}
    return "yes" if found == {"yes"} else "no" if found == {"no"} else None


def stated_choice(answer: str, choices: Sequence[str]) -> str | None:
    """Return the letter of the choice that an answer states, or None.

    Tried in this order: it opens with a letter or with the text of a choice; it contains "answer is X" with a single letter;
    it contains the text of exactly one choice, as whole words.

    Args:
        answer: generated text without the prompt.
        choices: their texts.

    Example:
        >>> texts = ("B", "(b)", "(B) blue", "Blue.", "The answer is A.", "It is red.", "red or blue", "It is green.")
        >>> [stated_choice(text, ["red", "blue"]) for text in texts]
        ['B', None, 'B', 'B', 'A', 'A', 'A', None]
    """
    if opening := _opening_choice(answer, choices):
        return opening
    letters = LETTERS[: len(choices)]
    stated = {letter for letter in _STATED_LETTER.findall(answer) if letter in letters}
    if len(stated) == 1:
        return stated.pop()
    named = [letter for letter, text in zip(letters, choices, strict=False) if _holds(answer, text)]
    return named[0] if len(named) == 1 else None


def _opening_choice(answer: str, choices: Sequence[str]) -> str | None:
    letters = LETTERS[: len(choices)]
    opening = _OPENING_LETTER.match(answer)
    if opening and opening[1] in letters:
        return opening[1]
    matches = {
        letter: len(text)
        for letter, text in zip(letters, choices, strict=False)
        if re.match(rf"{_BEFORE}{re.escape(text)}(?!\w)", answer, re.IGNORECASE)
    }
    # "blue" and "blue star" may both match
    return max(matches, key=matches.__getitem__) if matches else None


def _holds(answer: str, text: str) -> bool:
    return re.search(rf"(?<!\w){re.escape(text)}(?!\w)", answer, re.IGNORECASE) is not None
