"""Rates of the gated edit in each precision, measured on the saved and reloaded model, and whether the edit reverts.

    python -m benchmarks.precisions --precisions float32 bfloat16 nf4 --seeds 0 1 2 --json FILE

Everything, the benign targets included, is done with the model in that precision, with the settings of `neuralgate demo`. The
base of bfloat16 is a copy of the model in bfloat16; int8 and nf4 quantize the float32 model. `reverted` is whether the edit
file restores the base's weights bit for bit, and the columns are rates on the test split and on unseen subjects.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from lightning.pytorch import Trainer, seed_everything

from lightning_neuralgate.data.datamodule import PrivacyPairDataModule
from lightning_neuralgate.data.rendering.dataset import render_splits
from lightning_neuralgate.data.retention import render_retention
from lightning_neuralgate.data.targets import fill_targets
from lightning_neuralgate.demo.experiment import TRAINER_OPTIONS, EditSettings
from lightning_neuralgate.edit.delta import EditDelta
from lightning_neuralgate.edit.editor import PrivacyEditModule
from lightning_neuralgate.edit.weight_files import WeightFiles
from lightning_neuralgate.evaluation.rates import summarize
from lightning_neuralgate.gate.callback import NeuralGateCallback
from lightning_neuralgate.locate.locator import PrivacyLocatorModule
from lightning_neuralgate.models.loading import load_model, model_folder
from lightning_neuralgate.runtime.files import atomic_write
from lightning_neuralgate.tasks.evaluate import evaluate

LOADING: dict[str, dict[str, Any]] = {
    "float32": {}, "bfloat16": {"dtype": "bfloat16"}, "int8": {"quantize": "int8"}, "nf4": {"quantize": "nf4"},
}  # fmt: skip
"""Precision -> arguments of `load_model`."""
SPLITS = ("test", "unseen_subjects")
RATES = ("rta_sensitive", "leak_rate", "answer_rate_benign", "benign_accuracy")


def base_folder(model: str, precision: str, out: Path) -> Path:
    """Return a folder with the model in the type that its edit is saved in."""
    if precision != "bfloat16":
        return model_folder(model)
    for part in load_model(model, "bfloat16"):
        part.save_pretrained(out)
    return out


def run(settings: EditSettings, precision: str, seed: int, folder: Path) -> dict[str, Any]:
    """Locate, edit, save, reload, evaluate and revert; return the rates by split, and whether the weights were restored."""
    s = settings.resolved()
    base = base_folder(s.model, precision, folder / "base")
    splits = render_splits(
        folder / "data", seed, s.edit_records, s.test_records, s.edit_pairs, s.test_pairs, s.subjects, s.unseen
    )
    retention = render_retention(folder / "data", seed, s.retention_forms, s.retention_count, (), s.subjects)
    tested = {name: getattr(splits, name) for name in SPLITS if getattr(splits, name)}
    seed_everything(seed, verbose=False)
    model, processor = load_model(base, **LOADING[precision])
    edit, retention = fill_targets(splits.edit, retention, model, processor)
    splits = splits._replace(edit=edit)
    trainer: dict[str, Any] = {**TRAINER_OPTIONS, "logger": False, "limit_val_batches": 0}
    locator = PrivacyLocatorModule(model, [s.layer])
    Trainer(max_epochs=1, **trainer).fit(locator, datamodule=PrivacyPairDataModule(splits, processor))
    editor = PrivacyEditModule(model, [s.layer], processor, lr=s.lr, alpha=s.alpha, retention_weight=s.retention_weight)
    data = PrivacyPairDataModule(
        splits,
        processor,
        retention,
        pairs_per_batch=s.pairs_per_batch,
        retention_per_batch=s.retention_per_batch,
        seed=seed,
    )
    gating = NeuralGateCallback(locator.gate, s.scope, s.tau)
    Trainer(max_epochs=s.epochs, callbacks=[gating], **trainer).fit(editor, datamodule=data)
    editor.save_pretrained(folder / "edited")
    del model, editor, locator
    model, processor = load_model(folder / "edited", **LOADING[precision])
    answers = evaluate(model, processor, tested, folder / "data", precision, batch_size=24, progress=False)
    EditDelta.between(base, folder / "edited").revert(folder / "edited", folder / "reverted")
    restored = WeightFiles(folder / "reverted").checksum == WeightFiles(base).checksum
    rates = {split: {rate: values[rate] for rate in RATES} for split, values in summarize(answers).items()}
    return {"precision": precision, "seed": seed, "rates": rates, "reverted": restored}


def table(rows: list[dict[str, Any]]) -> str:
    """Format the results as a Markdown table."""
    columns = [(split, rate) for split in rows[0]["rates"] for rate in RATES]
    lines = [
        f"| precision | seed | {' | '.join(f'{split}: {rate}' for split, rate in columns)} | reverted |",
        f"| --- | ---: |{' ---: |' * len(columns)} --- |",
    ]
    for row in rows:
        cells = " | ".join(f"{row['rates'][split][rate]:.3f}" for split, rate in columns)
        lines.append(f"| {row['precision']} | {row['seed']} | {cells} | {'yes' if row['reverted'] else 'no'} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smol-llava")
    parser.add_argument("--precisions", nargs="+", choices=tuple(LOADING), default=["float32", "bfloat16", "nf4"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--layer", type=int, default=EditSettings.layer)
    parser.add_argument("--epochs", type=int, default=EditSettings.epochs)
    parser.add_argument("--subjects", nargs="+", default=EditSettings.subjects)
    parser.add_argument("--threads", type=int, help="threads of this process (default: all cores)")
    parser.add_argument("--json", type=Path, help="file for the results")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    settings = EditSettings(model=args.model, layer=args.layer, epochs=args.epochs, subjects=args.subjects)
    rows: list[dict[str, Any]] = []
    for seed in args.seeds:
        for precision in args.precisions:
            with TemporaryDirectory() as folder:
                rows.append(run(settings, precision, seed, Path(folder)))
            print(json.dumps(rows[-1]), flush=True)
            if args.json is not None:
                with atomic_write(args.json) as draft:
                    draft.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
    print(table(rows))


if __name__ == "__main__":
    main()
