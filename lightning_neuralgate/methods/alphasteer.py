"""AlphaSteer: a refusal direction whose factor is linear in the prompt's state, and 0 for ordinary prompts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from typing_extensions import override

from lightning_neuralgate.hf.decoder import find_decoder
from lightning_neuralgate.hf.hooks import replace_outputs
from lightning_neuralgate.hf.identity import ModelIdentity
from lightning_neuralgate.methods.base import Method, Tier
from lightning_neuralgate.methods.data import MethodData
from lightning_neuralgate.methods.prompt_tokens import watched_tokens
from lightning_neuralgate.methods.states import layers_from, pooled_states
from lightning_neuralgate.methods.steering import Steering


@dataclass(frozen=True, kw_only=True)
class AlphaSteering(Steering):
    """h <- h + strength * (w . h_last) r, in some layers, at all tokens of the prompt; h_last is that of its last token.

    The matrix w r^T has rank one, so its two factors are stored. Prompts run whole, and not in shared parts.

    Attributes:
        factors: layer -> w, (d,) float32.
        directions: layer -> r, (d,) float32.
        strength: factor of the change.
    """

    factors: Mapping[int, Tensor]
    directions: Mapping[int, Tensor]
    strength: float
    kind: ClassVar[str] = "alpha"
    has_tensors: ClassVar[bool] = True

    @contextmanager
    def hooked(self, model: nn.Module) -> Iterator[None]:
        def change(layer: int, hidden: Tensor) -> Tensor:
            if not watch.tokens.is_start:
                return hidden
            w, r = (vectors[layer].to(hidden.device) for vectors in (self.factors, self.directions))
            shift = self.strength * (watch.tokens.last(hidden).float() @ w)[:, None] * r
            return hidden + shift[:, None].to(hidden.dtype)

        with watched_tokens(model) as watch, replace_outputs(find_decoder(model).layers, list(self.factors), change):
            yield

    def content(self) -> dict[str, Any]:
        return {"strength": self.strength}

    def tensors(self) -> dict[str, Tensor]:
        named = {"factor": self.factors, "direction": self.directions}
        return {f"{name}_{layer}": vector for name, vectors in named.items() for layer, vector in vectors.items()}

    @classmethod
    def from_content(
        cls, content: Mapping[str, Any], tensors: Mapping[str, Tensor], common: dict[str, Any]
    ) -> AlphaSteering:
        layers = sorted(int(name.removeprefix("factor_")) for name in tensors if name.startswith("factor_"))
        if not layers:
            raise ValueError("there are no layers")
        factors, directions = (
            {layer: tensors[f"{name}_{layer}"] for layer in layers} for name in ("factor", "direction")
        )
        return cls(factors=factors, directions=directions, strength=float(content["strength"]), **common)


@dataclass(frozen=True)
class AlphaSteer(Method):
    """Steering with a matrix P D that maps states of sensitive prompts to the refusal direction, and of ordinary ones to 0.

    With Q the eigenvectors of the `null_share` * d least eigenvalues of H_b^T H_b, P = Q Q^T and X = H_m P,

        D = (X^T X + regularization P^T P)^+ X^T 1 r^T
        P D = w r^T,  w = Q (Z^T Z + regularization I)^-1 Z^T 1,  Z = H_m Q

    in float64; H_b and H_m are the last-token states of ordinary and of sensitive prompts, and r is refusals minus leaks.

    Owner: AlphaSteer (arXiv 2506.07022, AlphaLab-USTC/AlphaSteer): about 14,000 ordinary and 2,000 malicious prompts, layers
    8 to 19 of 32, a null space of 30 to 60 % of the dimensions, regularization 10; the strength is tuned.

    Changed: r is forced, as in `RefusalDirection`; the layers start at the data's layer; ordinary prompts are benign twins,
    ordinary questions, and prompts without a picture.

    Traps: with fewer ordinary prompts than dimensions, H_b has a null space that other ordinary prompts do not have: compare
    `ordinary_rank` in the report with d. The regularization depends on the scale of the states.

    Attributes:
        strength: factor of the change; 1 adds r to a sensitive prompt.
        null_share: share of the dimensions that P keeps, in (0, 1].
        regularization: weight of the norm of D.
        span: number of steered layers, from the data's layer on.
    """

    name: ClassVar[str] = "alphasteer"
    tier: ClassVar[Tier] = 3
    tries: ClassVar[Sequence[Mapping[str, Any]]] = (
        {"strength": 1.0, "span": 1}, {"strength": 4.0, "span": 1}, {"strength": 0.25}, {"strength": 1.0},
    )  # fmt: skip

    strength: float = 1.0
    null_share: float = 0.5
    regularization: float = 10.0
    span: int = 12

    def __post_init__(self) -> None:
        if not 0 < self.null_share <= 1 or not self.regularization > 0 or self.span < 1:
            raise ValueError(
                f"null_share must lie in (0, 1], regularization above 0, and span be at least 1; got {self.null_share}, "
                f"{self.regularization} and {self.span}"
            )

    @override
    def fit(self, model: nn.Module, data: MethodData) -> AlphaSteering:
        model.eval()
        layers = layers_from(model, data.layer, self.span)
        sensitive, leaks = ([pair.refusal for pair in data.pairs], [pair.leak for pair in data.pairs])
        ordinary = pooled_states(model, data.processor, data.ordinary_prompts(), layers, "last")
        prompts = pooled_states(model, data.processor, sensitive, layers, "last")
        refused, leaked = (pooled_states(model, data.processor, rows, layers, "target") for rows in (sensitive, leaks))
        factors = {
            layer: steering_factor(ordinary[layer], prompts[layer], self.null_share, self.regularization)
            for layer in layers
        }
        lowest = layers[0]
        report = {
            "ordinary_rank": float(torch.linalg.matrix_rank(ordinary[lowest])),
            "on_sensitive": float((prompts[lowest] @ factors[lowest]).mean()),
            "on_ordinary": float((ordinary[lowest] @ factors[lowest]).abs().mean()),
        }
        return AlphaSteering(
            method=self.name,
            settings=self.settings(),
            report=report,
            model=ModelIdentity.of(model),
            factors={layer: w.float().cpu() for layer, w in factors.items()},
            directions={layer: (refused[layer] - leaked[layer]).mean(0).float().cpu() for layer in layers},
            strength=self.strength,
        )


def steering_factor(ordinary: Tensor, sensitive: Tensor, null_share: float, regularization: float) -> Tensor:
    """Return w of P D = w r^T, see `AlphaSteer`, (d,) float64.

    Args:
        ordinary: H_b, (n, d).
        sensitive: H_m, (m, d).
        null_share: share of the dimensions in Q.
        regularization: weight of the norm of D.
    """
    ordinary, sensitive = ordinary.double(), sensitive.double()
    kept = max(1, round(null_share * ordinary.shape[1]))
    q = torch.linalg.eigh(ordinary.T @ ordinary).eigenvectors[:, :kept]  # eigenvalues ascend
    z = sensitive @ q
    system = z.T @ z + regularization * torch.eye(kept, dtype=torch.float64, device=z.device)
    return q @ torch.linalg.solve(system, z.sum(0))
