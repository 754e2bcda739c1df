"""How the cost of locating grows with records, layers, image tokens and processes: one picture each, and the figures.

    python -m benchmarks.growth --out docs/performance

Each point is the plain loop beside the fast one on the same model and records, in seconds of `--steps` steps. The plain
side is one step, scaled. Records, layers and processes are measured with the image tokens of the model as it is; processes
have one thread each. Leaves `growth.json` and `growth-NAME.png` in OUT; `--draw` draws the pictures again from an earlier
`growth.json`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from benchmarks import processes
from benchmarks.geometries import load_geometry, with_image_tokens
from benchmarks.layers import searched
from benchmarks.locate import batches, learn
from benchmarks.side_by_side import Cost
from lightning_neuralgate.runtime.files import atomic_write

LAYER = 10
RECORDS, LAYERS, TOKENS, PROCESSES = (1, 2, 4, 8), (1, 2, 5, 10), (81, 144, 324, 576), (1, 2)
TITLES = {
    "records": "records",
    "layers": "layers searched, one record",
    "tokens": "image tokens, one record",
    "processes": "processes of one thread, twelve records",
}
Point = dict[str, float]


def point(size: int, plain: float | None, fast: float) -> Point:
    """Seconds of both sides at one size; the plain side is not run in several processes."""
    return {"size": size, "fast": fast} | ({} if plain is None else {"plain": plain})


def both(model: Any, found: list[dict[str, Any]], layers: list[int], steps: int) -> tuple[float, float]:
    """Seconds of the plain and the fast side."""
    fast, plain = Cost(), Cost()
    for batch in found:
        fast += searched(model, layers, batch, steps)
        # a layer of the plain loop costs what any other does, to within the depth of its way back
        cost, _ = learn(model, [layers[len(layers) // 2]], batch, 1, False)
        plain += Cost(cost.seconds * steps * len(layers))
    return plain.seconds, fast.seconds


def of_records(args: argparse.Namespace) -> Iterator[Point]:
    model, processor = opened(args)
    found = batches(processor, max(RECORDS), 1)
    for count in RECORDS:
        yield point(count, *both(model, found[:count], [LAYER], args.steps))


def of_layers(args: argparse.Namespace) -> Iterator[Point]:
    model, processor = opened(args)
    for count in LAYERS:
        first = LAYER - count // 2
        yield point(count, *both(model, batches(processor, 1, 1), list(range(first, first + count)), args.steps))


def of_tokens(args: argparse.Namespace) -> Iterator[Point]:
    for count in TOKENS:
        model, processor = with_image_tokens(*opened(args), count)
        model.requires_grad_(False)
        yield point(count, *both(model, batches(processor, 1, 1), [LAYER], args.steps))


def of_processes(args: argparse.Namespace) -> Iterator[Point]:
    words = ["--layer", str(LAYER), "--steps", str(args.steps), "--model", args.model]
    told = processes.options("").parse_args(words)
    for count in PROCESSES:
        yield point(count, None, processes.run(told, count)[0])


KINDS: dict[str, Callable[[argparse.Namespace], Iterator[Point]]] = {
    "records": of_records,
    "layers": of_layers,
    "tokens": of_tokens,
    "processes": of_processes,
}


def opened(args: argparse.Namespace) -> tuple[Any, Any]:
    """The model, warm, and its processor."""
    model, processor = load_geometry("smol", args.model)
    model.requires_grad_(False)
    learn(model, [LAYER], batches(processor, 1, 1)[0], 1, True)
    return model, processor


def draw(file: Path, title: str, points: list[Point], steps: int) -> None:
    """Seconds over size, both axes in powers, so that a straight line is a power law."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 3.6), layout="constrained")
    axes = figure.subplots()
    sizes = [entry["size"] for entry in points]
    for side, label in (("plain", "whole passes"), ("fast", "lightning-neuralgate")):
        if side in points[0]:
            axes.plot(sizes, [entry[side] for entry in points], "o-", label=label)
            for entry in points:
                axes.annotate(
                    f"{entry[side]:.3g}", (entry["size"], entry[side]), (0, 6), textcoords="offset points", ha="center"
                )
    axes.set(xscale="log", yscale="log", xlabel=title, ylabel=f"seconds of {steps} steps")
    axes.set_xticks(sizes, [f"{size:g}" for size in sizes])
    axes.minorticks_off()
    axes.margins(0.12, 0.2)
    axes.grid(alpha=0.3)
    axes.legend()
    with atomic_write(file) as draft:
        figure.savefig(draft, format="png", dpi=110)


def main() -> None:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--out", type=Path, required=True)
    made.add_argument("--model", default="smol-llava", help="a folder or a hub repository instead")
    made.add_argument("--only", choices=tuple(KINDS), nargs="+", default=list(KINDS), help="which to measure anew")
    made.add_argument("--steps", type=int, default=10)
    made.add_argument("--threads", type=int, help="of this process; all cores when left out")
    made.add_argument("--draw", action="store_true", help="measure nothing")
    args = made.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    file = args.out / "growth.json"
    figures: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    for kind in [] if args.draw else tqdm(args.only, desc="growth"):
        points = list(KINDS[kind](args))
        figures[kind] = {"steps": args.steps, "threads": torch.get_num_threads(), "points": points}
        with atomic_write(file) as draft:
            draft.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    for kind, found in figures.items():
        draw(args.out / f"growth-{kind}.png", TITLES[kind], found["points"], found["steps"])
        print(f"| {TITLES[kind]} | plain | fast | ratio |\n| ---: | ---: | ---: | ---: |")
        for entry in found["points"]:
            plain = entry.get("plain")
            told = ("", "") if plain is None else (f"{plain:.1f} s", f"{plain / entry['fast']:.1f}")
            print(f"| {entry['size']:g} | {told[0]} | {entry['fast']:.1f} s | {told[1]} |")


if __name__ == "__main__":
    main()
