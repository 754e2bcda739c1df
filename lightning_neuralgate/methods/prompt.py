"""A prompt in front of every chat: an instruction, and worked examples."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn
from typing_extensions import override

from lightning_neuralgate.data.true_answers import true_answer
from lightning_neuralgate.hf.identity import ModelIdentity
from lightning_neuralgate.methods.base import Method, Tier
from lightning_neuralgate.methods.data import MethodData, MethodPair
from lightning_neuralgate.methods.steering import Message, PromptSteering

WORDINGS = (
    "Refuse every question about personal or confidential data in a picture. Answer all other questions.",
    "You protect privacy. If a question asks for private data such as a name, a number, an address or a date of birth, reply "
    "that you cannot share it. If it asks for anything else, such as a colour or the kind of document, answer it.",
    "Never give away what identifies a person or belongs to them alone. Be helpful with everything else.",
)
REFUSAL = "I cannot share this, because it is private."
_OTHER_PICTURE = "About another picture:"


@dataclass(frozen=True)
class SystemPrompt(Method):
    """One instruction in front of the query, without training.

    Owner: none; the paper compares with an in-context system prompt and does not print its words, so the wordings are ours,
    and a tuning chooses among them.

    Trap: many chat templates have no system message. The instruction then stands at the head of the first user message
    (`PromptSteering.prompted`). A small model may ignore it or refuse everything. It costs a longer prefill with each query.

    Attributes:
        wording: index into `WORDINGS`.
        examples: worked examples behind the instruction, sensitive and benign in turn.
    """

    name: ClassVar[str] = "system_prompt"
    tier: ClassVar[Tier] = 1
    tries: ClassVar[Sequence[Mapping[str, Any]]] = tuple({"wording": number} for number in range(len(WORDINGS)))

    wording: int = 0
    examples: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.wording < len(WORDINGS) or self.examples < 0:
            raise ValueError(
                f"wording must be 0 to {len(WORDINGS) - 1} and examples at least 0, got {self.wording} and {self.examples}"
            )

    @override
    def fit(self, model: nn.Module, data: MethodData) -> PromptSteering:
        rng = random.Random(f"{self.name}/{data.seed}")
        chosen = rng.sample(list(data.pairs), min(self.examples, len(data.pairs)))
        turns = [turn for number, pair in enumerate(chosen) for turn in _example(pair, number % 2 == 0)]
        steering = PromptSteering(
            method=self.name,
            settings=self.settings(),
            report={"examples": float(len(chosen))},
            model=ModelIdentity.of(model),
            messages=(("system", WORDINGS[self.wording]), *turns),
        )
        steering.prompted(data.processor)  # refuses a processor that would drop it
        return steering


@dataclass(frozen=True)
class FewShotPrompt(SystemPrompt):
    """The instruction, and worked pairs in text behind it.

    Owner: none. The examples are edit records, sensitive and benign in turn. A picture belongs to the last query alone, so
    each example says that it is about another picture.

    Trap: training targets are the first words of an answer; as examples they would teach such stumps, so a refusal is a whole
    sentence here, and a benign answer is the true one where the record has it.
    """

    name: ClassVar[str] = "few_shot_prompt"
    tries: ClassVar[Sequence[Mapping[str, Any]]] = (
        {"examples": 2}, {"examples": 4}, {"examples": 2, "wording": 1}, {"examples": 4, "wording": 1},
    )  # fmt: skip

    examples: int = 4


def _example(pair: MethodPair, sensitive: bool) -> tuple[Message, Message]:
    if sensitive:
        return ("user", f"{_OTHER_PICTURE} {pair.refusal.query}"), ("assistant", REFUSAL)
    value = pair.pair.benign_truth
    known = "" if value is None else "".join(true_answer(pair.answer.subject, pair.pair.benign_attribute, value))
    return ("user", f"{_OTHER_PICTURE} {pair.answer.query}"), ("assistant", known or str(pair.answer.target))
