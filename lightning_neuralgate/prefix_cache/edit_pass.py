"""Forward passes of stage 2: run the prefix that the rows of a record share once, with gradient.

The two rows of a query pair show the same picture, and so do all pairs of a record:

    tokens   [ shared by the rows of a record: system prompt, picture | each row's own: question and target ]
    run      once per record                                           once per row

Both run in every step, since the layers above the edited one change with it. The gradient of the shared tokens is the sum
over their rows. Where a batch is run several times, the layers below the edited one run in the first pass only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from lightning_neuralgate.hf.decoder import find_decoder
from lightning_neuralgate.hf.distributed import is_sharded
from lightning_neuralgate.hf.forward import batch_predictions, last_logits, row_nll
from lightning_neuralgate.hf.hooks import capture_outputs, skip_layers
from lightning_neuralgate.prefix_cache.attention import filled_cache_layer
from lightning_neuralgate.prefix_cache.layout import LAYOUT, BatchLayout
from lightning_neuralgate.prefix_cache.prefix import picture_layers, run_prefix
from lightning_neuralgate.prefix_cache.verify import FastPath, Results


class EditPass:
    """One batch in two forward passes, shared prefixes and own tokens, as often as needed.

    Args:
        model: the Hugging Face model.
        layout: the layout of the batch, with a prefix of at least one token.
        frozen_layers: number of lowest decoder layers that do not train. They are run once, here; 0: they run in each call
            of `predictions`, which costs less where that is called once, or where features of pictures are added above them.
    """

    def __init__(self, model: nn.Module, layout: BatchLayout, frozen_layers: int = 0) -> None:
        self.model, self.layout = model, layout
        self._layers = find_decoder(model).layers
        # the features of a picture are added to the output of the lowest layers, and a rerun has no picture
        self._frozen = frozen_layers if frozen_layers > picture_layers(model) else 0
        self._hidden = self._run_frozen() if self._frozen else None

    def nll(self) -> Tensor:
        """Return the mean NLL per target token of each row, (B,)."""
        return row_nll(*self.predictions())

    def predictions(self) -> tuple[Tensor, Tensor]:
        """Return the logits of the columns with targets, (B, K, V), and their labels, (B, K)."""
        with skip_layers(self._layers[: self._frozen]):
            with self.layout.running_prefix():
                cache = self._run_prefix()
            cache.batch_select_indices(self.layout.prefix.group_index)
            with self.layout.running_own():
                output = self._run_own(cache, None if self._hidden is None else self._hidden[1])
        return output.logits[:, :-1], self.layout.labels

    @torch.no_grad()
    def _run_frozen(self) -> tuple[Tensor, Tensor]:
        """Return the output of the highest frozen layer: for the prefixes, (R, C, d), and for own tokens, (B, Q, d)."""
        top = self._frozen - 1
        with capture_outputs(self._layers, [top]) as outputs:
            cache = self.layout.prefix.run(self.model)
            of_prefix = outputs[top]
            cache.batch_select_indices(self.layout.prefix.group_index)
            self._run_own(cache, None)
            return of_prefix, outputs[top]

    def _run_prefix(self) -> Any:
        """Return the cache of the prefixes, one row per group."""
        if self._hidden is None:
            return self.layout.prefix.run(self.model)
        cache = run_prefix(self.model, {"inputs_embeds": self._hidden[0]}, self.layout.prefix.position_ids)
        # skipped layers need no keys, but their length is read
        filled = cache.layers[self._frozen :]
        empty = filled[0].keys.new_zeros(()).expand(filled[0].keys.shape)
        cache.layers = [*(filled_cache_layer(empty, empty) for _ in range(self._frozen)), *filled]
        return cache

    def _run_own(self, cache: Any, hidden: Tensor | None) -> Any:
        own, tokens = self.layout.own, self.layout.prefix.token_inputs
        inputs = (
            {key: own.select(value) for key, value in tokens.items()} if hidden is None else {"inputs_embeds": hidden}
        )
        options = {
            "attention_mask": own.attention_mask,
            "position_ids": own.position_ids,
            "past_key_values": cache,
            "use_cache": True,
        }
        return last_logits(self.model, {**inputs, **options}, self.layout.labels.shape[1] + 1)


class EditLosses:
    """The predictions for a training batch, by `EditPass` where model and batch allow it, by full passes otherwise.

    Args:
        model: the Hugging Face model.
        frozen_layers: see `EditPass`.
        enabled: whether shared prefixes may be used at all.
    """

    def __init__(self, model: nn.Module, frozen_layers: int = 0, enabled: bool = True) -> None:
        self.model, self.frozen_layers = model, frozen_layers
        self.fast_path = FastPath("Prefix sharing in the edit", enabled)

    def layout(self, batch: Mapping[str, Any]) -> BatchLayout | None:
        """Return the layout for a training batch, or None where full passes are run."""
        known = {"record_id", "subject", "subject_mask"} <= batch.keys()
        if not known or not self.fast_path.enabled or is_sharded(self.model):
            return None
        layout = BatchLayout(self.model, batch)
        return layout if layout.prefix.length else None

    def prepare(self, batch: Mapping[str, Any]) -> Callable[[], tuple[Tensor, Tensor]]:
        """Return a function that runs the batch: see `EditPass.predictions`."""
        plain: Callable[[], tuple[Tensor, Tensor]] = partial(batch_predictions, self.model, batch)
        layout = batch.get(LAYOUT)
        if layout is None:
            return plain
        return self.fast_path.choose(
            self.model,
            plain,
            lambda: EditPass(self.model, layout, self.frozen_layers).predictions,
            self._losses_and_gradients,
        )

    def _losses_and_gradients(self, predict: Callable[[], tuple[Tensor, Tensor]]) -> Results:
        trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        rows = row_nll(*predict())
        gradients = torch.autograd.grad(rows.mean(), trained, allow_unused=True)
        return {"losses": [rows.detach()], "gradients": [gradient for gradient in gradients if gradient is not None]}
