"""Stage 1 with cached prefixes, compared with full forward passes.

    python -m benchmarks.locate --geometry llava-1.5 --json FILE

Both sides learn the vectors of the same records with the same model in this process: the fast side all steps, the plain side
`--plain-steps` of them, its seconds scaled to all steps. They agree if the vectors after `--plain-steps` steps differ by at
most 1e-4 (with weights in half precision by 0.5, the change of one step) and have the same signs. `floor_share` is the time
that the necessary floating point operations would take at the rate of a large matrix product, relative to the time of the
fast side. Counted are products with weights: one pass over the shared prefix, one over the rest of each row, and for each
step the layers above the located one on the tokens from the subject on, forward and backward, and the output embeddings at
target tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from torch import Tensor

from benchmarks.measure import is_tower, make_parser, parse_and_load, report_comparison
from benchmarks.records import with_benign_targets
from lightning_neuralgate.data.collator import PrivacyPairCollator
from lightning_neuralgate.data.datamodule import locate_rows
from lightning_neuralgate.data.rendering.dataset import render_splits
from lightning_neuralgate.gate.spans import last_position
from lightning_neuralgate.hf.decoder import find_decoder
from lightning_neuralgate.hf.forward import IGNORED
from lightning_neuralgate.locate.locator import PrivacyLocatorModule
from lightning_neuralgate.models.costs import matmul_rate
from lightning_neuralgate.prefix_cache.locate_pass import LocatePass
from lightning_neuralgate.runtime.cost import Cost, measure

SUBJECTS = ("passport", "student_id", "receipt")


def make_batches(processor: Any, records: int, records_per_batch: int) -> list[dict[str, Any]]:
    """Collate rendered records into batches of stage 1."""
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
        rows = [locate_rows(record) for record in with_benign_targets(splits.edit)[:records]]
        return [
            collate([row for record in rows[start : start + records_per_batch] for row in record])
            for start in range(0, records, records_per_batch)
        ]


def learn(
    model: Any, layers: list[int], batch: Mapping[str, Any], steps: int, fast: bool
) -> tuple[Cost, dict[str, dict[int, Tensor]]]:
    """Cost of learning the records of a batch, and their vectors by record and layer."""
    locator = PrivacyLocatorModule(model, layers, max_steps=steps, stop_loss=-1.0, reuse_prefix=fast).to(model.device)
    locator._losses.fast_path.restore(fast)  # no fallback: the benchmark checks equality itself
    with measure() as cost:
        vectors, _, _ = locator._learn(batch)
    return cost, vectors


def compare_vectors(
    fast: Mapping[str, Mapping[int, Tensor]], plain: Mapping[str, Mapping[int, Tensor]]
) -> tuple[float, int]:
    """Largest absolute difference of the vectors of the records in `plain`, and the number of different signs."""
    largest, flips = 0.0, 0
    for record, vectors in plain.items():
        for layer, vector in vectors.items():
            largest = max(largest, float((fast[record][layer] - vector).abs().max()))
            flips += int(((fast[record][layer] < 0) != (vector < 0)).sum())
    return largest, flips


def vectors_agree(largest: float, flips: int, dtype: str = "float32") -> bool:
    """Whether a largest difference and a number of sign flips are within tolerance for weights of this type."""
    return largest <= (1e-4 if dtype == "float32" else 0.5) and not flips


def floor_flops(model: Any, layer: int, batch: Mapping[str, Any], steps: int) -> float:
    """Floating point operations of the products with weights that the method needs for a batch of records."""
    decoder = find_decoder(model).layers
    weights = [sum(p.numel() for p in block.parameters() if p.ndim == 2) for block in decoder]
    upper = LocatePass(model, batch, last_position(batch["subject_mask"]), [layer])
    tokens = int(batch["attention_mask"].sum())
    rows = len(batch["input_ids"])
    records = len(set(batch["record_id"]))
    shared = upper.prefix_length
    recomputed = int(upper.real.sum())
    tower = sum(p.numel() for name, p in model.named_parameters() if is_tower(name) and p.ndim == 2)
    image = int((batch["input_ids"][0] == model.config.image_token_id).sum())
    once = 2 * sum(weights) * (records * shared + tokens - rows * shared) + 2 * tower * image * records
    targets = int((batch["labels"] != IGNORED).sum())
    vocabulary = model.get_output_embeddings().weight.numel()
    step = 2 * 2 * (sum(weights[layer + 1 :]) * recomputed + vocabulary * targets)
    return float(once + steps * step)


def main() -> None:
    parser = make_parser(__doc__ or "")
    parser.add_argument("--layer", type=int, default=10)
    parser.add_argument("--records", type=int, default=4)
    parser.add_argument("--together", type=int, default=4, help="records per batch of the fast side")
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--plain-steps", type=int, default=2)
    args, model, processor = parse_and_load(parser)
    plain_batches, fast_batches = (make_batches(processor, args.records, count) for count in (1, args.together))
    rate = matmul_rate(model.device, model.dtype)
    learn(model, [args.layer], plain_batches[0], 1, True)  # warm-up
    fast, plain, floor = Cost(), Cost(), 0.0
    fast_vectors: dict[str, dict[int, Tensor]] = {}
    for batch in fast_batches:
        cost, _ = learn(model, [args.layer], batch, args.steps, True)
        fast += cost
        floor += floor_flops(model, args.layer, batch, args.steps) / rate
        fast_vectors |= learn(model, [args.layer], batch, args.plain_steps, True)[1]
    largest, flips = 0.0, 0
    for batch in plain_batches:
        cost, plain_vectors = learn(model, [args.layer], batch, args.plain_steps, False)
        cost.seconds *= args.steps / args.plain_steps
        plain += cost
        difference, flipped = compare_vectors(fast_vectors, plain_vectors)
        largest, flips = max(largest, difference), flips + flipped
    more = {"largest_difference": largest, "flips": flips, "tokens": plain_batches[0]["input_ids"].shape[1]}
    report_comparison(args, plain, fast, vectors_agree(largest, flips, args.dtype), floor, **more)


if __name__ == "__main__":
    main()
