"""The layer search with a shared prefix for all layers, compared with full passes in each layer.

    python -m benchmarks.layers --geometry llava-1.5 --json FILE

Both sides learn the vectors of the same records with the same model in this process, each layer on its own: the fast side all
steps in all layers, the plain side `--plain-steps` steps in the first and the last layer, its seconds scaled to all steps and
layers. They agree if the vectors of these two layers after `--plain-steps` steps differ by at most 1e-4 and have the same
signs. `prefix_passes` is the number of vision tower passes of the fast side per record.
"""

from __future__ import annotations

from typing import Any

from benchmarks.locate import compare_vectors, floor_flops, learn, make_batches, vectors_agree
from benchmarks.measure import make_parser, parse_and_load, report_comparison
from lightning_neuralgate.locate.locator import PrivacyLocatorModule
from lightning_neuralgate.models.costs import matmul_rate
from lightning_neuralgate.runtime.cost import Cost, measure


def main() -> None:
    parser = make_parser(__doc__ or "")
    parser.add_argument("--first", type=int, default=5)
    parser.add_argument("--layers", type=int, default=10)
    parser.add_argument("--records", type=int, default=1)
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--plain-steps", type=int, default=2)
    args, model, processor = parse_and_load(parser)
    layers = list(range(args.first, args.first + args.layers))
    ends = [layers[0], layers[-1]]
    batches = make_batches(processor, args.records, 1)
    rate = matmul_rate(model.device, model.dtype)
    learn(model, ends, batches[0], 1, True)  # warm-up
    passes: list[Any] = []
    towers = [
        module for name, module in model.named_modules() if name.endswith(("vision_tower", "vision_model", "visual"))
    ]
    handles = [tower.register_forward_hook(lambda *_: passes.append(1)) for tower in towers[:1]]
    fast, plain, floor, largest, flips = Cost(), Cost(), 0.0, 0.0, 0
    for batch in batches:
        fast += search(model, layers, batch, args.steps)
    prefix_passes = len(passes) / len(batches)
    for handle in handles:
        handle.remove()
    for batch in batches:
        once = floor_flops(model, layers[0], batch, 0)
        floor += once + sum(floor_flops(model, layer, batch, args.steps) - once for layer in layers)
        for layer in ends:
            _, fast_vectors = learn(model, [layer], batch, args.plain_steps, True)
            cost, plain_vectors = learn(model, [layer], batch, args.plain_steps, False)
            cost.seconds *= args.steps / args.plain_steps * len(layers) / len(ends)
            plain += cost
            difference, flipped = compare_vectors(fast_vectors, plain_vectors)
            largest, flips = max(largest, difference), flips + flipped
    args.layers = layers
    figures = {"largest_difference": largest, "prefix_passes": prefix_passes}
    report_comparison(args, plain, fast, vectors_agree(largest, flips, args.dtype), floor / rate, **figures)


def search(model: Any, layers: list[int], batch: dict[str, Any], steps: int) -> Cost:
    """Cost of learning the vectors of a record in each layer on its own."""
    locator = PrivacyLocatorModule(model, layers, max_steps=steps, stop_loss=-1.0, jointly=False).to(model.device)
    locator._losses.fast_path.restore(True)
    with measure() as cost:
        locator._learn(batch)
    return cost


if __name__ == "__main__":
    main()
