"""Locating with what is the same in every step run once, beside the plain loop of whole passes.

    python -m benchmarks.locate --geometry llava-1.5 --json FILE

Both sides learn the same records of the same model in this process: the fast side all its steps, the plain side
`--plain-steps` of them, its seconds scaled to as many steps. They agree if after as many steps as the plain side took the
vectors differ by at most 1e-4 and no activity differs. `floor_share`: the seconds that the floating point operations of the
method itself would take at the rate of a large matrix product, over those of the fast side; counted are the products with
weights, of one pass over what rows share, one over what they do not, and in each step of the layers above on what follows
the subject, forward and back to it, and of the vocabulary where a target is. `prefix_bytes`: what is kept of the
first record at its largest, and `prefix_bytes_of_one` of its first query alone, the least that `--max-prefix-bytes` can be.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from torch import Tensor

from benchmarks.records import told
from benchmarks.side_by_side import Cost, compare, matmul_rate, measured, opened, parser
from lightning_neuralgate.data.collator import PrivacyPairCollator
from lightning_neuralgate.data.datamodule import locate_rows
from lightning_neuralgate.data.rendering.dataset import render_splits
from lightning_neuralgate.gate.subjects import last_position
from lightning_neuralgate.hf.decoder import find_decoder
from lightning_neuralgate.hf.forward import IGNORED
from lightning_neuralgate.locate.locator import PrivacyLocatorModule
from lightning_neuralgate.prefix_cache.locate_pass import LocatePass

SUBJECTS = ("passport", "student_id", "receipt")


def batches(processor: Any, records: int, together: int) -> list[dict[str, Any]]:
    """Records to locate, so many in a batch."""
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
        collate, rows = PrivacyPairCollator(processor), [locate_rows(record) for record in told(splits.edit)[:records]]
        return [
            collate([row for group in rows[start : start + together] for row in group])
            for start in range(0, records, together)
        ]


def learn(
    model: Any, layers: list[int], batch: Mapping[str, Any], steps: int, fast: bool
) -> tuple[Cost, dict[str, dict[int, Tensor]]]:
    """What it costs to learn the records of a batch, and their vectors."""
    locator = PrivacyLocatorModule(model, layers, max_steps=steps, stop_loss=-1.0, reuse_prefix=fast).to(model.device)
    locator._losses.fast_path.restore(fast)  # whether it holds is what is compared here
    with measured() as cost:
        vectors, _, _ = locator._learn(batch)
    return cost, vectors


def further(
    off: float, flips: int, found: Mapping[str, Mapping[int, Tensor]], expected: Mapping[str, Mapping[int, Tensor]]
) -> tuple[float, int]:
    """The largest difference of vectors, and the number of activities that differ, with those of more records."""
    for record, vectors in expected.items():
        for layer, vector in vectors.items():
            off = max(off, float((found[record][layer] - vector).abs().max()))
            flips += int(((found[record][layer] < 0) != (vector < 0)).sum())
    return off, flips


def agreed(off: float, flips: int) -> bool:
    """Whether vectors that differ by so much, with so many other activities, are the same."""
    return off <= 1e-4 and not flips


def floor_flops(model: Any, layer: int, batch: Mapping[str, Any], steps: int) -> float:
    """Products with weights that the method needs for a batch of records."""
    decoder = find_decoder(model).layers
    each = [sum(p.numel() for p in one.parameters() if p.ndim == 2) for one in decoder]
    upper = LocatePass(model, batch, last_position(batch["subject_mask"]), [layer])
    whole = int(batch["attention_mask"].sum())
    rows = len(batch["input_ids"])
    records = len(set(batch["record_id"]))
    shared = upper.prefix_length
    again = int(upper.real.sum())
    tower = sum(p.numel() for name, p in model.named_parameters() if "vision" in name and p.ndim == 2)
    image = int((batch["input_ids"][0] == model.config.image_token_id).sum())
    once = 2 * sum(each) * (records * shared + whole - rows * shared) + 2 * tower * image * records
    targets = int((batch["labels"] != IGNORED).sum())
    vocabulary = model.get_output_embeddings().weight.numel()
    step = 2 * 2 * (sum(each[layer + 1 :]) * again + vocabulary * targets)
    return float(once + steps * step)


def main() -> None:
    made = parser(__doc__ or "")
    made.add_argument("--layer", type=int, default=10)
    made.add_argument("--records", type=int, default=4)
    made.add_argument("--together", type=int, default=4, help="records that the fast side learns side by side")
    made.add_argument("--steps", type=int, default=25)
    made.add_argument("--plain-steps", type=int, default=2)
    args, model, processor = opened(made)
    alone, joined = (batches(processor, args.records, count) for count in (1, args.together))
    rate = matmul_rate(model.device, model.dtype)
    learn(model, [args.layer], alone[0], 1, True)  # the first pass of all pays for what is set up
    fast, plain, floor = Cost(), Cost(), 0.0
    found: dict[str, dict[int, Tensor]] = {}
    for batch in joined:
        cost, _ = learn(model, [args.layer], batch, args.steps, True)
        fast += cost
        floor += floor_flops(model, args.layer, batch, args.steps) / rate
        found |= learn(model, [args.layer], batch, args.plain_steps, True)[1]
    off, flips = 0.0, 0
    for batch in alone:
        cost, expected = learn(model, [args.layer], batch, args.plain_steps, False)
        cost.seconds *= args.steps / args.plain_steps
        plain += cost
        off, flips = further(off, flips, found, expected)
    more = {"largest_difference": off, "tokens": alone[0]["input_ids"].shape[1]}
    compare(args, plain, fast, agreed(off, flips), floor, **more)


if __name__ == "__main__":
    main()
