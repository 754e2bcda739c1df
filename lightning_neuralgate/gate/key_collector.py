"""Collect the input covariance of MLP output projections, in one forward pass per batch of prompts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from typing_extensions import override

from lightning_neuralgate.errors import NeuralGateError, UnsupportedSetupError
from lightning_neuralgate.gate.keys import InputCovariance
from lightning_neuralgate.hf.decoder import find_decoder
from lightning_neuralgate.hf.distributed import UNTESTED_STRATEGIES, is_sharded, refuse_strategies, shard
from lightning_neuralgate.hf.forward import last_logits, model_inputs
from lightning_neuralgate.hf.hooks import stop_before
from lightning_neuralgate.hf.identity import ModelIdentity


class KeyCollector(LightningModule):
    """Sums k k^T over all tokens of the prompts that `Trainer.predict` runs, without padding.

    A batch is a mapping of the model's inputs, with `attention_mask`, (B, T), where rows are padded; rows whose entry of
    `counted` is False are left out. Targets are not needed. Sums of several processes are added up at the end.

    Args:
        model: the Hugging Face model, unedited.
        layers: the layers whose MLP output projections to collect the inputs of.

    Raises:
        ModelLayoutError: the model has no such layer, or the layer no MLP output projection.
        UnsupportedSetupError: during the run, the attention mask does not have the shape of the projection's inputs.

    Example:
        `Trainer().predict(collector, prompts)`, then `collector.covariance.save_pretrained("keys")`.
    """

    def __init__(self, model: nn.Module, layers: Sequence[int]) -> None:
        super().__init__()
        if not layers or len(set(layers)) != len(layers):
            raise ValueError(f"layers must be distinct and at least one, got {list(layers)}")
        layout = find_decoder(model)
        for layer in layers:
            layout.output_projection(layer)
        self.identity = ModelIdentity.of(model)
        self.model, self.layers = model, sorted(layers)
        self._sums: dict[int, Tensor] = {}
        self._tokens = self._prompts = 0
        self._finished = False

    @property
    def covariance(self) -> InputCovariance:
        """The covariance of all tokens.

        Raises:
            NeuralGateError: `Trainer.predict` has not finished.
        """
        if not self._finished:
            raise NeuralGateError("no input covariance yet: run Trainer.predict(collector, prompts) to its end first")
        means = {layer: total / self._tokens for layer, total in self._sums.items()}
        return InputCovariance(means, self.identity, self._tokens, self._prompts)

    @override
    def configure_model(self) -> None:
        if self._trainer is not None:
            refuse_strategies(self._trainer.strategy, ("FSDPStrategy", *UNTESTED_STRATEGIES), "KeyCollector")
        if self.device_mesh is not None:
            shard(self.model, self.device_mesh)

    @override
    def on_predict_start(self) -> None:
        self._sums, self._tokens, self._prompts, self._finished = {}, 0, 0, False

    @override
    def predict_step(self, batch: Mapping[str, Any], batch_idx: int) -> int:
        """Add a batch of prompts, and return its number of tokens."""
        inputs = model_inputs(batch)
        ids = inputs["input_ids"]
        real = inputs.get("attention_mask", torch.ones_like(ids)).bool()
        counted = torch.tensor(batch.get("counted", [True] * len(ids)), device=real.device)
        real = real & counted[:, None]
        layout = find_decoder(self.model)
        projections = {layer: layout.output_projection(layer) for layer in self.layers}
        with ExitStack() as hooks:
            for layer, projection in projections.items():
                handle = projection.register_forward_pre_hook(self._hook(layer, real))
                hooks.callback(handle.remove)
            # sharded weights are gathered and freed in the rest of the pass
            rest = nullcontext() if is_sharded(self.model) else stop_before(projections[self.layers[-1]])
            with rest:
                last_logits(self.model, {**inputs, "use_cache": False}, 1)
        tokens = int(real.sum())
        self._tokens += tokens
        self._prompts += int(counted.sum())
        return tokens

    def _hook(self, layer: int, real: Tensor) -> Any:
        def add(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            keys = args[0].detach().flatten(0, -2)
            if len(keys) != real.numel():
                raise UnsupportedSetupError(
                    f"the MLP output projection of layer {layer} is called with {len(keys)} tokens, but the attention mask "
                    f"has {real.numel()} ({' x '.join(map(str, real.shape))}); give the mask of the image-expanded sequence"
                )
            # without float64 (Apple GPUs) the sums are float32
            keys = keys[real.flatten()].to(torch.float32 if keys.device.type == "mps" else torch.float64)
            with torch.autocast(keys.device.type, enabled=False):
                total = keys.T @ keys
            self._sums[layer] = total if layer not in self._sums else self._sums[layer].add_(total)

        return add

    @override
    def on_predict_end(self) -> None:
        if dist.is_available() and dist.is_initialized():
            counts = torch.tensor([self._tokens, self._prompts], device=self.device)
            for total in (*self._sums.values(), counts):
                dist.all_reduce(total)
            self._tokens, self._prompts = (int(count) for count in counts)
        self._finished = True
