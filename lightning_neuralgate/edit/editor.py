"""Stage 2: train the MLP output projection of the chosen layers, and nothing else, with the two-term loss.

    L = L_sen + alpha * L_ben  (+ retention_weight * L_ret)

L_sen is the mean NLL of the refusal prefix over the sensitive rows, L_ben that of the unedited model's own answer over the
benign rows, L_ret that of ordinary questions, or KL(p0 || p) to the unedited model there. The full weight trains, or a
low-rank change of it (LoRA).

The gate is separate: with `NeuralGateCallback` in the Trainer the edit is gated, without it ungated.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from typing_extensions import override

from lightning_neuralgate.edit.checkpoints import (
    EDIT_KEY,
    check_edit,
    complete_averages,
    describe_edit,
    keep_trained,
)
from lightning_neuralgate.edit.lora import add_lora, merged_lora
from lightning_neuralgate.edit.quantized import restore_projections, save_into_checkpoint
from lightning_neuralgate.edit.rounding import Rounding
from lightning_neuralgate.edit.saving import save_model
from lightning_neuralgate.edit.unedited import UneditedWeights
from lightning_neuralgate.errors import UnsupportedSetupError
from lightning_neuralgate.gate.callback import NeuralGateCallback
from lightning_neuralgate.hf.decoder import Projection, find_decoder, find_hf_model
from lightning_neuralgate.hf.distributed import (
    UNTESTED_STRATEGIES,
    all_ranks,
    full_state_dict,
    is_sharded,
    refuse_strategies,
    shard,
)
from lightning_neuralgate.hf.forward import row_kl, row_nll
from lightning_neuralgate.hf.hooks import recompute_layers
from lightning_neuralgate.hf.identity import ModelIdentity
from lightning_neuralgate.hf.master_weights import HALF_PRECISION, add_masters, stored_values
from lightning_neuralgate.metrics.held_out import HeldOutRates
from lightning_neuralgate.prefix_cache.edit_pass import EditLosses
from lightning_neuralgate.prefix_cache.generate import generate_with_shared_prefix
from lightning_neuralgate.prefix_cache.layout import BatchLayout, LayoutProvider

Schedule = Literal["paper", "minibatch"]
RetentionLoss = Literal["nll", "kl"]
_DEFAULTS: dict[str, dict[str, float]] = {"paper": {"lr": 1e-5, "eps": 1e-3}, "minibatch": {"lr": 3e-4, "eps": 1e-8}}


class PrivacyEditModule(LightningModule, LayoutProvider):
    """Edits a model so that it refuses sensitive queries and keeps answering benign ones.

    There are two schedules:

    - `paper`: one query pair after another, each with a fresh Adam and up to `steps_per_pair` steps, until the loss falls
      below `stop_loss`. With several devices, each takes a pair of its own, and their gradients are averaged. Batches must
      hold one pair: `PrivacyPairDataModule(pairs_per_batch=1, shuffle=False)`.
    - `minibatch`: shuffled mini-batches and one Adam, one step per batch.

    Validation batches are prompts; the answers are judged and logged as `val/rta_sensitive`, `val/answer_rate_benign` and
    `val/eta`. Where batches hold `truth`, for each row the true value or None (and `synonyms`, other words for it),
    `val/leak_rate` and `val/benign_accuracy` are logged too, NaN as long as no truth is known.

    The model may be loaded in bfloat16 or float16, or in 8 or 4 bits with `load_model(quantize=...)`. The projections then
    train in float32 (see `MasterLinear`), and all else stays as it is; leave the Trainer's precision at its default.
    Validation runs the rounded weights, which are the ones that `save_pretrained` writes. `train/rounding_kept` is the share
    of changed weights that survive rounding. The projections of a quantized model train from the values in its full-precision
    checkpoint, of which `save_pretrained` writes a copy with the edited weights and an `edit.safetensors`;
    `load_model(quantize=...)` loads from that folder the model that was trained.

    Args:
        model: a Hugging Face image-text-to-text model; all of it is frozen but the projections, and it is put in eval mode.
        layers: indices of the decoder layers whose MLP output projection trains.
        processor: the model's processor; needed for validation, and saved with the model.
        schedule: `paper` or `minibatch`.
        lr: learning rate of Adam; by default 1e-5 (paper) or 3e-4 (minibatch).
        eps: epsilon of Adam; by default 1e-3 (paper) or 1e-8 (minibatch).
        alpha: weight of the benign term.
        retention_weight: weight of the retention term, where batches hold retention rows; the paper uses none.
        retention_loss: `nll` of the targets, or `kl`: KL(p0 || p) over the vocabulary at each target token, where p0 is the
            unedited model's distribution behind the same tokens. `kl` takes one more forward pass per batch.
        steps_per_pair: maximum number of steps per pair; schedule `paper` only.
        stop_loss: a pair is done when its loss falls below this; schedule `paper` only.
        max_new_tokens: maximum length of answers in validation.
        share_prefixes: run the tokens that a record's rows begin with (system prompt, picture) once for all of them
            (`EditPass`). The gradient is the same up to rounding. Full rows are run if the model does not support it (with a
            warning), with sharded weights, with a `NeuralGateCallback` that finds subjects itself or gates the rows of a
            record differently in their common beginning (`Gating.fits_layout`), and for batches from
            elsewhere than `PrivacyPairDataModule`.
        lora_rank: rank of a LoRA on the projections that trains instead of their full weights, and is added to the model in
            place. 0: full weights.
        projection: the output projection that trains in each layer: `mlp`, the MLP's, or `attention`, that of self-attention.
            `NeuralGateCallback` has the same argument.
        checkpoint_activations: keep the inputs of the layers above the edited one only, and run these layers again in the
            backward pass: less memory, more time, the same gradient. Full rows are run, as without `share_prefixes`.

    Raises:
        ModelLayoutError: the model has no such layer, or the layer no MLP output projection.
        UnsupportedSetupError: a projection has an adapter, or is in a type other than float32, bfloat16 and float16; the
            model is quantized, and not by bitsandbytes from a full-precision checkpoint; at the start of training, the
            Trainer has converted the weights to half precision (`precision="bf16-true"`); a batch holds more than one pair
            under schedule `paper`; validation without a processor.
        ResumeError: a checkpoint of another edit, base model or module is loaded.
    """

    data_view = "pairs"

    def __init__(
        self,
        model: nn.Module,
        layers: Sequence[int],
        processor: Any = None,
        schedule: Schedule = "minibatch",
        lr: float | None = None,
        eps: float | None = None,
        alpha: float = 1.25,
        retention_weight: float = 0.25,
        steps_per_pair: int = 10,
        stop_loss: float = 1e-3,
        max_new_tokens: int = 16,
        lora_rank: int = 0,
        share_prefixes: bool = True,
        projection: Projection = "mlp",
        retention_loss: RetentionLoss = "nll",
        checkpoint_activations: bool = False,
    ) -> None:
        super().__init__()
        if schedule not in _DEFAULTS:
            raise ValueError(f"schedule must be 'paper' or 'minibatch', got '{schedule}'")
        if retention_loss not in ("nll", "kl"):
            raise ValueError(f"retention_loss must be 'nll' or 'kl', got '{retention_loss}'")
        if not layers:
            raise ValueError("name at least one layer to edit")
        self.save_hyperparameters(ignore=["model", "processor"])
        self.automatic_optimization = schedule == "minibatch"
        self.strict_loading = False
        self.lr = _DEFAULTS[schedule]["lr"] if lr is None else lr
        self.eps = _DEFAULTS[schedule]["eps"] if eps is None else eps
        self.processor = processor
        self.model = model.requires_grad_(False).eval()
        layout = find_decoder(model, projection)
        # the checksum of a model leaves out the MLP's projections only
        self._base = None if projection == "mlp" else ModelIdentity.of(model)
        self._checkpoint = restore_projections(model, layers, projection)
        for layer in layers:
            _check_trainable(layout.output_projection(layer), layout.projection_path(layer), lora_rank)
        if lora_rank:
            add_lora(model, layers, lora_rank, projection)
        else:
            add_masters(model, layers, projection)
            for layer in layers:
                layout.output_projection(layer).requires_grad_(True)
        self.unedited = UneditedWeights(self.model)
        self.rates = HeldOutRates()
        # the paper's schedule runs a batch again and again, so that layers below the edited ones are worth caching
        frozen_layers = min(layers) if schedule == "paper" else 0
        self._losses = EditLosses(self.model, frozen_layers, enabled=share_prefixes and not checkpoint_activations)
        upper = range(min(layers) + 1, layout.num_layers) if checkpoint_activations else ()
        self._recomputed = [layout.layer(layer) for layer in upper if layer not in layers]

    @override
    def configure_model(self) -> None:
        if self._trainer is not None:
            refuse_strategies(self._trainer.strategy, ("FSDPStrategy", *UNTESTED_STRATEGIES), "PrivacyEditModule")
        if self.device_mesh is not None and self._recomputed:
            raise UnsupportedSetupError(
                "checkpoint_activations was not tested with sharded weights; use one device or DDP"
            )
        if self.device_mesh is not None and not is_sharded(self.model):
            shard(self.model, self.device_mesh)
            self.unedited = UneditedWeights(self.model)

    @override
    def on_fit_start(self) -> None:
        """Check the weights again: a precision plugin of the Trainer may have converted them since `__init__`."""
        for name, parameter in self.named_parameters():
            if parameter.requires_grad and not _takes_small_steps(parameter):
                raise UnsupportedSetupError(
                    f"the parameter {name} has become {str(parameter.dtype).removeprefix('torch.')} (the Trainer's precision "
                    f"is '{self.trainer.precision}'), in which the edit's small steps are rounded away: keep the module as "
                    "it is and leave the precision at '32-true'. To compute in half precision, load the model in it, or use "
                    "precision='bf16-mixed'"
                )

    @override
    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam([p for p in self.parameters() if p.requires_grad], lr=self.lr, eps=self.eps)

    @override
    def batch_layout(self, batch: Mapping[str, Any]) -> BatchLayout | None:
        callbacks: Sequence[Any] = getattr(self.trainer, "callbacks", ())  # untyped in Lightning
        gates = [callback for callback in callbacks if isinstance(callback, NeuralGateCallback)]
        layout = self._losses.layout(batch)
        return layout if layout is not None and all(gate.fits_layout(batch, layout) for gate in gates) else None

    @override
    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor | None:
        if self.automatic_optimization:
            return self.loss(batch)
        self._edit_pair(batch)
        return None

    def loss(self, batch: dict[str, Any]) -> Tensor:
        """Compute the loss of a batch, a scalar, and log its terms."""
        return self._combine(self._row_losses(batch)(), batch["role"])

    def _row_losses(self, batch: dict[str, Any]) -> Callable[[], Tensor]:
        """Return a function that runs the batch and returns the loss of each row, (B,)."""
        predict = self._losses.prepare(batch)
        rows = [row for row, role in enumerate(batch["role"]) if role == "retention"]
        # with sharded weights, another process may have retention rows
        if self.hparams["retention_loss"] == "nll" or not (rows or is_sharded(self.model)):
            return lambda: row_nll(*self._run(predict))
        with torch.no_grad(), self.unedited.scaled(0.0):
            reference = predict()[0][rows]

        def losses() -> Tensor:
            logits, labels = self._run(predict)
            divergence = row_kl(logits[rows], reference, labels[rows])
            return row_nll(logits, labels).index_copy(
                0, torch.tensor(rows, dtype=torch.long, device=logits.device), divergence
            )

        return losses

    def _run(self, predict: Callable[[], tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        with recompute_layers(self._recomputed):
            return predict()

    def _combine(self, losses: Tensor, roles: Sequence[str]) -> Tensor:
        """L = L_sen + alpha * L_ben + retention_weight * L_ret of the rows' losses, (B,)."""
        means = mean_by_role(losses, roles)
        weights = {"sensitive": 1.0, "benign": self.hparams["alpha"], "retention": self.hparams["retention_weight"]}
        total = torch.stack([weights[role] * mean for role, mean in means.items()]).sum()
        terms = {f"train/loss_{role}": mean.detach() for role, mean in means.items()}
        # Lightning fetches values for a progress bar from the device in every step, even where there is no bar
        has_bar = self._trainer is not None and self._trainer.progress_bar_callback is not None
        self.log_dict({**terms, "train/loss": total.detach()}, prog_bar=has_bar, batch_size=len(roles))
        return total

    def _edit_pair(self, batch: dict[str, Any]) -> None:
        """The paper's schedule: up to `steps_per_pair` steps on one query pair, with a fresh Adam."""
        added = batch.get("added") or [False] * len(batch["role"])
        pairs = sum(role == "sensitive" and not extra for role, extra in zip(batch["role"], added, strict=True))
        if pairs != 1:
            raise UnsupportedSetupError(
                f"the paper's schedule edits pair by pair, this batch holds {pairs}; use "
                "PrivacyPairDataModule(pairs_per_batch=1, shuffle=False)"
            )
        optimizer: Any = self.optimizers()
        optimizer.state.clear()
        losses = self._row_losses(batch)
        done = False
        for _ in range(self.hparams["steps_per_pair"]):
            loss = self._combine(losses(), batch["role"])
            done = done or float(loss.detach()) < self.hparams["stop_loss"]
            # processes average their gradients, so one whose pair is done contributes zeros until all are done
            if all_ranks(done, loss.device):
                break
            optimizer.zero_grad()
            self.manual_backward(loss * 0.0 if done else loss)
            optimizer.step()

    @override
    def on_train_epoch_end(self) -> None:
        rounding = self.rounding()
        if rounding is not None:
            self.log("train/rounding_kept", rounding.share)

    def rounding(self) -> Rounding | None:
        """Return how many of the changed weights survive rounding to the model's type; None for a model in float32 or a LoRA.

        With sharded weights every process must call this.
        """
        return self.unedited.rounding()

    @override
    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        if self.processor is None:
            raise UnsupportedSetupError("validation generates answers: give PrivacyEditModule the model's processor")
        tokenizer = getattr(self.processor, "tokenizer", self.processor)
        answers = generate_with_shared_prefix(
            self.model, tokenizer, batch, batch["record_id"], self.hparams["max_new_tokens"]
        )
        self.rates.update(answers, batch)
        for name, metric in self.rates.metrics.items():
            self.log(f"val/{name}", metric, prog_bar=name == "eta", batch_size=len(answers))

    @override
    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save the trained parameters only, with a description of the edit."""
        keep_trained(self, checkpoint)
        checkpoint[EDIT_KEY] = describe_edit(self, self._base)

    @override
    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint of another edit or of another base model, see `check_edit`."""
        check_edit(self, checkpoint, self._base)
        complete_averages(self, checkpoint)

    def save_pretrained(self, folder: str | Path) -> None:
        """Save the edited model in the type it was loaded in, a LoRA merged, and the processor, as a Hugging Face folder.

        With sharded weights every process must call this; rank 0 writes.

        Raises:
            DataFormatError: the folder is that of the base model, or holds a model that no edit has written.
            WeightFilesError: what was saved would not load as the edited model. The folder is as it was.
        """
        model = find_hf_model(self.model)
        state = stored_values(model, merged_lora(model, full_state_dict(model)))
        if dist.is_available() and dist.is_initialized() and dist.get_rank() != 0:
            return
        layout = find_decoder(model, self.hparams["projection"])
        names = [f"{layout.projection_path(layer)}.weight" for layer in self.hparams["layers"]]
        edited = {name: state[name] for name in names}
        if self._checkpoint is None:
            save_model(model, self.processor, state, Path(folder), edited)
        else:
            save_into_checkpoint(model, self.processor, self._checkpoint, Path(folder), edited)


def mean_by_role(losses: Tensor, roles: Sequence[str]) -> dict[str, Tensor]:
    """Average the losses, (B,), over the rows of each role: role -> scalar."""
    means = {}
    for role in dict.fromkeys(roles):
        # a boolean index would force a device sync
        means[role] = torch.stack(
            [row for row, other in zip(losses.unbind(), roles, strict=True) if other == role]
        ).mean()
    return means


def _check_trainable(projection: nn.Module, place: str, lora_rank: int) -> None:
    if hasattr(projection, "base_layer"):
        raise UnsupportedSetupError(
            f"{place} carries a peft adapter already: merge it first (lora_rank makes one of its own), or train it in a "
            "LightningModule of your own with NeuralGateCallback"
        )
    narrow = {p.dtype for p in projection.parameters() if not _takes_small_steps(p)} - set(HALF_PRECISION)
    if narrow and not lora_rank:
        raise UnsupportedSetupError(
            f"the weight at {place} is {', '.join(str(kind).removeprefix('torch.') for kind in narrow)}, whose change could "
            "not be saved: load the model in float32 or bfloat16"
        )


def _takes_small_steps(parameter: Tensor) -> bool:
    return parameter.is_floating_point() and parameter.dtype.itemsize >= 4
