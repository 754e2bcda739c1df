"""Cost of stage 1 as a function of records, layers, image tokens and processes: a plot and a table of each.

    python -m benchmarks.growth --out docs/performance

Each point compares the fast and the plain implementation on the same model and records, in seconds of `--steps` steps; the
plain side is one step, scaled. Only the plot over image tokens changes the number of image tokens; processes have one thread
each. Writes `growth.json` and `growth-NAME.png` to OUT; `--draw` only draws the plots again from an existing `growth.json`.
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
from benchmarks.layers import search
from benchmarks.locate import learn, make_batches
from lightning_neuralgate.runtime.cost import Cost
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
    """A point of a plot; there is no plain side for several processes."""
    return {"size": size, "fast": fast} | ({} if plain is None else {"plain": plain})


def time_both(model: Any, batches: list[dict[str, Any]], layers: list[int], steps: int) -> tuple[float, float]:
    """Seconds of the plain and the fast side."""
    fast, plain = Cost(), Cost()
    for batch in batches:
        fast += search(model, layers, batch, steps)
        # the cost of the plain side differs between layers only by the depth of the backward pass
        cost, _ = learn(model, [layers[len(layers) // 2]], batch, 1, False)
        plain += Cost(cost.seconds * steps * len(layers))
    return plain.seconds, fast.seconds


def over_records(args: argparse.Namespace) -> Iterator[Point]:
    model, processor = load_warm(args)
    batches = make_batches(processor, max(RECORDS), 1)
    for count in RECORDS:
        yield point(count, *time_both(model, batches[:count], [LAYER], args.steps))


def over_layers(args: argparse.Namespace) -> Iterator[Point]:
    model, processor = load_warm(args)
    for count in LAYERS:
        first = LAYER - count // 2
        layers = list(range(first, first + count))
        yield point(count, *time_both(model, make_batches(processor, 1, 1), layers, args.steps))


def over_tokens(args: argparse.Namespace) -> Iterator[Point]:
    for count in TOKENS:
        model, processor = with_image_tokens(*load_warm(args), count)
        model.requires_grad_(False)
        yield point(count, *time_both(model, make_batches(processor, 1, 1), [LAYER], args.steps))


def over_processes(args: argparse.Namespace) -> Iterator[Point]:
    options = ["--layer", str(LAYER), "--steps", str(args.steps), "--model", args.model]
    process_args = processes.processes_parser("").parse_args(options)
    for count in PROCESSES:
        yield point(count, None, processes.run(process_args, count)[0])


KINDS: dict[str, Callable[[argparse.Namespace], Iterator[Point]]] = {
    "records": over_records,
    "layers": over_layers,
    "tokens": over_tokens,
    "processes": over_processes,
}


def load_warm(args: argparse.Namespace) -> tuple[Any, Any]:
    """Load model and processor, and run a warm-up step."""
    model, processor = load_geometry("smol", args.model)
    model.requires_grad_(False)
    learn(model, [LAYER], make_batches(processor, 1, 1)[0], 1, True)
    return model, processor


def draw(file: Path, title: str, points: list[Point], steps: int) -> None:
    """Plot seconds over size, on logarithmic axes."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 3.6), layout="constrained")
    axes = figure.subplots()
    sizes = [entry["size"] for entry in points]
    for side, label in (("plain", "full passes"), ("fast", "lightning-neuralgate")):
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
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument(
        "--model", default="smol-llava", help="another model: a folder or a Hugging Face Hub repository"
    )
    parser.add_argument("--only", choices=tuple(KINDS), nargs="+", default=list(KINDS), help="plots to measure")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--threads", type=int, help="threads of this process (default: all cores)")
    parser.add_argument("--draw", action="store_true", help="only draw the plots again")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    file = args.out / "growth.json"
    figures: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    for kind in [] if args.draw else tqdm(args.only, desc="growth"):
        points = list(KINDS[kind](args))
        figures[kind] = {"steps": args.steps, "threads": torch.get_num_threads(), "points": points}
        with atomic_write(file) as draft:
            draft.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    for kind, figure in figures.items():
        draw(args.out / f"growth-{kind}.png", TITLES[kind], figure["points"], figure["steps"])
        print(f"| {TITLES[kind]} | plain | fast | ratio |\n| ---: | ---: | ---: | ---: |")
        for entry in figure["points"]:
            plain = entry.get("plain")
            seconds, ratio = ("", "") if plain is None else (f"{plain:.1f} s", f"{plain / entry['fast']:.1f}")
            print(f"| {entry['size']:g} | {seconds} | {entry['fast']:.1f} s | {ratio} |")


if __name__ == "__main__":
    main()
