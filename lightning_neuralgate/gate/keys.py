"""`InputCovariance`: the inputs ("keys") of MLP output projections that ordinary prompts use, and projections away from them.

The projection maps the key k of each token to W k, so a change D of W changes the output by D k. With C = E[k k^T] over the
tokens of ordinary prompts, their mean squared change is E|D k|^2 = tr(D C D^T). It is small where D P takes the place of D:

    hard   P = I - V V^T                 V: the fewest eigenvectors of C that hold a share of its trace (the energy)
    soft   P = (I + C / lambda)^-1       lambda: a multiple of the mean eigenvalue of C

Keys in this sense: ROME (arXiv 2202.05262), MEMIT (2210.07229). The hard projection: AlphaEdit (2410.02355).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor

from lightning_neuralgate.errors import GateMismatchError, KeysFormatError
from lightning_neuralgate.hf.artifact import ModelArtifact
from lightning_neuralgate.hf.identity import ModelIdentity
from lightning_neuralgate.runtime.versions import library_versions

WEIGHTS_NAME = "keys.safetensors"
CONFIG_NAME = "keys.json"
DEFAULT_SHARE = 0.9
"""Share of the energy of ordinary keys that a change of the weight is kept out of."""
_DESCRIBED_SHARES = (0.8, 0.9, 0.99)


@dataclass(frozen=True)
class KeyProjector:
    """The projection P = I - V diag(s) V^T of changes of a weight, applied from the right.

    Attributes:
        directions: orthonormal input directions V, (k, m) float32.
        strengths: the removed share s of a change along each of them, (m,) float32 in [0, 1]; all 1 in a hard projection.

    Example:
        >>> project = KeyProjector(torch.tensor([[1.0], [0.0]]), torch.ones(1))
        >>> project(torch.tensor([[3.0, 4.0]]))
        tensor([[0., 4.]])
        >>> project
        KeyProjector(1.0 of 2 input directions removed)
    """

    directions: Tensor
    strengths: Tensor

    @property
    def size(self) -> int:
        """Number k of input directions."""
        return self.directions.shape[0]

    @property
    def removed(self) -> float:
        """Number of removed directions, k - tr P; a soft projection removes fractions."""
        return float(self.strengths.sum())

    @property
    def matrix(self) -> Tensor:
        """P as a matrix, (k, k) float32."""
        return (
            torch.eye(self.size, device=self.directions.device) - (self.directions * self.strengths) @ self.directions.T
        )

    def to(self, device: torch.device | str) -> KeyProjector:
        """Return a copy on a device."""
        return KeyProjector(self.directions.to(device), self.strengths.to(device))

    def __call__(self, change: Tensor) -> Tensor:
        """Return `change` P, (n, k), of a change, (n, k), at least in float32. Rows that are zero stay zero."""
        # a module with manual optimization steps its optimizer under autocast, which would round the product
        with torch.no_grad(), torch.autocast(change.device.type, enabled=False):
            change = change.to(torch.promote_types(change.dtype, torch.float32))
            directions, strengths = self.directions.to(change.dtype), self.strengths.to(change.dtype)
            return change - (change @ directions * strengths) @ directions.T

    def __repr__(self) -> str:
        return f"KeyProjector({self.removed:.1f} of {self.size} input directions removed)"


class InputCovariance(ModelArtifact):
    """Covariance C = E[k k^T], not centred, of the inputs of MLP output projections, per layer.

    Collected by `KeyCollector` or `neuralgate keys`. Saved as `keys.safetensors` (the matrices) and `keys.json`.

    Args:
        covariances: layer -> C, (k, k), symmetric.
        model: identity of the model in which the inputs were collected.
        tokens: number of tokens in the mean.
        prompts: number of prompts that these tokens are from.
        versions: library versions; by default those of this process.

    Raises:
        KeysFormatError: no layers, a layer that the model does not have, no tokens, or a C that is no finite, symmetric
            matrix with a positive trace.

    Example:
        >>> identity = ModelIdentity("Tiny", "0", "model.layers", "mlp.down_proj", 2, 4)
        >>> keys = InputCovariance({1: torch.diag(torch.tensor([8.0, 1.0, 1.0]))}, identity, tokens=10, prompts=2)
        >>> keys.projector(1, share=0.5).matrix
        tensor([[0., 0., 0.],
                [0., 1., 0.],
                [0., 0., 1.]])
    """

    _kind, file_names, _error = "input covariance", (WEIGHTS_NAME, CONFIG_NAME), KeysFormatError
    _made, _make, _origin = "collected", "collect", "`neuralgate keys` writes it"

    def __init__(
        self,
        covariances: Mapping[int, Tensor],
        model: ModelIdentity,
        tokens: int,
        prompts: int,
        versions: Mapping[str, str] | None = None,
    ) -> None:
        self.model, self.tokens, self.prompts = model, int(tokens), int(prompts)
        self.versions = dict(versions or library_versions())
        if not covariances or self.tokens < 1:
            raise KeysFormatError("an input covariance needs at least one layer and one token")
        self._covariances = {layer: self._checked(layer, value) for layer, value in sorted(covariances.items())}

    def _checked(self, layer: int, value: Tensor) -> Tensor:
        name = f"input covariance of layer {layer}"
        if not 0 <= layer < self.model.num_layers:
            raise KeysFormatError(f"{name}: the model has layers 0 to {self.model.num_layers - 1}")
        if value.ndim != 2 or value.shape[0] != value.shape[1] or not value.is_floating_point():
            raise KeysFormatError(f"{name}: {value.dtype} {tuple(value.shape)}, expected a square matrix of floats")
        covariance = value.detach().to("cpu", torch.float32).contiguous()
        # also false for NaN
        if not bool(covariance.isfinite().all()) or not float(covariance.trace()) > 0:
            raise KeysFormatError(f"{name}: values that are not finite, or no positive trace")
        if not torch.allclose(covariance, covariance.T, rtol=1e-4, atol=1e-6 * float(covariance.abs().max())):
            raise KeysFormatError(f"{name}: not symmetric")
        return covariance

    @property
    def layers(self) -> list[int]:
        """Layers with a covariance, in ascending order."""
        return list(self._covariances)

    def covariance(self, layer: int) -> Tensor:
        """Return C of a layer, (k, k) float32.

        Raises:
            GateMismatchError: the layer was not collected.
        """
        if layer not in self._covariances:
            raise GateMismatchError(
                f"the input covariance has no layer {layer}; it covers {self.layers}. Collect it with that layer"
            )
        return self._covariances[layer].clone()

    def projector(
        self, layer: int, share: float | None = None, soft: float | None = None, device: torch.device | str = "cpu"
    ) -> KeyProjector:
        """Return the projection of a layer's weight changes away from these inputs.

        Args:
            layer: the layer.
            share: hard projection: remove the fewest directions that hold at least this share of the energy, in (0, 1).
            soft: soft projection: lambda as a multiple of the mean eigenvalue of C, above 0; a small one removes more. A
                direction with the eigenvalue e keeps lambda / (lambda + e) of a change.
            device: where to compute; the eigenvectors of a large matrix take minutes on a CPU.

        Raises:
            ValueError: not exactly one of `share` and `soft` is given, or it is out of range.
            GateMismatchError: the layer was not collected.
        """
        check_strength(share, soft)
        energies, vectors = torch.linalg.eigh(self._symmetric(layer, device))
        energies, vectors = energies.flip(0).clamp(min=0), vectors.flip(1)  # in descending order
        if soft is not None:
            strengths = energies / (energies + soft * energies.mean())
            return KeyProjector(vectors.float(), strengths.float())
        assert share is not None
        removed = _directions_with(energies, share)
        return KeyProjector(vectors[:, :removed].float().contiguous(), torch.ones(removed, device=vectors.device))

    def _symmetric(self, layer: int, device: torch.device | str = "cpu") -> Tensor:
        """Return C in float64, exactly symmetric, on a device that has float64."""
        covariance = self.covariance(layer).to(device if torch.device(device).type == "cuda" else "cpu", torch.float64)
        return (covariance + covariance.T) / 2

    def described(self) -> Iterator[str]:
        """Yield a description, line by line, with the number of directions that hold some shares of the energy."""
        yield f"{self.tokens} tokens of {self.prompts} prompts in {self.model.architecture}"
        for layer in self.layers:
            energies = torch.linalg.eigvalsh(self._symmetric(layer)).flip(0).clamp(min=0)
            counts = (f"{_directions_with(energies, share)} hold {share:.0%}" for share in _DESCRIBED_SHARES)
            yield f"layer {layer}: of {len(energies)} input directions, {', '.join(counts)} of the energy".replace(
                "%", " %"
            )

    def _tensors(self) -> dict[str, Tensor]:
        return {str(layer): covariance for layer, covariance in self._covariances.items()}

    def _settings(self) -> dict[str, Any]:
        return {"layers": self.layers, "tokens": self.tokens, "prompts": self.prompts}

    @classmethod
    def _from_saved(cls, tensors: Mapping[str, Tensor], model: ModelIdentity, config: Mapping[str, Any]) -> Self:
        covariances = {int(layer): value for layer, value in tensors.items()}
        return cls(covariances, model, config["tokens"], config["prompts"], config["versions"])

    def __repr__(self) -> str:
        return f"InputCovariance({self.model.architecture}, layers {self.layers}, {self.tokens} tokens)"


def check_strength(share: float | None, soft: float | None) -> None:
    """Check the strength of a projection: either a share of the energy in (0, 1), or a soft one above 0.

    Raises:
        ValueError: otherwise.
    """
    if (share is None) == (soft is None):
        raise ValueError("give either the share of the energy to remove or a soft strength, and not both")
    if share is not None and not 0 < share < 1:
        raise ValueError(f"the share of the energy to remove must lie between 0 and 1, got {share}")
    if soft is not None and not soft > 0:
        raise ValueError(f"the soft strength must be above 0, got {soft}")


def _directions_with(energies: Tensor, share: float) -> int:
    """Return how many of the largest eigenvalues hold at least a share of their sum."""
    return int((energies.cumsum(0) < share * energies.sum()).sum()) + 1
