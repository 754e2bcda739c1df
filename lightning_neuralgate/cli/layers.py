"""`neuralgate layers`."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from jsonargparse import ArgumentParser, Namespace
from lightning.pytorch import Trainer, seed_everything
from torch import nn

from lightning_neuralgate.cli.options import UNFINISHED, ModelOptions, add_config, add_workers
from lightning_neuralgate.cli.tables import print_rates
from lightning_neuralgate.data.datamodule import PrivacyPairDataModule
from lightning_neuralgate.data.options import DataOptions
from lightning_neuralgate.data.records import RecordSplits, records_checksum
from lightning_neuralgate.edit.editor import PrivacyEditModule
from lightning_neuralgate.errors import DataFormatError
from lightning_neuralgate.evaluation.callback import RefusalMetricsCallback
from lightning_neuralgate.gate.autograd import Scope
from lightning_neuralgate.gate.callback import NeuralGateCallback
from lightning_neuralgate.gate.neural_gate import NeuralGate
from lightning_neuralgate.hf.decoder import find_decoder
from lightning_neuralgate.hf.identity import model_checksum
from lightning_neuralgate.locate.layer_search import (
    check_range,
    draw_search,
    mean_shares,
    propose,
    search_range,
    write_tables,
)
from lightning_neuralgate.locate.locator import PrivacyLocatorModule
from lightning_neuralgate.runtime.files import atomic_write, remove_temporary_files
from lightning_neuralgate.runtime.resume import check_same_run, remove_progress


def add_arguments(parser: ArgumentParser) -> None:
    """Options of the search."""
    add_config(parser)
    parser.add_argument("--out", type=Path, required=True, help="Folder for the gate, tables, figure and results.")
    parser.add_argument(
        "--layers", type=Sequence[int] | None, default=None,
        help="Layers to search; left out: where the paper's 3 to 19 of 32 lie in the model's depth.",
    )  # fmt: skip
    parser.add_argument(
        "--tau", type=float, default=0.3, help="Neurons with an activity rate above it are strongly active."
    )
    parser.add_argument("--radius", type=int, default=2, help="Candidates lie so many layers around the centre.")
    parser.add_argument(
        "--compare",
        type=bool,
        default=False,
        help="Edit in each candidate, too, and compare answers to the test splits.",
    )
    parser.add_argument("--scope", type=Scope, default="subject_last", help="Positions at which the gate applies.")
    parser.add_argument("--epochs", type=int, default=1, help="Of each compared edit.")
    parser.add_argument("--pairs_per_batch", type=int, default=4, help="Query pairs in a mini-batch of an edit.")
    parser.add_argument("--limit", type=int | None, default=None, help="At most so many queries of a split.")
    parser.add_argument("--accelerator", type=str, default="auto", help="gpu, cpu, or auto.")
    parser.add_argument("--precision", type=Literal["32-true", "bf16-mixed"], default="32-true", help="Of the edits.")
    parser.add_argument("--seed", type=int, default=0, help="Seed of the order of mini-batches.")
    add_workers(parser)
    parser.add_class_arguments(ModelOptions, "model")
    parser.add_class_arguments(DataOptions, "data")
    parser.add_class_arguments(
        PrivacyLocatorModule, "locator", skip={"model", "layers", "jointly", "cache_dir"}, instantiate=False
    )
    parser.add_class_arguments(
        PrivacyEditModule, "editor", skip={"model", "layers", "processor", "retention_weight"}, instantiate=False
    )


def run(options: Namespace) -> None:
    """Locate in every layer, propose, and compare. Started again after it was killed, it goes on where it was."""
    seed_everything(options.seed, verbose=False)
    options.data.refuse_retention("the search edits without a retention term")
    splits = options.data.read()  # now, not after a model has been loaded
    if options.compare and not splits.test:
        raise DataFormatError("there is no test split to compare edits on; leave --compare out, or give test records")
    model, processor = options.model.load()
    count = find_decoder(model).num_layers
    layers = sorted(search_range(count) if options.layers is None else options.layers)
    check_range(layers, count)
    unfinished = options.out / UNFINISHED
    locator = PrivacyLocatorModule(
        model, layers, **options.locator.as_dict(), jointly=False, cache_dir=unfinished / "records"
    )
    data = PrivacyPairDataModule(splits, processor, num_workers=options.num_workers)
    _trainer(options, max_epochs=1).fit(locator, datamodule=data)
    gate = locator.gate
    gate.save_pretrained(options.out / "gate")
    write_tables(gate, options.tau, options.out)
    proposal = propose(gate, options.tau, options.radius)
    with atomic_write(options.out / "layers.png") as draft:
        draw_search(gate, options.tau, proposal).savefig(draft, dpi=150, format="png")
    results: dict[str, Any] = {
        "tau": options.tau,
        "seed": options.seed,
        "centre": proposal.centre,
        "candidates": list(proposal.candidates),
        "shares": {layer: mean_shares(gate, layer, options.tau)._asdict() for layer in layers},
    }
    _print_shares(gate, options.tau)
    print(f"centre: layer {proposal.centre}; candidates: {', '.join(map(str, proposal.candidates))}")
    if options.compare:
        results["edits"] = _compare(options, model, processor, splits, gate, proposal.candidates)
        reached = {layer: rates["test"]["eta"] for layer, rates in results["edits"].items()}
        best = [layer for layer, eta in reached.items() if eta == max(reached.values())]
        print(f"largest EtA on test: layer {', '.join(best)}" + (" (equal)" if len(best) > 1 else ""))
    with atomic_write(options.out / "layers.json") as draft:
        draft.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    print(f"figure and tables: {options.out}")
    remove_progress(unfinished)
    remove_temporary_files(
        *(options.out / name for name in ("layers.png", "layers.json", "shares.csv", "activity.csv"))
    )


def _print_shares(gate: NeuralGate, tau: float) -> None:
    print("layer  inactive  weakly active  strongly active")
    for layer in gate.layers:
        inactive, weak, strong = mean_shares(gate, layer, tau)
        print(f"{layer:5d}  {inactive:8.1%}  {weak:13.1%}  {strong:15.1%}")


def _compare(
    options: Namespace, model: Any, processor: Any, splits: RecordSplits, gate: NeuralGate, layers: Sequence[int]
) -> dict[str, Any]:
    """Layer -> split -> rate, of an edit in that layer alone, each from the unedited weights."""
    tested = {name: records for name, records in splits._asdict().items() if name != "edit" and records}
    folder = options.out / UNFINISHED / "edits"
    arguments = options.editor.as_dict()
    settings = {
        "model": model_checksum(model), "gate": gate.fingerprint, "records": records_checksum(splits.edit),
        "editor": arguments, "scope": options.scope, "tau": options.tau, "seed": options.seed, "epochs": options.epochs,
        "pairs_per_batch": options.pairs_per_batch, "limit": options.limit, "precision": options.precision,
    }  # fmt: skip
    check_same_run(folder, settings)
    rates: dict[str, Any] = {}
    for layer in layers:
        file = folder / f"layer-{layer}.json"
        if not file.is_file():
            projection = find_decoder(model).output_projection(layer)
            base = copy.deepcopy(projection.state_dict())
            editor = PrivacyEditModule(model, [layer], processor, **arguments)
            asked = RefusalMetricsCallback(tested, processor, every_n_steps=0, limit=options.limit)
            gated = NeuralGateCallback(gate, options.scope, options.tau, [layer])
            trainer = _trainer(
                options, max_epochs=options.epochs, precision=options.precision, callbacks=[gated, asked]
            )
            paper = arguments["schedule"] == "paper"
            data = PrivacyPairDataModule(
                splits, processor, pairs_per_batch=1 if paper else options.pairs_per_batch, shuffle=not paper,
                seed=options.seed, num_workers=options.num_workers,
            )  # fmt: skip
            trainer.fit(editor, datamodule=data)
            _put_back(model, layer, projection, base)
            with atomic_write(file) as draft:
                draft.write_text(json.dumps(asked.history[-1][1]), encoding="utf-8")
        rates[str(layer)] = _nested(json.loads(file.read_text(encoding="utf-8")))
    print_rates({f"layer {layer}": by_split for layer, by_split in rates.items()}, title="Edits in one layer each")
    return rates


def _put_back(model: Any, layer: int, projection: nn.Module, base: dict[str, Any]) -> None:
    """Undo an edit: the module that was there, without an adapter, with the weights that it had."""
    layout = find_decoder(model)
    parent, _, name = layout.projection.rpartition(".")
    setattr(layout.layer(layer).get_submodule(parent), name, projection)
    projection.load_state_dict(base)


def _trainer(options: Namespace, **more: Any) -> Trainer:
    quiet: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "enable_model_summary": False}
    return Trainer(accelerator=options.accelerator, devices=1, limit_val_batches=0, **quiet, **more)


def _nested(logged: dict[str, float]) -> dict[str, dict[str, float]]:
    """held_out/SPLIT/RATE -> value, as split -> rate -> value."""
    nested: dict[str, dict[str, float]] = {}
    for name, value in logged.items():
        _, split, rate = name.split("/")
        nested.setdefault(split, {})[rate] = value
    return nested
