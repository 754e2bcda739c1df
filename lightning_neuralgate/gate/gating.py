"""The gate in a model: hooks on the gated projections, for any training loop.

`NeuralGateCallback` (Lightning) and `HFGateCallback` (transformers' Trainer) are a `Gating` that a Trainer calls, and `gated`
yields one to a plain loop. They have its arguments, and call its methods at the same places of a step, so that they train
alike.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from lightning_neuralgate.errors import GateMismatchError, ModelLayoutError, UnsupportedSetupError
from lightning_neuralgate.gate.autograd import GatedModule, GradientMask, GradientMeter, gated_modules
from lightning_neuralgate.gate.columns import ColumnGate, ColumnRule, checked_columns
from lightning_neuralgate.gate.key_space import KeySpace
from lightning_neuralgate.gate.keys import DEFAULT_SHARE, InputCovariance
from lightning_neuralgate.gate.neural_gate import DEFAULT_TAU, NeuralGate
from lightning_neuralgate.gate.positions import PositionRule, Scope, position_rule
from lightning_neuralgate.gate.row_rules import LocatedRows, RowRule
from lightning_neuralgate.gate.rows import MaskedRowRestorer
from lightning_neuralgate.gate.subjects import (
    GatedBatch,
    SubjectFinder,
    SubjectsInBatch,
    SubjectsInText,
    UngatedRows,
)
from lightning_neuralgate.hf.decoder import Projection, find_decoder, find_hf_model
from lightning_neuralgate.hf.distributed import is_sharded, reshard
from lightning_neuralgate.hf.hub import load_tokenizer
from lightning_neuralgate.hf.master_weights import HALF_PRECISION, MasterLinear, add_masters, remove_masters
from lightning_neuralgate.prefix_cache.layout import LAYOUT, BatchLayout


class Gating:
    """The gate in a model, from `attach` to `detach`.

    Each batch: `start_batch`, forward and backward passes (`after_backward`), `before_step`, `end_batch`.

    Args, Raises: as in `NeuralGateCallback`.
    """

    def __init__(
        self,
        gate: NeuralGate | str | Path | None,
        scope: Scope | PositionRule = "subject_last",
        tau: float = DEFAULT_TAU,
        layers: Sequence[int] | None = None,
        subject_mask_key: str = "subject_mask",
        subject_key: str = "subject",
        soft: bool = False,
        tokenizer: Any = None,
        find_subjects: SubjectFinder | None = None,
        strict: bool = False,
        rows: RowRule | None = None,
        columns: ColumnRule | None = None,
        projection: Projection = "mlp",
        keep: InputCovariance | str | Path | None = None,
        keep_share: float = DEFAULT_SHARE,
        keep_soft: float | None = None,
    ) -> None:
        super().__init__()  # of the Trainer's callback class
        self.scope, self.tau, self.soft = scope, tau, soft
        self.positions = position_rule(scope)
        if tokenizer is not None and find_subjects is not None:
            raise ValueError("pass tokenizer or find_subjects, not both: each finds the subjects of a batch")
        if gate is None and keep is None:
            raise ValueError("give a gate, or keep, or both")
        if keep is not None and (projection != "mlp" or columns is not None):
            raise ValueError("keep projects all columns of the MLP's weight: leave columns and projection out, or keep")
        self.gate = NeuralGate.from_pretrained(gate) if isinstance(gate, (str, Path)) else gate
        self.key_space = None if keep is None else KeySpace(keep, keep_share, keep_soft)
        self.rows = rows or (None if self.gate is None else LocatedRows(self.gate, tau, soft))
        if projection != "mlp" and isinstance(columns, ColumnGate):
            raise ValueError("a ColumnGate holds hidden units of the MLP, so it does not fit projection='attention'")
        self.columns, self.projection = columns, projection
        covered = {} if self.gate is None else {"gate": self.gate.layers}
        if self.key_space is not None:
            covered["input covariance"] = self.key_space.covariance.layers
        self.layers = list(next(iter(covered.values())) if layers is None else layers)
        for name, known in covered.items():
            if unknown := sorted(set(self.layers) - set(known)):
                raise GateMismatchError(f"the {name} has no layers {unknown}; it covers {known}")
        subjects = [] if self.gate is None else self.gate.subjects
        if isinstance(tokenizer, (str, Path)):
            tokenizer = load_tokenizer(tokenizer)
        if tokenizer is not None:
            find_subjects = SubjectsInText(getattr(tokenizer, "tokenizer", tokenizer), subjects)
        self.reads_inputs = tokenizer is not None
        """Call `find_subjects` with the model's inputs in each forward pass, instead of with the batch."""
        self.find_subjects: SubjectFinder = find_subjects or SubjectsInBatch(subject_mask_key, subject_key)
        self.ungated_rows = UngatedRows(subjects, strict)
        self.modules: dict[str, GatedModule] = {}
        self.log_names: dict[str, str] = {}
        self.row_restorers: dict[int, MaskedRowRestorer] = {}
        self.meters: dict[str, GradientMeter] | None = None
        self.batch: GatedBatch | None = None
        self._columns: dict[str, Tensor] = {}
        self._masters: list[MasterLinear] = []
        self._handles: list[RemovableHandle] = []
        self._content: Mapping[str, Any] = {}
        self._layout: BatchLayout | None = None
        self._training = self._warned = False
        self._forward_passes = 0
        self._gated_since_step: set[str] = set()

    @property
    def restores(self) -> str:
        """The setting by which parts of the weights are restored after each step, for messages; "" if there is none."""
        if self.gate is None:
            return ""
        if self.positions.gates_all:
            return f"scope '{self.positions}'"
        return "" if self.columns is None else "columns"

    def fits_layout(self, batch: Mapping[str, Any], layout: BatchLayout) -> bool:
        """Return whether a batch may be run in a layout's two passes, shared prefixes and own tokens.

        The subjects have to come with the batch, since the model is not called with its token ids. Rows that share a prefix
        have to be gated alike there; otherwise there is a warning, once.
        """
        if self.rows is None:
            return True
        finder = self.find_subjects
        if self.reads_inputs or type(finder) is not SubjectsInBatch or not finder.is_default:
            return False
        if not self.rows.supports_layouts:
            return False
        fits = all(
            mask is None or layout.is_shared(mask) for mask in self.positions(batch["subject_mask"].bool(), batch)
        )
        if not fits and not self._warned:
            self._warned = True
            rank_zero_warn(
                f"rows that share a prefix are not gated alike in it by the scope '{self.positions}', for example because "
                "one of them has no twin, so full rows are run"
            )
        return fits

    def check_fits(self, root: nn.Module) -> None:
        """Check that gate and columns were located in this model.

        Raises:
            GateMismatchError: they were not.
        """
        if self.gate is not None:
            self.gate.check_fits(root)
        if self.columns is not None:
            self.columns.check_fits(root)

    def add_masters(self, root: nn.Module) -> None:
        """Keep the weights that train in gated layers in float32, where they are in half precision.

        Has to be called before the optimizers make a step and before the model is wrapped or sharded. Does nothing where
        `root` has no model yet, or another one; `attach` then warns, or raises an error.
        """
        try:
            layout = find_decoder(root, self.projection)
            layers = [
                layer
                for layer in self.layers
                if any(p.requires_grad for p in layout.output_projection(layer).parameters(recurse=False))
            ]
        except ModelLayoutError:
            return
        self._masters += add_masters(root, layers, self.projection)

    def remove_masters(self) -> None:
        """Give the weights of `add_masters` their type back, unless they are sharded."""
        if not any(is_sharded(master) for master in self._masters):
            remove_masters(self._masters)
        self._masters = []

    def attach(self, root: nn.Module, optimizers: Sequence[Optimizer], resumed: bool = False) -> None:
        """Register the hooks on the gated modules, and on the optimizers where steps are projected or parts restored.

        Args:
            root: the module that trains.
            optimizers: all optimizers of the training.
            resumed: whether an earlier part of the training was gated, too.

        Raises:
            UnsupportedSetupError: nothing trains in a gated layer, it is gated already, or columns are masked in an adapter.
        """
        if self.key_space is not None:  # before rows are restored, so that masked ones stay bit-identical
            self.key_space.start(root, self.layers, optimizers, resumed)
        if self.gate is None:
            return
        layout = find_decoder(root, self.projection)
        for layer in self.layers:
            path = layout.projection_path(layer)
            for number, gated in enumerate(gated_modules(layout.output_projection(layer), path)):
                name = f"{path} ({number})"
                parts = [f"gate/layer_{layer}", *(["attention"] if self.projection == "attention" else [])]
                self.log_names[name] = "/".join([*parts, *([str(number)] if number else [])])
                if any(getattr(hook, "is_gate", False) for hook in gated.module._forward_hooks.values()):
                    raise UnsupportedSetupError(
                        f"{name} is gated by another NeuralGateCallback already; a gate can contain several subjects, so "
                        "use one callback for each layer"
                    )
                _warn_of_rounding(name, gated)
                if self.columns is not None:
                    self._columns[name] = checked_columns(self.columns, layer, name, gated)
                self.modules[name] = gated
                # before all other hooks, so that it gets the output of the module itself
                hook = self._hook(layer, name, gated)
                self._handles.append(gated.module.register_forward_hook(hook, prepend=True))
        if self.reads_inputs:
            model = find_hf_model(root)
            self._handles.append(model.register_forward_pre_hook(self._read_inputs, with_kwargs=True))
        self.ungated_rows.start()
        if self.restores:
            reshard(root)
            self._restore_after(optimizers)

    def _restore_after(self, optimizers: Sequence[Optimizer]) -> None:
        self.row_restorers = {
            id(optimizer): MaskedRowRestorer(self.modules, optimizer, self.positions.gates_all, self._columns)
            for optimizer in optimizers
        }
        covered = {id(parameter) for rows in self.row_restorers.values() for parameter in rows.parameters}
        for name, gated in self.modules.items():
            if any(id(getattr(owner, parameter)) not in covered for owner, parameter in gated.parameters):
                raise UnsupportedSetupError(
                    f"{name} trains, but is in no optimizer of the Trainer, so its masked rows cannot be restored: freeze "
                    "it, or give it to an optimizer"
                )

    def start_batch(self, batch: Any = None, measured: bool = False) -> None:
        """Gate the next forward passes as those of this batch.

        Args:
            batch: the batch; not needed where subjects are found in the model's inputs.
            measured: measure how much of the gradient passes, in `meters`.
        """
        if self.gate is None:
            return
        self._training, self._forward_passes = True, 0
        self.meters = {} if measured else None
        self.ungated_rows.start_batch(batch)
        self._content = batch if isinstance(batch, Mapping) else {}
        if not self.reads_inputs:
            self._layout = self._content.get(LAYOUT)
            self._set_batch(*self.find_subjects(batch), self._content)

    def after_backward(self) -> None:
        """Take notice that a backward pass has run."""
        self._forward_passes = 0

    def before_step(self, optimizer: Optimizer) -> None:
        """Check that the gate was applied, and prepare the rules for the optimizer's step.

        Raises:
            UnsupportedSetupError: a projection has a gradient, but its hook has not run since the last step.
        """
        optimized = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        for name, gated in self.modules.items():
            parameters = [getattr(owner, parameter) for owner, parameter in gated.parameters]
            if not any(parameter.grad is not None and id(parameter) in optimized for parameter in parameters):
                continue
            if name not in self._gated_since_step:
                raise UnsupportedSetupError(
                    f"{name} has a gradient, but its forward hook never ran, so the gate was not applied: was the model "
                    "compiled before training started, or its weight used without calling the module?"
                )
            self._gated_since_step.discard(name)
        if self.rows is not None:
            self.rows.before_step()
        if id(optimizer) in self.row_restorers:
            self.row_restorers[id(optimizer)].start_step()

    def end_batch(self) -> None:
        """Stop gating until the next batch starts."""
        self.batch, self._layout, self._training, self.meters = None, None, False, None

    def detach(self) -> None:
        """Remove all hooks."""
        self.end_batch()
        self.modules.clear()
        self._columns.clear()
        self._gated_since_step.clear()
        while self._handles:
            self._handles.pop().remove()
        while self.row_restorers:
            self.row_restorers.popitem()[1].remove()
        if self.key_space is not None:
            self.key_space.remove()

    def _set_batch(self, mask: Tensor, names: Sequence[str | None], content: Mapping[str, Any]) -> None:
        self.batch = GatedBatch.of(mask, names, self.positions, self.ungated_rows.gate_subjects, content)
        self.ungated_rows.update(self.batch.subjects)

    def _read_inputs(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        ids = kwargs.get("input_ids", args[0] if args else None)
        if self._training and torch.is_grad_enabled() and isinstance(ids, Tensor):
            self._forward_passes += 1
            content = {**self._content, **kwargs, "input_ids": ids, "labels": kwargs.get("labels")}
            self._set_batch(*self.find_subjects(content), content)

    def _hook(self, layer: int, name: str, gated: GatedModule) -> Any:
        def hook(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
            if not self._training or not torch.is_grad_enabled() or not output.requires_grad:
                return None
            batch, rule = self.batch, self.rows
            assert rule is not None
            if batch is None:
                raise UnsupportedSetupError(
                    f"{name} was called before the callback had read any token ids: NeuralGateCallback reads them when "
                    "the Hugging Face model is called, so call the full model with input_ids, or pass find_subjects"
                )
            segment = None if self._layout is None else self._layout.segment
            positions = batch.positions
            gate_values = rule.values(layer, name, batch, output.shape[-1], output.device)
            shape: tuple[int, ...] = (len(batch.subjects), batch.width)
            if segment is not None:
                positions, gate_values = positions.map(segment.select), gate_values[segment.rows]
                shape = segment.columns.shape
            if output.shape[:-1] != shape:
                raise UnsupportedSetupError(
                    f"the gated layer was called with {tuple(output.shape[:-1])} tokens, but the subject mask is "
                    f"{tuple(shape)}; give the mask for the image-expanded sequence and run the model "
                    "on the full batch at once"
                )
            # torch has no public test for a running backward pass; torch.utils.checkpoint uses this one, too
            if self._forward_passes > 1 and torch._C._current_graph_task_id() != -1:
                raise UnsupportedSetupError(
                    f"{name} was recomputed in a backward pass over {self._forward_passes} forward passes, so its batch is "
                    "unknown: with activation checkpointing, call backward after each forward pass, or make one batch of them"
                )
            self._gated_since_step.add(name)
            for rows in self.row_restorers.values():
                rows.record(name, gate_values)
            meter = None if self.meters is None else self.meters.setdefault(name, GradientMeter())
            if meter is not None and (segment is None or segment.is_first):
                meter.reset()
            mask = GradientMask(positions, gate_values, self._columns.get(name), rule.observer(name, batch))
            return gated.gate(args[0], output, mask, meter)

        hook.is_gate = True  # type: ignore[attr-defined]
        return hook


def _warn_of_rounding(name: str, gated: GatedModule) -> None:
    types = {getattr(owner, parameter).dtype for owner, parameter in gated.parameters}
    if types & set(HALF_PRECISION):
        rank_zero_warn(
            f"{name} trains in half precision, in which small steps are rounded away: call `add_masters` of "
            "lightning_neuralgate.hf.master_weights where the model is made, and leave the Trainer's precision at '32-true' "
            "or 'bf16-mixed'"
        )
