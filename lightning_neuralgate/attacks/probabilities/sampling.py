"""The plain question, answered several times by sampling.

Reisizadeh et al. 2025, "Leak@k: Unlearning Does Not Make LLMs Forget Under Probabilistic Decoding" (arXiv 2511.04934).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from lightning_neuralgate.attacks.base import Context, Prompt, PromptAttack, Question, Suite
from lightning_neuralgate.metrics.functional import graded_leak_at_k


class Sampled(PromptAttack):
    """Sample several answers to the first sensitive question of each record; each has its own seed, from its number.

    Args:
        samples: number of answers.
        sampling: arguments of `generate`: `temperature`, `top_p`, `repetition_penalty`.
        name: name of the attack.
        suite: the smallest suite that contains it.
    """

    family = "sampling"

    def __init__(self, samples: int, sampling: Mapping[str, Any], name: str, suite: Suite = "quick") -> None:
        self.samples, self.sampling, self.name, self.suite = samples, dict(sampling), name, suite
        settings = ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in sampling.items())
        self.clause = f"when {samples} answers are sampled ({settings})"

    def prompts(self, question: Question, context: Context) -> Iterator[Prompt]:
        if question.name in context.first_secrets:
            for number in range(self.samples):
                yield Prompt(question.query, question.picture, note={"sample": number})

    def leak_at(self, scores: Sequence[Sequence[float]], ks: Sequence[int] = (1, 4, 16)) -> dict[str, float]:
        """Return leak@k for those k that all questions have enough samples for.

        Args:
            scores: for each question the scores of its samples.
            ks: numbers of samples that an attacker draws.
        """
        fewest = min(map(len, scores), default=0)
        return {f"leak@{k}": float(graded_leak_at_k(scores, k)) for k in ks if k <= fewest}

    def figures(self, question_scores: Sequence[Sequence[float]]) -> Mapping[str, float]:
        return self.leak_at(question_scores)
