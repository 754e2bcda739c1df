"""MIP-Editor: find the neurons that carry leaks, in text and in pictures, and train only their columns."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn
from typing_extensions import override

from lightning_neuralgate.edit.editor import PrivacyEditModule
from lightning_neuralgate.hf.decoder import find_decoder
from lightning_neuralgate.hf.forward import batch_predictions, row_nll
from lightning_neuralgate.methods.base import Report, Tier
from lightning_neuralgate.methods.data import MethodBatches, MethodData
from lightning_neuralgate.methods.memflex import editable_layers
from lightning_neuralgate.methods.neural_gate import Ungated
from lightning_neuralgate.methods.prompt_tokens import watched_tokens

Place = Literal["all", "data"]
_PAIRS_PER_BATCH = 4


@dataclass(frozen=True)
class MIPEditor(Ungated):
    """The edit of `Ungated` on the columns of some hidden units of the MLPs alone.

    With a the inputs of the MLP output projections, F the mean log-probability of a leak's tokens, and the gradient taken
    where all a are replaced by k / steps of their values, k = 1 .. steps, a unit's scores are

        text     sum over the tokens of text behind the picture of a * mean_k dF/da    (integrated gradients)
        picture  sum over the tokens of pictures of mean_k (dF/da)^2                   (Fisher information)

    In each layer the `neurons` best units of either score are selected.

    Owner: MIP-Editor (arXiv 2511.06793): the same two kinds of scores with 4 steps, paths through the 5 best neurons of each
    layer, and training of these alone with the loss of RMU at layer 7.

    Changed: the paper's idea, without its code, which has no licence. Both scores belong to one path, on which all layers are
    scaled together, and neurons are selected layer by layer; they train by their columns of the output projection, with the
    objective of Neural Gate. It is the rival of a gate of columns: where to edit is found by what makes leaks likely.

    Trap: 5 of thousands of units in each layer change little; the tries have more. Units that make a leak likely may serve
    all answers about a picture, which no score here counts.

    Attributes:
        neurons: units that each score selects in a layer.
        steps: steps of the path.
        place: `all` layers, or `data` for the layer that all one-layer methods edit.
    """

    name: ClassVar[str] = "mip_editor"
    tier: ClassVar[Tier] = 3
    tries: ClassVar[Sequence[Mapping[str, Any]]] = (
        {"lr": 1e-3}, {"neurons": 32, "lr": 1e-3}, {"neurons": 64, "place": "data", "lr": 3e-3},
        {"neurons": 128, "place": "data", "lr": 6e-3},
    )  # fmt: skip

    neurons: int = 5
    steps: int = 4
    place: Place = "all"

    def __post_init__(self) -> None:
        if self.neurons < 1 or self.steps < 1 or self.place not in ("all", "data"):
            raise ValueError(
                f"neurons and steps must be at least 1, and place all or data; got {self.neurons}, {self.steps} and "
                f"'{self.place}'"
            )

    @override
    def module(self, model: nn.Module, data: MethodData) -> PrivacyEditModule:
        layers = editable_layers(model) if self.place == "all" else [data.layer]
        scores = neuron_scores(model, data, layers, self.steps)
        chosen = {
            layer: best_units(scores.text[layer], self.neurons) | best_units(scores.picture[layer], self.neurons)
            for layer in layers
        }
        weights: dict[str, Any] = {"alpha": self.alpha, "retention_weight": self.retention_weight}
        return _ColumnEdit(model, chosen, lr=self.lr, **weights)

    @override
    def report(self, module: PrivacyEditModule) -> Report:
        assert isinstance(module, _ColumnEdit)
        return {"neurons": float(sum(int(mask.sum()) for mask in module.columns.values()))}


class _ColumnEdit(PrivacyEditModule):
    def __init__(self, model: nn.Module, columns: Mapping[int, Tensor], **settings: Any) -> None:
        super().__init__(model, list(columns), **settings)
        self.columns = dict(columns)

    @override
    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        # Adam leaves elements whose gradients are always 0 bit-identical
        layout = find_decoder(self.model)
        for layer, mask in self.columns.items():
            for parameter in layout.output_projection(layer).parameters():
                if parameter.grad is not None:
                    is_open = mask.to(parameter.device) if parameter.ndim == 2 else False  # a bias has no columns
                    parameter.grad *= is_open


class NeuronScores(NamedTuple):
    """Scores of hidden units, float64: layer -> (f,) each, see `MIPEditor`."""

    text: dict[int, Tensor]
    picture: dict[int, Tensor]


def neuron_scores(model: nn.Module, data: MethodData, layers: Sequence[int], steps: int) -> NeuronScores:
    """Compute the scores of the inputs of some layers' projections, summed over the leaks of all pairs.

    Args:
        model: the unedited model.
        data: the training data.
        layers: the layers.
        steps: steps of the path.
    """
    model.requires_grad_(False)
    device = next(model.parameters()).device
    total = NeuronScores({}, {})
    for batch in MethodBatches(data, ["leak"], _PAIRS_PER_BATCH).pairs_dataloader():
        moved = {key: value.to(device) if isinstance(value, Tensor) else value for key, value in batch.items()}
        for sums, found in zip(total, batch_scores(model, moved, layers, steps), strict=True):
            for layer, values in found.items():
                sums[layer] = sums.get(layer, 0) + values
    return total


def batch_scores(model: nn.Module, batch: Mapping[str, Any], layers: Sequence[int], steps: int) -> NeuronScores:
    """Compute the scores of one batch, summed over its rows; see `neuron_scores`."""
    inputs: dict[int, Tensor] = {}
    with torch.no_grad(), _inputs(model, layers, seen=inputs), watched_tokens(model) as watch:
        batch_predictions(model, batch)
    tokens = watch.tokens
    scores = NeuronScores({}, {})
    for step in range(1, steps + 1):
        path = {layer: (step / steps * a).requires_grad_() for layer, a in inputs.items()}
        with _inputs(model, layers, replaced=path):
            log_probability = -row_nll(*batch_predictions(model, batch)).sum()
        gradients = torch.autograd.grad(log_probability, list(path.values()))
        for (layer, a), gradient in zip(inputs.items(), gradients, strict=True):
            parts = (a.double() * gradient.double(), tokens.text), (gradient.double().square(), tokens.picture)
            for sums, (values, mask) in zip(scores, parts, strict=True):
                sums[layer] = sums.get(layer, 0) + values[mask].sum(0) / steps
    return scores


def best_units(scores: Tensor, count: int) -> Tensor:
    """Return which units have the `count` largest scores above 0, (f,) bool.

    Example:
        >>> best_units(torch.tensor([0.5, -1.0, 2.0, 0.1]), 2)
        tensor([ True, False,  True, False])
    """
    best = torch.zeros_like(scores, dtype=torch.bool)
    best[scores.topk(min(count, len(scores))).indices] = True
    return best & (scores > 0)


@contextmanager
def _inputs(
    model: nn.Module, layers: Sequence[int], seen: dict[int, Tensor] | None = None, replaced: Mapping[int, Tensor] = {}
) -> Iterator[None]:
    """Note the inputs of the MLP output projections, (B, T, f), in `seen`, or replace them."""

    def hook(layer: int) -> Any:
        def run(module: nn.Module, args: tuple[Tensor, ...]) -> Any:
            if seen is not None:
                seen[layer] = args[0]
            return (replaced[layer], *args[1:]) if layer in replaced else None

        return run

    layout = find_decoder(model)
    with ExitStack() as handles:
        for layer in layers:
            handles.callback(layout.output_projection(layer).register_forward_pre_hook(hook(layer)).remove)
        yield
