"""Stage 1: which neurons encode the privacy of a subject.

For one record and each chosen layer l a feature vector m_l = tanh(v_l) in (-1, 1)^d is learnt that scales the layer's
output at the subject's last token, h_l[S] <- h_l[S] * m_l, while the model stays frozen:

    L = L_sen + alpha * L_ben + beta * mean|v_l - 2|

Dimensions with m_l[j] < 0 are active for that record; their share over a subject's records is the activity rate M_l[j].
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch import LightningModule
from lightning.pytorch.strategies.launchers import _MultiProcessingLauncher
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn
from typing_extensions import override

from lightning_neuralgate.errors import NeuralGateError, UnsupportedSetupError
from lightning_neuralgate.gate.neural_gate import NeuralGate
from lightning_neuralgate.gate.spans import last_position, subject_key
from lightning_neuralgate.hf.decoder import find_decoder, find_hf_model
from lightning_neuralgate.hf.distributed import (
    UNTESTED_STRATEGIES,
    all_ranks,
    is_sharded,
    is_sharded_state,
    refuse_strategies,
    shard,
)
from lightning_neuralgate.hf.forward import batch_nll
from lightning_neuralgate.hf.identity import ModelIdentity, model_checksum
from lightning_neuralgate.locate.record_store import RecordStore
from lightning_neuralgate.prefix_cache.locate_pass import LocatePass
from lightning_neuralgate.prefix_cache.prefix import NOT_ALLOWED, is_out_of_memory
from lightning_neuralgate.runtime.versions import library_versions


class PrivacyLocatorModule(LightningModule):
    """Learns one feature vector per record and layer, and turns them into a `NeuralGate`.

    `Trainer.fit` runs it: a training batch is the rows of one or more records (`PrivacyPairDataModule` makes them), which
    are learnt side by side; one epoch is all there is. Afterwards `gate` holds the activity rates and `vectors` each
    record's m_l. The defaults are the paper's settings.

    Args:
        model: a Hugging Face image-text-to-text model; it is frozen and put in eval mode.
        layers: decoder layers whose outputs are scaled (counted from 0).
        alpha: weight of the benign term.
        beta: weight of the pull towards the start value.
        lr: learning rate of Adam on v.
        eps: epsilon of Adam.
        max_steps: upper bound of optimizer steps for a record.
        stop_loss: a record is done when its loss is below.
        start: value that v starts at (tanh 2 = 0.964).
        reuse_prefix: run what is the same in every step once per record (`LocatePass`). The result is the same; where the
            first record shows that a model does not allow it, the plain way is taken, with a warning.
        jointly: learn the layers of a record together, one loss for all; off: each layer alone, as in a search for the layer
            to edit.
        cache_dir: folder in which each record's vectors are kept as soon as they are found. Another run with the same model,
            settings and data takes them from there, so one that was killed goes on where it was.

    Raises:
        ModelLayoutError: there is no such layer.

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
        self.model = model.requires_grad_(False).eval()
        self.layers = sorted(layers)
        # where every record starts from; what is learnt goes to `vectors`
        self.v = nn.ParameterDict({str(layer): torch.full((layout.hidden_size,), start) for layer in self.layers})
        self.vectors: dict[str, dict[int, Tensor]] = {}
        self.record_subjects: dict[str, str] = {}
        self._gate: NeuralGate | None = None
        self._reuse: bool | None = None if reuse_prefix else False
        self._kept = None if cache_dir is None else RecordStore(Path(cache_dir))
        # the identity leaves out what an edit changes, and what a gate need not find again
        self._made_of = {} if cache_dir is None else {"weights": model_checksum(model), "types": _types(model)}

    @property
    def gate(self) -> NeuralGate:
        """The gate made of all located records.

        Raises:
            NeuralGateError: before `Trainer.fit` has come to its end.
        """
        if self._gate is None:
            raise NeuralGateError("nothing is located yet: run Trainer.fit(locator, datamodule) to its end first")
        return self._gate

    @override
    def configure_model(self) -> None:
        if self._trainer is not None:
            refuse_strategies(self._trainer.strategy, ("FSDPStrategy", *UNTESTED_STRATEGIES), "PrivacyLocatorModule")
        if self.device_mesh is not None:
            shard(self.model, self.device_mesh)

    @override
    def configure_optimizers(self) -> None:
        """Every record has an Adam of its own, made in `training_step`."""

    @override
    def training_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        records = dict.fromkeys(batch["record_id"])
        counted = set(records)
        for record, here in zip(batch["record_id"], batch.get("counted", [True] * len(batch["role"])), strict=True):
            counted -= set() if here else {record}
        subjects = dict(zip(batch["record_id"], map(subject_key, batch["subject"]), strict=True))
        key = self._recall(subjects, batch)
        known = counted <= self.vectors.keys()
        if all_ranks(known, self.device) if is_sharded(self.model) else known:
            return
        vectors, loss, steps = self._learn(batch)
        self._take(vectors, {record: subjects[record] for record in counted})
        if self._kept is not None:
            self._kept.keep(key, vectors, {"reuse": self._reuse})
        active = torch.stack([(m < 0).float().mean() for layers in vectors.values() for m in layers.values()]).mean()
        self.log("locate/loss", loss, prog_bar=True, batch_size=1)
        self.log("locate/steps", steps, prog_bar=True, batch_size=1)
        self.log("locate/active", active, prog_bar=True, batch_size=1)

    def _take(self, vectors: Mapping[str, Mapping[int, Tensor]], subjects: Mapping[str, str]) -> None:
        """Count located records in, those of which a subject is given."""
        for record, subject in subjects.items():
            self.vectors[record] = dict(vectors[record])
            self.record_subjects[record] = subject

    def _recall(self, subjects: Mapping[str, str], batch: Mapping[str, Any]) -> str:
        """Take a batch of records from where an earlier run has kept it. Returns its key."""
        if self._kept is None:
            return ""
        setting = {"device": self.device.type, "precision": self.trainer.precision, "versions": library_versions()}
        key = self._kept.key({**self.hparams, **asdict(self.identity), **self._made_of, **setting}, batch)
        if not subjects.keys() <= self.vectors.keys() and (found := self._kept.recall(key)) is not None:
            vectors, notes = found
            self._take(vectors, subjects)
            # whoever found that a model allows it or not has found it for all
            self._reuse = notes["reuse"]
        return key

    def _learn(self, batch: Mapping[str, Any]) -> tuple[dict[str, dict[int, Tensor]], float, float]:
        """Learn the vectors of the batch's records.

        Returns:
            Record -> layer -> m_l; the last loss and the number of steps taken, as means of all that is learnt alone.
        """
        learnt: dict[str, dict[int, Tensor]] = {record: {} for record in batch["record_id"]}
        losses: list[Tensor] = []
        steps: list[Tensor] = []
        self._learn_portion(batch, self.layers, learnt, losses, steps)
        return learnt, float(torch.cat(losses).mean()), float(torch.cat(steps).mean())

    def _learn_portion(
        self,
        batch: Mapping[str, Any],
        portion: Sequence[int],
        learnt: dict[str, dict[int, Tensor]],
        losses: list[Tensor],
        steps: list[Tensor],
    ) -> None:
        """Learn some records in some layers, and add what is found. What was kept of them is free when this returns."""
        records = list(dict.fromkeys(batch["record_id"]))
        owner = torch.tensor([records.index(record) for record in batch["record_id"]], device=self.device)
        weights = role_weights(
            batch["role"], batch["record_id"], {"sensitive": 1.0, "benign": self.hparams["alpha"]}, self.device
        )
        nll = self._row_loss(batch, portion)
        groups = [portion] if self.hparams["jointly"] else [[layer] for layer in portion]
        for layers in groups:
            found, loss, taken = self._learn_together(layers, nll, owner, weights)
            losses.append(loss)
            steps.append(taken)
            for layer, vectors in found.items():
                for record, vector in zip(records, vectors.tanh().cpu(), strict=True):
                    learnt[record][layer] = vector

    def _learn_together(
        self, layers: Sequence[int], nll: Callable[[Mapping[int, Tensor]], Tensor], owner: Tensor, weights: Tensor
    ) -> tuple[dict[int, Tensor], Tensor, Tensor]:
        """Learn v of R records for some layers, one loss a record.

        Records have nothing to do with each other, and Adam looks at each element alone, so it is as if each had its own.

        Args:
            layers: the layers.
            nll: layer -> v of each row, (B, d) -> NLL of each row, (B,).
            owner: (B,), the number of each row's record.
            weights: (B,), what each row counts in its record's loss.

        Returns:
            Layer -> v, (R, d); each record's last loss and its number of steps, (R,).
        """
        settings, count = self.hparams, int(owner.max()) + 1
        size = next(iter(self.v.values())).shape[0]
        # single precision in any training: in half precision the steps of v would be rounded away
        numbers: dict[str, Any] = {"dtype": torch.float32, "device": self.device}
        start = torch.full((count, size), settings["start"], **numbers)
        vectors = {layer: start.clone().requires_grad_() for layer in layers}
        optimizer = torch.optim.Adam(vectors.values(), lr=settings["lr"], eps=settings["eps"])
        together = is_sharded(self.model)
        done = torch.zeros(count, dtype=torch.bool, device=self.device)
        value, steps = torch.full((count,), float("nan"), **numbers), torch.zeros(count, **numbers)
        learnt = {layer: start.clone() for layer in layers}
        for step in range(settings["max_steps"]):
            drift = torch.stack([(v - settings["start"]).abs().mean(1) for v in vectors.values()]).mean(0)
            rows = weights * nll({layer: v[owner] for layer, v in vectors.items()})
            loss = torch.zeros_like(drift).index_add(0, owner, rows) + settings["beta"] * drift
            # whether a record is done is left to the device, and looked at now and then: asking waits for all its work
            value = torch.where(done, value, loss.detach())
            done = done | (loss.detach() < settings["stop_loss"])
            # sharded weights need every process in every pass, so one that is done waits for the others
            if step % self._look_every == 0:
                over = bool(done.all())
                if all_ranks(over, self.device) if together else over:
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
    def _look_every(self) -> int:
        return 1 if self.device.type == "cpu" else 5

    def _row_loss(self, batch: Mapping[str, Any], layers: Sequence[int]) -> Callable[[Mapping[int, Tensor]], Tensor]:
        """A function that gives the NLL of each row, (B,), under layer -> v of each row, (B, d)."""
        positions = _subject_positions(batch)

        def plain(vectors: Mapping[int, Tensor]) -> Tensor:
            with self.scaled(positions, vectors):
                return batch_nll(self.model, batch)

        together = is_sharded(self.model)
        if together and not all_ranks(self._reuse is not None, self.device):
            self._reuse = None  # a process that recalls records may know already, but all find out together
        if self._reuse is False:
            return plain
        try:
            if self._reuse is None:
                vectors = {layer: self.v[str(layer)].detach().expand(len(positions), -1) for layer in layers}
                # half precision would hide what is wrong in its rounding, so autocast stays out of this
                with torch.no_grad(), torch.autocast(self.device.type, enabled=False):
                    expected = plain(vectors)
                    found = self._upper(batch, positions, layers)(vectors)
                tolerance = 1e-3 if next(self.model.parameters()).dtype == torch.float32 else 5e-2
                agrees = torch.allclose(expected, found, rtol=tolerance, atol=tolerance)
                self._reuse = all_ranks(agrees, expected.device) if together else agrees
                reason = f"row losses {found.tolist()} instead of {expected.tolist()}"
            upper = self._upper(batch, positions, layers) if self._reuse else None
        except NOT_ALLOWED as error:
            if together or is_out_of_memory(error):
                raise
            reason = repr(error)
            if self._reuse:  # it has held for others; a record may be too long for a window
                rank_zero_warn(f"prefix reuse does not hold for {batch['record_id'][0]}, taking full passes: {reason}")
                return plain
            self._reuse = False
        if not self._reuse:
            rank_zero_warn(f"prefix reuse does not hold for {type(self.model).__name__}, taking full passes: {reason}")
            return plain
        assert upper is not None
        return upper

    def _upper(
        self, batch: Mapping[str, Any], positions: Tensor, layers: Sequence[int]
    ) -> Callable[[Mapping[int, Tensor]], Tensor]:
        """`_row_loss` by passes above the lowest layer and from the subject on."""
        return partial(self._fast, LocatePass(self.model, batch, positions, layers))

    def _fast(self, upper: LocatePass, vectors: Mapping[int, Tensor]) -> Tensor:
        with self.scaled(upper.positions, vectors):
            return upper.nll(min(vectors))

    @contextmanager
    def scaled(self, positions: Tensor, vectors: Mapping[int, Tensor] | None = None) -> Iterator[None]:
        """Scale layers' outputs by m = tanh(v) at some positions while the block runs.

        Args:
            positions: (B, T) bool.
            vectors: layer -> v, (d,) or one for each row, (B, d); those of the module when left out.
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
    def on_fit_start(self) -> None:
        launcher = self.trainer.strategy.launcher
        if isinstance(launcher, _MultiProcessingLauncher):
            raise UnsupportedSetupError(
                f"{type(self.trainer.strategy).__name__} runs fit in child processes here, and the gate would end with them; "
                "use strategy='ddp'"
            )

    def _gather(self) -> None:
        """Let every process know what all of them have located."""
        found = [(record, self.record_subjects[record], vectors) for record, vectors in self.vectors.items()]
        if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            gathered: list[Any] = [None] * dist.get_world_size()
            dist.all_gather_object(gathered, found)
            found = [entry for part in gathered for entry in part]
        # a sampler may hand one record to two processes to even out their shares: records count once
        self.vectors = {record: vectors for record, _, vectors in sorted(found, key=lambda entry: entry[0])}
        self.record_subjects = {record: subject for record, subject, _ in found}

    @override
    def on_train_end(self) -> None:
        self._gather()
        if self.vectors:
            self._gate = self._make_gate()

    def _make_gate(self) -> NeuralGate:
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

    @override
    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """The frozen model stays out of checkpoints; what was located, in any process, goes in."""
        self._gather()
        checkpoint["located"] = {"vectors": self.vectors, "subjects": self.record_subjects}
        if is_sharded_state(checkpoint["state_dict"]):  # can only be loaded as a whole
            return
        checkpoint["state_dict"] = {
            name: value for name, value in checkpoint["state_dict"].items() if not name.startswith("model.")
        }

    @override
    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.vectors = checkpoint["located"]["vectors"]
        self.record_subjects = checkpoint["located"]["subjects"]


def _subject_positions(batch: Mapping[str, Any]) -> Tensor:
    """The subject's last token of each row, (B, T) bool."""
    positions = last_position(batch["subject_mask"])
    if not bool(positions.any(1).all()):
        raise UnsupportedSetupError("every row of a located record needs its subject in 'subject_mask'")
    return positions


def _types(model: nn.Module) -> list[str]:
    """What else decides how a model computes: the types of its weights, and its kind of attention."""
    attention = getattr(find_hf_model(model).config.get_text_config(), "_attn_implementation", None)
    return [*sorted({str(parameter.dtype) for parameter in model.parameters()}), str(attention)]


def role_weights(
    roles: Sequence[str], records: Sequence[str], weights: Mapping[str, float], device: torch.device
) -> Tensor:
    """What each row counts, (B,) float32: summed over a record's rows, `weights * nll` is its weighted sum of roles' means.

    >>> roles = ["sensitive", "sensitive", "benign"]
    >>> role_weights(roles, ["r"] * 3, {"sensitive": 1.0, "benign": 1.25}, torch.device("cpu"))
    tensor([0.5000, 0.5000, 1.2500])
    """
    rows = list(zip(roles, records, strict=True))
    # in half-precision training the default type is another
    return torch.tensor([weights[row[0]] / rows.count(row) for row in rows], dtype=torch.float32, device=device)
