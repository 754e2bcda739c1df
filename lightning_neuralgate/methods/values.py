"""The value search of MEMIT: the change of a layer's output at one token that makes the model refuse."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lightning_neuralgate.data.collator import PrivacyPairCollator, QueryRow
from lightning_neuralgate.data.datamodule import LEAD_INS
from lightning_neuralgate.hf.decoder import find_decoder
from lightning_neuralgate.hf.forward import batch_predictions, row_kl, row_nll
from lightning_neuralgate.methods.data import MethodData, MethodPair
from lightning_neuralgate.methods.keys import KeyPosition, key_positions
from lightning_neuralgate.prefix_cache.locate_pass import LocatePass
from lightning_neuralgate.prefix_cache.verify import FastPath, Results

Predictions = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class ValueSearch:
    """Learn, for each sensitive query, a vector delta that is added to the output of a layer at the key's token.

        mean over contexts NLL(refusal) + kl_factor KL(p0 || p on the benign twin) + decay |delta| / |h|^2

    with Adam, until the loss is below `stop`; after each step |delta| <= clamp |h|, where h is the output without delta.

    Attributes:
        contexts: number of contexts, the bare query among them; at most 6.
        steps: most steps.
        lr: learning rate of Adam.
        kl_factor, decay, clamp, stop: as above.
    """

    contexts: int = 6
    steps: int = 25
    lr: float = 0.5
    kl_factor: float = 0.0625
    decay: float = 0.5
    clamp: float = 4.0
    stop: float = 0.05

    def __post_init__(self) -> None:
        if not 1 <= self.contexts <= 1 + len(LEAD_INS) or self.steps < 1:
            raise ValueError(f"contexts must be 1 to {1 + len(LEAD_INS)} and steps at least 1, got {self}")

    def context_rows(self, pair: MethodPair) -> list[QueryRow]:
        """Return the sensitive row of a pair in each context, the bare one first."""
        return [replace(pair.refusal, context=context) for context in ("", *LEAD_INS)[: self.contexts]]

    def learn(self, model: nn.Module, data: MethodData, layer: int, position: KeyPosition) -> Values:
        """Learn the vectors of all pairs with the unedited model.

        Args:
            model: the model; its weights do not change.
            data: the training data.
            layer: the layer.
            position: the key's token.
        """
        model.requires_grad_(False)
        fast_path = FastPath("Prefix reuse in the value search")
        found = [
            self._learn_record(model, data, list(pairs), layer, position, fast_path)
            for _, pairs in groupby(data.pairs, lambda pair: pair.refusal.record_id)
        ]
        return Values(*(torch.cat(parts) for parts in zip(*found, strict=True)))

    def _learn_record(
        self,
        model: nn.Module,
        data: MethodData,
        pairs: Sequence[MethodPair],
        layer: int,
        position: KeyPosition,
        fast_path: FastPath,
    ) -> Values:
        rows = [row for pair in pairs for row in (*self.context_rows(pair), pair.answer)]
        batch = PrivacyPairCollator(data.processor)(rows)
        device = next(model.parameters()).device
        batch = {name: value.to(device) if isinstance(value, Tensor) else value for name, value in batch.items()}
        per_pair = self.contexts + 1
        owner = torch.arange(len(rows), device=device) // per_pair
        benign = torch.arange(len(rows), device=device) % per_pair == self.contexts
        predict, hidden = _predictor(model, batch, key_positions(batch, position), layer, fast_path)
        delta = torch.zeros(len(pairs), find_decoder(model).hidden_size, device=device, requires_grad=True)
        with torch.no_grad():
            reference = predict(delta[owner])[0][benign]
        h = hidden()[::per_pair].float()  # of the bare queries
        size = h.norm(dim=1)
        optimizer = torch.optim.Adam([delta], lr=self.lr)
        learnt, loss = delta.detach().clone(), torch.full((len(pairs),), float("inf"), device=device)
        done = torch.zeros(len(pairs), dtype=torch.bool, device=device)
        for _ in range(self.steps):
            logits, labels = predict(delta[owner])
            nll = row_nll(logits, labels)[~benign].view(len(pairs), self.contexts).mean(1)
            kl = row_kl(logits[benign], reference, labels[benign])
            total = nll + self.kl_factor * kl + self.decay * _norm(delta) / size**2
            loss = torch.where(done, loss, total.detach())
            done = done | (loss < self.stop)
            if bool(done.all()):
                break
            optimizer.zero_grad()
            total.sum().backward()
            optimizer.step()
            with torch.no_grad():
                delta.mul_((self.clamp * size / _norm(delta)).clamp(max=1)[:, None])
                learnt = torch.where(done[:, None], learnt, delta)
        return Values((h + learnt).double(), learnt.double(), loss.double())


class Values(NamedTuple):
    """Learnt values of n pairs, float64.

    Attributes:
        targets: z = h + delta, the wanted output of the layer at the key's token, (n, d).
        deltas: delta, (n, d).
        losses: the last loss of each pair, (n,).
    """

    targets: Tensor
    deltas: Tensor
    losses: Tensor


def _norm(delta: Tensor) -> Tensor:
    # not at 0, where the norm has no gradient
    return (delta.square().sum(1) + 1e-12).sqrt()


def _predictor(
    model: nn.Module, batch: dict[str, Any], positions: Tensor, layer: int, fast_path: FastPath
) -> tuple[Callable[[Tensor], Predictions], Callable[[], Tensor]]:
    """Return a function that runs the batch with vectors, (B, d), added at the positions, and one of the outputs there.

    The second function returns the layer's output at the positions without the vectors, (B, d), of the last run.
    """
    seen: list[Tensor] = []

    @contextmanager
    def added(where: Tensor, vectors: Tensor) -> Iterator[None]:
        def add(module: nn.Module, args: Any, output: Any) -> Any:
            hidden = output[0] if isinstance(output, tuple) else output
            seen[:] = [hidden.detach()[where]]
            moved = torch.where(where[..., None], hidden + vectors[:, None].to(hidden.dtype), hidden)
            return (moved, *output[1:]) if isinstance(output, tuple) else moved

        handle = find_decoder(model).layer(layer).register_forward_hook(add)
        try:
            yield
        finally:
            handle.remove()

    def plain(vectors: Tensor) -> Predictions:
        with added(positions, vectors):
            return batch_predictions(model, batch)

    def build() -> Callable[[Tensor], Predictions]:
        partial_pass = LocatePass(model, batch, positions, [layer])

        def fast(vectors: Tensor) -> Predictions:
            with added(partial_pass.positions, vectors):
                return partial_pass.predictions(layer)

        return fast

    @torch.no_grad()
    def run(predict: Callable[[Tensor], Predictions]) -> Results:
        start = torch.zeros(len(positions), find_decoder(model).hidden_size, device=positions.device)
        return {"losses": [row_nll(*predict(start))]}

    full: Callable[[Tensor], Predictions] = plain
    return fast_path.choose(model, full, build, run, f"record {batch['record_id'][0]}"), lambda: seen[0]
