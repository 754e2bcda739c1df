"""The layer search with one pass for all layers, beside the plain loop of whole passes in each.

    python -m benchmarks.layers --geometry llava-1.5 --json FILE

Both sides learn the same records of the same model in this process, each layer alone: the fast side all steps in all layers,
the plain side `--plain-steps` steps in the first and the last layer, its seconds scaled to as many steps and layers. They
agree if after as many steps the vectors of these two differ by at most 1e-4 and no activity differs. `prefix_passes`: how
often the fast side ran the vision tower for a record.
"""

from __future__ import annotations

from typing import Any

from benchmarks.locate import agreed, batches, floor_flops, further, learn
from benchmarks.side_by_side import Cost, compare, matmul_rate, measured, opened, parser
from lightning_neuralgate.locate.locator import PrivacyLocatorModule


def main() -> None:
    made = parser(__doc__ or "")
    made.add_argument("--first", type=int, default=5)
    made.add_argument("--layers", type=int, default=10)
    made.add_argument("--records", type=int, default=1)
    made.add_argument("--steps", type=int, default=25)
    made.add_argument("--plain-steps", type=int, default=2)
    args, model, processor = opened(made)
    layers = list(range(args.first, args.first + args.layers))
    ends = [layers[0], layers[-1]]
    records = batches(processor, args.records, 1)
    rate = matmul_rate(model.device, model.dtype)
    learn(model, ends, records[0], 1, True)  # the first pass of all pays for what is set up
    passes: list[Any] = []
    towers = [part for name, part in model.named_modules() if name.endswith(("vision_tower", "vision_model", "visual"))]
    handles = [part.register_forward_hook(lambda *_: passes.append(1)) for part in towers[:1]]
    fast, plain, floor, off, flips = Cost(), Cost(), 0.0, 0.0, 0
    for batch in records:
        fast += searched(model, layers, batch, args.steps)
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
            plain += cost
            off, flips = further(off, flips, found, expected)
    args.layers = layers
    told = {"largest_difference": off, "prefix_passes": prefix_passes}
    compare(args, plain, fast, agreed(off, flips), floor / rate, **told)


def searched(model: Any, layers: list[int], batch: dict[str, Any], steps: int) -> Cost:
    """What it costs to learn each layer of a record alone."""
    locator = PrivacyLocatorModule(model, layers, max_steps=steps, stop_loss=-1.0, jointly=False).to(model.device)
    locator._losses.fast_path.restore(True)
    with measured() as cost:
        locator._learn(batch)
    return cost


if __name__ == "__main__":
    main()
