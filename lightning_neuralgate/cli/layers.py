"""`neuralgate layers`: search for the layer to edit."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from jsonargparse import ArgumentParser, Namespace
from lightning.pytorch import Trainer, seed_everything
from torch import nn

from lightning_neuralgate.cli.options import ModelOptions, add_config, add_workers, check_inputs
from lightning_neuralgate.cli.output import show
from lightning_neuralgate.cli.tables import print_rates
from lightning_neuralgate.data.datamodule import PrivacyPairDataModule
from lightning_neuralgate.data.options import DataOptions
from lightning_neuralgate.data.records import RecordSplits, records_checksum
from lightning_neuralgate.data.splits import TEST_SPLITS
from lightning_neuralgate.edit.editor import PrivacyEditModule
from lightning_neuralgate.errors import DataFormatError
from lightning_neuralgate.evaluation.callback import RefusalMetricsCallback
from lightning_neuralgate.gate.callback import NeuralGateCallback
from lightning_neuralgate.gate.neural_gate import NeuralGate
from lightning_neuralgate.gate.positions import Scope
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
from lightning_neuralgate.runtime.parsing import read_json_object
from lightning_neuralgate.runtime.resume import check_same_run
from lightning_neuralgate.runtime.run_folder import UNFINISHED, remove_progress, run_folder


def add_arguments(parser: ArgumentParser) -> None:
    """Add the options of `neuralgate layers`."""
    add_config(parser)
    parser.add_argument("--out", type=Path, required=True, help="Output folder for gate, tables, figure and results.")
    parser.add_argument(
        "--layers", type=Sequence[int] | None, default=None,
        help="Layers to search. Default: the paper's range, 3 to 19 of 32, scaled to the model's depth.",
    )  # fmt: skip
    parser.add_argument(
        "--tau", type=float, default=0.3, help="Threshold: neurons with a higher activity rate are strongly active."
    )
    parser.add_argument("--radius", type=int, default=2, help="Maximum distance of candidates from the centre layer.")
    parser.add_argument(
        "--compare",
        type=bool,
        default=False,
        help="Also edit each candidate layer, and compare the edited models on the test splits.",
    )
    parser.add_argument(
        "--scope", type=Scope, default="subject_last", help="Token positions at which the gate applies."
    )
    parser.add_argument("--epochs", type=int, default=1, help="Epochs of each edit.")
    parser.add_argument("--pairs_per_batch", type=int, default=4, help="Query pairs per mini-batch of an edit.")
    parser.add_argument("--limit", type=int | None, default=None, help="Maximum number of test queries per split.")
    parser.add_argument("--accelerator", type=str, default="auto", help="gpu, cpu, or auto.")
    parser.add_argument(
        "--precision", type=Literal["32-true", "bf16-mixed"], default="32-true", help="Precision of the edits."
    )
    parser.add_argument("--seed", type=int, default=0, help="Seed of the mini-batch order.")
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
    """Locate in every layer, propose candidates, and compare edits. An interrupted run resumes."""
    check_inputs(options)
    with run_folder(options.out / UNFINISHED):
        _run(options)


def _run(options: Namespace) -> None:
    seed_everything(options.seed, verbose=False)
    options.data.refuse_retention("the search edits without a retention term")
    splits = options.data.read()  # fail on bad data before loading the model
    if options.compare and not splits.test:
        raise DataFormatError(
            "--compare needs a test split, but the data have none; leave --compare out, or add test records"
        )
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
    show("layer  inactive  weakly active  strongly active")
    for layer in gate.layers:
        inactive, weak, strong = mean_shares(gate, layer, options.tau)
        show(f"{layer:5d}  {inactive:8.1%}  {weak:13.1%}  {strong:15.1%}")
    show(f"centre: layer {proposal.centre}; candidates: {', '.join(map(str, proposal.candidates))}")
    if options.compare:
        results["edits"] = _compare(options, model, processor, splits, gate, proposal.candidates)
        etas = {layer: rates["test"]["eta"] for layer, rates in results["edits"].items()}
        best = [layer for layer, eta in etas.items() if eta == max(etas.values())]
        show(f"highest EtA on test: layer {', '.join(best)}" + (" (tie)" if len(best) > 1 else ""))
    with atomic_write(options.out / "layers.json") as draft:
        draft.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    show(f"figure and tables: {options.out}")
    remove_progress(unfinished)
    remove_temporary_files(
        *(options.out / name for name in ("layers.png", "layers.json", "shares.csv", "activity.csv"))
    )


def _compare(
    options: Namespace, model: Any, processor: Any, splits: RecordSplits, gate: NeuralGate, layers: Sequence[int]
) -> dict[str, Any]:
    """Edit each layer on its own, from the unedited weights, and return rates by layer and split."""
    test_splits = {name: records for name, records in splits._asdict().items() if name in TEST_SPLITS and records}
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
            metrics = RefusalMetricsCallback(test_splits, processor, every_n_steps=0, limit=options.limit)
            gating = NeuralGateCallback(gate, options.scope, options.tau, [layer])
            trainer = _trainer(
                options, max_epochs=options.epochs, precision=options.precision, callbacks=[gating, metrics]
            )
            paper = arguments["schedule"] == "paper"
            data = PrivacyPairDataModule(
                splits, processor, pairs_per_batch=1 if paper else options.pairs_per_batch, shuffle=not paper,
                seed=options.seed, num_workers=options.num_workers,
            )  # fmt: skip
            trainer.fit(editor, datamodule=data)
            _restore(model, layer, projection, base)
            with atomic_write(file) as draft:
                draft.write_text(json.dumps(metrics.history[-1][1]), encoding="utf-8")
        rates[str(layer)] = _nested(read_json_object(file, own=True, hint="delete it"))
    print_rates(
        {f"layer {layer}": by_split for layer, by_split in rates.items()}, title="Rates after an edit of each layer"
    )
    return rates


def _restore(model: Any, layer: int, projection: nn.Module, base: dict[str, Any]) -> None:
    """Undo an edit: put the original module back (without a LoRA adapter), with its original weights."""
    layout = find_decoder(model)
    parent, _, name = layout.projection.rpartition(".")
    setattr(layout.layer(layer).get_submodule(parent), name, projection)
    projection.load_state_dict(base)


def _trainer(options: Namespace, **more: Any) -> Trainer:
    quiet: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "enable_model_summary": False}
    return Trainer(accelerator=options.accelerator, devices=1, limit_val_batches=0, **quiet, **more)


def _nested(logged: dict[str, float]) -> dict[str, dict[str, float]]:
    """Turn logged `held_out/SPLIT/RATE` values into nested dictionaries by split and rate."""
    nested: dict[str, dict[str, float]] = {}
    for name, value in logged.items():
        _, split, rate = name.split("/")
        nested.setdefault(split, {})[rate] = value
    return nested
