"""Trainings with the callback, over strategies, accumulation, precision, scope and what is trained; and the plain loop.

    python -m tests.strategies.runs STRATEGY,... FOLDER

leaves in FOLDER, for each case, what was trained, and what each process logged of the rows that have changed. Under
torchrun every process takes its share of the micro-batches.
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
from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.strategies import DDPStrategy, FSDPStrategy, ModelParallelStrategy
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.utils.data import DataLoader
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from lightning_neuralgate.edit.editor import PrivacyEditModule, mean_by_role
from lightning_neuralgate.errors import NeuralGateError
from lightning_neuralgate.gate.autograd import Scope, scope_positions
from lightning_neuralgate.gate.callback import NeuralGateCallback
from lightning_neuralgate.hf.decoder import find_decoder
from lightning_neuralgate.hf.distributed import full_state_dict, shard
from lightning_neuralgate.hf.forward import batch_nll
from lightning_neuralgate.locate.locator import PrivacyLocatorModule
from lightning_neuralgate.runtime.process import process_group_closed
from tests.helpers.tiny_llava import tiny_llava, tiny_splits
from tests.helpers.training import datamodule, random_gate

LAYER, TAU, MICRO_BATCHES, BREAK = 1, 0.5, 12, 8
WORLD = {
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
INTERRUPTED = {
    strategy: [Case(1, "32-true", trained, "all") for trained in ("full", "lora")] for strategy in ("ddp", "fsdp")
}
"""Trainings that are also run with a break, and resumed: after it comes one subject alone, the first one again."""


def cases_of(strategy: str) -> list[Case]:
    """What a strategy is tried with: everything, or a part where it is a variant of another."""
    if strategy in ("fsdp1", "fsdp1_root"):  # its half precision takes a GPU, and scope 'all' is refused
        return [case for case in CASES if case.precision == "32-true" and case.scope != "all"]
    if strategy in ("one", "ddp", "fsdp"):
        return CASES
    few = [case for case in CASES if case.precision == "32-true" and case.scope == "all"]
    if strategy == "fsdp_uneven":  # twelve micro-batches are no whole number of steps of three times three
        return [case for case in few if case.accumulate == 1]
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
    """Somebody's training; each process takes its share of the batches, and writes down what its logger was told."""

    def __init__(self, network: nn.Module, batches: list[dict[str, Any]], told: Path, by_layer: bool = True) -> None:
        super().__init__()
        self.network, self.batches, self.told, self.by_layer = network, batches, told, by_layer

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

    def on_train_end(self) -> None:
        assert isinstance(self.logger, Told)
        file = _told_file(self.told, self.global_rank)
        earlier = json.loads(file.read_text(encoding="utf-8")) if file.exists() else []
        file.write_text(json.dumps(earlier + self.logger.changed), encoding="utf-8")

    def train_dataloader(self) -> Any:
        return DataLoader(self.batches[self.global_rank :: self.trainer.world_size], batch_size=None)  # type: ignore[arg-type]


def _told_file(told: Path, rank: int) -> Path:
    return told.with_name(f"{told.name}-{rank}.json")


def trained_weights(network: nn.Module, state: dict[str, Tensor]) -> dict[str, Tensor]:
    names = {name for name, parameter in network.named_parameters() if parameter.requires_grad}
    return {name: value.clone().contiguous() for name, value in state.items() if name in names}


class FSDP1OnCPU(FSDPStrategy):
    """Lightning takes `FSDPStrategy` itself to a GPU alone, and FSDP1 a CPU only if it is told so."""

    def _setup_model(self, model: nn.Module) -> FullyShardedDataParallel:
        return FullyShardedDataParallel(model, device_id=torch.device("cpu"), **self.kwargs)


class Told(Logger):
    """Keeps what is logged, in every process."""

    name = version = "told"

    def __init__(self) -> None:
        super().__init__()
        self.changed: list[float] = []

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.changed += [value for name, value in metrics.items() if name == f"gate/layer_{LAYER}/rows_changed"]

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """There are none."""


def trainer_of(strategy: str, case: Case, /, **options: Any) -> Trainer:
    """A Trainer with the callback."""
    gate = random_gate(tiny_llava(), (LAYER,))
    kinds: dict[str, Any] = {
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
        accelerator="cpu",
        devices=WORLD[strategy],
        precision=case.precision,  # type: ignore[arg-type]
        accumulate_grad_batches=case.accumulate,
        log_every_n_steps=1,
        val_check_interval=case.accumulate,
        use_distributed_sampler=False,
        logger=Told(),
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **{
            "strategy": kinds[strategy],
            "max_epochs": 1,
            "callbacks": [NeuralGateCallback(gate, case.scope, TAU)],
            **options,
        },
    )


def run(strategy: str, case: Case, folder: Path) -> None:
    """Train with the callback; rank 0 saves."""
    network = prepared(case.trained)
    trainer = trainer_of(strategy, case)
    batches = micro_batches(folder / f"data-{trainer.global_rank}")
    module = Training(network, batches, folder / f"{strategy}-{case}", strategy != "fsdp_root")
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
    """What each process is told of what FSDP1 cannot do."""
    other = random_gate(tiny_llava(seed=1), (LAYER,))
    tried: dict[str, tuple[LightningModule, dict[str, Any]]] = {
        "all": (Training(prepared("full"), [], folder), {}),
        "hidden": (
            Training(prepared("full").requires_grad_(True), [], folder),
            {"strategy": FSDP1OnCPU(use_orig_params=False)},
        ),
        "other": (Training(prepared("full"), [], folder), {"callbacks": [NeuralGateCallback(other)]}),
        "locator": (PrivacyLocatorModule(tiny_llava(), [LAYER]), {}),
        "editor": (PrivacyEditModule(tiny_llava(), [LAYER]), {}),
    }
    told: dict[str, str] = {}
    for name, (module, options) in tried.items():
        trainer = trainer_of("fsdp1", Case(1, "32-true", "full", "all" if name == "all" else "subject"), **options)
        batches = micro_batches(folder / f"data-{trainer.global_rank}")
        try:
            trainer.fit(module, DataLoader(batches, batch_size=None))  # type: ignore[arg-type]
        except NeuralGateError as error:
            told[name] = f"{type(error).__name__}: {error}"
    _told_file(folder / "refusals", trainer.global_rank).write_text(json.dumps(told), encoding="utf-8")


def run_with_a_break(strategy: str, case: Case, folder: Path) -> None:
    """Train in two parts, the second one resumed from a checkpoint."""
    for part in (0, 1):
        trainer = trainer_of(strategy, case, max_epochs=part + 1)
        batches = micro_batches(folder / f"data-{trainer.global_rank}")
        share = batches[BREAK:] if part else batches[:BREAK]
        module = Training(prepared(case.trained), share, folder / f"{strategy}-{case}-resumed")
        checkpoint = folder / f"{strategy}-{case}.ckpt"
        trainer.fit(module, ckpt_path=checkpoint if part else None, weights_only=True)
        if not part:
            trainer.save_checkpoint(checkpoint)


class Plain(NamedTuple):
    """What a plain loop leaves: what was trained, before and after, and the share of rows that differ after each step."""

    before: dict[str, Tensor]
    after: dict[str, Tensor]
    changed: list[float]


def plain(world: int, case: Case, folder: Path) -> Plain:
    """The same training as a loop in one process."""
    network = prepared(case.trained)
    gate = random_gate(tiny_llava(), (LAYER,))
    projection: Any = find_decoder(network).output_projection(LAYER)
    rows = projection.lora_B["default"].weight if case.trained == "lora" else projection.weight
    trained = [p for p in network.parameters() if p.requires_grad]
    before = trained_weights(network, network.state_dict())
    start, changed = rows.detach().clone(), list[float]()
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
        changed.append(float((rows != start).any(1).double().mean()))
    return Plain(before, trained_weights(network, network.state_dict()), changed)


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


def told(folder: Path, strategy: str, case: Case, resumed: bool = False) -> list[list[float]]:
    """What each process has logged of the changed rows, step by step."""
    name = f"{strategy}-{case}-resumed" if resumed else f"{strategy}-{case}"
    files = [_told_file(folder / name, rank) for rank in range(WORLD[strategy])]
    return [json.loads(file.read_text(encoding="utf-8")) for file in files]


def result(folder: Path, strategy: str, case: Case) -> dict[str, Tensor]:
    """What a run has left."""
    return load_file(folder / f"{strategy}-{case}.safetensors")


if __name__ == "__main__":
    torch.set_num_threads(1)
    out = Path(sys.argv[2])
    with process_group_closed():
        for name in sys.argv[1].split(","):
            for chosen in cases_of(name):
                run(name, chosen, out)
                if chosen in INTERRUPTED.get(name, []):
                    run_with_a_break(name, chosen, out)
            if name == "fsdp1":
                refusals_under_fsdp1(out)
