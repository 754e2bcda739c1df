"""`NeuralGate`: which dimensions of a layer's output encode the privacy of a subject.

For each record, the locator learns a feature vector m_l in (-1, 1)^d that scales the output of layer l so that privacy is
protected. Dimension j is also called a neuron; it is row j of the layer's MLP output projection. A gate stores the *activity
rates* M_l[j], the share of a subject's records in which dimension j had to flip its sign (m_l[j] < 0). It does not store the
thresholded mask, so tau can be chosen later:

    gate(subject, l, tau)[j] = M_l[j] > tau

Paper: section on privacy neurons, stage 1 of Neural Gate (arXiv 2603.12598).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import torch
from torch import Tensor, nn

from lightning_neuralgate.errors import GateFormatError, GateMismatchError
from lightning_neuralgate.gate.plot import MAX_PANELS, draw_gate
from lightning_neuralgate.gate.spans import normalize_subject
from lightning_neuralgate.hf.artifact import ModelArtifact
from lightning_neuralgate.hf.identity import ModelIdentity
from lightning_neuralgate.runtime.versions import library_versions

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WEIGHTS_NAME = "gate.safetensors"
CONFIG_NAME = "gate.json"
DEFAULT_TAU = 0.3
"""Dimensions with an activity rate above tau count as strongly active; the paper's value."""


class ClassShares(NamedTuple):
    """Shares of a layer's dimensions in each class; they add up to 1."""

    inactive: float
    weak: float
    strong: float


class NeuralGate(ModelArtifact):
    """Activity rates of privacy neurons, per subject and layer.

    Saved as `gate.safetensors` (the rates) and `gate.json`.

    Args:
        rates: subject -> layer -> activity rates, shape (d,), values in [0, 1].
        model: identity of the model that they were located in.
        records: subject -> number of records that its rates were computed from.
        settings: the locator's arguments, stored as provenance.
        versions: library versions; by default those of this process.

    Raises:
        GateFormatError: rates of the wrong shape or outside [0, 1], or subjects without the same layers.

    Example:
        >>> identity = ModelIdentity("Tiny", "0", "model.layers", "mlp.down_proj", 2, 4)
        >>> gate = NeuralGate({"Passport": {1: torch.tensor([0.0, 0.2, 0.5, 1.0])}}, identity, {"passport": 5})
        >>> gate.mask("passport", 1, tau=0.3)
        tensor([False, False,  True,  True])
        >>> gate
        NeuralGate(Tiny, d=4; classes at tau=0.3)
          passport (5 records), layer 1: 25.0 % inactive, 25.0 % weakly active, 50.0 % strongly active
    """

    _kind, file_names, _error = "gate", (WEIGHTS_NAME, CONFIG_NAME), GateFormatError
    _made, _make, _origin = "located", "locate", "`neuralgate locate` writes it"

    def __init__(
        self,
        rates: Mapping[str, Mapping[int, Tensor]],
        model: ModelIdentity,
        records: Mapping[str, int],
        settings: Mapping[str, Any] | None = None,
        versions: Mapping[str, str] | None = None,
    ) -> None:
        self.model = model
        self.settings = dict(settings or {})
        self.versions = dict(versions or library_versions())
        self.records = {normalize_subject(subject): int(count) for subject, count in records.items()}
        self._rates: dict[str, dict[int, Tensor]] = {}
        for subject, layers in rates.items():
            key = normalize_subject(subject)
            if key not in self.records:
                raise GateFormatError(f"subject '{subject}' has rates but no number of records")
            self._rates[key] = {
                layer: self._checked(subject, layer, values) for layer, values in sorted(layers.items())
            }
        if not self._rates:
            raise GateFormatError("a gate needs at least one subject")
        if len({tuple(layers) for layers in self._rates.values()}) != 1:
            found = {subject: list(layers) for subject, layers in self._rates.items()}
            raise GateFormatError(f"every subject of a gate needs the same layers, found {found}")

    def _checked(self, subject: str, layer: int, values: Tensor) -> Tensor:
        name = f"activity rates of subject '{subject}', layer {layer}"
        if not 0 <= layer < self.model.num_layers:
            raise GateFormatError(f"{name}: the model has layers 0 to {self.model.num_layers - 1}")
        if values.shape != (self.model.hidden_size,):
            raise GateFormatError(f"{name}: shape {tuple(values.shape)}, expected ({self.model.hidden_size},)")
        rates = values.detach().to("cpu", torch.float32).contiguous()
        if not bool(((rates >= 0) & (rates <= 1)).all()):  # also false for NaN
            raise GateFormatError(f"{name}: values outside [0, 1]")
        return rates

    @classmethod
    def uniform(cls, model: nn.Module, layers: Sequence[int], subjects: Sequence[str], rate: float = 1.0) -> NeuralGate:
        """Return a gate with one rate in all rows, for training that is gated by positions or columns only.

        Args:
            model: the model, or a module that contains it.
            layers: the layers to gate.
            subjects: the subjects of the batches.
            rate: the rate; 1 opens all rows.
        """
        identity = ModelIdentity.of(model)
        rates = {
            subject: {layer: torch.full((identity.hidden_size,), rate) for layer in layers} for subject in subjects
        }
        return cls(rates, identity, dict.fromkeys(subjects, 0), {"uniform": rate})

    @property
    def subjects(self) -> list[str]:
        """Subjects that the gate covers, in the form that `normalize_subject` returns."""
        return list(self._rates)

    @property
    def layers(self) -> list[int]:
        """Layers that the gate covers, in ascending order."""
        return list(next(iter(self._rates.values())))

    def rates(self, subject: str, layer: int) -> Tensor:
        """Return the activity rates M_l of a subject: the share of its records in which each dimension is active, (d,).

        Raises:
            GateMismatchError: the gate does not cover the subject or the layer; the message lists what it covers.
        """
        layers = self._rates.get(normalize_subject(subject))
        if layers is None:
            raise GateMismatchError(f"the gate has no subject '{subject}'; it covers {', '.join(self.subjects)}")
        if layer not in layers:
            raise GateMismatchError(f"the gate has no layer {layer}; it covers {self.layers}")
        return layers[layer].clone()

    def mask(self, subject: str, layer: int, tau: float = DEFAULT_TAU) -> Tensor:
        """Return the mask M_l > tau: True for strongly active dimensions, (d,) bool."""
        if not 0.0 <= tau <= 1.0:
            raise ValueError(f"tau must lie in [0, 1], got {tau}")
        return self.rates(subject, layer) > tau

    def filled(self, rate: float) -> NeuralGate:
        """Return a control with one rate in all rows: 1 opens all, for any tau below 1, and 0 closes all."""
        return self._controlled(lambda subject, layer, rates: torch.full_like(rates, rate))

    def shuffled(self, seed: int) -> NeuralGate:
        """Return a control with the rows of each layer in another order, the same one for all subjects.

        >>> identity = ModelIdentity("Tiny", "0", "model.layers", "mlp.down_proj", 2, 4)
        >>> gate = NeuralGate({"ID": {1: torch.tensor([0.0, 0.2, 0.5, 1.0])}}, identity, {"ID": 5})
        >>> gate.shuffled(seed=0).rates("ID", 1)
        tensor([0.2000, 0.0000, 0.5000, 1.0000])
        """
        orders = {layer: _order(f"{seed}/{layer}", self.model.hidden_size) for layer in self.layers}
        return self._controlled(lambda subject, layer, rates: rates[orders[layer]])

    def random(self, seed: int) -> NeuralGate:
        """Return a control with as many open rows for each subject at any tau, drawn for each subject on its own."""
        return self._controlled(lambda subject, layer, rates: rates[_order(f"{seed}/{layer}/{subject}", len(rates))])

    def _controlled(self, change: Callable[[str, int, Tensor], Tensor]) -> NeuralGate:
        rates = {s: {layer: change(s, layer, self.rates(s, layer)) for layer in self.layers} for s in self.subjects}
        return NeuralGate(rates, self.model, self.records, self.settings, self.versions)

    def shares(self, subject: str, layer: int, tau: float = DEFAULT_TAU) -> ClassShares:
        """Return the shares of inactive (M = 0), weakly active (0 < M <= tau) and strongly active (M > tau) dimensions."""
        rates, strong = self.rates(subject, layer), self.mask(subject, layer, tau)
        inactive = rates == 0
        return ClassShares(
            inactive=float(inactive.double().mean()),
            weak=float((~inactive & ~strong).double().mean()),
            strong=float(strong.double().mean()),
        )

    def plot(
        self,
        tau: float | None = DEFAULT_TAU,
        layers: Sequence[int] | None = None,
        subjects: Sequence[str] | None = None,
        max_layers: int = MAX_PANELS,
    ) -> tuple[Figure, list[Axes]]:
        """Draw the activity rates: one panel per layer with one curve per subject, most active neuron first.

        Args:
            tau: drawn as a line; the legends show the share of neurons above it. None for a soft gate, which has no tau:
                the legends then show the mean rate.
            layers: the layers to draw; all of them by default.
            subjects: the subjects to draw; all of them by default. All after the tenth are grey.
            max_layers: maximum number of panels; of more layers, evenly spaced ones are drawn.

        Returns:
            The figure, to save with `figure.savefig("gate.png")`, and the axes of each drawn layer. pyplot is not used.

        Raises:
            GateMismatchError: the gate does not cover a subject or a layer.
            MissingDependencyError: matplotlib is not installed.

        Example:
            >>> identity = ModelIdentity("Tiny", "0", "model.layers", "mlp.down_proj", 2, 4)
            >>> gate = NeuralGate({"Passport": {1: torch.tensor([0.0, 0.2, 0.5, 1.0])}}, identity, {"passport": 5})
            >>> figure, axes = gate.plot()
            >>> [text.get_text() for text in axes[0].get_legend().get_texts()]
            ['\u200750 %  passport']
        """
        if tau is not None and not 0.0 <= tau <= 1.0:
            raise ValueError(f"tau must lie in [0, 1], got {tau}")
        if max_layers < 1:
            raise ValueError(f"max_layers must be at least 1, got {max_layers}")
        # an empty list means all, too: an empty plot has no use
        rates = {
            layer: {normalize_subject(subject): self.rates(subject, layer) for subject in subjects or self.subjects}
            for layer in layers or self.layers
        }
        return draw_gate(rates, tau, f"Neural gate in {self.model.architecture}", max_layers)

    def _tensors(self) -> dict[str, Tensor]:
        rates = sorted(self._rates.items())
        return {f"{subject}/{layer}": values for subject, layers in rates for layer, values in layers.items()}

    def _settings(self) -> dict[str, Any]:
        records = {subject: self.records[subject] for subject in self.subjects}
        return {"layers": self.layers, "records": records, "settings": self.settings}

    @classmethod
    def _from_saved(cls, tensors: Mapping[str, Tensor], model: ModelIdentity, config: Mapping[str, Any]) -> Self:
        rates: dict[str, dict[int, Tensor]] = {subject: {} for subject in config["records"]}
        for name, values in tensors.items():
            subject, _, layer = name.rpartition("/")
            rates[subject][int(layer)] = values
        return cls(rates, model, config["records"], config["settings"], config["versions"])

    def __repr__(self) -> str:
        lines = [f"NeuralGate({self.model.architecture}, d={self.model.hidden_size}; classes at tau={DEFAULT_TAU})"]
        for subject in self.subjects:
            for layer in self.layers:
                inactive, weak, strong = self.shares(subject, layer)
                lines.append(
                    f"  {subject} ({self.records[subject]} records), layer {layer}: {inactive:.1%} inactive, "
                    f"{weak:.1%} weakly active, {strong:.1%} strongly active".replace("%", " %")
                )
        return "\n".join(lines)


def _order(name: str, size: int) -> Tensor:
    """Return a permutation that depends on a name alone, (size,)."""
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "little")
    return torch.randperm(size, generator=torch.Generator().manual_seed(seed))
