"""CAST: steer towards refusing where a condition on the prompt holds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from typing_extensions import override

from lightning_neuralgate.hf.decoder import find_decoder
from lightning_neuralgate.hf.hooks import replace_outputs
from lightning_neuralgate.hf.identity import ModelIdentity
from lightning_neuralgate.methods.base import Method, Tier
from lightning_neuralgate.methods.data import MethodData
from lightning_neuralgate.methods.prompt_tokens import mean_over, watched_tokens
from lightning_neuralgate.methods.states import layers_from, pooled_states
from lightning_neuralgate.methods.steering import Steering


@dataclass(frozen=True, kw_only=True)
class ConditionalSteering(Steering):
    """Vectors that are added to the outputs of some layers at every token of the answers to some prompts.

    The condition is decided once for each prompt: s = cos(h, tanh(c c^T h / c^T c)), where h is the mean output of the
    condition's layer over the prompt's text behind the picture. Prompts run whole, and not in shared parts.

    Attributes:
        condition: c, (d,) float32.
        condition_layer: its layer, at most the lowest one that is steered.
        threshold: of s.
        above: whether the condition holds above the threshold or below it.
        directions: layer -> vector, (d,) float32.
        strength: factor of the vectors.
    """

    condition: Tensor
    condition_layer: int
    threshold: float
    above: bool
    directions: Mapping[int, Tensor]
    strength: float
    kind: ClassVar[str] = "conditional"
    has_tensors: ClassVar[bool] = True

    def holds(self, state: Tensor) -> Tensor:
        """Return for which prompts the condition holds, (B,) bool, given h, (B, d)."""
        score = condition_score(state.float(), self.condition.to(state.device))
        return score > self.threshold if self.above else score < self.threshold

    @contextmanager
    def hooked(self, model: nn.Module) -> Iterator[None]:
        holds: Tensor | None = None

        def change(layer: int, hidden: Tensor) -> Tensor:
            nonlocal holds
            if layer == self.condition_layer and (watch.tokens.is_start or holds is None):
                holds = self.holds(mean_over(hidden.float(), watch.tokens.text))
            if layer not in self.directions:
                return hidden
            assert holds is not None
            shift = self.strength * holds[:, None].to(hidden.device) * self.directions[layer].to(hidden.device)
            return hidden + shift[:, None].to(hidden.dtype)

        layers = sorted({self.condition_layer, *self.directions})
        with watched_tokens(model) as watch, replace_outputs(find_decoder(model).layers, layers, change):
            yield

    def content(self) -> dict[str, Any]:
        return {
            "condition_layer": self.condition_layer,
            "threshold": self.threshold,
            "above": self.above,
            "strength": self.strength,
        }

    def tensors(self) -> dict[str, Tensor]:
        return {"condition": self.condition} | {str(layer): vector for layer, vector in self.directions.items()}

    @classmethod
    def from_content(
        cls, content: Mapping[str, Any], tensors: Mapping[str, Tensor], common: dict[str, Any]
    ) -> ConditionalSteering:
        directions = {int(name): vector for name, vector in tensors.items() if name != "condition"}
        layer = int(content["condition_layer"])
        if not directions or layer > min(directions):
            raise ValueError(f"the condition of layer {layer} is not below the steered layers {sorted(directions)}")
        return cls(
            condition=tensors["condition"],
            condition_layer=layer,
            threshold=float(content["threshold"]),
            above=bool(content["above"]),
            directions=directions,
            strength=float(content["strength"]),
            **common,
        )


@dataclass(frozen=True)
class CAST(Method):
    """Conditional activation steering: h <- h + strength * v_l, in some layers, where a condition on the prompt holds.

    v_l is the first principal component of refusals minus leaks behind the same sensitive queries. c is that of sensitive
    minus benign queries. Layer, threshold and side of the condition have the largest F1 on the queries that c is made of,
    with ordinary questions among those that it must not hold for; of equals the widest gap between scores.

    Owner: CAST (arXiv 2409.05907, IBM/activation-steering): v_l from 100 questions with 100 pairs of suffixes, in layers 15
    to 23 of 32, strength 1.5; condition in layers 1 to 10, thresholds on a grid.

    Changed: the steered layers start at the data's layer, and the condition's layer is that one or below. h is the mean over
    the text behind the picture, since both queries of a pair share the picture. v_l has the length of the mean difference
    along it, where the owner's has length 1, so that the strength does not depend on the scale of the model. All thresholds
    between two scores are tried.

    Traps: the condition is a gate at run time, fitted on few queries: see the report's F1, and measure other wordings. The
    owner's option "larger" means that the threshold is the larger one.

    Attributes:
        strength: factor of v_l.
        span: number of steered layers, from the data's layer on.
    """

    name: ClassVar[str] = "cast"
    tier: ClassVar[Tier] = 3
    tries: ClassVar[Sequence[Mapping[str, Any]]] = (
        {"strength": 1.0, "span": 1}, {"strength": 4.0, "span": 1}, {"strength": 0.5}, {"strength": 1.5},
    )  # fmt: skip

    strength: float = 1.5
    span: int = 9

    def __post_init__(self) -> None:
        if self.span < 1:
            raise ValueError(f"span must be at least 1, got {self.span}")

    @override
    def fit(self, model: nn.Module, data: MethodData) -> ConditionalSteering:
        model.eval()
        layers = layers_from(model, data.layer, self.span)
        targets = ([pair.refusal for pair in data.pairs], [pair.leak for pair in data.pairs])
        refused, leaked = (pooled_states(model, data.processor, rows, layers, "target") for rows in targets)
        condition, vector = self._condition(model, data)
        return ConditionalSteering(
            method=self.name,
            settings=self.settings(),
            report={"condition_layer": float(condition.layer), "f1": condition.f1, "gap": condition.gap},
            model=ModelIdentity.of(model),
            condition=vector.float().cpu(),
            condition_layer=condition.layer,
            threshold=condition.threshold,
            above=condition.above,
            directions={layer: paired_component(refused[layer], leaked[layer]).float().cpu() for layer in layers},
            strength=self.strength,
        )

    def _condition(self, model: nn.Module, data: MethodData) -> tuple[Condition, Tensor]:
        """Return the best condition and its vector, (d,)."""
        groups = ([pair.refusal for pair in data.pairs], [pair.answer for pair in data.pairs], data.retention_rows)
        layers = range(data.layer + 1)
        states = [pooled_states(model, data.processor, rows, layers, "text") for rows in groups if rows]
        found: list[tuple[Condition, Tensor]] = []
        for layer in layers:
            vector = paired_component(states[0][layer], states[1][layer])
            scores = [condition_score(group[layer], vector) for group in states]
            found.append((best_condition(layer, scores[0], torch.cat(scores[1:])), vector))
        return max(found, key=lambda entry: (entry[0].f1, entry[0].gap))


class Condition(NamedTuple):
    """A threshold of a layer's score.

    Attributes:
        layer: the layer.
        threshold: of the score.
        above: whether the condition holds above it or below.
        f1: F1 of the condition for sensitive queries.
        gap: distance of the scores around the threshold, as a share of the range of all scores.
    """

    layer: int
    threshold: float
    above: bool
    f1: float
    gap: float


def best_condition(layer: int, sensitive: Tensor, others: Tensor) -> Condition:
    """Return the condition with the largest F1, of equals the one with the widest gap.

    Args:
        layer: the layer.
        sensitive: scores of queries that the condition is to hold for, (n,).
        others: scores of those that it is not to hold for, (m,).

    Example:
        >>> best_condition(3, torch.tensor([0.125, 0.25]), torch.tensor([0.5, 0.625]))
        Condition(layer=3, threshold=0.375, above=False, f1=1.0, gap=0.5)
    """
    scores = torch.cat([sensitive, others]).double().unique()
    low, high = (scores[:-1], scores[1:]) if len(scores) > 1 else (scores, scores)
    spread = float(scores[-1] - scores[0]) or 1.0
    found = []
    for below, over in zip(low.tolist(), high.tolist(), strict=True):
        threshold, gap = (below + over) / 2, (over - below) / spread
        for above in (True, False):
            hits, false_alarms = (
                int(((s > threshold) if above else (s < threshold)).sum()) for s in (sensitive, others)
            )
            f1 = 2 * hits / (hits + false_alarms + len(sensitive))
            found.append(Condition(layer, threshold, above, f1, gap))
    return max(found, key=lambda condition: (condition.f1, condition.gap))


def condition_score(states: Tensor, vector: Tensor) -> Tensor:
    """Return cos(h, tanh(c c^T h / c^T c)) of states h, (n, d), and a vector c, (d,): (n,)."""
    projected = (states @ vector)[:, None] * vector / vector.dot(vector)
    return torch.cosine_similarity(states, projected.tanh(), dim=1)


def paired_component(first: Tensor, second: Tensor) -> Tensor:
    """Return the first principal component of paired states around the means of their pairs, (d,).

    It points from the second states to the first ones, and is as long as their mean difference along it.

    Args:
        first: (n, d).
        second: (n, d), in the same order.
    """
    difference = first - second
    component = torch.linalg.svd(difference, full_matrices=False).Vh[0]
    return (difference @ component).mean() * component  # the sign of the component cancels
