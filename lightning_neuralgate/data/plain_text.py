"""Ordinary questions without a picture: facts with one known answer, and prompts that ask for a sentence or two.

They are written by rule from lists, facts from `facts.yaml`. The facts of tests and those for training are disjoint, see
`plain_questions`.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

from lightning_neuralgate.data.scenes.sprites import object_entries

HELD_OUT_FACTS = 200
"""Number of facts that are kept for tests."""


class PlainQuestion(NamedTuple):
    """A question with its answer; `answers` are wordings of it that count as right."""

    question: str
    answers: tuple[str, ...]


FACTS_FILE = Path(__file__).parent / "facts.yaml"
_SENTENCES = (
    "Write a sentence about {a}.", "What is {a} used for?", "Describe {a} in one sentence.", "What does {a} look like?",
    "Tell me something about {a}.", "Write a short poem about {a}.", "Give three words that go with {name}.",
    "Explain what {a} is.",
    "Why do people like {plural}?", "Where can I find {plural}?", "Write a question about {a}.",
    "What would a child say about {a}?",
)  # fmt: skip
_REQUESTS = (
    "Give me a tip for {}.", "How do I start with {}?", "What do I need for {}?", "Is {} difficult?",
    "Write a sentence about {}.",
    "Name one good thing about {}.", "Explain {} to a child.", "What is the first step in {}?", "Why is {} useful?",
)  # fmt: skip
_ACTIVITIES = (
    "cooking rice", "learning to swim", "growing tomatoes", "writing a letter", "painting a wall", "planning a trip",
    "baking bread",
    "riding a bicycle", "playing chess", "saving money", "cleaning windows", "learning a language", "sleeping well", "hiking",
    "taking photographs", "making coffee", "training a dog", "reading more books", "running a marathon", "sewing a button",
    "organizing a desk", "watering plants", "packing a suitcase", "singing in a choir", "writing a diary", "fishing",
    "building a kite",
    "using a spreadsheet", "giving a talk", "drawing a horse", "making soup", "knitting", "recycling paper",
    "learning the piano",
    "fixing a flat tyre", "keeping bees", "writing code", "stretching", "making friends", "studying for an exam",
)  # fmt: skip


_REWORDED = {
    "What is the capital of {}?": ("Name the capital city of {}.", "Is {answer} the capital city of {}?"),
    "What is the opposite of {}?": (
        "Give a word that means the opposite of {}.",
        "Does {answer} mean the opposite of {}?",
    ),
    "Which animal says {}?": ("Name the animal that says {}.", "Does a {answer} say {}?"),
    "Which language do people speak in {}?": ("Name the language of {}.", "Do people in {} speak {answer}?"),
    "On which continent is {}?": ("To which continent does {} belong?", "Does {} belong to {answer}?"),
    "What is the plural of {}?": ("Write down the plural of {}.", "Is {answer} the plural form of {}?"),
    "What is the past tense of {}?": ("Put {} into the past tense.", "Is {answer} the past tense for {}?"),
    "What is the chemical symbol of {}?": (
        "Name the symbol that chemists use for {}.",
        "Do chemists write {} as {answer}?",
    ),
    "Who wrote {}?": ("Name the author of {}.", "Is {answer} the author of {}?"),
}
"""Question of `facts.yaml` -> the same in other words, open and to be answered with yes or no; no test uses them."""


class RewordedFact(NamedTuple):
    """A fact for training, in wordings that no test uses.

    Attributes:
        question: the open question.
        statement: the question whether an answer, `{answer}`, is right.
        answer: the right answer.
        others: answers to other questions of the kind, which are wrong here.
    """

    question: str
    statement: str
    answer: str
    others: tuple[str, ...]


def reworded_facts() -> list[RewordedFact]:
    """Return facts for training, in wordings of their own.

    >>> reworded_facts()[0][:3]
    ('Name the capital city of Germany.', 'Is {answer} the capital city of Germany?', 'Berlin')
    """
    held_out = {item.question for item in plain_questions(held_out=True)}
    reworded = []
    for template, facts in _content().items():
        if template in _REWORDED:
            answers = {about: found if isinstance(found, str) else found[0] for about, found in facts.items()}
            for about, answer in answers.items():
                if template.format(about) not in held_out:
                    question, statement = (text.replace("{}", about) for text in _REWORDED[template])
                    others = tuple(sorted({*answers.values()} - {answer}))
                    reworded.append(RewordedFact(question, statement, answer, others))
    return reworded


def open_requests() -> list[str]:
    """Return prompts for training that ask for a sentence or two, and no yes or no."""
    requests = [template.format(activity) for activity in _ACTIVITIES for template in _REQUESTS]
    requests += [prompt for name in object_entries() for prompt in _sentences(name)]
    return [request for request in requests if not request.startswith("Is ")]


def plain_questions(held_out: bool) -> list[PlainQuestion]:
    """Return the facts of tests or those for training; the checksum of its question decides which a fact is.

    >>> len(plain_questions(True)), len(set(plain_questions(True)) & set(plain_questions(False)))
    (200, 0)
    """
    facts = sorted(_facts(), key=lambda item: zlib.crc32(item.question.encode()))
    return facts[:HELD_OUT_FACTS] if held_out else facts[HELD_OUT_FACTS:]


def plain_prompts(seed: int = 0) -> list[str]:
    """Return ordinary prompts for training, some thousand, in random order: its facts in two wordings, sums, and requests."""
    rng = random.Random(f"plain/{seed}")
    prompts = [item.question for item in plain_questions(False)]
    prompts += [f"{prompt} Answer in one word." for prompt in prompts]
    for name in object_entries():
        prompts += rng.sample(_sentences(name), 10)
    prompts += [template.format(activity) for activity in _ACTIVITIES for template in _REQUESTS]
    for _ in range(150):
        x, y = rng.randint(2, 20), rng.randint(2, 20)
        prompts.append(
            rng.choice((f"What is {x} plus {y}?", f"What is {x + y} minus {y}?", f"Is {x} larger than {y}?"))
        )
    rng.shuffle(prompts)
    return prompts


def _sentences(name: str) -> list[str]:
    plural = object_entries()[name].plural or f"{name}s"
    a = f"{'an' if name[0] in 'aeiou' else 'a'} {name}" if " of " not in plural else name
    return [template.format(a=a, name=name, plural=plural) for template in _SENTENCES]


@cache
def _content() -> dict[str, dict[str, str | list[str]]]:
    import yaml

    content: dict[str, dict[str, str | list[str]]] = yaml.safe_load(FACTS_FILE.read_text(encoding="utf-8"))
    return content


def _facts() -> Iterator[PlainQuestion]:
    for template, facts in _content().items():
        for about, answers in facts.items():
            yield PlainQuestion(template.format(about), (answers,) if isinstance(answers, str) else tuple(answers))
