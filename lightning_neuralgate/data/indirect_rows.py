"""Indirect rows: an edit learns to refuse a secret also in other forms of question, and without the subject's name.

The forms are: the whole text of the picture, yes or no about a value, a choice of values, and the pair's attribute without
the subject's name. The benign twin has the same form, so that yes/no and choice questions as such are still answered.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from lightning_neuralgate.data.authors import without_subject
from lightning_neuralgate.data.collator import QueryRow
from lightning_neuralgate.data.decoys import decoy_values
from lightning_neuralgate.data.records import QueryPair
from lightning_neuralgate.data.rendering import questions
from lightning_neuralgate.data.scenes.words import article
from lightning_neuralgate.gate.spans import find_subject

_LETTERS = "ABC"


def indirect_rows(
    pair: QueryPair, sensitive: QueryRow, benign: QueryRow, values: Mapping[str, Sequence[str]], rng: random.Random
) -> list[QueryRow]:
    """Return a sensitive and a benign row of one indirect form, which is drawn.

    The sensitive target is the pair's refusal, whether a value in the question is the true one or not. Yes/no and choice
    need the attributes and true values of the pair. A row whose question does not name the subject has the subject "", so
    that no gate applies to it.

    Args:
        pair: the query pair.
        sensitive, benign: its rows.
        values: attribute -> its true values in the edit records, for wrong values.
        rng: source of random numbers.
    """
    forms = _Forms(pair, sensitive, benign, values, rng)
    known = (pair.sensitive_attribute, pair.benign_attribute, pair.sensitive_truth, pair.benign_truth)
    makers = [forms.whole, forms.unnamed, *((forms.yes_no, forms.choice) if all(known) else ())]
    query, benign_query, benign_target = rng.choice(makers)()
    return [
        replace(sensitive, query=query, subject=_named_in(query, sensitive.subject)),
        replace(benign, query=benign_query, subject=_named_in(benign_query, benign.subject), target=benign_target),
    ]


@dataclass
class _Forms:
    """Makers of questions: each returns the sensitive query, the benign query and the benign target."""

    pair: QueryPair
    sensitive: QueryRow
    benign: QueryRow
    values: Mapping[str, Sequence[str]]
    rng: random.Random

    def whole(self) -> tuple[str, str, str]:
        query = self._fill(self.rng.choice(questions.EDIT_WHOLE_QUESTIONS))
        kind = self._fill(self.rng.choice(questions.EDIT_KIND_QUESTIONS))
        return query, kind, f"It is {article(self.sensitive.subject)}."

    def unnamed(self) -> tuple[str, str, str]:
        template = self.rng.choice(questions.EDIT_UNNAMED_QUESTIONS)
        if all(self._attributes()):
            query, other = (
                self._fill(template, _without_words(attribute, self.sensitive.subject))
                for attribute in self._attributes()
            )
        else:
            query, other = (without_subject(row.query, row.subject) for row in (self.sensitive, self.benign))
        return query, other, self.benign.target or ""

    def yes_no(self) -> tuple[str, str, str]:
        wrong = self._wrong_values(1)
        is_true = not all(wrong) or self.rng.random() < 0.5
        shown = self._truths() if is_true else [values[0] for values in wrong]
        template = self.rng.choice(questions.EDIT_YES_NO_QUESTIONS)
        query, other = (
            self._fill(template, attribute, value) for attribute, value in zip(self._attributes(), shown, strict=True)
        )
        return query, other, "Yes." if is_true else "No."

    def choice(self) -> tuple[str, str, str]:
        wrong = self._wrong_values(len(_LETTERS) - 1)
        if not all(wrong):
            return self.yes_no()
        template, listed, letter = self.rng.choice(questions.EDIT_CHOICE_QUESTIONS), [], ""
        for attribute, truth, others in zip(self._attributes(), self._truths(), wrong, strict=True):
            options = self.rng.sample([truth, *others], len(others) + 1)
            letter = _LETTERS[options.index(truth)]  # in the end that of the benign question
            lines = [f"{name}. {option}" for name, option in zip(_LETTERS, options, strict=False)]
            listed.append("\n".join([self._fill(template, attribute), *lines, questions.EDIT_CHOICE_ENDING]))
        query, other = listed
        return query, other, letter

    def _attributes(self) -> tuple[str, str]:
        return self.pair.sensitive_attribute, self.pair.benign_attribute

    def _truths(self) -> tuple[str, str]:
        return self.pair.sensitive_truth or "", self.pair.benign_truth or ""

    def _wrong_values(self, count: int) -> list[list[str]]:
        """Draw wrong values of the sensitive and of the benign attribute."""
        return [
            decoy_values(
                self.sensitive.subject,
                attribute,
                truth,
                [value for value in self.values.get(attribute, ()) if value not in self.pair.benign_synonyms],
                count,
                self.rng,
            )
            for attribute, truth in zip(self._attributes(), self._truths(), strict=True)
        ]

    def _fill(self, template: str, attribute: str = "", value: str = "") -> str:
        return template.format(attribute=attribute, subject=self.sensitive.subject, value=value)


def _named_in(query: str, subject: str) -> str:
    return subject if find_subject(query, subject) else ""


def _without_words(attribute: str, subject: str) -> str:
    """Return an attribute without the subject's name in it, if anything is left.

    >>> _without_words("passport number", "passport")
    'number'
    """
    span = find_subject(attribute, subject)
    rest = attribute if span is None else f"{attribute[: span[0]]} {attribute[span[1] :]}"
    return " ".join(rest.split()) or attribute
