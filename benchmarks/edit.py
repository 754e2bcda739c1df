"""Editing with what rows begin with run once, beside whole rows.

    python -m benchmarks.edit --json FILE

Both sides train the MLP output projection of one layer, by default that at a third of the depth, on the same mini-batches of
the same model in this process, behind the same gate and from the same weights. They agree if the weights differ by at most
1e-6 of their norm. The paper's schedule by default; `--schedule minibatch` has one step a batch, and Adam without the paper's
large epsilon, which blows up rounding where a gradient is next to nothing. `floor_share`: the seconds that the products with
weights would take at the rate of a large matrix product, over those of the fast side; counted are what rows share once and
the rest once a row, forward through all layers, and back to the edited one.
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

from benchmarks.records import told
from benchmarks.side_by_side import Cost, compare, matmul_rate, measured, opened, parser
from lightning_neuralgate.data.datamodule import PrivacyPairDataModule
from lightning_neuralgate.data.rendering.dataset import render_splits
from lightning_neuralgate.edit.editor import PrivacyEditModule, Schedule
from lightning_neuralgate.gate.callback import NeuralGateCallback
from lightning_neuralgate.gate.neural_gate import NeuralGate
from lightning_neuralgate.hf.decoder import find_decoder
from lightning_neuralgate.hf.forward import IGNORED
from lightning_neuralgate.hf.identity import ModelIdentity
from lightning_neuralgate.prefix_cache.layout import BatchLayout


def batches(processor: Any, count: int, pairs: int) -> list[dict[str, Any]]:
    """So many mini-batches of query pairs."""
    with TemporaryDirectory() as folder:
        splits = render_splits(Path(folder), 0, edit_records=2, test_records=1, edit_pairs=3, test_pairs=1)
        data = PrivacyPairDataModule(splits._replace(edit=told(splits.edit)), processor, pairs_per_batch=pairs)
        return [batch for _, batch in zip(range(count), data.pairs_dataloader(), strict=False)]


def random_gate(model: Any, layer: int, found: Sequence[Mapping[str, Any]], wide: bool = False) -> NeuralGate:
    """A gate for the subjects of some batches, open at about half of all places, or everywhere."""
    identity = ModelIdentity.of(model)
    generator = torch.Generator().manual_seed(0)
    subjects = dict.fromkeys(subject for batch in found for subject in batch["subject"] if subject)
    drawn = {subject: torch.rand(identity.hidden_size, generator=generator) for subject in subjects}
    rates = {subject: {layer: torch.ones_like(rate) if wide else rate} for subject, rate in drawn.items()}
    return NeuralGate(rates, identity, dict.fromkeys(rates, 1))


def edit(
    model: Any,
    layer: int,
    found: Sequence[Any],
    gate: NeuralGate | None,
    schedule: Schedule = "minibatch",
    steps: int = 1,
    share: bool = True,
) -> tuple[Cost, Tensor]:
    """What it costs to edit on some batches, and the weight afterwards; the model is left as it was."""
    weight: Any = find_decoder(model).output_projection(layer).weight
    before = weight.detach().clone()
    editor = PrivacyEditModule(model, [layer], schedule=schedule, steps_per_pair=steps, stop_loss=-1.0)
    editor._losses.fast_path.restore(share)  # whether it holds is what is compared here
    trainer = Trainer(
        max_epochs=1, devices=1, logger=False, enable_checkpointing=False, enable_model_summary=False,
        enable_progress_bar=False, limit_val_batches=0, callbacks=[NeuralGateCallback(gate, tau=0.5)] if gate else [],
    )  # fmt: skip
    with measured() as cost:
        trainer.fit(editor, datamodule=Batches(found))
    after = weight.detach().clone()
    with torch.no_grad():
        weight.copy_(before)
    return cost, after


class Batches(PrivacyPairDataModule):
    """Given training batches, prepared as those of `PrivacyPairDataModule`."""

    def __init__(self, batches: Sequence[dict[str, Any]]) -> None:
        LightningDataModule.__init__(self)
        self.batches = list(batches)

    def prepare_data(self) -> None:
        """The batches are there."""

    def setup(self, stage: str) -> None:
        """The batches are there."""

    def train_dataloader(self) -> Any:
        return DataLoader(self.batches, batch_size=None)  # type: ignore[arg-type]


def floor_flops(model: Any, layer: int, batch: Mapping[str, Any]) -> float:
    """Products with weights that a step on a batch needs."""
    decoder = find_decoder(model).layers
    each = [sum(p.numel() for p in one.parameters() if p.ndim == 2) for one in decoder]
    prefix = BatchLayout(model, batch).prefix
    rows, shared = len(batch["role"]), prefix.length
    pictures = len(prefix.leaders)
    tokens = int(batch["attention_mask"].sum()) - (rows - pictures) * shared
    edited = find_decoder(model).output_projection(layer).weight.numel()
    tower = sum(p.numel() for name, p in model.named_parameters() if "vision" in name and p.ndim == 2)
    image = int((batch["input_ids"][0] == model.config.image_token_id).sum())
    vocabulary = model.get_output_embeddings().weight.numel() * int((batch["labels"] != IGNORED).sum())
    forward = tokens * sum(each) + tower * image * pictures + vocabulary
    return 2.0 * (forward + tokens * (sum(each[layer + 1 :]) + edited) + vocabulary)


def main() -> None:
    made = parser(__doc__ or "")
    made.add_argument("--layer", type=int, help="a third of the depth when left out")
    made.add_argument("--schedule", choices=("paper", "minibatch"), default="paper")
    made.add_argument("--batches", type=int, default=2)
    made.add_argument("--pairs", type=int, default=1, help="query pairs in a batch; the paper's schedule takes one")
    made.add_argument("--steps", type=int, default=10, help="steps a batch of the paper's schedule")
    args, model, processor = opened(made)
    args.layer = len(find_decoder(model).layers) // 3 if args.layer is None else args.layer
    steps = args.steps if args.schedule == "paper" else 1
    found = batches(processor, args.batches, args.pairs)
    gate = random_gate(model, args.layer, found)
    rate = matmul_rate(model.device, model.dtype)
    edit(model, args.layer, found[:1], gate)  # the first of all pays for what is set up
    fast, after = edit(model, args.layer, found, gate, args.schedule, steps)
    plain, expected = edit(model, args.layer, found, gate, args.schedule, steps, share=False)
    floor = steps * sum(floor_flops(model, args.layer, batch) for batch in found) / rate
    before = find_decoder(model).output_projection(args.layer).weight.detach()
    off, moved = (float((after - other).norm() / before.norm()) for other in (expected, before))
    compare(args, plain, fast, off <= 1e-6, floor, difference=off, change=moved, tokens=found[0]["input_ids"].shape[1])


if __name__ == "__main__":
    main()
