"""`neuralgate plan`: predicted time and memory of both stages, from a model's config alone."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser, Namespace
from jsonargparse.typing import NonNegativeInt, PositiveFloat, PositiveInt

from lightning_neuralgate.cli.options import add_config, check_folder
from lightning_neuralgate.cli.output import show
from lightning_neuralgate.edit.editor import Schedule
from lightning_neuralgate.errors import ModelLayoutError
from lightning_neuralgate.models.loading import EMBEDDED, Precision, Quantization
from lightning_neuralgate.runtime.files import atomic_write

PRECISIONS: tuple[Precision | Quantization, ...] = ("float32", "bfloat16", "float16", "int8", "nf4")


def add_arguments(parser: ArgumentParser) -> None:
    """Add the options of `neuralgate plan`."""
    add_config(parser)
    parser.add_argument(
        "--model.name", type=str, default=EMBEDDED,
        help="A folder with config.json, a Hub repository or an embedded model; no weights are loaded.",
    )  # fmt: skip
    parser.add_argument(
        "--model.trust_remote_code",
        type=bool,
        default=False,
        help="Allow code from the checkpoint's repository to run.",
    )
    parser.add_argument(
        "--editor.layers", type=list[NonNegativeInt] | None, default=None,
        help="Layers to locate in and to edit. Default: the one at a third of the depth.",
    )  # fmt: skip
    parser.add_argument("--editor.schedule", type=Schedule, default="minibatch", help="Schedule of the edit.")
    parser.add_argument("--records", type=PositiveInt, default=15, help="Records.")
    parser.add_argument("--pairs", type=PositiveInt, default=4, help="Query pairs per record.")
    parser.add_argument("--epochs", type=PositiveInt, default=1, help="Epochs of the edit.")
    parser.add_argument("--pairs_per_batch", type=PositiveInt, default=4, help="Query pairs per mini-batch.")
    parser.add_argument(
        "--image_tokens", type=PositiveInt | None, default=None,
        help="Tokens per picture, where they depend on the picture's size, as in Qwen2-VL.",
    )  # fmt: skip
    parser.add_argument(
        "--text_tokens", type=PositiveInt, default=40, help="All other tokens of a query: template, question, target."
    )
    parser.add_argument(
        "--rate", type=PositiveFloat | None, default=None,
        help="Floating point operations per second of a large matrix product, for another machine. Default: measured.",
    )  # fmt: skip
    parser.add_argument("--out", type=Path | None, default=None, help="JSON file for the figures.")


def run(options: Namespace) -> None:
    """Print tokens, operations, seconds and memory, whether the model fits, and the commands to run."""
    import torch

    from lightning_neuralgate.models.costs import image_tokens, matmul_rate, model_shapes, read_config

    if options.out is not None:
        check_folder("--out", options.out.parent)
    config = read_config(options.model.name, options.model.trust_remote_code)
    shapes = model_shapes(config, options.model.trust_remote_code)
    tokens = options.image_tokens or image_tokens(config)
    if tokens is None:
        raise ModelLayoutError(
            f"the number of tokens per picture of '{options.model.name}' depends on the picture; give --image_tokens"
        )
    layers = sorted(set(options.editor.layers or [shapes.depth // 3]))
    if layers[-1] >= shapes.depth:
        raise ModelLayoutError(f"there is no layer {layers[-1]}; the model has layers 0 to {shapes.depth - 1}")
    work = _workload(options, tokens)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    name, capacity = _device(device)
    figures: dict[str, Any] = {}
    rates: dict[str, float] = {}
    for precision in PRECISIONS:
        computed = "bfloat16" if precision in ("int8", "nf4") else precision
        if computed not in rates:
            rates[computed] = options.rate or matmul_rate(device, getattr(torch, computed))
        figures[precision] = _figures(shapes, layers, work, precision, rates[computed], options)
        figures[precision]["fits"] = figures[precision]["peak"] <= capacity
    show(
        f"{type(config).__name__.removesuffix('Config')}: {shapes.parameters / 1e9:.3g} billion parameters, {shapes.depth} "
        f"layers; layers {layers}\n"
        f"{tokens} tokens per picture, {work.tokens} per query; {options.records} records, "
        f"{options.records * options.pairs} query pairs"
    )
    _print_table(figures)
    show(f"device: {name}, {_bytes(capacity)}")
    fitting = [precision for precision in PRECISIONS if figures[precision]["fits"]]
    if fitting:
        show("\n".join(_commands(options, layers, fitting[0])))
    else:
        needed = _bytes(figures["nf4"]["peak"])
        show(f"no precision fits: nf4 needs {needed}; use a larger machine, or FSDP2 on several devices")
    if options.out is not None:
        content = {"model": options.model.name, "layers": layers, "image_tokens": tokens, "device": name,
                   "capacity": capacity, "precisions": figures}  # fmt: skip
        with atomic_write(options.out) as draft:
            draft.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _workload(options: Namespace, tokens: int) -> Any:
    from lightning_neuralgate.models.costs import Workload

    paper = options.editor.schedule == "paper"
    return Workload(
        tokens,
        options.text_tokens,
        min(8, options.text_tokens),
        edit_steps=10 if paper else 1,
        pairs_per_batch=1 if paper else options.pairs_per_batch,
    )


def _figures(
    shapes: Any, layers: list[int], work: Any, precision: Precision | Quantization, rate: float, options: Namespace
) -> dict[str, Any]:
    """Return the figures of one precision; bytes, operations and seconds."""
    from lightning_neuralgate.models.costs import EFFICIENCY

    locate, edit = shapes.locate_memory(layers[0], work, precision), shapes.edit_memory(layers, work, precision)
    record, pair = shapes.locate_flops(layers[0], work), shapes.edit_flops(layers[0], work)
    pairs = options.records * options.pairs * options.epochs
    speed = rate * EFFICIENCY
    return {
        "weights": locate.weights,
        "locate": {"prefix": locate.prefix, "activations": locate.activations, "peak": locate.total},
        "edit": {
            "prefix": edit.prefix,
            "activations": edit.activations,
            "optimizer": edit.optimizer,
            "peak": edit.total,
        },
        "peak": max(locate.total, edit.total),
        "rate": rate,
        "flops_per_record": record,
        "seconds_per_record": record / speed,
        "flops_per_pair": pair,
        "seconds_per_pair": pair / speed,
        "seconds_locate": options.records * record / speed,
        "seconds_edit": pairs * pair / speed,
    }


def _print_table(figures: dict[str, Any]) -> None:
    rows: dict[str, Any] = {
        "weights": lambda f: _bytes(f["weights"]),
        "locate: prefix": lambda f: _bytes(f["locate"]["prefix"]),
        "locate: activations": lambda f: _bytes(f["locate"]["activations"]),
        "locate: peak": lambda f: _bytes(f["locate"]["peak"]),
        "edit: prefix": lambda f: _bytes(f["edit"]["prefix"]),
        "edit: activations": lambda f: _bytes(f["edit"]["activations"]),
        "edit: optimizer": lambda f: _bytes(f["edit"]["optimizer"]),
        "edit: peak": lambda f: _bytes(f["edit"]["peak"]),
        "fits": lambda f: "yes" if f["fits"] else "no",
        "matrix product": lambda f: f"{f['rate'] / 1e9:.4g} GFLOP/s",
        "locate, per record": lambda f: f"{f['flops_per_record'] / 1e9:.4g} GFLOP, {_seconds(f['seconds_per_record'])}",
        "edit, per query pair": lambda f: f"{f['flops_per_pair'] / 1e9:.4g} GFLOP, {_seconds(f['seconds_per_pair'])}",
        "locate, all records": lambda f: _seconds(f["seconds_locate"]),
        "edit, all epochs": lambda f: _seconds(f["seconds_edit"]),
    }
    cells = [["", *figures], *([label, *map(cell, figures.values())] for label, cell in rows.items())]
    widths = [max(len(row[column]) for row in cells) for column in range(len(cells[0]))]
    for first, *others in cells:
        row = [first.ljust(widths[0]), *(text.rjust(width) for text, width in zip(others, widths[1:], strict=True))]
        show("  ".join(row))


def _commands(options: Namespace, layers: list[int], precision: Precision | Quantization) -> list[str]:
    kind = f"bfloat16 --model.quantize {precision}" if precision in ("int8", "nf4") else precision
    model = f"--model.name {options.model.name} --model.dtype {kind}"
    edit = "" if options.editor.schedule == "minibatch" else " --editor.schedule paper"
    return [
        f"neuralgate locate {model} --data.folder data --locator.layers '{layers}' --out gate",
        f"neuralgate edit {model} --data.folder data --editor.layers '{layers}'{edit} --gate gate --out edited",
    ]


def _device(device: Any) -> tuple[str, float]:
    """Return a device's name and its memory in bytes."""
    import torch

    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        return properties.name, float(properties.total_memory)
    try:
        memory = float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    except (ValueError, AttributeError, OSError):  # not on this system
        memory = float("inf")
    return f"CPU, {torch.get_num_threads()} threads", memory


def _bytes(count: float) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"


def _seconds(seconds: float) -> str:
    if seconds >= 5400:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 60:.1f} min" if seconds >= 90 else f"{seconds:.3g} s"
