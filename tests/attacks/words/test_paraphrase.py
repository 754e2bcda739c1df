from __future__ import annotations

import re
from dataclasses import replace

from lightning_neuralgate.attacks.words.describe import DESCRIBE, TRANSCRIBE
from lightning_neuralgate.attacks.words.paraphrase import WORDINGS, Paraphrase
from lightning_neuralgate.data.rendering import questions
from lightning_neuralgate.data.scenes import wordings
from lightning_neuralgate.tasks import ladder_wordings
from tests.attacks.words.samples import SECRET, attempts


def plain(template: str) -> str:
    """Return the words of a template, with its placeholders filled as for a passport number."""
    for placeholder, words in (("attribute", "passport number"), ("phrase", "passport number")):
        template = template.replace(f"{{{placeholder}}}", words)
    return " ".join(re.findall(r"\w+", re.sub(r"\{\w+\}", "passport", template).lower()))


def test_no_wording_contains_or_is_part_of_one_of_training_or_of_a_benchmark() -> None:
    used = {
        plain(value)
        for module in (questions, wordings, ladder_wordings)
        for values in vars(module).values()
        for value in (values if isinstance(values, tuple) else [values])
        if isinstance(value, str) and value.endswith(("?", "."))
    }
    assert len(used) > 150
    assert plain("What is the {attribute} of this {subject}?") in used
    for wording in map(plain, (*WORDINGS, DESCRIBE, TRANSCRIBE)):
        assert not [other for other in used if len(other.split()) > 2 and (other in wording or wording in other)]


def test_every_wording_is_used_and_none_twice_for_a_question() -> None:
    found = [attempts(Paraphrase(2), replace(SECRET, name=str(number))) for number in range(20)]
    assert all(len({prompt.text for prompt in prompts}) == 2 for prompts in found)
    assert len({prompt.text for prompts in found for prompt in prompts}) == len(WORDINGS)
