"""Peak memory beyond the weights of locating one record and of editing one query pair.

    python -m benchmarks.memory --geometry llava-1.5-7b --layer 11 --json FILE

Both run with cached prefixes, in this process, and peaks are counted from the memory before them, in which the model's
weights lie. Locating takes three steps; further steps take no more memory. The edit is the paper's schedule on one pair.
"""

from __future__ import annotations

from typing import Any

from benchmarks import edit, locate
from benchmarks.measure import make_parser, parse_and_load, report
from lightning_neuralgate.hf.decoder import find_decoder

LOCATE_STEPS = 3


def bytes_of_weights(model: Any) -> int:
    """Size of a model's weights, tied ones counted once."""
    return sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())


def main() -> None:
    parser = make_parser(__doc__ or "")
    parser.add_argument("--layer", type=int, help="default: a third of the depth")
    parser.add_argument("--steps", type=int, default=10, help="steps of the edit")
    args, model, processor = parse_and_load(parser)
    layer = len(find_decoder(model).layers) // 3 if args.layer is None else args.layer
    (record,) = locate.make_batches(processor, 1, 1)
    located, _ = locate.learn(model, [layer], record, LOCATE_STEPS, True)
    batches = edit.make_batches(processor, 1, 1)
    edited, _ = edit.run_edit(model, layer, batches, edit.random_gate(model, layer, batches), "paper", args.steps)
    results = {
        "weights_gb": bytes_of_weights(model) / 1e9,
        "locate_gb": located.peak_memory / 1e9,
        "edit_gb": edited.peak_memory / 1e9,
        "locate_seconds": located.seconds,
        "edit_seconds": edited.seconds,
        "tokens": record["input_ids"].shape[1],
        "layer": layer,
        **{name: getattr(args, name) for name in ("geometry", "dtype", "depth", "shrink", "steps")},
    }
    report(results, args.json)


if __name__ == "__main__":
    main()
