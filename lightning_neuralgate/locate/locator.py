"""Stage 1: locate the neurons that encode the privacy of a subject.

For one record and each chosen layer l, learn a feature vector m_l = tanh(v_l) in (-1, 1)^d that scales the layer's output at
the subject's last token, h_l[S] <- h_l[S] * m_l, while the model stays frozen:

    L = L_sen + alpha * L_ben + beta * mean|v_l - 2|

Dimensions with m_l[j] < 0 are active for that record. Their share over a subject's records is the activity rate M_l[j].
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch import LightningModule
from lightning.pytorch.strategies.launchers import _MultiProcessingLauncher
from torch import Tensor, nn
from typing_extensions import override

from lightning_neuralgate.errors import NeuralGateError, ResumeError, UnsupportedSetupError
from lightning_neuralgate.gate.neural_gate import NeuralGate
from lightning_neuralgate.gate.spans import last_position, normalize_subject
from lightning_neuralgate.hf.decoder import find_decoder, find_hf_model
from lightning_neuralgate.hf.distributed import (
    UNTESTED_STRATEGIES,
    all_ranks,
    is_sharded,
    is_sharded_state,
    refuse_strategies,
    shard,
)
from lightning_neuralgate.hf.identity import ModelIdentity, model_checksum
from lightning_neuralgate.hf.quantized import keep_gradients
from lightning_neuralgate.locate.record_store import RecordStore
from lightning_neuralgate.prefix_cache.locate_pass import LocateLosses
from lightning_neuralgate.runtime.versions import library_versions


class PrivacyLocatorModule(LightningModule):
    """Learns one feature vector per record and layer, and turns them into a `NeuralGate`.

    `Trainer.fit` runs it for one epoch. A training batch holds the rows of one or more records, as `PrivacyPairDataModule`
    makes it; they are learnt in parallel and independently. Afterwards `gate` holds the activity rates and `vectors` the m_l
    of each record. The defaults are the paper's settings.

    Args:
        model: a Hugging Face image-text-to-text model; it is frozen and put in eval mode.
        layers: indices of the decoder layers whose outputs are scaled.
        alpha: weight of the benign term.
        beta: weight of the term that pulls v towards `start`.
        lr: learning rate of Adam on v.
        eps: epsilon of Adam.
        max_steps: maximum number of optimizer steps per record.
        stop_loss: a record stops when its loss falls below this.
        start: initial value of v (tanh 2 = 0.964).
        reuse_prefix: compute what is the same in every step once per record (`LocatePass`). The result is the same; a model
            that does not support it falls back to full forward passes, with a warning.
        jointly: learn the layers of a record jointly, with one loss; if off, each layer separately, as in the search for the
            layer to edit.
        cache_dir: folder in which the vectors of each batch of records are saved as soon as they are learnt. A later run with
            the same model, settings and data loads them, so that an interrupted run resumes.

    Raises:
        ModelLayoutError: the model has no such layer.

    Example:
        `Trainer(max_epochs=1).fit(locator, datamodule=data)`, then `locator.gate.save_pretrained("gate")`.
    """

    data_view = "records"

    def __init__(
        self,
        model: nn.Module,
        layers: Sequence[int],
        alpha: float = 1.25,
        beta: float = 1e-3,
        lr: float = 0.5,
        eps: float = 1e-3,
        max_steps: int = 25,
        stop_loss: float = 0.05,
        start: float = 2.0,
        reuse_prefix: bool = True,
        jointly: bool = True,
        cache_dir: str | Path | None = None,
    ) -> None:
        super().__init__()
        if not layers or len(set(layers)) != len(layers):
            raise ValueError(f"layers must be distinct and at least one, got {list(layers)}")
        layout = find_decoder(model)
        for layer in layers:
            layout.layer(layer)
        self.save_hyperparameters(ignore=["model", "cache_dir"])
        self.automatic_optimization = False
        self.strict_loading = False
        self.identity = ModelIdentity.of(model)
        keep_gradients(model)
        self.model = model.requires_grad_(False).eval()
        self.layers = sorted(layers)
        # the initial value for every record; the learnt vectors are collected in `vectors`
        self.v = nn.ParameterDict({str(layer): torch.full((layout.hidden_size,), start) for layer in self.layers})
        self.vectors: dict[str, dict[int, Tensor]] = {}
        self.record_subjects: dict[str, str] = {}
        self._gate: NeuralGate | None = None
        self._losses = LocateLosses(self.model, self.scaled, enabled=reuse_prefix)
        self._store = None if cache_dir is None else RecordStore(Path(cache_dir))
        # the identity leaves out the weights that an edit changes, on which the vectors depend
        self._weights = {} if cache_dir is None else {"weights": model_checksum(model), "types": _types(model)}

    @property
    def gate(self) -> NeuralGate:
        """The gate made of all located records.

        Raises:
            NeuralGateError: `Trainer.fit` has not finished.
        """
        if self._gate is None:
            raise NeuralGateError("no gate yet: run Trainer.fit(locator, datamodule) to its end first")
        return self._gate

    @override
    def configure_model(self) -> None:
        if self._trainer is not None:
            refuse_strategies(self._trainer.strategy, ("FSDPStrategy", *UNTESTED_STRATEGIES), "PrivacyLocatorModule")
        if self.device_mesh is not None:
            shard(self.model, self.device_mesh)

    @override
    def configure_optimizers(self) -> None:
        """None: each batch of records has its own Adam, made in `training_step`."""

    @override
    def on_fit_start(self) -> None:
        launcher = self.trainer.strategy.launcher
        if isinstance(launcher, _MultiProcessingLauncher):
            raise UnsupportedSetupError(
                f"{type(self.trainer.strategy).__name__} runs fit in child processes, and the gate would be lost with them; "
                "use strategy='ddp'"
            )

    @override
    def training_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        subjects = dict(zip(batch["record_id"], map(normalize_subject, batch["subject"]), strict=True))
        key = self._load_stored(batch, subjects)
        counted = _counted_records(batch)
        known = counted <= self.vectors.keys()
        if all_ranks(known, self.device) if is_sharded(self.model) else known:
            return
        vectors, loss, steps = self._learn(batch)
        self._add(vectors, {record: subjects[record] for record in counted})
        if self._store is not None:
            self._store.save(key, vectors, {"reuse": self._losses.fast_path.verified})
        active = torch.stack([(m < 0).float().mean() for layers in vectors.values() for m in layers.values()]).mean()
        self.log("locate/loss", loss, prog_bar=True, batch_size=1)
        self.log("locate/steps", steps, prog_bar=True, batch_size=1)
        self.log("locate/active", active, prog_bar=True, batch_size=1)

    def _learn(self, batch: Mapping[str, Any]) -> tuple[dict[str, dict[int, Tensor]], float, float]:
        """Learn the feature vectors of the batch's records.

        Returns:
            Record -> layer -> m_l, (d,); the mean of the last losses; the mean number of steps.
        """
        records = list(dict.fromkeys(batch["record_id"]))
        owner = torch.tensor([records.index(record) for record in batch["record_id"]], device=self.device)
        weights = role_weights(
            batch["role"], batch["record_id"], {"sensitive": 1.0, "benign": self.hparams["alpha"]}, self.device
        )
        start = {layer: self.v[str(layer)].detach().expand(len(owner), -1) for layer in self.layers}
        nll = self._losses.prepare(batch, _subject_positions(batch), start)
        groups = [self.layers] if self.hparams["jointly"] else [[layer] for layer in self.layers]
        results = [self._optimize(layers, nll, owner, weights) for layers in groups]
        m = {layer: v.tanh().cpu() for vectors, _, _ in results for layer, v in vectors.items()}
        learnt = {record: {layer: rows[index] for layer, rows in m.items()} for index, record in enumerate(records)}
        losses, steps = torch.cat([loss for _, loss, _ in results]), torch.cat([steps for _, _, steps in results])
        return learnt, float(losses.mean()), float(steps.mean())

    def _optimize(
        self, layers: Sequence[int], nll: Callable[[Mapping[int, Tensor]], Tensor], owner: Tensor, weights: Tensor
    ) -> tuple[dict[int, Tensor], Tensor, Tensor]:
        """Minimize L = L_sen + alpha * L_ben + beta * mean|v - 2| of R records over the v of some layers.

        Records are independent and Adam is element-wise, so one optimizer over the stacked vectors equals one per record.

        Args:
            layers: the layers.
            nll: layer -> v of each row, (B, d) -> NLL of each row, (B,).
            owner: (B,), the index of each row's record.
            weights: (B,), the weight of each row in its record's loss.

        Returns:
            Layer -> v, (R, d); each record's last loss and its number of steps, (R,).
        """
        settings, count = self.hparams, int(owner.max()) + 1
        size = next(iter(self.v.values())).shape[0]
        # float32 under any precision: in half precision the steps of v would be rounded away
        options: dict[str, Any] = {"dtype": torch.float32, "device": self.device}
        start = torch.full((count, size), settings["start"], **options)
        vectors = {layer: start.clone().requires_grad_() for layer in layers}
        optimizer = torch.optim.Adam(vectors.values(), lr=settings["lr"], eps=settings["eps"])
        sharded = is_sharded(self.model)
        done = torch.zeros(count, dtype=torch.bool, device=self.device)
        value, steps = torch.full((count,), float("nan"), **options), torch.zeros(count, **options)
        learnt = {layer: start.clone() for layer in layers}
        for step in range(settings["max_steps"]):
            drift = torch.stack([(v - settings["start"]).abs().mean(1) for v in vectors.values()]).mean(0)
            rows = weights * nll({layer: v[owner] for layer, v in vectors.items()})
            loss = torch.zeros_like(drift).index_add(0, owner, rows) + settings["beta"] * drift
            value = torch.where(done, value, loss.detach())
            done = done | (loss.detach() < settings["stop_loss"])
            # reading `done` forces a device sync, so it is read now and then only
            if step % self._steps_between_syncs == 0:
                finished = bool(done.all())
                # sharded weights need every process in every pass, so one that has finished waits for the others
                if all_ranks(finished, self.device) if sharded else finished:
                    break
            gradients = torch.autograd.grad(loss.sum(), list(vectors.values()))
            for vector, gradient in zip(vectors.values(), gradients, strict=True):
                vector.grad = gradient
            optimizer.step()
            for layer, vector in vectors.items():
                learnt[layer] = torch.where(done[:, None], learnt[layer], vector.detach())
            steps = steps + (~done).to(steps.dtype)
        return learnt, value, steps

    @property
    def _steps_between_syncs(self) -> int:
        return 1 if self.device.type == "cpu" else 5

    @contextmanager
    def scaled(self, positions: Tensor, vectors: Mapping[int, Tensor] | None = None) -> Iterator[None]:
        """Scale layers' outputs, h_l[S] <- h_l[S] * tanh(v_l), while the block runs.

        Args:
            positions: (B, T) bool, the positions S.
            vectors: layer -> v, (d,) or one per row, (B, d); the module's `v` when left out.
        """
        layout = find_decoder(self.model)
        chosen = {layer: self.v[str(layer)] for layer in self.layers} if vectors is None else vectors

        def hook(vector: Tensor) -> Callable[..., Any]:
            def scale(module: nn.Module, args: Any, output: Any) -> Any:
                hidden = output[0] if isinstance(output, tuple) else output
                m = vector.tanh().to(hidden.dtype)
                m = m if m.ndim == 1 else m[:, None]
                scaled = torch.where(positions.unsqueeze(-1), hidden * m, hidden)
                return (scaled, *output[1:]) if isinstance(output, tuple) else scaled

            return scale

        handles = [layout.layer(layer).register_forward_hook(hook(vector)) for layer, vector in chosen.items()]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    @override
    def on_train_end(self) -> None:
        self._gather()
        if self.vectors:
            self._gate = self._make_gate()

    def _make_gate(self) -> NeuralGate:
        """Average m_l[j] < 0 over each subject's records: the activity rate M_l[j]."""
        records: dict[str, list[str]] = {}
        for record in self.vectors:
            records.setdefault(self.record_subjects[record], []).append(record)
        rates = {
            subject: {
                layer: torch.stack([(self.vectors[name][layer] < 0).float() for name in names]).mean(0)
                for layer in self.layers
            }
            for subject, names in records.items()
        }
        counts = {subject: len(names) for subject, names in records.items()}
        settings = {**self.hparams, "layers": self.layers}
        settings.pop("reuse_prefix")
        return NeuralGate(rates, self.identity, counts, settings)

    def _add(self, vectors: Mapping[str, Mapping[int, Tensor]], subjects: Mapping[str, str]) -> None:
        for record, subject in subjects.items():
            self.vectors[record] = dict(vectors[record])
            self.record_subjects[record] = subject

    def _load_stored(self, batch: Mapping[str, Any], subjects: Mapping[str, str]) -> str:
        """Add a batch of records that an earlier run has stored; returns its key."""
        if self._store is None:
            return ""
        setting = {"device": self.device.type, "precision": self.trainer.precision, "versions": library_versions()}
        key = self._store.key({**self.hparams, **asdict(self.identity), **self._weights, **setting}, batch)
        if not subjects.keys() <= self.vectors.keys() and (stored := self._store.load(key)) is not None:
            vectors, notes = stored
            self._add(vectors, subjects)
            self._losses.fast_path.restore(notes["reuse"])
        return key

    def _gather(self) -> None:
        """Share the located records between all processes."""
        located = [(record, self.record_subjects[record], vectors) for record, vectors in self.vectors.items()]
        if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            gathered: list[Any] = [None] * dist.get_world_size()
            dist.all_gather_object(gathered, located)
            located = [entry for part in gathered for entry in part]
        # a sampler may give one record to two processes to even out their shares: records count once
        self.vectors = {record: vectors for record, _, vectors in sorted(located, key=lambda entry: entry[0])}
        self.record_subjects = {record: subject for record, subject, _ in located}

    def _run(self) -> dict[str, Any]:
        """What a checkpoint has to match, as plain values."""
        model = {name: value for name, value in asdict(self.identity).items() if name != "name"}
        return {"model": model, "layers": list(self.layers)}

    @override
    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save the records located by any process, and leave out the frozen model."""
        self._gather()
        checkpoint["located"] = {"vectors": self.vectors, "subjects": self.record_subjects, **self._run()}
        if is_sharded_state(checkpoint["state_dict"]):  # can only be loaded completely
            return
        checkpoint["state_dict"] = {
            name: value for name, value in checkpoint["state_dict"].items() if not name.startswith("model.")
        }

    @override
    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Load the records located so far.

        Raises:
            ResumeError: the checkpoint is of another model, of other layers, or not one of this class.
        """
        if "located" not in checkpoint:
            raise ResumeError(
                "the checkpoint holds no located records; name one that was saved by a PrivacyLocatorModule"
            )
        found = self._run()
        differing = [name for name in found if checkpoint["located"].get(name, found[name]) != found[name]]
        if differing:
            raise ResumeError(
                f"the checkpoint was located with a different value of {' and '.join(differing)} than this module has; "
                "use the checkpoint's model and layers, or start anew"
            )
        self.vectors = checkpoint["located"]["vectors"]
        self.record_subjects = checkpoint["located"]["subjects"]


def _counted_records(batch: Mapping[str, Any]) -> set[str]:
    """Return the records of a batch that no other process counts; `batch["counted"]` tells for each row."""
    counted = batch.get("counted", [True] * len(batch["role"]))
    duplicates = {record for record, flag in zip(batch["record_id"], counted, strict=True) if not flag}
    return set(batch["record_id"]) - duplicates


def _subject_positions(batch: Mapping[str, Any]) -> Tensor:
    """Return the subject's last token of each row, (B, T) bool."""
    positions = last_position(batch["subject_mask"])
    if not bool(positions.any(1).all()):
        raise UnsupportedSetupError("every row of a located record needs its subject in 'subject_mask'")
    return positions


def _types(model: nn.Module) -> list[str]:
    """Return the dtypes of the weights and the attention implementation."""
    attention = getattr(find_hf_model(model).config.get_text_config(), "_attn_implementation", None)
    return [*sorted({str(parameter.dtype) for parameter in model.parameters()}), str(attention)]


def role_weights(
    roles: Sequence[str], records: Sequence[str], weights: Mapping[str, float], device: torch.device
) -> Tensor:
    """Return row weights, (B,) float32, with which a record's rows sum to the weighted sum of the means per role.

    Example:
        >>> roles = ["sensitive", "sensitive", "benign"]
        >>> role_weights(roles, ["r"] * 3, {"sensitive": 1.0, "benign": 1.25}, torch.device("cpu"))
        tensor([0.5000, 0.5000, 1.2500])
    """
    rows = list(zip(roles, records, strict=True))
    # explicit: the default dtype is another one in half-precision training
    return torch.tensor([weights[row[0]] / rows.count(row) for row in rows], dtype=torch.float32, device=device)
