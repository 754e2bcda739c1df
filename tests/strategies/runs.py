"""Train with the callback under each strategy, and in a plain loop for comparison.

    python -m tests.strategies.runs STRATEGY,... FOLDER [CASE,...]

writes the trained weights of each case to FOLDER, or of some. Under torchrun every process trains on its share of the
micro-batches.
"""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers.logger import DummyLogger
from lightning.pytorch.strategies import DDPStrategy, FSDPStrategy, ModelParallelStrategy
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.utils.data import DataLoader
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from lightning_neuralgate.edit.editor import PrivacyEditModule
from lightning_neuralgate.errors import NeuralGateError
from lightning_neuralgate.gate.callback import NeuralGateCallback
from lightning_neuralgate.gate.columns import ColumnGate
from lightning_neuralgate.gate.positions import Scope, position_rule
from lightning_neuralgate.hf.decoder import find_decoder
from lightning_neuralgate.hf.distributed import full_state_dict, shard
from lightning_neuralgate.hf.identity import ModelIdentity
from lightning_neuralgate.locate.locator import PrivacyLocatorModule
from lightning_neuralgate.runtime.process import process_group_closed
from tests.helpers.tiny_llava import tiny_llava, tiny_splits
from tests.helpers.training import QUIET, datamodule, loss_of, random_gate

LAYER, TAU, MICRO_BATCHES = 1, 0.5, 12
WORLD_SIZES = {
    "one": 1,
    "ddp": 2,
    "ddp_static": 2,
    "ddp_buckets": 2,
    "ddp_fork": 2,
    "fsdp": 2,
    "fsdp_root": 2,
    "fsdp_uneven": 3,
    "fsdp1": 2,
    "fsdp1_root": 2,
}


class Case(NamedTuple):
    """Settings of one training run."""

    accumulate: int
    precision: str
    trainable: str
    scope: Scope

    def __str__(self) -> str:
        return f"{self.accumulate}-{self.precision}-{self.trainable}-{self.scope}"


CASES = [
    Case(*parts)
    for parts in itertools.product((1, 3), ("32-true", "bf16-mixed"), ("full", "lora"), ("from_subject", "all"))
]
CASES += [
    Case(3, "32-true", "full", "divergence"),
    Case(1, "32-true", "lora", "tail"),
    Case(3, "32-true", "columns", "subject_last"),
]


def cases_of(strategy: str) -> list[Case]:
    """Return the cases to run with a strategy: all of them, or a few if it is a variant of another strategy."""
    if strategy in ("fsdp1", "fsdp1_root"):  # half precision needs a GPU there; scope 'all' and columns are refused
        return [
            case
            for case in CASES
            if case.precision == "32-true" and case.scope != "all" and case.trainable != "columns"
        ]
    if strategy in ("one", "ddp", "fsdp"):
        return CASES
    few = [case for case in CASES if case.precision == "32-true" and case.scope == "all"]
    if strategy == "fsdp_uneven":  # twelve micro-batches cannot be divided into steps of three times three
        return [case for case in few if case.accumulate == 1]
    # a limit of torch: a static graph does not support a first backward pass without synchronization
    return [case for case in few if case.accumulate == 1] if strategy == "ddp_static" else few


def trainable_model(trainable: str) -> nn.Module:
    """Return a tiny LLaVA in which one projection trains, or a LoRA on it with nonzero factors."""
    model: Any = tiny_llava().requires_grad_(False)
    if trainable != "lora":
        find_decoder(model).output_projection(LAYER).requires_grad_(True)
        return model  # type: ignore[no-any-return]
    torch.manual_seed(5)
    target = rf".*language_model\.layers\.{LAYER}\.mlp\.down_proj"
    wrapped = get_peft_model(model, LoraConfig(r=4, target_modules=target, lora_dropout=0.0))
    nn.init.normal_(find_decoder(wrapped).output_projection(LAYER).lora_B["default"].weight, std=0.1)  # type: ignore[index, arg-type]
    return wrapped  # type: ignore[return-value]


def micro_batches(folder: Path) -> list[dict[str, Any]]:
    """Return twelve batches of different lengths and subjects."""
    folder.mkdir(exist_ok=True)
    batches = list(datamodule(tiny_splits(folder), pairs_per_batch=1).pairs_dataloader())
    return list(itertools.islice(itertools.cycle(batches), MICRO_BATCHES))


def make_optimizer(parameters: list[Tensor]) -> torch.optim.Optimizer:
    """Return an optimizer that moves rows without a gradient, by momentum and weight decay."""
    return torch.optim.SGD(parameters, lr=0.05, momentum=0.9, weight_decay=0.1)


class Training(LightningModule):
    """A user's LightningModule that splits the batches over the processes."""

    def __init__(self, network: nn.Module, batches: list[dict[str, Any]], by_layer: bool = True) -> None:
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
        """Run a forward pass without gradient between steps, which must not be gated."""
        loss_of(self.network, batch)

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        return loss_of(self.network, batch)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return make_optimizer([p for p in self.parameters() if p.requires_grad])

    def train_dataloader(self) -> Any:
        return DataLoader(self.batches[self.global_rank :: self.trainer.world_size], batch_size=None)  # type: ignore[arg-type]


def columns_of(case: Case) -> ColumnGate | None:
    """Return a gate of a quarter of the columns, if the case is about columns."""
    contrasts = {LAYER: torch.rand(48, generator=torch.Generator().manual_seed(1))}
    identity = ModelIdentity.of(tiny_llava())
    return ColumnGate(contrasts, identity, queries=8, share=0.25) if case.trainable == "columns" else None


def trained_weights(network: nn.Module, state: dict[str, Tensor]) -> dict[str, Tensor]:
    names = {name for name, parameter in network.named_parameters() if parameter.requires_grad}
    return {name: value.clone().contiguous() for name, value in state.items() if name in names}


class FSDP1OnCPU(FSDPStrategy):
    """FSDP1 on CPUs, which Lightning does not support; FSDP1 itself needs an explicit device there."""

    def _setup_model(self, model: nn.Module) -> FullyShardedDataParallel:
        return FullyShardedDataParallel(model, device_id=torch.device("cpu"), **self.kwargs)


def trainer_of(strategy: str, case: Case, /, **options: Any) -> Trainer:
    """Return a Trainer with the callback."""
    gate = random_gate(tiny_llava(), (LAYER,))
    strategies: dict[str, Any] = {
        "one": "auto",
        "ddp": "ddp",
        "ddp_static": DDPStrategy(static_graph=True),
        "ddp_buckets": DDPStrategy(gradient_as_bucket_view=True),
        "ddp_fork": "ddp_fork",
        "fsdp": ModelParallelStrategy(2, 1),
        "fsdp_root": ModelParallelStrategy(2, 1),
        "fsdp_uneven": ModelParallelStrategy(3, 1),
        "fsdp1": FSDP1OnCPU(auto_wrap_policy={LlamaDecoderLayer}),
        "fsdp1_root": FSDP1OnCPU(),
    }
    return Trainer(
        devices=WORLD_SIZES[strategy],
        precision=case.precision,  # type: ignore[arg-type]
        accumulate_grad_batches=case.accumulate,
        log_every_n_steps=1,
        val_check_interval=case.accumulate,
        use_distributed_sampler=False,
        **{
            **QUIET,
            "logger": DummyLogger(),  # in every process, so that the callback measures the gradient
            "strategy": strategies[strategy],
            "max_epochs": 1,
            "callbacks": [NeuralGateCallback(gate, case.scope, TAU, columns=columns_of(case))],
            **options,
        },
    )


def run(strategy: str, case: Case, folder: Path) -> None:
    """Train with the callback and save the trained weights on rank 0."""
    trainer = trainer_of(strategy, case)
    batches = micro_batches(folder / f"data-{trainer.global_rank}")
    module = Training(trainable_model(case.trainable), batches, by_layer=strategy != "fsdp_root")
    trainer.fit(module)
    if isinstance(trainer.strategy, FSDPStrategy):
        with FullyShardedDataParallel.summon_full_params(trainer.strategy.model, writeback=False):  # type: ignore[arg-type]
            weights = {
                name.replace("_fsdp_wrapped_module.", ""): parameter.detach().clone()
                for name, parameter in module.network.named_parameters()
                if parameter.requires_grad
            }
    else:
        weights = trained_weights(module.network, full_state_dict(module.network))
    if trainer.is_global_zero:
        save_file(weights, folder / f"{strategy}-{case}.safetensors")


def refusals_under_fsdp1(folder: Path) -> None:
    """Write the errors for setups that FSDP1 does not support, in every process."""
    other = random_gate(tiny_llava(seed=1), (LAYER,))
    setups: dict[str, tuple[LightningModule, dict[str, Any]]] = {
        "scope all": (Training(trainable_model("full"), []), {}),
        "flat parameters": (
            Training(trainable_model("full").requires_grad_(True), []),
            {"strategy": FSDP1OnCPU(use_orig_params=False)},
        ),
        "other model": (Training(trainable_model("full"), []), {"callbacks": [NeuralGateCallback(other)]}),
        "locator": (PrivacyLocatorModule(tiny_llava(), [LAYER]), {}),
        "editor": (PrivacyEditModule(tiny_llava(), [LAYER]), {}),
    }
    errors: dict[str, str] = {}
    for name, (module, options) in setups.items():
        scope: Scope = "all" if name == "scope all" else "subject"
        trainer = trainer_of("fsdp1", Case(1, "32-true", "full", scope), **options)
        batches = micro_batches(folder / f"data-{trainer.global_rank}")
        try:
            trainer.fit(module, DataLoader(batches, batch_size=None))  # type: ignore[arg-type]
        except NeuralGateError as error:
            errors[name] = f"{type(error).__name__}: {error}"
    (folder / f"refusals-{trainer.global_rank}.json").write_text(json.dumps(errors), encoding="utf-8")


def train_plain_loop(world: int, case: Case, folder: Path) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Run the same training as a plain loop in one process and return the trained weights before and after it."""
    network = trainable_model(case.trainable)
    gate = random_gate(tiny_llava(), (LAYER,))
    projection: Any = find_decoder(network).output_projection(LAYER)
    rows = projection.lora_B["default"].weight if case.trainable == "lora" else projection.weight
    before = trained_weights(network, network.state_dict())
    optimizer = make_optimizer([p for p in network.parameters() if p.requires_grad])
    batches = micro_batches(folder / "data-plain")
    steps = MICRO_BATCHES // (world * case.accumulate)
    is_bf16, columns = case.precision == "bf16-mixed", columns_of(case)
    for step in range(steps):
        first = step * world * case.accumulate
        share = batches[first : first + world * case.accumulate]
        unmasked = torch.zeros(32, dtype=torch.bool)
        optimizer.zero_grad()
        for batch in share:
            masks = torch.stack([gate.mask(subject, LAYER, TAU) for subject in batch["subject"]])
            unmasked |= masks.any(0)
            gated, closed = position_rule(case.scope)(batch["subject_mask"], batch)
            masked = torch.zeros(*batch["subject_mask"].shape, 32, dtype=torch.bool)
            if gated is not None:
                masked |= gated[:, :, None] & ~masks[:, None, :]
            if closed is not None:
                masked |= closed[:, :, None]
            autocast = torch.autocast("cpu", torch.bfloat16) if is_bf16 else nullcontext()
            with autocast, detached(projection, case.trainable, masked):
                loss = loss_of(network, batch)
            (loss / len(share)).backward()
        before_step = rows.detach().clone()
        optimizer.step()
        with torch.no_grad():
            if case.scope == "all":
                rows[~unmasked] = before_step[~unmasked]
            if columns is not None:
                rows[:, ~columns.mask(LAYER)] = before_step[:, ~columns.mask(LAYER)]
    return before, trained_weights(network, network.state_dict())


@contextmanager
def detached(projection: Any, trainable: str, masked: Tensor) -> Iterator[None]:
    """Detach the trained parameters from the masked elements of the output, (B, T, d) bool, while the block runs."""

    def hook(module: Any, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        x = args[0]
        if trainable == "lora":
            base = projection.base_layer(x)
            added = output - base
            return base + torch.where(masked, added.detach(), added)
        product = F.linear(x.detach(), projection.weight)
        return F.linear(x, projection.weight.detach()) + torch.where(masked, 0.0, product - product.detach())

    handle = projection.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def load_weights(folder: Path, strategy: str, case: Case) -> dict[str, Tensor]:
    """Load the trained weights of a run."""
    return load_file(folder / f"{strategy}-{case}.safetensors")


if __name__ == "__main__":
    torch.set_num_threads(1)
    out = Path(sys.argv[2])
    with process_group_closed():
        for name in sys.argv[1].split(","):
            for chosen in cases_of(name):
                if len(sys.argv) < 4 or str(chosen) in sys.argv[3].split(","):
                    run(name, chosen, out)
            if name == "fsdp1":
                refusals_under_fsdp1(out)
