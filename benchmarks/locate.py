"""Locating with what is the same in every step run once, beside the plain loop of whole passes.

    python -m benchmarks.locate --geometry llava-1.5 --json FILE

Both sides learn the same records of the same model in this process: the fast side all its steps, the plain side
`--plain-steps` of them, its seconds scaled to as many steps. They agree if after as many steps as the plain side took the
vectors differ by at most 1e-4 and no activity differs. `floor_share`: the seconds that the floating point operations of the
method itself would take at the rate of a large matrix product, over those of the fast side; counted are the products with
weights, of one pass over what rows share, one over what they do not, and in each step of the layers above on what follows
the subject, forward and back to it, and of the vocabulary where a target is.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from benchmarks.callback import told
from benchmarks.geometries import load_geometry
from benchmarks.side_by_side import Cost, matmul_rate, measured, parser, tell
from lightning_neuralgate.data.collator import PrivacyPairCollator
from lightning_neuralgate.data.datamodule import locate_rows
from lightning_neuralgate.data.rendered import render_splits
from lightning_neuralgate.layers import find_decoder
from lightning_neuralgate.locator import PrivacyLocatorModule
from lightning_neuralgate.objective import IGNORED
from lightning_neuralgate.spans import last_position
from lightning_neuralgate.upper_pass import UpperPass

SUBJECTS = ("passport", "student_id", "receipt")


def batches(processor: Any, records: int) -> list[dict[str, Any]]:
    """Located records, one a subject in turn."""
    with TemporaryDirectory() as folder:
        splits = render_splits(
            Path(folder),
            0,
            edit_records=-(-records // 3),
            test_records=1,
            edit_pairs=1,
            test_pairs=1,
            subjects=SUBJECTS,
        )
        collate = PrivacyPairCollator(processor)
        return [collate(locate_rows(record)) for record in told(splits.edit)[:records]]


def learn(
    model: Any, layers: list[int], batch: Mapping[str, Any], steps: int, fast: bool
) -> tuple[Cost, dict[int, Tensor]]:
    """What it costs to learn a record, and its vectors."""
    locator = PrivacyLocatorModule(model, layers, max_steps=steps, stop_loss=-1.0, reuse_prefix=fast).to(model.device)
    locator._reuse = fast  # whether it holds is what is compared here
    with measured() as cost:
        locator._learn(batch)
    return cost, {layer: locator.v[str(layer)].detach().tanh().cpu() for layer in layers}


def floor_flops(model: Any, layer: int, batch: Mapping[str, Any], steps: int) -> float:
    """Products with weights that the method needs for a record."""
    decoder = find_decoder(model).layers
    each = [sum(p.numel() for p in one.parameters() if p.ndim == 2) for one in decoder]
    upper = UpperPass(model, batch, last_position(batch["subject_mask"]), [layer])
    whole = int(batch["attention_mask"].sum())
    rows = len(batch["input_ids"])
    shared = upper.shared
    again = int(upper.real.sum())
    tower = sum(p.numel() for name, p in model.named_parameters() if "vision" in name and p.ndim == 2)
    image = int((batch["input_ids"][0] == model.config.image_token_id).sum())
    once = 2 * sum(each) * (shared + whole - rows * shared) + 2 * tower * image
    targets = int((batch["labels"] != IGNORED).sum())
    vocabulary = model.get_output_embeddings().weight.numel()
    step = 2 * 2 * (sum(each[layer + 1 :]) * again + vocabulary * targets)
    return float(once + steps * step)


def main() -> None:
    made = parser(__doc__ or "")
    made.add_argument("--layer", type=int, default=10)
    made.add_argument("--records", type=int, default=3)
    made.add_argument("--steps", type=int, default=25)
    made.add_argument("--plain-steps", type=int, default=2)
    args = made.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    model, processor = load_geometry(args.geometry, args.model)
    model.requires_grad_(False)
    records = [
        {name: value.to(model.device) if isinstance(value, Tensor) else value for name, value in batch.items()}
        for batch in batches(processor, args.records)
    ]
    rate = matmul_rate(model.device, model.dtype)
    learn(model, [args.layer], records[0], 1, True)  # the first pass of all pays for what is set up
    fast, plain, shares, off, flips = [], [], [], 0.0, 0
    for batch in records:
        fast.append(learn(model, [args.layer], batch, args.steps, True)[0])
        shares.append(floor_flops(model, args.layer, batch, args.steps) / rate / fast[-1].seconds)
        _, found = learn(model, [args.layer], batch, args.plain_steps, True)
        cost, expected = learn(model, [args.layer], batch, args.plain_steps, False)
        plain.append(Cost(cost.seconds * args.steps / args.plain_steps, cost.peak_memory))
        for layer, vector in expected.items():
            off = max(off, float((found[layer] - vector).abs().max()))
            flips += int(((found[layer] < 0) != (vector < 0)).sum())
    ratios = [slow.seconds / quick.seconds for slow, quick in zip(plain, fast, strict=True)]
    results = {
        "seconds_plain": statistics.median(cost.seconds for cost in plain),
        "seconds_fast": statistics.median(cost.seconds for cost in fast),
        "ratio": statistics.median(ratios),
        "agree": off <= 1e-4 and not flips,
        "largest_difference": off,
        "peak_memory_ratio": statistics.median(
            quick.peak_memory / slow.peak_memory for quick, slow in zip(fast, plain, strict=True)
        ),
        "floor_share": statistics.median(shares),
        "records": args.records,
        "steps": args.steps,
        "plain_steps": args.plain_steps,
        "tokens": records[0]["input_ids"].shape[1],
        "geometry": args.geometry,
        "model": args.model,
        "layer": args.layer,
        "threads": torch.get_num_threads(),
    }
    tell(results, args.json)


if __name__ == "__main__":
    main()
