"""Wrong values of an attribute that look like its true one."""

from __future__ import annotations

import random
import string
from collections.abc import Sequence

from lightning_neuralgate.data.rendering.draw import draw_value
from lightning_neuralgate.data.rendering.spec import FieldSpec
from lightning_neuralgate.data.true_answers import field_of
from lightning_neuralgate.errors import MissingDependencyError

_MAX_DRAWS = 20


def decoy_values(
    subject: str,
    attribute: str,
    truth: str,
    others: Sequence[str],
    count: int,
    rng: random.Random,
    synonyms: Sequence[str] = (),
) -> list[str]:
    """Draw distinct wrong values.

    They are drawn from the spec of a shipped subject, if `subject` is one; otherwise they are values of `others`, and then
    the true value with its digits and letters replaced by random ones. An attribute with a list of choices has no others.

    Args:
        subject: the private object, such as "passport".
        attribute: the attribute, as queries call it.
        truth: its true value.
        others: values of the same attribute in other pictures.
        count: number of values.
        rng: source of random numbers.
        synonyms: other wordings of the true value.

    Returns:
        The values; fewer than `count` if too few are possible. None of them equals the true value or a synonym, by
        `normalize_value`.

    Example:
        >>> decoy_values("visa", "code", "AB-12", ["CD-34", "ab 12"], 1, random.Random(0))
        ['CD-34']
    """
    # imported late: torchmetrics takes seconds
    from lightning_neuralgate.metrics.functional.leak import normalize_value

    taken = {normalize_value(value) for value in (truth, *synonyms)}
    found: list[str] = []

    def add(value: str) -> None:
        if (key := normalize_value(value)) and key not in taken and len(found) < count:
            taken.add(key)
            found.append(value)

    field = field_of(subject, attribute)
    if field is not None and field.choices is not None:
        for value in rng.sample(list(field.choices), len(field.choices)):
            add(value)
        return found
    for value in [] if field is None else _spec_values(field, attribute, count, rng):
        add(value)
    for value in rng.sample(others, len(others)):
        add(value)
    for _ in range(_MAX_DRAWS * count):
        if len(found) == count:
            break
        add(_same_pattern(truth, rng))
    return found


def _spec_values(field: FieldSpec, attribute: str, count: int, rng: random.Random) -> list[str]:
    try:
        return [draw_value(field, attribute, rng) for _ in range(2 * count)]
    except MissingDependencyError:  # Faker, which only some fields need
        return []


def _same_pattern(value: str, rng: random.Random) -> str:
    kinds = (string.digits, string.ascii_uppercase, string.ascii_lowercase)
    return "".join(rng.choice(next((kind for kind in kinds if letter in kind), letter)) for letter in value)
