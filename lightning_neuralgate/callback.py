"""`NeuralGateCallback`: gradient gating for a Trainer that somebody already has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from typing_extensions import override

from lightning_neuralgate.errors import GateMismatchError, UnsupportedSetupError
from lightning_neuralgate.gate import NeuralGate, subject_key
from lightning_neuralgate.gating import SCOPES, Scope, gate_output, gated_linears, scope_positions
from lightning_neuralgate.layers import find_decoder


@dataclass(frozen=True)
class _GatedBatch:
    """What the hooks need of the batch in flight: where the gate applies, and whose it is."""

    positions: Tensor
    subjects: tuple[str, ...]

    def open_rows(self, masks: Mapping[str, Tensor], width: int) -> Tensor:
        everything = torch.ones(width, dtype=torch.bool, device=self.positions.device)
        rows = torch.stack([masks.get(subject, everything) for subject in self.subjects])
        return rows[:, None, :] | ~self.positions[:, :, None]


_UNTRIED_STRATEGIES = ("FSDPStrategy", "DeepSpeedStrategy", "XLAFSDPStrategy")


class NeuralGateCallback(Callback):
    """Applies a gate to the gradient of the gated layers' MLP output projections while a model trains.

    Stage 2 of Neural Gate: ``theta <- theta - eta * ([M_l > tau] * grad_theta^S L + grad_theta^notS L)``. In the
    backward pass each sample uses its own subject's mask at the positions of the scope; gradients of all other
    positions, and all forward values, stay whole. The batch must be a mapping with `subject_mask` (B, T), True at the
    subject's tokens, and `subject`, B names; `PrivacyPairDataModule` makes both. A row without True in its mask is
    left alone.

    A closed row gets no gradient, but an optimizer may still move it: by weight decay, or by momentum from before the gate.
    With `scope="all"` closed rows stay bit-identical under a fresh optimizer without weight decay.

    Args:
        gate: the gate, or a folder or hub repository to read it from.
        scope: at which positions the gate applies: `subject_last` (the paper's rule: the subject's last token),
            `subject` (all its tokens), `from_subject` (it and what follows), `all` (every position).
        tau: dimensions with an activity rate above tau stay open.
        layers: which of the gate's layers to gate; all of them when left out.
        subject_mask_key: the batch's key of the mask.
        subject_key: the batch's key of the subjects.

    Raises:
        GateMismatchError: when training starts, if the gate was located in another model or lacks a subject or layer.
        UnsupportedSetupError: when training starts, if nothing trains in a gated layer or the batch lacks a key.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> NeuralGateCallback("gate/", scope="everywhere")
        Traceback (most recent call last):
        ...
        ValueError: scope must be one of subject_last, subject, from_subject, all; got 'everywhere'
    """

    def __init__(
        self,
        gate: NeuralGate | str | Path,
        scope: Scope = "subject_last",
        tau: float = 0.3,
        layers: Sequence[int] | None = None,
        subject_mask_key: str = "subject_mask",
        subject_key: str = "subject",
    ) -> None:
        super().__init__()
        if scope not in SCOPES:
            raise ValueError(f"scope must be one of {', '.join(SCOPES)}; got '{scope}'")
        if not 0.0 <= tau <= 1.0:
            raise ValueError(f"tau must lie in [0, 1], got {tau}")
        self.gate = gate if isinstance(gate, NeuralGate) else NeuralGate.from_pretrained(gate)
        self.scope: Scope = scope
        self.tau = tau
        self.layers = list(self.gate.layers if layers is None else layers)
        unknown = sorted(set(self.layers) - set(self.gate.layers))
        if unknown:
            raise GateMismatchError(f"the gate has no layers {unknown}; it covers {self.gate.layers}")
        self.subject_mask_key = subject_mask_key
        self.subject_key = subject_key
        self._batch: _GatedBatch | None = None
        self._handles: list[RemovableHandle] = []
        self._gated: dict[str, nn.Linear] = {}
        self._applied: set[str] = set()
        self._resumed = False

    @property
    @override
    def state_key(self) -> str:
        return self._generate_state_key(scope=self.scope, tau=self.tau, layers=self.layers)

    @override
    def state_dict(self) -> dict[str, Any]:
        return {"gate": self.gate.fingerprint}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if state_dict["gate"] != self.gate.fingerprint:
            raise GateMismatchError(
                f"the checkpoint was trained with gate {state_dict['gate']}, this callback has "
                f"{self.gate.fingerprint}; "
                "resume with the same gate, or start a new run"
            )
        self._resumed = True

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        strategy = type(trainer.strategy).__name__
        if strategy in _UNTRIED_STRATEGIES:
            raise UnsupportedSetupError(
                f"NeuralGateCallback has not been shown to work with {strategy}; use 'ddp', or FSDP2 through "
                "ModelParallelStrategy"
            )
        if not self._resumed:  # resumed weights have been trained since; their checkpoint named this very gate
            self.gate.check_fits(pl_module)
        layout = find_decoder(pl_module)
        for layer in self.layers:
            masks = {subject: self.gate.mask(subject, layer, self.tau) for subject in self.gate.subjects}
            masks = {subject: mask.to(pl_module.device) for subject, mask in masks.items()}
            projection = layout.output_projection(layer)
            path = layout.projection_path(layer)
            for number, (linear, gate_input) in enumerate(gated_linears(projection, path)):
                place = f"{path} ({number})"
                self._gated[place] = linear
                self._handles.append(linear.register_forward_hook(self._hook(place, masks, gate_input)))

    def _hook(self, place: str, masks: Mapping[str, Tensor], gate_input: bool) -> Any:
        def hook(module: nn.Linear, args: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
            batch = self._batch
            if batch is None or not torch.is_grad_enabled() or not output.requires_grad:
                return None
            if output.shape[:-1] != batch.positions.shape:
                raise UnsupportedSetupError(
                    f"the gated layer saw {tuple(output.shape[:-1])} tokens, but the batch's "
                    f"'{self.subject_mask_key}' is "
                    f"{tuple(batch.positions.shape)}; give the mask for the image-expanded sequence and run the model "
                    "on the whole batch at once"
                )
            self._applied.add(place)
            return gate_output(module, args[0], output, batch.open_rows(masks, output.shape[-1]), gate_input)

        return hook

    @override
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        for key in (self.subject_mask_key, self.subject_key):
            if not isinstance(batch, Mapping) or key not in batch:
                found = sorted(batch) if isinstance(batch, Mapping) else type(batch).__name__
                raise UnsupportedSetupError(
                    f"NeuralGateCallback needs '{key}' in the training batch, found {found}; "
                    "PrivacyPairDataModule makes "
                    "it, or name your own key with subject_mask_key and subject_key"
                )
        mask = batch[self.subject_mask_key].bool()
        subjects = tuple(subject_key(str(subject or "")) for subject in batch[self.subject_key])
        if mask.ndim != 2 or len(subjects) != len(mask):
            raise UnsupportedSetupError(
                f"'{self.subject_mask_key}' must be (B, T) with one subject a row; got shape {tuple(mask.shape)} "
                f"and {len(subjects)} subjects"
            )
        for subject, present in zip(subjects, mask.any(-1).tolist(), strict=True):
            if present and subject not in self.gate.subjects:
                raise GateMismatchError(
                    f"the batch holds the subject '{subject}', the gate knows {', '.join(self.gate.subjects)}; "
                    "locate that subject too, or leave its subject_mask empty"
                )
        positions = scope_positions(self.scope, mask) & mask.any(-1, keepdim=True)
        self._batch = _GatedBatch(positions, subjects)

    @override
    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        for place, linear in self._gated.items():
            if linear.weight.grad is not None and place not in self._applied:
                raise UnsupportedSetupError(
                    f"{place} has a gradient, but its forward hook never ran, so the gate was not applied: was the model "
                    "compiled before training started, or its weight used without calling the module?"
                )

    @override
    def on_train_batch_end(self, *args: Any, **kwargs: Any) -> None:
        self._batch = None

    def _remove_hooks(self) -> None:
        self._batch = None
        self._gated.clear()
        self._applied.clear()
        while self._handles:
            self._handles.pop().remove()

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._remove_hooks()

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._remove_hooks()

    @override
    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._remove_hooks()
