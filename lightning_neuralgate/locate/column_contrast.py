"""Locate the columns of a `ColumnGate`: hidden units that tell sensitive from benign queries in the unedited model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from lightning_neuralgate.errors import DataFormatError
from lightning_neuralgate.gate.columns import DEFAULT_SHARE, ColumnGate
from lightning_neuralgate.gate.positions import TAIL_TOKENS, TWIN, Tail, entry, real_tokens, shared_tokens
from lightning_neuralgate.hf.decoder import find_decoder, find_hf_model
from lightning_neuralgate.hf.forward import IGNORED, last_logits, model_inputs
from lightning_neuralgate.hf.identity import ModelIdentity


def locate_columns(
    model: nn.Module, batches: Iterable[Mapping[str, Any]], layers: Sequence[int], share: float = DEFAULT_SHARE
) -> ColumnGate:
    """Compute how well each input unit of the MLP output projections tells sensitive from benign queries.

    A unit's activation is averaged over the tokens in which a query differs from its twin, and over the chat template's
    tokens behind the question. At each of these two sites

        contrast = |mean over sensitive queries - mean over benign queries| / sqrt((var_sensitive + var_benign) / 2),

    and the larger one counts. One forward pass per batch, in this process.

    Args:
        model: the unedited model.
        batches: batches of `PrivacyPairDataModule.pairs_dataloader()`; rows without a twin are skipped.
        layers: indices of the decoder layers.
        share: share of the columns that the gate opens.

    Raises:
        DataFormatError: fewer than two pairs.
        UnsupportedSetupError: a batch lacks twins or tails.
    """
    moments = {layer: _Moments() for layer in layers}
    device = next(model.parameters()).device
    with torch.no_grad():
        for batch in batches:
            batch = {key: value.to(device) if isinstance(value, Tensor) else value for key, value in batch.items()}
            sites = _sites(batch)
            rows = {
                role: torch.tensor(
                    [
                        found == role and twin is not None
                        for found, twin in zip(batch["role"], batch[TWIN], strict=True)
                    ],
                    device=device,
                )
                for role in ("sensitive", "benign")
            }
            with _projection_inputs(model, layers) as inputs:
                last_logits(find_hf_model(model), {**model_inputs(batch), "use_cache": False}, 1)
            for layer, x in inputs.items():
                for site, mask in enumerate(sites):
                    means = (x.double() * mask[:, :, None]).sum(1) / mask.sum(1).clamp(min=1)[:, None]
                    for role, of_role in rows.items():
                        moments[layer].update((site, role), means[of_role & mask.any(1)])
    queries = min(found.count for found in moments.values())
    if queries < 4:
        raise DataFormatError(f"columns are located with at least two query pairs, found {queries} queries")
    contrasts = {layer: found.contrast() for layer, found in moments.items()}
    return ColumnGate(contrasts, ModelIdentity.of(model), queries, share)


class _Moments:
    """Sums over queries of the activations and their squares, (k,) float64, per site and role."""

    def __init__(self) -> None:
        self.sums: dict[tuple[int, str], tuple[int, Tensor, Tensor]] = {}

    def update(self, key: tuple[int, str], values: Tensor) -> None:
        count, total, squares = self.sums.get(key, (0, torch.zeros(()), torch.zeros(())))
        self.sums[key] = count + len(values), values.sum(0) + total, values.square().sum(0) + squares

    @property
    def count(self) -> int:
        """The number of queries at the site with the fewest."""
        return min((self._count(site) for site in (0, 1)), default=0)

    def _count(self, site: int) -> int:
        return 2 * min(self.sums.get((site, role), (0,))[0] for role in ("sensitive", "benign"))

    def contrast(self) -> Tensor:
        return torch.stack([self._contrast(site) for site in (0, 1)]).amax(0)

    def _contrast(self, site: int) -> Tensor:
        means, variances = [], []
        for role in ("sensitive", "benign"):
            count, total, squares = self.sums[site, role]
            means.append(total / count)
            variances.append((squares / count - means[-1].square()).clamp(min=0))
        difference, sd = (means[0] - means[1]).abs(), ((variances[0] + variances[1]) / 2).sqrt()
        # a unit that is constant says nothing
        is_constant = sd <= 1e-9 * (means[0].abs() + means[1].abs()) + 1e-30
        return torch.where(is_constant, torch.zeros_like(sd), difference / sd.clamp(min=1e-30))


def _sites(batch: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    """Return where each row is measured, (B, T) bool each: at the tokens that its twin does not share, and at the tail."""
    twins = entry(batch, TWIN, "give each row the index of its twin")
    entry(batch, TAIL_TOKENS, "give each row the number of tokens between question and target")
    ids, columns = batch["input_ids"], torch.arange(batch["input_ids"].shape[1], device=batch["input_ids"].device)
    real, behind = real_tokens(batch), columns >= Tail().starting_columns(batch)[:, None]
    question, answer = real & ~behind, batch["labels"] != IGNORED
    partner = torch.tensor([row if twin is None else twin for row, twin in enumerate(twins)], device=ids.device)
    start = shared_tokens(ids, question, partner)[:, None]
    end = shared_tokens(ids.flip(1), question.flip(1), partner)[:, None]
    from_start, from_end = question.cumsum(1), question.flip(1).cumsum(1).flip(1)
    return question & (from_start > start) & (from_end > end), behind & real & ~answer


@contextmanager
def _projection_inputs(model: nn.Module, layers: Sequence[int]) -> Iterator[dict[int, Tensor]]:
    """Collect the inputs of the MLP output projections while the block runs: layer -> (B, T, k)."""
    decoder, inputs = find_decoder(model), dict[int, Tensor]()

    def keep(layer: int) -> Any:
        def hook(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            inputs[layer] = args[0].detach()

        return hook

    handles = [decoder.output_projection(layer).register_forward_pre_hook(keep(layer)) for layer in layers]
    try:
        yield inputs
    finally:
        for handle in handles:
            handle.remove()
