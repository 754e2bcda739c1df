"""Stage 2: train the MLP output projection of the chosen layers, and nothing else, with the two-term loss.

    L = L_sen + alpha * L_ben  (+ retention_weight * L_ret)

The whole weight trains, or a low-rank change of it (LoRA).

The gate is not in here: add `NeuralGateCallback` to the Trainer for a gated edit, leave it out for an ungated one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn
from typing_extensions import override

from lightning_neuralgate.edit.lora import add_lora, merged_lora
from lightning_neuralgate.errors import UnsupportedSetupError
from lightning_neuralgate.hf.decoder import find_decoder, find_hf_model
from lightning_neuralgate.hf.distributed import (
    UNTESTED_STRATEGIES,
    all_ranks,
    full_state_dict,
    is_sharded,
    is_sharded_state,
    refuse_strategies,
    shard,
)
from lightning_neuralgate.hf.forward import batch_nll
from lightning_neuralgate.metrics.held_out import HeldOutRates
from lightning_neuralgate.prefix_cache.edit_pass import EditPass
from lightning_neuralgate.prefix_cache.generate import generate_with_shared_prefix
from lightning_neuralgate.prefix_cache.prefix import NOT_ALLOWED, is_out_of_memory
from lightning_neuralgate.runtime.files import atomic_write

Schedule = Literal["paper", "minibatch"]
_PARTS = "edit_pass"
"""Key of the laid out batch beside the batch."""
_DEFAULTS: dict[str, dict[str, float]] = {"paper": {"lr": 1e-5, "eps": 1e-3}, "minibatch": {"lr": 3e-4, "eps": 1e-8}}


def _check_trainable(projection: nn.Module, place: str, lora_rank: int) -> None:
    if hasattr(projection, "base_layer"):
        raise UnsupportedSetupError(
            f"{place} carries a peft adapter already: merge it first (lora_rank makes one of its own), or train it in a "
            "LightningModule of your own with NeuralGateCallback"
        )
    narrow = {str(p.dtype).removeprefix("torch.") for p in projection.parameters() if p.dtype.itemsize < 4}
    if narrow and not lora_rank:
        raise UnsupportedSetupError(
            f"the weight at {place} is {', '.join(narrow)}, in which the edit's small steps are rounded away: load the model "
            "in float32, and give the Trainer precision='bf16-mixed' to compute in half precision; or train a LoRA with "
            "lora_rank, whose factors are float32"
        )


class PrivacyEditModule(LightningModule):
    """Edits a model so that it refuses sensitive queries and goes on answering benign ones.

    Two schedules:

    - `paper`: query pair by query pair, each with a fresh Adam and up to `steps_per_pair` steps, done when the loss is
      below `stop_loss`. On several devices each takes a pair of its own, and their gradients are averaged. Needs batches
      of one pair: `PrivacyPairDataModule(pairs_per_batch=1, shuffle=False)`.
    - `minibatch`: ordinary shuffled mini-batches under one Adam, one step a batch.

    Validation batches are prompts; the answers are judged and logged as `val/rta_sensitive`, `val/answer_rate_benign`
    and `val/eta`, so any Lightning logger shows them. Where batches hold `truth`, for each row the true value or None (and
    `synonyms`, other words for it), `val/leak_rate` and `val/benign_accuracy` are logged too, NaN as long as no truth is
    known.

    Args:
        model: a Hugging Face image-text-to-text model; all of it is frozen but the projections, which train in eval
            mode.
        layers: decoder layers whose MLP output projection trains (counted from 0).
        processor: the model's processor; only validation needs it.
        schedule: `paper` or `minibatch`.
        lr: learning rate of Adam; by default 1e-5 (paper) or 3e-4 (minibatch).
        eps: epsilon of Adam; by default 1e-3 (paper) or 1e-8 (minibatch).
        alpha: weight of the benign term.
        retention_weight: weight of the retention term, where batches hold retention rows; the paper's hold none.
        steps_per_pair: schedule `paper` only.
        stop_loss: schedule `paper` only.
        max_new_tokens: length of answers in validation.
        share_prefixes: run what the rows of a record begin with (system prompt, picture) once for all of them (`EditPass`).
            The gradient is the same but for its rounding. Whole rows are run, with a warning, where the first batch shows
            that a model does not allow it; also under sharding, and with a `NeuralGateCallback` that finds subjects itself.
        lora_rank: train a LoRA of this rank on the projections, put into the model in place, instead of their whole
            weights; the model may then be loaded in half precision. 0: whole weights.

    Raises:
        ModelLayoutError: there is no such layer, or it has no MLP output projection.
        UnsupportedSetupError: a projection in half precision or with an adapter; schedule `paper` with more than one pair
            in a batch; validation without a processor.
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
    ) -> None:
        super().__init__()
        if schedule not in _DEFAULTS:
            raise ValueError(f"schedule must be 'paper' or 'minibatch', got '{schedule}'")
        if not layers:
            raise ValueError("name at least one layer to edit")
        self.save_hyperparameters(ignore=["model", "processor"])
        self.automatic_optimization = schedule == "minibatch"
        self.strict_loading = False
        self.lr = _DEFAULTS[schedule]["lr"] if lr is None else lr
        self.eps = _DEFAULTS[schedule]["eps"] if eps is None else eps
        self.processor = processor
        self.model = model.requires_grad_(False).eval()
        layout = find_decoder(model)
        for layer in layers:
            _check_trainable(layout.output_projection(layer), layout.projection_path(layer), lora_rank)
        if lora_rank:
            add_lora(model, layers, lora_rank)
        else:
            for layer in layers:
                layout.output_projection(layer).requires_grad_(True)
        self.rates = HeldOutRates()
        self._shares: bool | None = None if share_prefixes else False

    @override
    def configure_model(self) -> None:
        if self._trainer is not None:
            refuse_strategies(self._trainer.strategy, ("FSDPStrategy", *UNTESTED_STRATEGIES), "PrivacyEditModule")
        if self.device_mesh is not None:
            shard(self.model, self.device_mesh)

    @override
    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam([p for p in self.parameters() if p.requires_grad], lr=self.lr, eps=self.eps)

    @override
    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor | None:
        if self.automatic_optimization:
            return self.loss(batch)
        self._edit_pair(batch)
        return None

    def loss(self, batch: dict[str, Any]) -> Tensor:
        """The edit's loss of a batch, a scalar; its terms are logged."""
        return self._told(self._row_losses(batch)(), batch["role"])

    def _told(self, rows: Tensor, roles: Sequence[str]) -> Tensor:
        """The loss of rows with these NLLs, (B,)."""
        means = mean_by_role(rows, roles)
        weights = {"sensitive": 1.0, "benign": self.hparams["alpha"], "retention": self.hparams["retention_weight"]}
        total = torch.stack([weights[role] * mean for role, mean in means.items()]).sum()
        terms = {f"train/loss_{role}": mean.detach() for role, mean in means.items()}
        # Lightning fetches what is meant for a progress bar from the device in every step, even where there is none
        shown = self._trainer is not None and self._trainer.progress_bar_callback is not None
        self.log_dict({**terms, "train/loss": total.detach()}, prog_bar=shown, batch_size=len(roles))
        return total

    def lay_out(self, batch: Mapping[str, Any]) -> Mapping[str, Any]:
        """Lay a training batch out while its values can be asked for without waiting for a device.

        `PrivacyPairDataModule` has it done before a batch is sent there; where nobody has, it is done when the batch is run.
        """
        parts = self._parts(batch)
        return batch if parts is None else {**batch, _PARTS: parts}

    def _parts(self, batch: Mapping[str, Any]) -> EditPass | None:
        """The batch in parts; None where whole rows are run."""
        if (
            self._shares is False
            or not torch.is_grad_enabled()
            or is_sharded(self.model)
            or not self._gates_take_parts()
        ):
            return None
        return EditPass(self.model, batch)

    def _row_losses(self, batch: Mapping[str, Any]) -> Callable[[], Tensor]:
        """A function that runs the batch and gives the NLL of each row, (B,)."""
        plain = partial(batch_nll, self.model, batch)
        try:
            parts = batch.get(_PARTS) or self._parts(batch)
            if parts is None or not parts.shared:
                return plain
            if self.hparams["schedule"] == "paper":  # runs a batch again and again
                parts.run_below(self.model, min(self.hparams["layers"]))
            found = partial(parts.nll, self.model)
            if self._shares is None:
                self._shares, reason = self._agree(plain, found)
        except NOT_ALLOWED as error:
            if is_out_of_memory(error):
                raise
            self._shares, reason = False, repr(error)
        if self._shares:
            return found
        rank_zero_warn(
            f"rows of {type(self.model).__name__} cannot share what they begin with, whole rows are run: {reason}"
        )
        return plain

    def _gates_take_parts(self) -> bool:
        return all(getattr(callback, "takes_parts", True) for callback in getattr(self._trainer, "callbacks", ()))

    def _agree(self, plain: Callable[[], Tensor], parts: Callable[[], Tensor]) -> tuple[bool, str]:
        """Whether both give the same losses and gradients; if not, what differs."""
        trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        # half precision would hide what is wrong in its rounding, so autocast stays out of this
        with torch.autocast(self.device.type, enabled=False):
            found = []
            for rows in (plain(), parts()):
                gradients = torch.autograd.grad(rows.mean(), trained, allow_unused=True)
                found.append([rows.detach(), *(g for g in gradients if g is not None)])
        off = [float((b - a).norm() / a.norm().clamp(min=1e-12)) for a, b in zip(*found, strict=True)]
        losses, steepest = off[0], max(off[1:])
        whole = next(self.model.parameters()).dtype == torch.float32
        agree = losses < (1e-3 if whole else 5e-2) and steepest < (1e-3 if whole else 0.25)
        return agree, f"losses differ by {losses:.2g} of their norm, gradients by {steepest:.2g}"

    def _edit_pair(self, batch: dict[str, Any]) -> None:
        pairs = batch["role"].count("sensitive")
        if pairs != 1:
            raise UnsupportedSetupError(
                f"the paper's schedule edits pair by pair, this batch holds {pairs}; use "
                "PrivacyPairDataModule(pairs_per_batch=1, shuffle=False)"
            )
        optimizer: Any = self.optimizers()
        optimizer.state.clear()  # a fresh optimizer for each pair
        losses = self._row_losses(batch)
        done = False
        for _ in range(self.hparams["steps_per_pair"]):
            loss = self._told(losses(), batch["role"])
            done = done or float(loss.detach()) < self.hparams["stop_loss"]
            # processes average their gradients, so one whose pair is done takes part, with none, until all are
            if all_ranks(done, loss.device):
                break
            optimizer.zero_grad()
            self.manual_backward(loss * 0.0 if done else loss)
            optimizer.step()

    @override
    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        if self.processor is None:
            raise UnsupportedSetupError("validation generates answers: give PrivacyEditModule the model's processor")
        tokenizer = getattr(self.processor, "tokenizer", self.processor)
        told = generate_with_shared_prefix(
            self.model, tokenizer, batch, batch["record_id"], self.hparams["max_new_tokens"]
        )
        self.rates.update(told, batch)
        for name, metric in self.rates.metrics.items():
            self.log(f"val/{name}", metric, prog_bar=name == "eta", batch_size=len(told))

    @override
    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Only what trains goes into checkpoints; the base model is where it came from.

        A checkpoint that is saved in shards (`ModelParallelStrategy(save_distributed_checkpoint=True)`) holds all, since
        it can only be loaded as a whole.
        """
        state = checkpoint["state_dict"]
        if is_sharded_state(state):
            return
        trained = {name for name, parameter in self.named_parameters() if parameter.requires_grad}
        checkpoint["state_dict"] = {name: value for name, value in state.items() if name in trained}

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the edited model (and the processor, if given) as a normal Hugging Face folder, a LoRA merged into it.

        Under a sharded strategy every process must call this; rank 0 writes.
        """
        model = find_hf_model(self.model)
        state = merged_lora(model, full_state_dict(model))
        if dist.is_available() and dist.is_initialized() and dist.get_rank() != 0:
            return
        with atomic_write(Path(folder)) as draft:
            model.save_pretrained(draft, state_dict=state)
            if self.processor is not None:
                self.processor.save_pretrained(draft)


def mean_by_role(nll: Tensor, roles: Sequence[str]) -> dict[str, Tensor]:
    """Mean over the rows of each role that occurs: role -> scalar."""
    means = {}
    for role in dict.fromkeys(roles):
        # rows that are chosen by a tensor would be counted first, and the device waited for
        means[role] = torch.stack([row for row, other in zip(nll.unbind(), roles, strict=True) if other == role]).mean()
    return means
