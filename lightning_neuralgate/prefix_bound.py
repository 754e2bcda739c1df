"""How many bytes a locator keeps of what is run once, and in which portions it stays below a bound.

Of the tokens before the subject every layer's keys and values are kept, and of each layer that is learnt its outputs from the
subject on. With K bytes of keys and values a token, in all layers, and h bytes of a layer's output,

    bytes = K (R s + B (o + a))  +  L B (o + 2 a) h  +  what one layer has for a moment twice

for B rows of R records that share s tokens each and have o of their own before the subject and a behind it, and L layers.
K and h are measured on a pass over one token, so no kind of cache has to be known.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor
from transformers import DynamicCache

from lightning_neuralgate.errors import UnsupportedSetupError
from lightning_neuralgate.hf.decoder import find_decoder, find_hf_model
from lightning_neuralgate.hf.forward import last_logits, model_inputs
from lightning_neuralgate.prefix_cache.attention import capture_outputs
from lightning_neuralgate.prefix_cache.locate_pass import prefix_of_records

Batch = Mapping[str, Any]
_Item = TypeVar("_Item")


@dataclass(frozen=True)
class TokenBytes:
    """What one token of one row takes.

    Attributes:
        cached: keys and values, all layers together.
        largest: those of the layer that has most.
        output: a decoder layer's output.
    """

    cached: int
    largest: int
    output: int

    @classmethod
    @torch.no_grad()
    def of(cls, model: Any, token: Tensor) -> TokenBytes:
        """Measure it, under whatever autocast there is.

        Args:
            model: the Hugging Face model.
            token: (1, 1), the id of any word.
        """
        cache: Any = DynamicCache(config=find_hf_model(model).config.get_text_config())
        ones = torch.ones_like(token)
        given = {"attention_mask": ones, "position_ids": ones - 1, "past_key_values": cache, "use_cache": True}
        with capture_outputs(find_decoder(model).layers, [0]) as seen:
            last_logits(model, {"input_ids": token, **given}, 1)
        each = [_bytes(layer.keys) + _bytes(layer.values) for layer in cache.layers]
        return cls(sum(each), max(each), _bytes(seen[0]))


class PrefixBound:
    """Cuts a batch of records into portions whose `LocatePass` stays below a bound.

    Args:
        model: the frozen Hugging Face model.
        batch: a collated batch, whose last column is a word in at least one row.
        most: the bound, in bytes.
    """

    def __init__(self, model: Any, batch: Batch, most: int) -> None:
        self.model, self.batch, self.most = model, batch, most
        row, column = batch["attention_mask"].nonzero()[-1]
        self._each = TokenBytes.of(model, batch["input_ids"][row, column].reshape(1, 1))

    def needed(self, positions: Tensor, rows: Sequence[int], layers: Sequence[int], begun: int = 0) -> int:
        """Bytes of an `LocatePass` over some rows that serves some layers.

        Args:
            positions: (B, T) bool, the subject's last token of each row of the batch.
            rows: which of its rows.
            layers: the layers.
            begun: tokens that they begin with and that are there already, for all rows of their record.
        """
        part = rows_alone(self.batch, rows)
        prefix, subject, _ = prefix_of_records(self.model, part, positions[list(rows)])
        shared, records = (begun, 1) if begun else (prefix.count, len(prefix.leading) if prefix.count else 0)
        own = int((subject - prefix.first).max()) - shared
        after = int((prefix.end - subject).max())
        split = find_hf_model(self.model).config._attn_implementation == "sdpa"
        copied = 0 if split else len(rows) * shared  # else each row holds what it shares
        cached = (records if split or begun else 0) * shared + copied + len(rows) * (own + after)
        twice = copied + len(rows) * (own + after)
        outputs = len(layers) * len(rows) * (own + 2 * after)
        return self._each.cached * cached + self._each.largest * twice + self._each.output * outputs

    def portions(
        self, positions: Tensor, layers: Sequence[int], jointly: bool
    ) -> Iterator[tuple[list[int], list[int]]]:
        """Rows and layers that one prefix serves at a time: whole records, as many as fit, in as many layers as fit.

        A record that does not fit in one layer is a portion nevertheless; `row_chunks` cuts it up.

        Args:
            positions: as in `needed`.
            layers: the layers that are learnt.
            jointly: whether they are learnt together.
        """
        names = list(self.batch["record_id"])
        records = [[row for row, name in enumerate(names) if name == one] for one in dict.fromkeys(names)]
        while records:
            chosen = _longest(records, lambda some: self._fits(positions, _joined(some), layers))
            records = records[len(chosen) :]
            rows, left = _joined(chosen), list(layers)
            while left:
                served = left if jointly else _longest(left, partial(self._fits, positions, rows))
                yield rows, served
                left = left[len(served) :]

    def row_chunks(self, positions: Tensor, layers: Sequence[int]) -> list[list[int]]:
        """All rows of the batch, in runs as long as fit; of one record, if there is more than one run.

        Raises:
            UnsupportedSetupError: one row alone takes more.
        """
        rows: list[int] = list(range(len(positions)))
        if self._fits(positions, rows, layers):
            return [rows]
        begun, chunks = prefix_of_records(self.model, self.batch, positions)[0].count, []
        while rows:
            chunk = _longest(rows, lambda some: self._fits(positions, some, layers, begun))
            if len(chunk) == 1 and (needed := self.needed(positions, chunk, layers, begun)) > self.most:
                raise UnsupportedSetupError(
                    f"record {self.batch['record_id'][chunk[0]]}: what is kept of one query takes {needed} bytes, more than "
                    f"max_prefix_bytes={self.most}; allow as much, or keep nothing with reuse_prefix=False, whose whole "
                    "passes take more memory while they last"
                )
            chunks.append(chunk)
            rows = rows[len(chunk) :]
        return chunks

    @torch.no_grad()
    def begun(self, positions: Tensor) -> tuple[int, Any] | None:
        """What the rows of the batch, all of one record, begin with: its tokens and their cache; None if that is nothing."""
        prefix, _, _ = prefix_of_records(self.model, self.batch, positions)
        return (prefix.count, prefix.run(self.model)) if prefix.count else None

    def _fits(self, positions: Tensor, rows: Sequence[int], layers: Sequence[int], begun: int = 0) -> bool:
        return self.needed(positions, rows, layers, begun) <= self.most


class RowsInTurn(torch.autograd.Function):
    """Losses of rows that have nothing to do with each other, a chunk of rows at a time, each with its gradient.

    What a chunk has kept for its gradient is gone before the next one begins, so that no two are in memory together.
    """

    @staticmethod
    def forward(
        ctx: Any,
        nll: Callable[[Sequence[int], list[Tensor]], Tensor],
        chunks: Sequence[Sequence[int]],
        *vectors: Tensor,
    ) -> Tensor:
        """Return the loss of each row, (B,).

        Args:
            ctx: autograd's context.
            nll: rows and their vectors, (b, d) each -> their losses, (b,).
            chunks: the rows, in order.
            vectors: (B, d) each; a row's loss depends on its own row of them alone.
        """
        wanted = any(ctx.needs_input_grad)
        values: list[Tensor] = []
        gradients: list[list[Tensor]] = [[] for _ in vectors]
        for rows in chunks:
            own = [vector[rows[0] : rows[-1] + 1].detach().requires_grad_(wanted) for vector in vectors]
            with torch.set_grad_enabled(wanted):
                value = nll(rows, own)
                total = value.sum()
            if wanted:
                for found, gradient in zip(gradients, torch.autograd.grad(total, own), strict=True):
                    found.append(gradient)
            values.append(value.detach())
        ctx.save_for_backward(*(torch.cat(found) for found in gradients if found))
        return torch.cat(values)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return None, None, *(gradient * grad[:, None] for gradient in ctx.saved_tensors)


def rows_alone(batch: Batch, rows: Sequence[int]) -> dict[str, Any]:
    """A batch of some of a batch's rows.

    Raises:
        UnsupportedSetupError: an input of the model that is not laid out by rows, such as patches of several pictures.
    """
    count = len(batch["record_id"])
    if list(rows) == list(range(count)):
        return dict(batch)
    inputs = model_inputs(batch)
    part: dict[str, Any] = {}
    for key, value in batch.items():
        if isinstance(value, list):
            part[key] = [value[row] for row in rows]
        elif not isinstance(value, Tensor):
            part[key] = value
        elif len(value) == count:
            part[key] = value[list(rows)]
        elif (
            key in inputs and len(set(batch["record_id"])) == 1 and len(value) % count == 0
        ):  # one picture, in each row
            part[key] = value.unflatten(0, (count, -1))[list(rows)].flatten(0, 1)
        else:
            raise UnsupportedSetupError(
                f"max_prefix_bytes asks to run some rows of a batch alone, and '{key}', {tuple(value.shape)}, does not say "
                f"which of its parts belong to which of {count} rows; locate with records_per_batch=1, or allow more bytes"
            )
    return part


def _joined(records: Sequence[Sequence[int]]) -> list[int]:
    return [row for rows in records for row in rows]


def _longest(items: list[_Item], fits: Callable[[list[_Item]], bool]) -> list[_Item]:
    """The longest beginning that fits; at least one item."""
    return next((items[:count] for count in range(len(items), 1, -1) if fits(items[:count])), items[:1])


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
