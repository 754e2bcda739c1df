"""Trainings with the callback, over strategies, accumulation, precision, scope and what is trained; and the plain loop.

    python -m tests.strategies.runs STRATEGY FOLDER

leaves in FOLDER, for each case, what was trained. Under torchrun every process takes its share of the micro-batches.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.utils.data import DataLoader

from lightning_neuralgate.callback import NeuralGateCallback
from lightning_neuralgate.gating import Scope, scope_positions
from lightning_neuralgate.layers import find_decoder
from lightning_neuralgate.objective import batch_nll, mean_by_role
from lightning_neuralgate.sharding import full_state_dict, shard
from tests.helpers.tiny_llava import tiny_llava, tiny_splits
from tests.helpers.training import datamodule, random_gate

LAYER, TAU, MICRO_BATCHES = 1, 0.5, 12


class Case(NamedTuple):
    """One training."""

    accumulate: int
    precision: str
    trained: str
    scope: Scope

    def __str__(self) -> str:
        return f"{self.accumulate}-{self.precision}-{self.trained}-{self.scope}"


CASES = [
    Case(*parts)
    for parts in itertools.product((1, 3), ("32-true", "bf16-mixed"), ("full", "lora"), ("from_subject", "all"))
]


def cases_of(strategy: str) -> list[Case]:
    """What a strategy is tried with: everything, or a part where it is a variant of another."""
    if strategy in ("one", "ddp", "fsdp"):
        return CASES
    few = [case for case in CASES if case.precision == "32-true" and case.scope == "all"]
    # torch's own limit: a static graph and a first backward pass without synchronization do not go together
    return [case for case in few if case.accumulate == 1] if strategy == "ddp_static" else few


def prepared(trained: str) -> nn.Module:
    """A tiny LLaVA in which one projection trains, or a LoRA on it whose factors are no zeros."""
    model: Any = tiny_llava().requires_grad_(False)
    if trained == "full":
        find_decoder(model).output_projection(LAYER).requires_grad_(True)
        return model  # type: ignore[no-any-return]
    torch.manual_seed(5)
    target = rf".*language_model\.layers\.{LAYER}\.mlp\.down_proj"
    wrapped = get_peft_model(model, LoraConfig(r=4, target_modules=target, lora_dropout=0.0))
    nn.init.normal_(find_decoder(wrapped).output_projection(LAYER).lora_B["default"].weight, std=0.1)  # type: ignore[index, arg-type]
    return wrapped  # type: ignore[return-value]


def micro_batches(folder: Path) -> list[dict[str, Any]]:
    """Twelve batches of different lengths and subjects."""
    folder.mkdir(exist_ok=True)
    batches = list(datamodule(tiny_splits(folder), pairs_per_batch=1).pairs_dataloader())
    return list(itertools.islice(itertools.cycle(batches), MICRO_BATCHES))


def make_optimizer(parameters: list[Tensor]) -> torch.optim.Optimizer:
    """With everything that moves rows without gradient."""
    return torch.optim.SGD(parameters, lr=0.05, momentum=0.9, weight_decay=0.1)


def loss_of(network: nn.Module, batch: dict[str, Any]) -> Tensor:
    means = mean_by_role(batch_nll(network, batch), batch["role"])
    return means["sensitive"] + 1.25 * means["benign"]


class Training(LightningModule):
    """Somebody's training; each process takes its share of the batches."""

    def __init__(self, network: nn.Module, batches: list[dict[str, Any]], by_layer: bool) -> None:
        super().__init__()
        self.network, self.batches, self.by_layer = network, batches, by_layer

    def configure_model(self) -> None:
        if self.device_mesh is not None and self.by_layer:
            shard(self.network, self.device_mesh)
        elif self.device_mesh is not None:
            fully_shard(self.network, mesh=self.device_mesh["data_parallel"])  # type: ignore[index]

    def val_dataloader(self) -> Any:
        return DataLoader(self.batches[:1], batch_size=None)  # type: ignore[arg-type]

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """A pass without gradient between steps, which the gate has nothing to do with."""
        loss_of(self.network, batch)

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        return loss_of(self.network, batch)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return make_optimizer([p for p in self.parameters() if p.requires_grad])

    def train_dataloader(self) -> Any:
        return DataLoader(self.batches[self.global_rank :: self.trainer.world_size], batch_size=None)  # type: ignore[arg-type]


def trained_weights(network: nn.Module, state: dict[str, Tensor]) -> dict[str, Tensor]:
    names = {name for name, parameter in network.named_parameters() if parameter.requires_grad}
    return {name: value.clone().contiguous() for name, value in state.items() if name in names}


def run(strategy: str, case: Case, folder: Path) -> None:
    """Train with the callback; rank 0 saves."""
    network = prepared(case.trained)
    gate = random_gate(tiny_llava(), (LAYER,))
    kinds: dict[str, Any] = {
        "one": "auto",
        "ddp": "ddp",
        "ddp_static": DDPStrategy(static_graph=True),
        "ddp_buckets": DDPStrategy(gradient_as_bucket_view=True),
        "ddp_fork": "ddp_fork",
        "fsdp": ModelParallelStrategy(2, 1),
        "fsdp_root": ModelParallelStrategy(2, 1),
    }
    trainer = Trainer(
        accelerator="cpu",
        devices=1 if strategy == "one" else 2,
        strategy=kinds[strategy],
        precision=case.precision,  # type: ignore[arg-type]
        accumulate_grad_batches=case.accumulate,
        max_epochs=1,
        val_check_interval=case.accumulate,
        use_distributed_sampler=False,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[NeuralGateCallback(gate, case.scope, TAU)],
    )
    module = Training(network, micro_batches(folder / f"data-{trainer.global_rank}"), strategy != "fsdp_root")
    trainer.fit(module)
    state = full_state_dict(module.network)
    if trainer.is_global_zero:
        save_file(trained_weights(module.network, state), folder / f"{strategy}-{case}.safetensors")


def plain(world: int, case: Case, folder: Path) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The same training as a loop in one process; what was trained, before and after."""
    network = prepared(case.trained)
    gate = random_gate(tiny_llava(), (LAYER,))
    projection: Any = find_decoder(network).output_projection(LAYER)
    rows = projection.lora_B["default"].weight if case.trained == "lora" else projection.weight
    trained = [p for p in network.parameters() if p.requires_grad]
    before = trained_weights(network, network.state_dict())
    optimizer = make_optimizer(trained)
    batches = micro_batches(folder / "data-plain")
    steps = MICRO_BATCHES // (world * case.accumulate)
    low = case.precision == "bf16-mixed"
    for step in range(steps):
        first = step * world * case.accumulate
        share = batches[first : first + world * case.accumulate]
        opened = torch.zeros(32, dtype=torch.bool)
        optimizer.zero_grad()
        for batch in share:
            masks = torch.stack([gate.mask(subject, LAYER, TAU) for subject in batch["subject"]])
            opened |= masks.any(0)
            closed = scope_positions(case.scope, batch["subject_mask"])[:, :, None] & ~masks[:, None, :]
            with torch.autocast("cpu", torch.bfloat16) if low else nullcontext(), cut(projection, case.trained, closed):
                loss = loss_of(network, batch)
            (loss / len(share)).backward()
        kept = rows.detach().clone()
        optimizer.step()
        if case.scope == "all":
            with torch.no_grad():
                rows[~opened] = kept[~opened]
    return before, trained_weights(network, network.state_dict())


@contextmanager
def cut(projection: Any, trained: str, closed: Tensor) -> Iterator[None]:
    """What trains has no part in the closed places of the output: there it is a constant to autograd."""

    def hook(module: Any, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        x = args[0]
        if trained == "lora":
            own = projection.base_layer(x)
            added = output - own
            return own + torch.where(closed, added.detach(), added)
        moving = F.linear(x.detach(), projection.weight)
        return F.linear(x, projection.weight.detach()) + torch.where(closed, 0.0, moving - moving.detach())

    handle = projection.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def result(folder: Path, strategy: str, case: Case) -> dict[str, Tensor]:
    """What a run has left."""
    return load_file(folder / f"{strategy}-{case}.safetensors")


if __name__ == "__main__":
    torch.set_num_threads(1)
    for chosen in cases_of(sys.argv[1]):
        run(sys.argv[1], chosen, Path(sys.argv[2]))
