"""Locate the columns of a `ColumnGate`: hidden units that tell sensitive from benign queries in the unedited model."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from lightning_neuralgate.errors import DataFormatError, UnsupportedSetupError
from lightning_neuralgate.gate.columns import DEFAULT_SHARE, ColumnGate
from lightning_neuralgate.gate.positions import TAIL_TOKENS, TWIN, Tail, entry, real_tokens, shared_tokens
from lightning_neuralgate.hf.decoder import find_decoder, find_hf_model
from lightning_neuralgate.hf.distributed import is_sharded
from lightning_neuralgate.hf.forward import IGNORED, last_logits, model_inputs
from lightning_neuralgate.hf.identity import ModelIdentity

_ROLES = ("sensitive", "benign")


def locate_columns(
    model: nn.Module, batches: Iterable[Mapping[str, Any]], layers: Sequence[int], share: float = DEFAULT_SHARE
) -> ColumnGate:
    """Compute how well each input unit of the MLP output projections tells sensitive from benign queries.

    A unit's activation is averaged over the tokens in which a query differs from its twin, and over the chat template's
    tokens behind the question. At each of these two sites

        contrast = |mean over sensitive queries - mean over benign queries| / sqrt((var_sensitive + var_benign) / 2),

    and the larger one counts. One forward pass per batch. Several processes share the batches, and all return the gate that
    one process would.

    Args:
        model: the unedited model.
        batches: batches of `PrivacyPairDataModule.pairs_dataloader()`; rows without a twin are skipped. Every process has to
            give all of them, as a DataModule does that is not attached to a Trainer.
        layers: indices of the decoder layers.
        share: share of the columns that the gate opens.

    Raises:
        DataFormatError: fewer than two pairs.
        UnsupportedSetupError: a batch lacks twins or tails, or the processes were given different batches.
    """
    # with sharded weights, every process has to run all batches
    is_shared = dist.is_available() and dist.is_initialized() and not is_sharded(model)
    rank, world = (dist.get_rank(), dist.get_world_size()) if is_shared else (0, 1)
    moments: dict[int, dict[_Key, _Moments]] = {}
    digest = hashlib.sha256()
    with torch.no_grad():
        for number, batch in enumerate(batches):
            digest.update(batch["input_ids"].cpu().numpy().tobytes())
            if number % world == rank:
                moments[number] = _moments(model, batch, layers)
    if is_shared:
        gathered: list[Any] = [None] * world
        dist.all_gather_object(gathered, (digest.hexdigest(), moments))
        if len({checksum for checksum, _ in gathered}) > 1:
            raise UnsupportedSetupError(
                "locate_columns was given different batches in each process, but needs all batches in every one: take them "
                "from a PrivacyPairDataModule that is not attached to a Trainer"
            )
        moments = {number: found for _, of_rank in gathered for number, found in of_rank.items()}
    # added up in the order of the batches, so that rounding does not depend on the number of processes
    totals = _summed([moments[number] for number in sorted(moments)])
    sites = [(layer, site) for layer in layers for site in (0, 1)]
    queries = 2 * min(totals[layer, site, role].queries if totals else 0 for layer, site in sites for role in _ROLES)
    if queries < 4:
        raise DataFormatError(f"columns are located with at least two query pairs, found {queries} queries")
    contrasts = {
        layer: torch.stack([_contrast(*(totals[layer, site, role] for role in _ROLES)) for site in (0, 1)]).amax(0)
        for layer in layers
    }
    return ColumnGate(contrasts, ModelIdentity.of(model), queries, share)


_Key = tuple[int, int, str]
"""Layer, site and role."""


class _Moments(NamedTuple):
    """Number of queries, and sums over them of the activations and their squares, (k,) float64."""

    queries: int
    total: Tensor
    squares: Tensor


def _moments(model: nn.Module, batch: Mapping[str, Any], layers: Sequence[int]) -> dict[_Key, _Moments]:
    """Run a batch and return its moments, on the CPU."""
    device = next(model.parameters()).device
    batch = {key: value.to(device) if isinstance(value, Tensor) else value for key, value in batch.items()}
    sites = _sites(batch)
    rows = {
        role: torch.tensor(
            [found == role and twin is not None for found, twin in zip(batch["role"], batch[TWIN], strict=True)],
            device=device,
        )
        for role in _ROLES
    }
    with _projection_inputs(model, layers) as inputs:
        last_logits(find_hf_model(model), {**model_inputs(batch), "use_cache": False}, 1)
    found = {}
    for layer, x in inputs.items():
        for site, mask in enumerate(sites):
            means = (x.double() * mask[:, :, None]).sum(1) / mask.sum(1).clamp(min=1)[:, None]
            for role, of_role in rows.items():
                values = means[of_role & mask.any(1)]
                sums = values.sum(0).cpu(), values.square().sum(0).cpu()
                found[layer, site, role] = _Moments(len(values), *sums)
    return found


def _summed(parts: Sequence[Mapping[_Key, _Moments]]) -> dict[_Key, _Moments]:
    totals: dict[_Key, _Moments] = {}
    for part in parts:
        for key, found in part.items():
            queries, total, squares = totals.get(key, (0, torch.zeros(()), torch.zeros(())))
            totals[key] = _Moments(queries + found.queries, total + found.total, squares + found.squares)
    return totals


def _contrast(sensitive: _Moments, benign: _Moments) -> Tensor:
    """Return the contrast of each unit between the queries of two roles, (k,) float64."""
    means = [part.total / part.queries for part in (sensitive, benign)]
    variances = [
        (part.squares / part.queries - mean.square()).clamp(min=0)
        for part, mean in zip((sensitive, benign), means, strict=True)
    ]
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
