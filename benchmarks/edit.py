"""Stage 2 with shared prefixes, compared with full rows.

    python -m benchmarks.edit --json FILE

Both sides train the MLP output projection of one layer, by default the one at a third of the depth, on the same
mini-batches in this process, with the same gate and from the same weights. They agree if the edited weights differ by at
most 1e-6 of their norm, or, with weights in half precision, by a quarter of the change. The default is the paper's
schedule; `--schedule minibatch` takes one step per batch, with Adam's small default epsilon, which amplifies rounding errors
where gradients are tiny. `floor_share` is the time that the products with weights would take at the rate of a large
matrix product, relative to the time of the fast side; counted are the shared prefix once and the rest of each row, forward
through all layers and backward to the edited one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from lightning.pytorch import LightningDataModule, Trainer
from torch import Tensor
from torch.utils.data import DataLoader

from benchmarks.measure import is_tower, make_parser, parse_and_load, report_comparison
from benchmarks.records import with_benign_targets
from lightning_neuralgate.data.datamodule import PrivacyPairDataModule
from lightning_neuralgate.data.rendering.dataset import render_splits
from lightning_neuralgate.edit.editor import PrivacyEditModule, Schedule
from lightning_neuralgate.gate.callback import NeuralGateCallback
from lightning_neuralgate.gate.neural_gate import NeuralGate
from lightning_neuralgate.hf.decoder import find_decoder
from lightning_neuralgate.hf.forward import IGNORED
from lightning_neuralgate.hf.identity import ModelIdentity
from lightning_neuralgate.hf.master_weights import MasterLinear, remove_masters
from lightning_neuralgate.models.costs import matmul_rate
from lightning_neuralgate.prefix_cache.layout import BatchLayout
from lightning_neuralgate.runtime.cost import Cost, measure


def make_batches(processor: Any, count: int, pairs: int) -> list[dict[str, Any]]:
    """Collate `count` mini-batches of rendered query pairs."""
    with TemporaryDirectory() as folder:
        splits = render_splits(Path(folder), 0, edit_records=2, test_records=1, edit_pairs=3, test_pairs=1)
        data = PrivacyPairDataModule(
            splits._replace(edit=with_benign_targets(splits.edit)), processor, pairs_per_batch=pairs
        )
        return [batch for _, batch in zip(range(count), data.pairs_dataloader(), strict=False)]


def random_gate(model: Any, layer: int, batches: Sequence[Mapping[str, Any]], fully_open: bool = False) -> NeuralGate:
    """A gate for the subjects in some batches that passes a random half of the dimensions, or all of them."""
    identity = ModelIdentity.of(model)
    generator = torch.Generator().manual_seed(0)
    subjects = dict.fromkeys(subject for batch in batches for subject in batch["subject"] if subject)
    random_rates = {subject: torch.rand(identity.hidden_size, generator=generator) for subject in subjects}
    rates = {subject: {layer: torch.ones_like(rate) if fully_open else rate} for subject, rate in random_rates.items()}
    return NeuralGate(rates, identity, dict.fromkeys(rates, 1))


def run_edit(
    model: Any,
    layer: int,
    batches: Sequence[Any],
    gate: NeuralGate | None,
    schedule: Schedule = "minibatch",
    steps: int = 1,
    share: bool = True,
) -> tuple[Cost, Tensor]:
    """Cost of editing on some batches, and the edited weight in float32; restores the weight of the model."""
    projection: Any = find_decoder(model).output_projection(layer)
    before = projection.weight.detach().clone()
    editor = PrivacyEditModule(model, [layer], schedule=schedule, steps_per_pair=steps, stop_loss=-1.0)
    editor._losses.fast_path.restore(share)  # no fallback: the benchmark checks equality itself
    trainer = Trainer(
        max_epochs=1, devices=1, logger=False, enable_checkpointing=False, enable_model_summary=False,
        enable_progress_bar=False, limit_val_batches=0, callbacks=[NeuralGateCallback(gate, tau=0.5)] if gate else [],
    )  # fmt: skip
    with measure() as cost:
        trainer.fit(editor, datamodule=FixedBatches(batches))
    after = projection.weight.detach().float().clone()
    if isinstance(projection, MasterLinear):
        remove_masters([projection])
    projection.weight.data = before.to(projection.weight.device)
    return cost, after


class FixedBatches(PrivacyPairDataModule):
    """Provide given training batches, with the batch preparation of `PrivacyPairDataModule`."""

    def __init__(self, batches: Sequence[dict[str, Any]]) -> None:
        LightningDataModule.__init__(self)
        self.batches = list(batches)

    def prepare_data(self) -> None:
        """Do nothing."""

    def setup(self, stage: str) -> None:
        """Do nothing."""

    def train_dataloader(self) -> Any:
        return DataLoader(self.batches, batch_size=None)  # type: ignore[arg-type]


def floor_flops(model: Any, layer: int, batch: Mapping[str, Any]) -> float:
    """Floating point operations of the products with weights in a step on a batch."""
    decoder = find_decoder(model).layers
    weights = [sum(p.numel() for p in block.parameters() if p.ndim == 2) for block in decoder]
    prefix = BatchLayout(model, batch).prefix
    rows, shared = len(batch["role"]), prefix.length
    pictures = len(prefix.leaders)
    tokens = int(batch["attention_mask"].sum()) - (rows - pictures) * shared
    edited = find_decoder(model).output_projection(layer).weight.numel()
    tower = sum(p.numel() for name, p in model.named_parameters() if is_tower(name) and p.ndim == 2)
    image = int((batch["input_ids"][0] == model.config.image_token_id).sum())
    vocabulary = model.get_output_embeddings().weight.numel() * int((batch["labels"] != IGNORED).sum())
    forward = tokens * sum(weights) + tower * image * pictures + vocabulary
    return 2.0 * (forward + tokens * (sum(weights[layer + 1 :]) + edited) + vocabulary)


def main() -> None:
    parser = make_parser(__doc__ or "")
    parser.add_argument("--layer", type=int, help="default: a third of the depth")
    parser.add_argument("--schedule", choices=("paper", "minibatch"), default="paper")
    parser.add_argument("--batches", type=int, default=2)
    parser.add_argument("--pairs", type=int, default=1, help="query pairs per batch; the paper's schedule takes one")
    parser.add_argument("--steps", type=int, default=10, help="steps per batch of the paper's schedule")
    args, model, processor = parse_and_load(parser)
    args.layer = len(find_decoder(model).layers) // 3 if args.layer is None else args.layer
    steps = args.steps if args.schedule == "paper" else 1
    batches = make_batches(processor, args.batches, args.pairs)
    gate = random_gate(model, args.layer, batches)
    rate = matmul_rate(model.device, model.dtype)
    run_edit(model, args.layer, batches[:1], gate)  # warm-up
    fast, fast_weight = run_edit(model, args.layer, batches, gate, args.schedule, steps)
    plain, plain_weight = run_edit(model, args.layer, batches, gate, args.schedule, steps, share=False)
    floor = steps * sum(floor_flops(model, args.layer, batch) for batch in batches) / rate
    before = find_decoder(model).output_projection(args.layer).weight.detach().float()
    difference, change = (float((fast_weight - other).norm() / before.norm()) for other in (plain_weight, before))
    tokens = batches[0]["input_ids"].shape[1]
    agree = difference <= (1e-6 if args.dtype == "float32" else max(1e-6, change / 4))
    report_comparison(args, plain, fast, agree, floor, difference=difference, change=change, tokens=tokens)


if __name__ == "__main__":
    main()
