"""`ColumnGate`: which input units of a projection an edit may use.

Column i of the MLP output projection belongs to hidden unit i. An edit of a few columns answers to inputs that activate these
units, and to no others. A `ColumnGate` stores how well each unit tells sensitive from benign queries in the unedited model,

    contrast[i] = |mean a_i(sensitive) - mean a_i(benign)| / sd a_i,

and opens the columns with the largest contrast. It does not store the mask, so the share can be chosen later.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, Self

import torch
from torch import Tensor, nn

from lightning_neuralgate.errors import GateFormatError, GateMismatchError, UnsupportedSetupError
from lightning_neuralgate.gate.autograd import GatedModule
from lightning_neuralgate.hf.artifact import ModelArtifact
from lightning_neuralgate.hf.identity import ModelIdentity
from lightning_neuralgate.runtime.versions import library_versions

WEIGHTS_NAME = "columns.safetensors"
CONFIG_NAME = "columns.json"
DEFAULT_SHARE = 0.05


class ColumnRule(ABC):
    """Decides which columns of a projection's weight may change, the same ones for all samples and steps."""

    @abstractmethod
    def mask(self, layer: int) -> Tensor:
        """Return the open columns of a decoder layer's projection, (k,) bool."""

    def check_fits(self, module: nn.Module) -> None:  # noqa: B027  a rule may fit every model
        """Raise a `GateMismatchError` if the columns are not meant for this model."""

    def __str__(self) -> str:
        return type(self).__name__


class ColumnGate(ModelArtifact, ColumnRule):
    """Contrast of a projection's input units between sensitive and benign queries, per layer.

    Computed by `locate_columns` or `neuralgate locate --columns true`, and saved as `columns.safetensors` and `columns.json`,
    which may stand in the folder of a `NeuralGate`.

    Args:
        contrasts: layer -> contrast of each unit, (k,), not negative.
        model: identity of the model that they were computed with.
        queries: number of sensitive and benign queries that they were computed from.
        share: share of the columns that are open, those with the largest contrast.
        versions: library versions; by default those of this process.

    Raises:
        GateFormatError: contrasts of a wrong shape, negative or not finite.
        ValueError: the share is not in [0, 1].

    Example:
        >>> identity = ModelIdentity("Tiny", "0", "model.layers", "mlp.down_proj", 2, 4)
        >>> gate = ColumnGate({1: torch.tensor([0.1, 2.0, 0.3, 0.0])}, identity, queries=8, share=0.5)
        >>> gate.mask(1), gate.with_share(0.25).mask(1)
        (tensor([False,  True,  True, False]), tensor([False,  True, False, False]))
    """

    _kind, file_names, _error = "column gate", (WEIGHTS_NAME, CONFIG_NAME), GateFormatError
    _made, _make, _origin = "located", "locate", "`neuralgate locate --columns true` writes it"

    def __init__(
        self,
        contrasts: Mapping[int, Tensor],
        model: ModelIdentity,
        queries: int,
        share: float = DEFAULT_SHARE,
        versions: Mapping[str, str] | None = None,
    ) -> None:
        if not 0.0 <= share <= 1.0:
            raise ValueError(f"share must lie in [0, 1], got {share}")
        if not contrasts:
            raise GateFormatError("a column gate needs at least one layer")
        self.model, self.queries, self.share = model, int(queries), share
        self.versions = dict(versions or library_versions())
        self._contrasts: dict[int, Tensor] = {}
        for layer, values in sorted(contrasts.items()):
            values = values.detach().to("cpu", torch.float32)
            if values.ndim != 1 or not bool((values.isfinite() & (values >= 0)).all()):
                raise GateFormatError(f"contrasts of layer {layer}: not a vector of finite values of at least 0")
            self._contrasts[layer] = values

    @property
    def layers(self) -> list[int]:
        """Layers that the gate covers, in ascending order."""
        return list(self._contrasts)

    def contrasts(self, layer: int) -> Tensor:
        """Return the contrast of each input unit of a layer's projection, (k,).

        Raises:
            GateMismatchError: the gate does not cover the layer.
        """
        if layer not in self._contrasts:
            raise GateMismatchError(f"the column gate has no layer {layer}; it covers {self.layers}")
        return self._contrasts[layer].clone()

    def mask(self, layer: int) -> Tensor:
        contrasts = self.contrasts(layer)
        mask = torch.zeros_like(contrasts, dtype=torch.bool)
        mask[contrasts.argsort(descending=True, stable=True)[: round(self.share * len(contrasts))]] = True
        return mask

    def with_share(self, share: float) -> ColumnGate:
        """Return the gate with another share of open columns: 0 closes and 1 opens all."""
        return ColumnGate(self._contrasts, self.model, self.queries, share, self.versions)

    def shuffled(self, seed: int) -> ColumnGate:
        """Return a control: as many open columns, drawn at random."""
        generator = torch.Generator().manual_seed(seed)
        contrasts = {k: v[torch.randperm(len(v), generator=generator)] for k, v in self._contrasts.items()}
        return ColumnGate(contrasts, self.model, self.queries, self.share, self.versions)

    def _tensors(self) -> dict[str, Tensor]:
        return {str(layer): values for layer, values in self._contrasts.items()}

    def _settings(self) -> dict[str, Any]:
        return {"layers": self.layers, "queries": self.queries, "share": self.share}

    def _fingerprinted(self, identity: dict[str, Any]) -> Any:
        return [identity, self.queries]

    @classmethod
    def _from_saved(cls, tensors: Mapping[str, Tensor], model: ModelIdentity, config: Mapping[str, Any]) -> Self:
        contrasts = {int(layer): values for layer, values in tensors.items()}
        return cls(contrasts, model, config["queries"], config["share"], config["versions"])

    def __str__(self) -> str:
        return f"{self.fingerprint} ({self.share})"

    def __repr__(self) -> str:
        counts = ", ".join(f"layer {layer}: {len(values)} columns" for layer, values in self._contrasts.items())
        return f"ColumnGate({self.model.architecture}, {self.share:.1%} open; {counts})".replace("%", " %")


def checked_columns(columns: ColumnRule, layer: int, name: str, gated: GatedModule) -> Tensor:
    """Return the open columns of a gated module's weight, (k,) bool, on its device.

    Raises:
        UnsupportedSetupError: an adapter trains, whose columns are not those of the projection.
        GateMismatchError: the mask has another length than the projection has input units.
    """
    if gated.is_adapter:
        raise UnsupportedSetupError(
            f"{name} is an adapter, whose columns are not the projection's input units: train the full weight, or leave out "
            "columns"
        )
    weight: Any = gated.module.weight
    mask = columns.mask(layer).to(weight.device)
    if mask.dtype != torch.bool or mask.shape != weight.shape[1:]:
        raise GateMismatchError(
            f"the columns of layer {layer} are a {mask.dtype} mask of shape {tuple(mask.shape)}, expected bool of shape "
            f"{tuple(weight.shape[1:])}"
        )
    return mask
