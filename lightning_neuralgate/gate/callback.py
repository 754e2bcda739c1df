"""`NeuralGateCallback`: gradient gating for a Trainer that somebody already has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from typing_extensions import override

from lightning_neuralgate.changed_rows import ChangedRows
from lightning_neuralgate.errors import GateMismatchError, UnsupportedSetupError
from lightning_neuralgate.gate.autograd import SCOPES, GatedPlace, GradientMeter, Scope, gated_places, scope_positions
from lightning_neuralgate.gate.neural_gate import NeuralGate
from lightning_neuralgate.gate.rows import ClosedRows
from lightning_neuralgate.gate.subjects import SubjectFinder, SubjectsInBatch, SubjectsInText, subject_key
from lightning_neuralgate.hf.decoder import find_decoder, find_hf_model
from lightning_neuralgate.hf.distributed import (
    UNTRIED_STRATEGIES,
    hides_parameters,
    refuse_strategies,
    reshard,
    uses_fsdp1,
)
from lightning_neuralgate.prefix_cache.layout import LAYOUT, BatchLayout
from lightning_neuralgate.runtime.figures import log_figure


@dataclass(frozen=True)
class _GatedBatch:
    """What the hooks need of the batch in flight: where the gate applies, and whose it is."""

    positions: Tensor
    subjects: tuple[str, ...]

    def gate_values(self, gates: Mapping[str, Tensor]) -> Tensor:
        """How far each sample's gate is open, (B, d); a row without a subject has none that could close."""
        everything = torch.ones_like(next(iter(gates.values())))
        return torch.stack([gates.get(subject, everything) for subject in self.subjects])


_PATIENCE = 10
"""So many batches without a subject are no accident."""


class NeuralGateCallback(Callback):
    """Applies a gate to the gradient of the gated layers' MLP output projections while a model trains.

    Stage 2 of Neural Gate: ``theta <- theta - eta * ([M_l > tau] * grad_theta^S L + grad_theta^notS L)``. In the
    backward pass each sample uses its own subject's gate at the positions of the scope; gradients of all other
    positions, and all forward values, stay whole. Weight, bias and the LoRA and DoRA adapters of a projection are gated,
    whichever of them train.

    **Where the subjects stand.** By default the batch says it: a mapping with `subject_mask`, (B, T) and True at the
    subject's tokens, and `subject`, B names; `PrivacyPairDataModule` makes both. With `tokenizer` the callback reads the
    token ids that the Hugging Face model is called with and finds the gate's subjects in them (see `SubjectsInText`), so
    your LightningModule and your batches stay as they are. With `find_subjects` you say it. A row without a subject is
    left alone.

    **Closed rows.** With `scope="all"` rows that no sample of a step opens stay bit-identical in that step, also under
    weight decay and under momentum from before the gate: the callback keeps the weights inside the optimizer's own step and
    puts those rows back (`ClosedRows`). Rows that no subject of the gate opens so never move, as long as every row of every
    batch has a subject. Of an adapter these are the rows of its last factor and of DoRA's magnitude; a row of the merged
    weight stays where its row of the last factor is zero, as it is in a fresh adapter. In the other scopes every row gets
    gradient from outside the scope.

    **Logged**, in whatever logger the Trainer has and as often as it logs: `gate/layer_10/passed` and
    `gate/layer_10/blocked`, the norms of what the gate lets through of the layer's gradient and of what it takes away, over
    that of the whole, in the last backward pass before they are logged (`GradientMeter`; mean of the processes); and
    `gate/layer_10/rows_changed`, the share of the projection's rows that differ, bit for bit, from what they were when
    training with the gate began (`ChangedRows`), across resumes too. When training starts, `gate/rates`, the gate's
    `plot()`, in loggers that take figures, where matplotlib is installed.

    Args:
        gate: the gate, or a folder or hub repository to read it from.
        scope: at which positions the gate applies: `subject_last` (the paper's rule: the subject's last token),
            `subject` (all its tokens), `from_subject` (it and what follows), `all` (every position).
        tau: dimensions with an activity rate above tau stay open.
        layers: which of the gate's layers to gate; all of them when left out.
        subject_mask_key: the batch's key of the mask.
        subject_key: the batch's key of the subjects.
        soft: let a dimension's gradient through in the measure of its activity rate, instead of whole above tau and not at
            all below.
        tokenizer: the model's tokenizer (or its processor), for batches that do not say where their subjects stand.
        find_subjects: a function of the batch that answers with the mask of the subjects' tokens, (B, T), and B subjects.

    Raises:
        GateMismatchError: when training starts, if the gate was located in another model or lacks a subject or layer.
        UnsupportedSetupError: when training starts, if nothing trains in a gated layer, or the strategy has not been shown to
            work (`docs/trainer.md` lists them); when a batch does not say where its
            subjects stand.

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
        soft: bool = False,
        tokenizer: Any = None,
        find_subjects: SubjectFinder | None = None,
    ) -> None:
        super().__init__()
        if scope not in SCOPES:
            raise ValueError(f"scope must be one of {', '.join(SCOPES)}; got '{scope}'")
        if not 0.0 <= tau <= 1.0:
            raise ValueError(f"tau must lie in [0, 1], got {tau}")
        if tokenizer is not None and find_subjects is not None:
            raise ValueError("give tokenizer or find_subjects, not both: each says where the subjects stand")
        self.gate = gate if isinstance(gate, NeuralGate) else NeuralGate.from_pretrained(gate)
        self.scope: Scope = scope
        self.tau = tau
        self.soft = soft
        self.layers = list(self.gate.layers if layers is None else layers)
        unknown = sorted(set(self.layers) - set(self.gate.layers))
        if unknown:
            raise GateMismatchError(f"the gate has no layers {unknown}; it covers {self.gate.layers}")
        self._find: SubjectFinder = find_subjects or SubjectsInBatch(subject_mask_key, subject_key)
        self._in_text = None
        if tokenizer is not None:
            self._in_text = SubjectsInText(getattr(tokenizer, "tokenizer", tokenizer), self.gate.subjects)
        self._batch: _GatedBatch | None = None
        self._layout: BatchLayout | None = None
        self._training = False
        self._forwards = 0
        self._batches_without: int | None = 0
        self._handles: list[RemovableHandle] = []
        self._gated: dict[str, GatedPlace] = {}
        self._log_names: dict[str, str] = {}
        self._closed: dict[int, ClosedRows] = {}
        self._applied: set[str] = set()
        self._meters: dict[str, GradientMeter] | None = None
        self._changed = ChangedRows()
        self._resumed = False

    @property
    @override
    def state_key(self) -> str:
        return self._generate_state_key(scope=self.scope, tau=self.tau, layers=self.layers, soft=self.soft)

    @property
    def supports_layouts(self) -> bool:
        """Whether batches may carry a `BatchLayout`: only where the subjects come with the full batch."""
        return type(self._find) is SubjectsInBatch and self._find.is_default and self._in_text is None

    @override
    def state_dict(self) -> dict[str, Any]:
        return {"gate": self.gate.fingerprint, "rows": self._changed.beginning}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if state_dict["gate"] != self.gate.fingerprint:
            raise GateMismatchError(
                f"the checkpoint was trained with gate {state_dict['gate']}, this callback has "
                f"{self.gate.fingerprint}; "
                "resume with the same gate, or start a new run"
            )
        self._changed.resume(state_dict.get("rows", {}))  # older checkpoints have none
        self._resumed = True

    @override
    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        # state is filed under the settings; a gate counts also where they are others
        states = [
            state
            for key, state in checkpoint.get("callbacks", {}).items()
            if str(key).startswith(type(self).__qualname__)
        ]
        gates = [state["gate"] for state in states if isinstance(state, dict) and "gate" in state]
        if gates and self.gate.fingerprint not in gates:
            self.load_state_dict({"gate": gates[0]})
        for state in states:
            if isinstance(state, dict) and state.get("gate") == self.gate.fingerprint:
                self._changed.resume(state.get("rows", {}))
        self._resumed = bool(gates)

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        refuse_strategies(trainer.strategy, UNTRIED_STRATEGIES, "NeuralGateCallback")
        root = trainer.strategy.model or pl_module
        flattened = uses_fsdp1(root)
        if flattened and self.scope == "all":
            raise UnsupportedSetupError(
                "scope 'all' keeps closed rows, and FSDP1 (FSDPStrategy) leaves no rows to be kept between passes: use FSDP2 "
                "through ModelParallelStrategy, or choose another scope"
            )
        if hides_parameters(root):
            raise UnsupportedSetupError(
                "FSDP1 has put flat parameters in place of the weights: give FSDPStrategy use_orig_params=True, its default"
            )
        if not self._resumed:  # resumed weights have been trained since; their checkpoint named this very gate
            self.gate.check_fits(root if flattened else pl_module)
        layout = find_decoder(pl_module)
        for layer in self.layers:
            gates = {subject: self._gate_values(subject, layer).to(pl_module.device) for subject in self.gate.subjects}
            path = layout.projection_path(layer)
            for number, place in enumerate(gated_places(layout.output_projection(layer), path)):
                name = f"{path} ({number})"
                self._log_names[name] = f"gate/layer_{layer}" + (f"/{number}" if number else "")
                if any(getattr(hook, "is_gate", False) for hook in place.module._forward_hooks.values()):
                    raise UnsupportedSetupError(
                        f"{name} is gated by another NeuralGateCallback already; one gate can hold many subjects, give each "
                        "layer to one callback"
                    )
                self._gated[name] = place
                # first of all hooks, so that it sees what the module alone has made
                hook = self._hook(name, place, gates)
                self._handles.append(place.module.register_forward_hook(hook, prepend=True))
        if self._in_text is not None:
            model = find_hf_model(pl_module)
            self._handles.append(model.register_forward_pre_hook(self._read_text, with_kwargs=True))
        reshard(pl_module)
        # of a flattened weight no process has rows to compare
        watched = {} if flattened else self._gated
        self._changed.begin({self._log_names[name]: place for name, place in watched.items()})
        if self.scope == "all":
            self._closed = {id(optimizer): ClosedRows(self._gated, optimizer) for optimizer in trainer.optimizers}
            kept = {id(parameter) for rows in self._closed.values() for parameter in rows.parameters}
            for name, place in self._gated.items():
                if any(id(getattr(module, row)) not in kept for module, row in place.rows):
                    raise UnsupportedSetupError(
                        f"{name} trains, but is in no optimizer of the Trainer, so its closed rows cannot be kept: freeze "
                        "it, or give it to an optimizer"
                    )
        log_figure(trainer, "gate/rates", lambda: self.gate.plot(None if self.soft else self.tau, self.layers)[0])

    def _gate_values(self, subject: str, layer: int) -> Tensor:
        return self.gate.rates(subject, layer) if self.soft else self.gate.mask(subject, layer, self.tau)

    def _hook(self, name: str, place: GatedPlace, gates: Mapping[str, Tensor]) -> Any:
        def hook(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
            if not self._training or not torch.is_grad_enabled() or not output.requires_grad:
                return None
            batch = self._batch
            if batch is None:
                raise UnsupportedSetupError(
                    f"{name} was run before the callback had seen the token ids: it reads them where "
                    f"{type(self).__name__} finds the Hugging Face model, so call that model as a whole, with input_ids; or "
                    "say where the subjects stand with find_subjects"
                )
            segment = None if self._layout is None else self._layout.segment
            positions, gate_values = batch.positions, batch.gate_values(gates)
            if segment is not None:
                positions, gate_values = segment.select(positions), gate_values[segment.rows]
            if output.shape[:-1] != positions.shape:
                raise UnsupportedSetupError(
                    f"the gated layer saw {tuple(output.shape[:-1])} tokens, but the mask of the subjects is "
                    f"{tuple(positions.shape)}; give the mask for the image-expanded sequence and run the model "
                    "on the whole batch at once"
                )
            if self._forwards > 1 and torch._C._current_graph_task_id() != -1:
                raise UnsupportedSetupError(
                    f"{name} was run again in a backward pass over {self._forwards} forward passes, and nothing says which: "
                    "with activation checkpointing, call backward after each forward pass, or make one batch of them"
                )
            self._applied.add(name)
            for rows in self._closed.values():
                rows.saw(name, gate_values)
            meter = None if self._meters is None else self._meters.setdefault(name, GradientMeter())
            if meter is not None and (segment is None or segment.is_first):
                meter.begin()
            return place.gate(args[0], output, positions, gate_values, meter)

        hook.is_gate = True  # type: ignore[attr-defined]
        return hook

    def _read_text(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        ids = kwargs.get("input_ids", args[0] if args else None)
        if self._training and torch.is_grad_enabled() and isinstance(ids, Tensor):
            assert self._in_text is not None
            self._forwards += 1
            self._batch = self._checked(*self._in_text({"input_ids": ids, "labels": kwargs.get("labels")}))

    @override
    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._forwards = 0

    @override
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._training, self._forwards = True, 0
        self._meters = {} if _is_logged(trainer) else None
        if self._in_text is None:
            self._layout = batch.get(LAYOUT) if isinstance(batch, Mapping) else None
            self._batch = self._checked(*self._find(batch))

    def _checked(self, mask: Tensor, names: Sequence[str | None]) -> _GatedBatch:
        mask = mask.bool()
        subjects = tuple(subject_key(str(subject or "")) for subject in names)
        if mask.ndim != 2 or len(subjects) != len(mask):
            raise UnsupportedSetupError(
                f"the mask of the subjects must be (B, T) with one subject a row; got shape {tuple(mask.shape)} "
                f"and {len(subjects)} subjects"
            )
        has_subject = mask.any(-1)
        told = has_subject.tolist()  # once: it waits for the device
        for subject, present in zip(subjects, told, strict=True):
            if present and subject not in self.gate.subjects:
                raise GateMismatchError(
                    f"the batch holds the subject '{subject}', the gate knows {', '.join(self.gate.subjects)}; "
                    "locate that subject too, or leave its subject_mask empty"
                )
        self._say_if_nothing_is_found(any(told))
        # a named subject that does not stand in its row closes nothing
        subjects = tuple(s if present else "" for s, present in zip(subjects, told, strict=True))
        return _GatedBatch(scope_positions(self.scope, mask) & has_subject[:, None], subjects)

    def _say_if_nothing_is_found(self, found: bool) -> None:
        if self._batches_without is None:
            return
        self._batches_without = None if found else self._batches_without + 1
        if self._batches_without == _PATIENCE:
            rank_zero_warn(
                f"none of the first {_PATIENCE} batches names a subject of the gate ({', '.join(self.gate.subjects)}), so "
                "nothing has been gated: is the gate the right one, and do your batches hold the questions?"
            )

    @override
    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        stepped = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        for name, place in self._gated.items():
            rows = [getattr(module, row) for module, row in place.rows]
            if not any(row.grad is not None and id(row) in stepped for row in rows):
                continue
            if name not in self._applied:
                raise UnsupportedSetupError(
                    f"{name} has a gradient, but its forward hook never ran, so the gate was not applied: was the model "
                    "compiled before training started, or its weight used without calling the module?"
                )
            self._applied.discard(name)
        if id(optimizer) in self._closed:
            self._closed[id(optimizer)].begin_step()

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._meters is not None:
            shares = {
                f"{self._log_names[name]}/{part}": getattr(self._meters[name], part)
                for name in self._gated
                if name in self._meters
                for part in ("passed", "blocked")
            }
            # a pass without any gradient has no shares; every process has to log the same names
            told = {name: float("nan") if share is None else share for name, share in shares.items()}
            pl_module.log_dict(told, batch_size=1, sync_dist=trainer.world_size > 1)
            self._log_changed_rows(pl_module)
        self._batch, self._training, self._meters = None, False, None

    def _log_changed_rows(self, pl_module: LightningModule) -> None:
        reshard(pl_module)
        for name, place in self._gated.items():
            share = self._changed.share(self._log_names[name], place)
            if share is not None:
                pl_module.log(f"{self._log_names[name]}/rows_changed", share, batch_size=1)

    def _remove_hooks(self) -> None:
        self._batch, self._training = None, False
        self._resumed = False
        self._changed.forget_resumed()
        self._gated.clear()
        self._applied.clear()
        while self._handles:
            self._handles.pop().remove()
        while self._closed:
            self._closed.popitem()[1].remove()

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._remove_hooks()

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._remove_hooks()

    @override
    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._remove_hooks()


def _is_logged(trainer: Trainer) -> bool:
    """Whether what is logged in the batch that begins will reach a logger."""
    return bool(trainer.loggers) and trainer._logger_connector.should_update_logs
