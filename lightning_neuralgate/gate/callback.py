"""`NeuralGateCallback`: gradient gating in any Trainer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import StochasticWeightAveraging, WeightAveraging
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from typing_extensions import override

from lightning_neuralgate.errors import GateMismatchError, UnsupportedSetupError
from lightning_neuralgate.gate.autograd import SCOPES, GatedModule, GradientMeter, Scope, gated_modules
from lightning_neuralgate.gate.key_space import KeySpace
from lightning_neuralgate.gate.keys import DEFAULT_SHARE, InputCovariance
from lightning_neuralgate.gate.neural_gate import DEFAULT_TAU, NeuralGate
from lightning_neuralgate.gate.rows import MaskedRowRestorer
from lightning_neuralgate.gate.subjects import (
    GatedBatch,
    SubjectFinder,
    SubjectsInBatch,
    SubjectsInText,
    UngatedRows,
)
from lightning_neuralgate.hf.decoder import find_decoder, find_hf_model
from lightning_neuralgate.hf.distributed import (
    UNTESTED_STRATEGIES,
    has_flat_parameters,
    refuse_strategies,
    reshard,
    uses_fsdp1,
)
from lightning_neuralgate.hf.hub import load_tokenizer
from lightning_neuralgate.prefix_cache.layout import LAYOUT, BatchLayout
from lightning_neuralgate.runtime.figures import log_figure


class NeuralGateCallback(Callback):
    """Gate the gradients of MLP output projections: at the subject's tokens, only privacy neurons are trained.

    Add it to the Trainer that fine-tunes your vision-language model to refuse sensitive questions, so that the model keeps
    answering the benign ones. It is stage 2 of Neural Gate:

        theta <- theta - eta * ([M_l > tau] * grad_theta^S L + grad_theta^notS L)

    In the backward pass each sample uses the gate of its own subject at the positions of the scope. Gradients at all other
    positions and all forward values stay the same. Whatever trains in a projection is gated: weight, bias, LoRA and DoRA
    adapters.

    **Subjects.** By default the batch contains them: a mapping with `subject_mask`, (B, T) and True at the subject's tokens,
    and `subject`, B names, as `PrivacyPairDataModule` provides it. With `tokenizer` the callback reads the token ids that
    the Hugging Face model is called with and finds the gate's subjects in them (see `SubjectsInText`), so LightningModule
    and batches need no change. With `find_subjects` you provide a function of the batch. A row without a subject is not
    gated. Such rows are counted, a warning names a high share of them, and `strict=True` raises an error; rows that a batch
    marks as retention questions (`role`) are meant to have none.

    **Masked rows.** With `scope="all"`, rows that no sample of an optimizer step unmasks stay bit-identical in that step,
    also under weight decay and under momentum from before the gate (see `MaskedRowRestorer`). If every row of every batch has
    a subject, rows that are masked for all subjects of the gate never change. For an adapter, these are the rows of its last
    factor and of DoRA's magnitude: a row of the merged weight stays the same if its row of the last factor is zero, as it is
    in a fresh adapter. In the other scopes every row receives gradient from positions outside the scope.

    **Key space.** With `keep`, the change of the weights is also kept out of the span of inputs that ordinary prompts use,
    by a projection of each optimizer step (see `KeySpace`). `keep` works without a gate, too. Biases then stay as they are,
    and adapters have to be fresh LoRAs, not DoRA.

    **Logged** to the Trainer's loggers, every `log_every_n_steps`: `gate/layer_10/passed` and `gate/layer_10/blocked`, the
    norms of the passed and of the removed part of the layer's gradient, relative to the norm of the full gradient, in the
    last backward pass before they are logged (see `GradientMeter`; mean over the processes), and
    `gate/rows_without_subject`, the number of rows of that batch without a subject (sum over the processes). When training
    starts, `gate/rates`, the gate's `plot()`, in loggers that accept figures, if matplotlib is installed.

    Args:
        gate: the gate, or a folder or hub repository to load it from; None for no gate, if `keep` is given.
        scope: positions at which the gate applies: `subject_last` (the paper's rule: the subject's last token),
            `subject` (all its tokens), `from_subject` (its first token and everything after it), `all` (every position).
        tau: dimensions with an activity rate above tau are unmasked.
        layers: which of the gate's layers to gate; all of them by default.
        subject_mask_key: the batch's key of the subject mask.
        subject_key: the batch's key of the subjects.
        soft: scale each dimension's gradient by its activity rate instead of masking it by tau.
        tokenizer: the model's tokenizer or processor, or a folder or hub repository to load it from, to find the subjects
            in the token ids.
        find_subjects: a function of the batch that returns the subject mask, (B, T) bool, and B subjects.
        strict: raise an error at the first row without a subject, instead of training it ungated.
        keep: inputs of the layers' projections that the change must not answer to: an `InputCovariance`, or a folder or hub
            repository to load it from.
        keep_share: remove the fewest input directions that hold this share of their energy, in (0, 1).
        keep_soft: instead, remove a share of each direction that grows with its energy: `InputCovariance.projector`.

    Raises:
        ValueError: an argument is out of range, both `tokenizer` and `find_subjects` are given, or neither `gate` nor `keep`.
        ModelLayoutError: there is no tokenizer at `tokenizer`.
        GateMismatchError: the gate lacks a layer; at the start of training, the gate was located in another model; during
            training, the gate lacks a subject.
        UnsupportedSetupError: at the start of training, nothing trains in a gated layer, the strategy is not supported
            (`docs/trainer.md` has the list), or weights are averaged with scope `all`;
            during training, the subjects of a batch cannot be found.
        SubjectNotFoundError: during training with `strict`, a row has no subject.

    Example:
        >>> from lightning_neuralgate.hf.identity import ModelIdentity
        >>> identity = ModelIdentity("Tiny", "0", "model.layers", "mlp.down_proj", 2, 4)
        >>> gate = NeuralGate({"Passport": {1: torch.tensor([0.0, 0.2, 0.5, 1.0])}}, identity, {"passport": 5})
        >>> trainer = Trainer(callbacks=[NeuralGateCallback(gate, tau=0.3)], logger=False, enable_checkpointing=False)

        A gate that was saved by `neuralgate locate` is loaded by its path: `NeuralGateCallback("gate", tokenizer=processor)`.
    """

    def __init__(
        self,
        gate: NeuralGate | str | Path | None,
        scope: Scope = "subject_last",
        tau: float = DEFAULT_TAU,
        layers: Sequence[int] | None = None,
        subject_mask_key: str = "subject_mask",
        subject_key: str = "subject",
        soft: bool = False,
        tokenizer: Any = None,
        find_subjects: SubjectFinder | None = None,
        strict: bool = False,
        keep: InputCovariance | str | Path | None = None,
        keep_share: float = DEFAULT_SHARE,
        keep_soft: float | None = None,
    ) -> None:
        super().__init__()
        if scope not in SCOPES:
            raise ValueError(f"scope must be one of {', '.join(SCOPES)}; got '{scope}'")
        if not 0.0 <= tau <= 1.0:
            raise ValueError(f"tau must lie in [0, 1], got {tau}")
        if tokenizer is not None and find_subjects is not None:
            raise ValueError("pass tokenizer or find_subjects, not both: each finds the subjects of a batch")
        if gate is None and keep is None:
            raise ValueError("give a gate, or keep, or both")
        self.gate = NeuralGate.from_pretrained(gate) if isinstance(gate, (str, Path)) else gate
        self.key_space = None if keep is None else KeySpace(keep, keep_share, keep_soft)
        self.scope: Scope = scope
        self.tau = tau
        self.soft = soft
        covered = {
            name: artifact.layers
            for name, artifact in (
                ("gate", self.gate),
                ("input covariance", self.key_space and self.key_space.covariance),
            )
            if artifact
        }
        self.layers = list(next(iter(covered.values())) if layers is None else layers)
        for name, known in covered.items():
            if unknown := sorted(set(self.layers) - set(known)):
                raise GateMismatchError(f"the {name} has no layers {unknown}; it covers {known}")
        subjects = [] if self.gate is None else self.gate.subjects
        self._find_in_batch: SubjectFinder = find_subjects or SubjectsInBatch(subject_mask_key, subject_key)
        self._find_in_tokens = None
        if isinstance(tokenizer, (str, Path)):
            tokenizer = load_tokenizer(tokenizer)
        if tokenizer is not None:
            self._find_in_tokens = SubjectsInText(getattr(tokenizer, "tokenizer", tokenizer), subjects)
        self._ungated_rows = UngatedRows(subjects, strict)
        self._handles: list[RemovableHandle] = []
        self._modules: dict[str, GatedModule] = {}
        self._log_names: dict[str, str] = {}
        self._row_restorers: dict[int, MaskedRowRestorer] = {}
        self._batch: GatedBatch | None = None
        self._layout: BatchLayout | None = None
        self._training = False
        self._resumed = False
        self._forward_passes = 0
        self._gated_since_step: set[str] = set()
        self._meters: dict[str, GradientMeter] | None = None

    @property
    @override
    def state_key(self) -> str:
        return self._generate_state_key(scope=self.scope, tau=self.tau, layers=self.layers, soft=self.soft)

    @property
    def supports_layouts(self) -> bool:
        """Whether batches may carry a `BatchLayout`: only if the subjects come with the full batch.

        A layout splits a batch into shared prefixes and own tokens, run in two forward passes (`prefix_cache.layout`), so the
        model is not called with the batch's token ids.
        """
        return self.gate is None or (
            type(self._find_in_batch) is SubjectsInBatch
            and self._find_in_batch.is_default
            and self._find_in_tokens is None
        )

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        root = trainer.strategy.model or pl_module
        self._check_strategy(trainer, root)
        self._check_averaging(trainer)
        if self.key_space is not None:  # before the rows are restored, so that masked ones stay bit-identical
            self.key_space.start(pl_module, self.layers, trainer.optimizers, self._resumed)
        if self.gate is None:
            return
        if not self._resumed:  # resumed weights have changed already; instead, the checkpoint's fingerprint was checked
            self.gate.check_fits(root if uses_fsdp1(root) else pl_module)
        self._attach(pl_module, self.gate)
        self._ungated_rows.start()
        if self.scope == "all":
            self._register_row_restoration(trainer, pl_module)
        gate = self.gate
        log_figure(trainer, "gate/rates", lambda: gate.plot(None if self.soft else self.tau, self.layers)[0])

    @override
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if self.gate is None:
            return
        self._training, self._forward_passes = True, 0
        self._meters = {} if _is_logged(trainer) else None
        self._ungated_rows.start_batch(batch)
        if self._find_in_tokens is None:
            self._layout = batch.get(LAYOUT) if isinstance(batch, Mapping) else None
            self._set_batch(*self._find_in_batch(batch))

    @override
    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._forward_passes = 0

    @override
    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        optimized = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        for name, gated in self._modules.items():
            parameters = [getattr(owner, parameter) for owner, parameter in gated.parameters]
            if not any(parameter.grad is not None and id(parameter) in optimized for parameter in parameters):
                continue
            if name not in self._gated_since_step:
                raise UnsupportedSetupError(
                    f"{name} has a gradient, but its forward hook never ran, so the gate was not applied: was the model "
                    "compiled before training started, or its weight used without calling the module?"
                )
            self._gated_since_step.discard(name)
        if id(optimizer) in self._row_restorers:
            self._row_restorers[id(optimizer)].start_step()

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._meters is not None:
            shares = {
                f"{self._log_names[name]}/{part}": getattr(self._meters[name], part)
                for name in self._modules
                if name in self._meters
                for part in ("passed", "blocked")
            }
            # NaN if there was no gradient, since every process has to log the same names
            metrics = {name: float("nan") if share is None else share for name, share in shares.items()}
            is_distributed = trainer.world_size > 1
            pl_module.log_dict(metrics, batch_size=1, sync_dist=is_distributed)
            ungated = float(self._ungated_rows.in_batch)
            pl_module.log("gate/rows_without_subject", ungated, batch_size=1, sync_dist=is_distributed, reduce_fx="sum")
        self._batch, self._layout, self._training, self._meters = None, None, False, None

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._ungated_rows.warn()
        self._detach()

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._detach()

    @override
    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._detach()

    @override
    def state_dict(self) -> dict[str, Any]:
        return {"gate": self._fingerprint}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._check_fingerprint(state_dict["gate"])
        self._resumed = True

    @override
    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        # Lightning looks up the state by the settings (`state_key`), but the gate has to match with other settings too
        states = [
            state
            for key, state in checkpoint.get("callbacks", {}).items()
            if str(key).startswith(type(self).__qualname__)
        ]
        gates = [state["gate"] for state in states if isinstance(state, dict) and "gate" in state]
        if gates and self._fingerprint not in gates:
            self._check_fingerprint(gates[0])
        self._resumed = bool(gates)

    @property
    def _fingerprint(self) -> str:
        gate = "none" if self.gate is None else self.gate.fingerprint
        return gate if self.key_space is None else f"{gate} (keep {self.key_space.settings})"

    def _check_fingerprint(self, fingerprint: str) -> None:
        if fingerprint != self._fingerprint:
            raise GateMismatchError(
                f"the checkpoint was trained with gate {fingerprint}, this callback has {self._fingerprint}; "
                "resume with the same gate, or start a new run"
            )

    def _check_strategy(self, trainer: Trainer, root: nn.Module) -> None:
        refuse_strategies(trainer.strategy, UNTESTED_STRATEGIES, "NeuralGateCallback")
        if uses_fsdp1(root) and self.scope == "all":
            raise UnsupportedSetupError(
                "scope 'all' restores masked rows after each step, but FSDP1 (FSDPStrategy) flattens the weights, so they "
                "have no rows then: use FSDP2 through ModelParallelStrategy, or choose another scope"
            )
        if uses_fsdp1(root) and self.key_space is not None:
            raise UnsupportedSetupError(
                "keep projects rows of the weights, which FSDP1 (FSDPStrategy) flattens: use FSDP2 through "
                "ModelParallelStrategy, or leave keep out"
            )
        if has_flat_parameters(root):
            raise UnsupportedSetupError(
                "FSDP1 has replaced the weights by flat parameters: give FSDPStrategy use_orig_params=True, its default"
            )

    def _check_averaging(self, trainer: Trainer) -> None:
        averaging = [
            type(callback).__name__
            for callback in trainer.callbacks  # type: ignore[attr-defined]
            if isinstance(callback, (WeightAveraging, StochasticWeightAveraging))
        ]
        if averaging and self.scope == "all":
            raise UnsupportedSetupError(
                f"{averaging[0]} replaces the weights by averages, which are rounded and lag behind, so that rows which "
                "scope 'all' keeps bit-identical would move: leave it out, or choose another scope"
            )

    def _attach(self, pl_module: LightningModule, gate: NeuralGate) -> None:
        """Register the forward hooks on the gated modules and, to read token ids, on the model."""
        layout = find_decoder(pl_module)
        for layer in self.layers:
            gates = {name: self._gate_values(gate, name, layer).to(pl_module.device) for name in gate.subjects}
            path = layout.projection_path(layer)
            for number, gated in enumerate(gated_modules(layout.output_projection(layer), path)):
                name = f"{path} ({number})"
                self._log_names[name] = f"gate/layer_{layer}" + (f"/{number}" if number else "")
                if any(getattr(hook, "is_gate", False) for hook in gated.module._forward_hooks.values()):
                    raise UnsupportedSetupError(
                        f"{name} is gated by another NeuralGateCallback already; a gate can contain several subjects, so "
                        "use one callback for each layer"
                    )
                self._modules[name] = gated
                # before all other hooks, so that it gets the output of the module itself
                hook = self._hook(name, gated, gates)
                self._handles.append(gated.module.register_forward_hook(hook, prepend=True))
        if self._find_in_tokens is not None:
            model = find_hf_model(pl_module)
            self._handles.append(model.register_forward_pre_hook(self._read_text, with_kwargs=True))

    def _gate_values(self, gate: NeuralGate, subject: str, layer: int) -> Tensor:
        return gate.rates(subject, layer) if self.soft else gate.mask(subject, layer, self.tau)

    def _register_row_restoration(self, trainer: Trainer, pl_module: LightningModule) -> None:
        reshard(pl_module)
        self._row_restorers = {
            id(optimizer): MaskedRowRestorer(self._modules, optimizer) for optimizer in trainer.optimizers
        }
        covered = {id(parameter) for rows in self._row_restorers.values() for parameter in rows.parameters}
        for name, gated in self._modules.items():
            if any(id(getattr(owner, parameter)) not in covered for owner, parameter in gated.parameters):
                raise UnsupportedSetupError(
                    f"{name} trains, but is in no optimizer of the Trainer, so its masked rows cannot be restored: freeze "
                    "it, or give it to an optimizer"
                )

    def _detach(self) -> None:
        self._batch, self._layout, self._training = None, None, False
        self._resumed = False
        self._modules.clear()
        self._gated_since_step.clear()
        while self._handles:
            self._handles.pop().remove()
        while self._row_restorers:
            self._row_restorers.popitem()[1].remove()
        if self.key_space is not None:
            self.key_space.remove()

    def _set_batch(self, mask: Tensor, names: Sequence[str | None]) -> None:
        self._batch = GatedBatch.of(mask, names, self.scope, self._ungated_rows.gate_subjects)
        self._ungated_rows.update(self._batch.subjects)

    def _read_text(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        ids = kwargs.get("input_ids", args[0] if args else None)
        if self._training and torch.is_grad_enabled() and isinstance(ids, Tensor):
            assert self._find_in_tokens is not None
            self._forward_passes += 1
            self._set_batch(*self._find_in_tokens({"input_ids": ids, "labels": kwargs.get("labels")}))

    def _hook(self, name: str, gated: GatedModule, gates: Mapping[str, Tensor]) -> Any:
        def hook(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
            if not self._training or not torch.is_grad_enabled() or not output.requires_grad:
                return None
            batch = self._batch
            if batch is None:
                raise UnsupportedSetupError(
                    f"{name} was called before the callback had read any token ids: {type(self).__name__} reads them when "
                    "the Hugging Face model is called, so call the full model with input_ids, or pass find_subjects"
                )
            segment = None if self._layout is None else self._layout.segment
            positions, gate_values = batch.positions, batch.gate_values(gates)
            if segment is not None:
                positions, gate_values = segment.select(positions), gate_values[segment.rows]
            if output.shape[:-1] != positions.shape:
                raise UnsupportedSetupError(
                    f"the gated layer was called with {tuple(output.shape[:-1])} tokens, but the subject mask is "
                    f"{tuple(positions.shape)}; give the mask for the image-expanded sequence and run the model "
                    "on the full batch at once"
                )
            # torch has no public test for a running backward pass; torch.utils.checkpoint uses this one, too
            if self._forward_passes > 1 and torch._C._current_graph_task_id() != -1:
                raise UnsupportedSetupError(
                    f"{name} was recomputed in a backward pass over {self._forward_passes} forward passes, so its batch is "
                    "unknown: with activation checkpointing, call backward after each forward pass, or make one batch of them"
                )
            self._gated_since_step.add(name)
            for rows in self._row_restorers.values():
                rows.record(name, gate_values)
            meter = None if self._meters is None else self._meters.setdefault(name, GradientMeter())
            if meter is not None and (segment is None or segment.is_first):
                meter.reset()
            return gated.gate(args[0], output, positions, gate_values, meter)

        hook.is_gate = True  # type: ignore[attr-defined]
        return hook


def _is_logged(trainer: Trainer) -> bool:
    """Whether metrics logged in the current batch will reach a logger."""
    # only the connector (Lightning 2.6) knows this before the step, under accumulated batches and several optimizers
    return bool(trainer.loggers) and trainer._logger_connector.should_update_logs
