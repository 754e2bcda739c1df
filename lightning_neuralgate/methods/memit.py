"""MEMIT: write refusals into MLP output projections in closed form."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from typing_extensions import override

from lightning_neuralgate.gate.keys import InputCovariance
from lightning_neuralgate.hf.decoder import find_decoder, find_hf_model
from lightning_neuralgate.hf.identity import model_checksum
from lightning_neuralgate.methods.base import Method, Tier, WeightEdit, restored
from lightning_neuralgate.methods.data import MethodData
from lightning_neuralgate.methods.keys import KeyPosition, TokenStates, token_states
from lightning_neuralgate.methods.solves import Solve, memit_change
from lightning_neuralgate.methods.values import Values, ValueSearch


@dataclass(frozen=True)
class ClosedForm(Method):
    """A value search at the data's layer, whose residuals are spread over some layers up to it by a closed form.

    For the layers in ascending order, R is a share of what is missing, (z - output) / (layers left), K are the keys in the
    weights as they are by then, and the projection is changed by `change` before the next layer's keys are taken.

    Attributes:
        key: the key's token: `subject` (the owners' rule) or `last`.
        span: number of layers; the last one is the data's layer.
        contexts, steps, value_lr, kl_factor, value_decay, clamp: of the value search (`ValueSearch`).
    """

    tier: ClassVar[Tier] = 2

    key: KeyPosition = "subject"
    span: int = 5
    contexts: int = 6
    steps: int = 25
    value_lr: float = 0.5
    kl_factor: float = 0.0625
    value_decay: float = 0.5
    clamp: float = 4.0

    def __post_init__(self) -> None:
        if self.key not in ("subject", "last") or self.span < 1:
            raise ValueError(f"key must be subject or last, and span at least 1; got {self.key} and {self.span}")

    @abstractmethod
    def change(self, covariance: InputCovariance, layer: int, keys: Tensor, residuals: Tensor, benign: Tensor) -> Solve:
        """Return the change of a layer's projection.

        Args:
            covariance: of the inputs of ordinary prompts, in the unedited model.
            layer: the layer.
            keys: K, (n, f).
            residuals: R, (n, d).
            benign: keys of the benign twins at the same token, (n, f).
        """

    @override
    def fit(self, model: nn.Module, data: MethodData) -> WeightEdit:
        model = find_hf_model(model).eval()
        checksum = model_checksum(model)
        layout = find_decoder(model)
        layers = list(range(max(0, data.layer - self.span + 1), data.layer + 1))
        names = {layer: f"{layout.projection_path(layer)}.weight" for layer in layers}
        parameters = dict(model.named_parameters())
        covariance = data.input_covariance(model, layers)
        search = ValueSearch(self.contexts, self.steps, self.value_lr, self.kl_factor, self.value_decay, self.clamp)
        values = search.learn(model, data, data.layer, self.key)
        report = {"value_loss": float(values.losses.mean())}
        with restored(model, names.values()):
            for number, layer in enumerate(layers):
                needed = list(dict.fromkeys([layer, data.layer]))
                states, benign = self._states(model, data, search, needed)
                residuals = (values.targets - states.outputs) / (len(layers) - number)
                solve = self.change(covariance, layer, states.keys[layer], residuals, benign.keys[layer])
                report |= solve.report(layer)
                with torch.no_grad():
                    weight = parameters[names[layer]]
                    weight.copy_((weight.double() + solve.change.to(weight.device)).to(weight.dtype))
            report["missed"] = self._missed(model, data, search, values)
            weights = {name: parameters[name].detach().cpu().clone() for name in names.values()}
        return WeightEdit(method=self.name, settings=self.settings(), report=report, weights=weights, base=checksum)

    def _states(
        self, model: nn.Module, data: MethodData, search: ValueSearch, layers: Sequence[int]
    ) -> tuple[TokenStates, TokenStates]:
        """Return keys, averaged over contexts, and outputs of the bare sensitive queries, and the states of benign ones."""
        rows = [row for pair in data.pairs for row in search.context_rows(pair)]
        found = token_states(model, data.processor, rows, layers, self.key)
        keys = {layer: value.view(len(data.pairs), search.contexts, -1).mean(1) for layer, value in found.keys.items()}
        benign = token_states(model, data.processor, [pair.answer for pair in data.pairs], layers, self.key)
        return TokenStates(keys, found.outputs[:: search.contexts]), benign

    def _missed(self, model: nn.Module, data: MethodData, search: ValueSearch, values: Values) -> float:
        """Return |z - output| / |delta| after the edit: 0 where all values were reached, 1 as before the edit."""
        bare = [pair.refusal for pair in data.pairs]
        outputs = token_states(model, data.processor, bare, [data.layer], self.key).outputs
        return float((values.targets - outputs).norm() / values.deltas.norm())


@dataclass(frozen=True)
class MEMIT(ClosedForm):
    """MEMIT with refusals as facts: a request is a sensitive query, and its object is the refusal prefix.

        D = R K^T (strength C + K K^T + preserve K_b K_b^T)^-1

    Owner: Meng et al. (arXiv 2210.07229), lambda 15,000, five layers, keys at the subject's last token, C from 100,000
    texts of Wikipedia. The paper lists MEMIT as a baseline and does not print its settings.

    Changed: C comes from ordinary prompts with pictures, since keys behind a picture differ from those of text. The anchor of
    the KL term is the benign twin, not "SUBJECT is a". Benign twins are preservation pairs (K_b with residual 0): the subject
    is the same in both queries, so without them a refusal is written for both.

    Traps: at the last token (`key="last"`) all prompts share nearly one key, so the rank of K is low (see the report), and
    EasyEdit's maintainers saw that variant fail for visual questions. A lambda for 7B does not carry over to other sizes.

    Attributes:
        strength: lambda, the weight of C.
        preserve: weight of the preservation pairs; 0 for the owner's form.
    """

    name: ClassVar[str] = "memit"
    tries: ClassVar[Sequence[Mapping[str, Any]]] = (
        {}, {"strength": 1500.0}, {"strength": 150.0}, {"strength": 1500.0, "key": "last"},
    )  # fmt: skip

    strength: float = 15000.0
    preserve: float = 100.0

    @override
    def change(self, covariance: InputCovariance, layer: int, keys: Tensor, residuals: Tensor, benign: Tensor) -> Solve:
        c = covariance.covariance(layer).to(keys.device)
        return memit_change(keys, residuals, c, self.strength, benign, self.preserve)
