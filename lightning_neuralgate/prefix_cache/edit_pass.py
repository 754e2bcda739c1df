"""Passes of stage 2 that run what rows begin with once, with gradient.

The two rows of a query pair show the same picture, and so do all pairs of a record:

    tokens   [ shared by the rows of a record: system prompt, picture | each row's own: question and target ]
    run      once a record                                            once a row

In every step, since the layers above the edited one change with it. The gradient of what is shared is the sum of its rows'.
Where a batch is run more than once, the layers below the edited one run the first time only.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from lightning_neuralgate.hf.decoder import find_decoder, find_hf_model
from lightning_neuralgate.hf.forward import IGNORED, columns_with_targets, last_logits, row_nll
from lightning_neuralgate.hf.segments import Segment, running
from lightning_neuralgate.prefix_cache.attention import capture_outputs, grown, skip_layers
from lightning_neuralgate.prefix_cache.prefix import SharedPrefix, with_tensors_on


class EditPass:
    """One batch of stage 2, laid out in two parts; `nll` runs them.

    Args:
        model: the Hugging Face model.
        batch: a collated batch in which every row has a target; laying out asks for its values, so it is best done before
            the batch is sent to a device, and the layout sent along (`to`).

    Attributes:
        shared: how many tokens all rows of each record begin with, before any subject or target; 0 where rows cannot share.
        leading: (R,), the first row of each record.
    """

    def __init__(self, model: nn.Module, batch: Mapping[str, Any]) -> None:
        self._prefix = SharedPrefix(model, batch, _groups(batch), _limit(batch))
        self.shared, self.leading = self._prefix.count, self._prefix.leading
        self._below: Iterable[nn.Module] = ()
        self._hidden: tuple[Tensor, Tensor] | None = None
        if not self.shared:
            return
        first, end = self._prefix.first, self._prefix.end
        begin = first[self.leading, None] + torch.arange(self.shared, device=first.device)
        self._begin = Segment(self.leading, begin, torch.ones_like(begin, dtype=torch.bool), True)
        own = int((end - first).max()) - self.shared
        source = end[:, None] + torch.arange(-own, 0, device=first.device)
        real = source >= first[:, None] + self.shared
        self._places = (source - first[:, None]).clamp(min=0)
        source = source.clamp(min=0)
        self._rest = Segment(torch.arange(len(first), device=first.device), source, real, False)
        labels = torch.where(real, batch["labels"].gather(1, source), IGNORED)
        self._count = columns_with_targets(labels)
        self._labels = labels[:, -self._count :]
        self._mask = torch.cat([real.new_ones(len(real), self.shared), real], 1).long()
        self._inputs = {key: value.gather(1, source) * real for key, value in self._prefix.sequences.items()}

    def to(self, device: Any, **options: Any) -> Any:
        """The same layout on a device."""
        return with_tensors_on(self, device, **options)

    @torch.no_grad()
    def run_below(self, model: nn.Module, layers: int) -> None:
        """Run so many of the lowest layers, which do not train, once for all calls of `nll` to come."""
        if not layers:
            return
        self._below = find_decoder(model).layers[:layers]
        top = layers - 1
        with capture_outputs(find_decoder(model).layers, [top]) as seen:
            cache = self._prefix.run(model)
            shared = seen[top]
            cache.batch_select_indices(self._prefix.owner)
            self._run_rest(model, cache, self._inputs)
            # of what is shared, (R, C, d), and of the rest, (B, W, d)
            self._hidden = shared, seen[top]

    def nll(self, model: nn.Module) -> Tensor:
        """Mean NLL per target token of each row, (B,)."""
        with skip_layers(self._below):
            with running(self._begin):
                cache = self._begun(model)
            with running(self._rest):
                inputs = self._inputs if self._hidden is None else {"inputs_embeds": self._hidden[1]}
                output = self._run_rest(model, cache, inputs)
        return row_nll(output.logits[:, :-1], self._labels)

    def _begun(self, model: nn.Module) -> Any:
        """The cache of a pass over what is shared, one row for each of the batch."""
        cache: Any
        if self._hidden is None:
            cache = self._prefix.run(model)
            cache.batch_select_indices(self._prefix.owner)
            return cache
        hidden = self._hidden[0]
        cache = DynamicCache(config=find_hf_model(model).config.get_text_config())
        ones = hidden.new_ones(hidden.shape[:2], dtype=torch.long)
        given = {
            "attention_mask": ones,
            "position_ids": ones.cumsum(1) - 1,
            "past_key_values": cache,
            "use_cache": True,
        }
        last_logits(model, {"inputs_embeds": hidden, **given}, 1)
        below = len(list(self._below))
        cache.layers = cache.layers[below:]
        cache.batch_select_indices(self._prefix.owner)
        # layers that are passed through are asked for nothing but how long they are
        like = cache.layers[0].keys
        empty = like.new_zeros(()).expand(like.shape)
        cache.layers = [*(grown(empty, empty) for _ in range(below)), *cache.layers]
        return cache

    def _run_rest(self, model: nn.Module, cache: Any, inputs: Mapping[str, Tensor]) -> Any:
        given = {
            "attention_mask": self._mask,
            "position_ids": self._places,
            "past_key_values": cache,
            "use_cache": True,
        }
        return last_logits(model, {**inputs, **given}, self._count + 1)


def _groups(batch: Mapping[str, Any]) -> list[Any]:
    """For each row what it may share: rows of one record and subject, and every row without a subject alone."""
    names = zip(batch["record_id"], batch["subject"], strict=True)
    return [(record, subject) if subject else row for row, (record, subject) in enumerate(names)]


def _limit(batch: Mapping[str, Any]) -> Tensor:
    """(B,), the first column whose prediction or subject a row has for itself."""
    asked, told = batch["subject_mask"].bool(), batch["labels"] != IGNORED
    columns = torch.arange(asked.shape[1], device=asked.device)
    return torch.where(asked | told.roll(-1, 1), columns, asked.shape[1]).amin(1)
