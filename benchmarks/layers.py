"""The layer search with one pass for all layers, beside the plain loop of whole passes in each.

    python -m benchmarks.layers --geometry llava-1.5 --json FILE

Both sides learn the same records of the same model in this process, each layer alone: the fast side all steps in all layers,
the plain side `--plain-steps` steps in the first and the last layer, its seconds scaled to as many steps and layers. They
agree if after as many steps the vectors of these two differ by at most 1e-4 and no activity differs. `prefix_passes`: how
often the fast side ran the vision tower for a record.
"""

from __future__ import annotations

from typing import Any

import torch

from benchmarks.geometries import load_geometry
from benchmarks.locate import batches, floor_flops, further, learn
from benchmarks.side_by_side import Cost, matmul_rate, measured, parser, tell
from lightning_neuralgate.locator import PrivacyLocatorModule


def main() -> None:
    made = parser(__doc__ or "")
    made.add_argument("--first", type=int, default=5)
    made.add_argument("--layers", type=int, default=10)
    made.add_argument("--records", type=int, default=1)
    made.add_argument("--steps", type=int, default=25)
    made.add_argument("--plain-steps", type=int, default=2)
    args = made.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    layers = list(range(args.first, args.first + args.layers))
    ends = [layers[0], layers[-1]]
    model, processor = load_geometry(args.geometry, args.model)
    model.requires_grad_(False)
    records = batches(processor, args.records, 1)
    rate = matmul_rate(model.device, model.dtype)
    learn(model, ends, records[0], 1, True)  # the first pass of all pays for what is set up
    passes: list[Any] = []
    towers = [part for name, part in model.named_modules() if name.endswith(("vision_tower", "vision_model", "visual"))]
    handles = [part.register_forward_hook(lambda *_: passes.append(1)) for part in towers[:1]]
    fast, plain, floor, off, flips = Cost(), Cost(), 0.0, 0.0, 0
    for batch in records:
        fast = _more(fast, searched(model, layers, batch, args.steps))
    prefix_passes = len(passes) / len(records)
    for handle in handles:
        handle.remove()
    for batch in records:
        once = floor_flops(model, layers[0], batch, 0)
        floor += once + sum(floor_flops(model, layer, batch, args.steps) - once for layer in layers)
        for layer in ends:
            _, found = learn(model, [layer], batch, args.plain_steps, True)
            cost, expected = learn(model, [layer], batch, args.plain_steps, False)
            cost.seconds *= args.steps / args.plain_steps * len(layers) / len(ends)
            plain = _more(plain, cost)
            off, flips = further(off, flips, found, expected)
    results = {
        "seconds_plain": plain.seconds,
        "seconds_fast": fast.seconds,
        "ratio": plain.seconds / fast.seconds,
        "agree": off <= 1e-4 and not flips,
        "largest_difference": off,
        "peak_memory_ratio": fast.peak_memory / plain.peak_memory,
        "floor_share": floor / rate / fast.seconds,
        "prefix_passes": prefix_passes,
        "layers": layers,
        "records": args.records,
        "steps": args.steps,
        "plain_steps": args.plain_steps,
        "geometry": args.geometry,
        "model": args.model,
        "threads": torch.get_num_threads(),
    }
    tell(results, args.json)


def searched(model: Any, layers: list[int], batch: dict[str, Any], steps: int) -> Cost:
    """What it costs to learn each layer of a record alone."""
    locator = PrivacyLocatorModule(model, layers, max_steps=steps, stop_loss=-1.0, jointly=False).to(model.device)
    locator._reuse = True
    with measured() as cost:
        locator._learn(batch)
    return cost


def _more(one: Cost, other: Cost) -> Cost:
    return Cost(one.seconds + other.seconds, max(one.peak_memory, other.peak_memory))


if __name__ == "__main__":
    main()
