"""`NeuralGateCallback`: gradient gating in any Trainer."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import StochasticWeightAveraging, WeightAveraging
from lightning.pytorch.strategies import FSDPStrategy
from torch import nn
from typing_extensions import override

from lightning_neuralgate.errors import GateMismatchError, UnsupportedSetupError
from lightning_neuralgate.gate.gating import Gating
from lightning_neuralgate.gate.row_rules import LocatedRows
from lightning_neuralgate.hf.distributed import UNTESTED_STRATEGIES, has_flat_parameters, refuse_strategies, uses_fsdp1
from lightning_neuralgate.runtime.figures import log_figure


class NeuralGateCallback(Gating, Callback):
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

    **Half precision.** In a model that is loaded in bfloat16 or float16, the weights of gated projections that train are kept
    in float32 during `fit` and rounded in each forward pass, so that small steps are not lost (see `MasterLinear`). At the
    end they get their type back. Leave the Trainer's precision at its default.

    **Logged** to the Trainer's loggers, every `log_every_n_steps`: `gate/layer_10/passed` and `gate/layer_10/blocked`, the
    norms of the passed and of the removed part of the layer's gradient, relative to the norm of the full gradient, in the
    last backward pass before they are logged (see `GradientMeter`; mean over the processes), and
    `gate/rows_without_subject`, the number of rows of that batch without a subject (sum over the processes). When training
    starts, `gate/rates`, the gate's `plot()`, in loggers that accept figures, if matplotlib is installed.

    Args:
        gate: the gate, or a folder or hub repository to load it from; None for no gate, if `keep` is given.
        scope: positions at which the gate applies: `subject_last` (the paper's rule: the subject's last token),
            `subject` (all its tokens), `from_subject` (its first token and everything after it), `all` (every position). Or
            positions at which gradient passes at all, whatever the gate's rows: `divergence` (from the first token on at
            which a sensitive row and its benign twin differ) and `tail` (behind the question). Or a `PositionRule`, such
            as `Divergence(then="all")`.
        tau: dimensions with an activity rate above tau are unmasked.
        layers: which of the gate's layers to gate; all of them by default.
        subject_mask_key: the batch's key of the subject mask.
        subject_key: the batch's key of the subjects.
        soft: scale each dimension's gradient by its activity rate instead of masking it by tau.
        tokenizer: the model's tokenizer or processor, or a folder or hub repository to load it from, to find the subjects
            in the token ids.
        find_subjects: a function of the batch that returns the subject mask, (B, T) bool, and B subjects.
        strict: raise an error at the first row without a subject, instead of training it ungated.
        rows: a rule that opens rows instead of the gate's rates, such as `ConflictRows`; `tau` and `soft` then do nothing.
        columns: a rule that opens columns, such as a `ColumnGate`; all other columns of the weight stay bit-identical.
        projection: the output projection that is gated in each layer: `mlp`, the MLP's, or `attention`, that of
            self-attention, whose rows are the same dimensions.
        keep: inputs of the layers' projections that the change must not answer to: an `InputCovariance`, or a folder or hub
            repository to load it from.
        keep_share: remove the fewest input directions that hold this share of their energy, in (0, 1).
        keep_soft: instead, remove a share of each direction that grows with its energy: `InputCovariance.projector`.

    Raises:
        ValueError: an argument is out of range or does not go with another one: `tokenizer` and `find_subjects`, `keep` and
            `columns` or another projection; or neither `gate` nor `keep` is given.
        ModelLayoutError: there is no tokenizer at `tokenizer`.
        GateMismatchError: the gate lacks a layer; at the start of training, the gate was located in another model; during
            training, the gate lacks a subject.
        UnsupportedSetupError: at the start of training, nothing trains in a gated layer, the strategy is not supported
            (`docs/trainer.md` has the list), or weights are averaged with scope `all`;
            during training, the subjects of a batch cannot be found.
        SubjectNotFoundError: during training with `strict`, a row has no subject.

    Example:
        >>> import torch
        >>> from lightning_neuralgate import NeuralGate
        >>> from lightning_neuralgate.hf.identity import ModelIdentity
        >>> identity = ModelIdentity("Tiny", "0", "model.layers", "mlp.down_proj", 2, 4)
        >>> gate = NeuralGate({"Passport": {1: torch.tensor([0.0, 0.2, 0.5, 1.0])}}, identity, {"passport": 5})
        >>> trainer = Trainer(callbacks=[NeuralGateCallback(gate, tau=0.3)], logger=False, enable_checkpointing=False)

        A gate that was saved by `neuralgate locate` is loaded by its path: `NeuralGateCallback("gate", tokenizer=processor)`.
    """

    _resumed = False  # whether a checkpoint of a gated training was loaded

    @property
    @override
    def state_key(self) -> str:
        rules = {"rows": self.rows, "columns": self.columns}
        named = {name: str(rule) for name, rule in rules.items() if rule is not None}
        if type(self.rows) is LocatedRows:
            del named["rows"]
        if self.projection != "mlp":
            named["projection"] = self.projection
        return self._generate_state_key(
            scope=str(self.positions), tau=self.tau, layers=self.layers, soft=self.soft, **named
        )

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        # before optimizers are made and weights are restored; FSDP1 flattens weights of one type only
        if stage == "fit" and not isinstance(trainer.strategy, FSDPStrategy):
            self.add_masters(pl_module)

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        root = trainer.strategy.model or pl_module
        self._check_strategy(trainer, root)
        self._check_averaging(trainer)
        if not self._resumed:  # resumed weights have changed already; instead, the checkpoint's fingerprint was checked
            self.check_fits(root if uses_fsdp1(root) else pl_module)
        self.attach(pl_module, trainer.optimizers, self._resumed)
        gate = self.gate
        if gate is not None:
            log_figure(trainer, "gate/rates", lambda: gate.plot(None if self.soft else self.tau, self.layers)[0])

    @override
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self.start_batch(batch, measured=_is_logged(trainer))

    @override
    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.after_backward()

    @override
    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        self.before_step(optimizer)

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        meters = self.meters
        if meters is not None:
            shares = {
                f"{self.log_names[name]}/{part}": getattr(meters[name], part)
                for name in self.modules
                if name in meters
                for part in ("passed", "blocked")
            }
            # NaN if there was no gradient, since every process has to log the same names
            metrics = {name: float("nan") if share is None else share for name, share in shares.items()}
            is_distributed = trainer.world_size > 1
            pl_module.log_dict(metrics, batch_size=1, sync_dist=is_distributed)
            ungated = float(self.ungated_rows.in_batch)
            pl_module.log("gate/rows_without_subject", ungated, batch_size=1, sync_dist=is_distributed, reduce_fx="sum")
        self.end_batch()

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.ungated_rows.warn()
        self._detach()

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._detach()
        self.remove_masters()

    @override
    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._detach()
        self.remove_masters()

    @override
    def state_dict(self) -> dict[str, Any]:
        rows = self.rows and self.rows.state_dict()
        return {"gate": self._fingerprint, **({"rows": rows} if rows else {})}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._check_fingerprint(state_dict["gate"])
        if self.rows is not None:
            self.rows.load_state_dict(state_dict.get("rows", {}))
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
        keys = self.key_space
        return gate if keys is None else f"{gate} (keep {keys.settings})"

    def _check_fingerprint(self, fingerprint: str) -> None:
        if fingerprint != self._fingerprint:
            raise GateMismatchError(
                f"the checkpoint was trained with gate {fingerprint}, this callback has {self._fingerprint}; "
                "resume with the same gate, or start a new run"
            )

    def _check_strategy(self, trainer: Trainer, root: nn.Module) -> None:
        refuse_strategies(trainer.strategy, UNTESTED_STRATEGIES, "NeuralGateCallback")
        if uses_fsdp1(root) and self.restores:
            raise UnsupportedSetupError(
                f"{self.restores} restores masked weights after each step, but FSDP1 (FSDPStrategy) flattens them, so "
                "they have no rows then: use FSDP2 through ModelParallelStrategy, or choose another scope and no columns"
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
        if averaging and self.restores:
            raise UnsupportedSetupError(
                f"{averaging[0]} replaces the weights by averages, which are rounded and lag behind, so that weights which "
                f"{self.restores} keeps bit-identical would move: leave it out, or choose another scope and no columns"
            )

    def _detach(self) -> None:
        self.detach()
        self._resumed = False


def _is_logged(trainer: Trainer) -> bool:
    """Whether metrics logged in the current batch will reach a logger."""
    # only the connector (Lightning 2.6) knows this before the step, under accumulated batches and several optimizers
    return bool(trainer.loggers) and trainer._logger_connector.should_update_logs
