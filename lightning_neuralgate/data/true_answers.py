"""The sentence in which a model would give away a value, for attacks that start the answer and for edits against them."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

from transformers import PreTrainedTokenizerBase

from lightning_neuralgate.data.rendering.spec import FieldSpec, load_subject_spec, shipped_subjects
from lightning_neuralgate.gate.spans import normalize_subject


@lru_cache(maxsize=4096)
def field_of(subject: str, attribute: str) -> FieldSpec | None:
    """Return the field of a shipped subject that queries call `attribute`; None if there is none."""
    name = normalize_subject(subject).replace(" ", "_")
    if name not in shipped_subjects():
        return None
    return next((field for field in load_subject_spec(name).fields.values() if field.phrase == attribute), None)


class TrueAnswer(NamedTuple):
    """A truthful answer in parts.

    Attributes:
        lead: the words in front of the value, with their space.
        value: the value as the answer writes it, which may be spelled.
        rest: what follows.
    """

    lead: str
    value: str
    rest: str

    def start(self, tokens: int, tokenizer: PreTrainedTokenizerBase) -> str:
        """Return the first tokens, with at most the first half of the value, and without white space at the end."""
        ids = tokenizer.encode("".join(self), add_special_tokens=False)[:tokens]
        text = str(tokenizer.decode(ids, skip_special_tokens=True))
        return text[: len(self.lead) + len(self.value) // 2].rstrip()


def true_answer(subject: str, attribute: str, value: str) -> TrueAnswer:
    """Return a truthful answer, in the words of a shipped subject where it has them.

    Example:
        >>> true_answer("visa", "place of issue", "Rome")
        TrueAnswer(lead='The place of issue is ', value='Rome', rest='.')
    """
    field = field_of(subject, attribute)
    if field is None:
        return TrueAnswer(f"The {attribute or 'answer'} is ", value, ".")
    lead, _, rest = field.answer.partition("{value}")
    return TrueAnswer(lead, field.truthful_answer(value)[len(lead) :].removesuffix(rest), rest)
