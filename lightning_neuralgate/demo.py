"""The main job in one go, on the embedded model: locate, gate, edit with and without the gate, measure, report."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

from lightning_neuralgate.answers import Answer, read_answers, write_answers
from lightning_neuralgate.cache import written_whole
from lightning_neuralgate.callback import NeuralGateCallback
from lightning_neuralgate.data.answering import fill_targets
from lightning_neuralgate.data.datamodule import PrivacyPairDataModule
from lightning_neuralgate.data.records import RecordSplits, RetentionItem
from lightning_neuralgate.data.rendered import render_retention, render_splits
from lightning_neuralgate.editor import PrivacyEditModule, Schedule
from lightning_neuralgate.errors import UnsupportedSetupError
from lightning_neuralgate.evaluation import evaluate, summarize
from lightning_neuralgate.gate import NeuralGate
from lightning_neuralgate.gating import Scope
from lightning_neuralgate.layers import find_decoder
from lightning_neuralgate.locator import PrivacyLocatorModule
from lightning_neuralgate.models.loading import EMBEDDED, load_model
from lightning_neuralgate.report import LayerShares, write_report

ARMS = ("unedited", "gated", "ungated")
SPLITS = ("test", "unseen_subjects")


@dataclass(frozen=True)
class DemoSettings:
    """Settings of the demo.

    Attributes:
        model: `smol-llava`, a folder or a hub repository.
        layer: decoder layer that is located and edited.
        tau: dimensions with an activity rate above it stay open.
        scope: positions at which the gate applies.
        edit_records: edit records per subject.
        edit_pairs: query pairs per edit record.
        test_records: test records per subject.
        test_pairs: query pairs per test record.
        schedule: `minibatch`, or `paper` for pair by pair.
        epochs: passes over the edit pairs.
        pairs_per_batch: query pairs in a mini-batch.
        lr: learning rate of Adam; null for the schedule's own.
        alpha: weight of the benign term.
        retention_weight: weight of the retention term.
        retention_per_batch: ordinary questions in a mini-batch.
    """

    model: str = EMBEDDED
    layer: int = 10
    tau: float = 0.3
    scope: Scope = "subject_last"
    edit_records: int = 4
    edit_pairs: int = 4
    test_records: int = 5
    test_pairs: int = 2
    schedule: Schedule = "minibatch"
    epochs: int = 3
    pairs_per_batch: int = 4
    lr: float | None = 2e-3
    alpha: float = 1.25
    retention_weight: float = 1.0
    retention_per_batch: int = 2


_TITLES = {
    "model": "load the model (the embedded one is built on first use)",
    "render": "draw the records",
    "targets": "ask the unedited model for the benign targets",
    "locate": "stage 1: locate privacy neurons",
    "answer_unedited": "ask the unedited model the test queries",
    "edit_gated": "stage 2: edit with the gate",
    "answer_gated": "ask the gated edit",
    "save": "save the gated edit",
    "edit_ungated": "stage 2 again from the same start, without the gate",
    "answer_ungated": "ask the ungated edit",
}


class _Clock:
    """Says which stage begins, and keeps the seconds per stage."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        print(f"[{len(self.seconds) + 1}/{len(_TITLES)}] {_TITLES[name]}", flush=True)
        start = time.perf_counter()
        yield
        self.seconds[name] = round(time.perf_counter() - start, 2)


def run_demo(out: Path, seed: int = 0, settings: DemoSettings | None = None) -> dict[str, Any]:
    """Run the whole job for one seed.

    Leaves in `out`: `results.json`, `report.html`, `answers.jsonl`, `data/` (records and pictures), `gate/`, `edited/`
    (the gated model, a normal Hugging Face folder) and `logs/` (TensorBoard and CSV).

    Returns:
        What `results.json` holds.
    """
    settings = settings or DemoSettings()
    clock = _Clock()
    seed_everything(seed, verbose=False)
    with clock.stage("model"):
        model, processor = load_model(settings.model)
        layout = find_decoder(model)
        projection: Any = layout.output_projection(settings.layer)
        base = projection.weight.detach().clone()
    data = out / "data"
    with clock.stage("render"):
        splits = render_splits(
            data, seed, settings.edit_records, settings.test_records, settings.edit_pairs, settings.test_pairs
        )
        retention = render_retention(data, seed) if settings.retention_per_batch else []
    with clock.stage("targets"):
        edit, retention = fill_targets(splits.edit, retention, model, processor)
        splits = splits._replace(edit=edit)
    with clock.stage("locate"):
        gate = _locate(model, processor, splits, settings, out)
        gate.save_pretrained(out / "gate")

    tested = {name: getattr(splits, name) for name in SPLITS}
    answers: list[Answer] = []
    with clock.stage("answer_unedited"):
        answers += evaluate(model, processor, tested, data, "unedited")
    for arm in ("gated", "ungated"):
        with torch.no_grad():
            projection.weight.copy_(base)
        with clock.stage(f"edit_{arm}"):
            editor = _edit(model, processor, splits, retention, settings, out, seed, arm, gate)
        with clock.stage(f"answer_{arm}"):
            answers += evaluate(model, processor, tested, data, arm)
        if arm == "gated":
            with clock.stage("save"):
                editor.save_pretrained(out / "edited")

    by_arm = {arm: summarize([answer for answer in answers if answer.model == arm]) for arm in ARMS}
    results = {
        **by_arm,
        "refusal_variant": "prefix",
        "seconds": clock.seconds,
        "seed": seed,
        "settings": asdict(settings),
        "versions": _versions(),
    }
    write_answers(out / "answers.jsonl", answers)
    _write_results(out, results)
    write_report(out / "report.html", results, answers, _shares(gate, settings.tau), data)
    return results


def run_demo_seeds(out: Path, seeds: Sequence[int], settings: DemoSettings | None = None) -> dict[str, Any]:
    """Run the demo once per seed, into `seed-N` folders, and sum them up: mean, spread (standard deviation), and each.

    A seed that already has results from the same settings and versions is not run again.
    """
    if not seeds:
        raise UnsupportedSetupError("the demo needs at least one seed")
    settings = settings or DemoSettings()
    per_seed = {}
    for seed in seeds:
        folder = out / f"seed-{seed}"
        done = _finished(folder, seed, settings)
        per_seed[str(seed)] = done or run_demo(folder, seed, settings)
    results: dict[str, Any] = {arm: {} for arm in ARMS}
    spread: dict[str, Any] = {arm: {} for arm in ARMS}
    for arm in ARMS:
        for split in SPLITS:
            rows = [run[arm][split] for run in per_seed.values()]
            results[arm][split] = {key: statistics.fmean(row[key] for row in rows) for key in rows[0]}
            spread[arm][split] = {
                key: statistics.stdev([row[key] for row in rows]) if len(rows) > 1 else 0.0 for key in rows[0]
            }
    first = next(iter(per_seed.values()))
    results |= {
        "spread": spread,
        "seeds": list(seeds),
        "per_seed": per_seed,
        "refusal_variant": first["refusal_variant"],
        "seconds": {
            stage: statistics.fmean(run["seconds"][stage] for run in per_seed.values()) for stage in first["seconds"]
        },
        "settings": asdict(settings),
        "versions": first["versions"],
    }
    _write_results(out, results)
    shown = out / f"seed-{seeds[0]}"
    gate = NeuralGate.from_pretrained(shown / "gate")
    write_report(
        out / "report.html", results, read_answers(shown / "answers.jsonl"), _shares(gate, settings.tau), shown / "data"
    )
    return results


def _locate(model: Any, processor: Any, splits: RecordSplits, settings: DemoSettings, out: Path) -> NeuralGate:
    locator = PrivacyLocatorModule(model, [settings.layer])
    trainer = Trainer(max_epochs=1, logger=_loggers(out, "locate"), limit_val_batches=0, **_COMMON)
    trainer.fit(locator, datamodule=PrivacyPairDataModule(splits, processor))
    return locator.gate


def _edit(
    model: Any,
    processor: Any,
    splits: RecordSplits,
    retention: list[RetentionItem],
    settings: DemoSettings,
    out: Path,
    seed: int,
    arm: str,
    gate: NeuralGate,
) -> PrivacyEditModule:
    seed_everything(seed, verbose=False)
    paper = settings.schedule == "paper"
    data = PrivacyPairDataModule(
        splits,
        processor,
        retention,
        pairs_per_batch=1 if paper else settings.pairs_per_batch,
        retention_per_batch=0 if paper else settings.retention_per_batch,
        shuffle=not paper,
        seed=seed,
    )
    editor = PrivacyEditModule(
        model,
        [settings.layer],
        processor,
        schedule=settings.schedule,
        lr=settings.lr,
        alpha=settings.alpha,
        retention_weight=settings.retention_weight,
    )
    trainer = Trainer(
        max_epochs=settings.epochs,
        callbacks=[NeuralGateCallback(gate, settings.scope, settings.tau)] if arm == "gated" else [],
        logger=_loggers(out, f"edit-{arm}"),
        limit_val_batches=2,
        check_val_every_n_epoch=2,
        **_COMMON,
    )
    trainer.fit(editor, datamodule=data)
    return editor


_COMMON: dict[str, Any] = {
    "accelerator": "auto",
    "devices": 1,
    "enable_checkpointing": False,
    "enable_model_summary": False,
    "num_sanity_val_steps": 0,
    "log_every_n_steps": 1,
}


def _loggers(out: Path, stage: str) -> list[Any]:
    return [TensorBoardLogger(out / "logs", name=stage, version=""), CSVLogger(out / "logs", name=stage, version="csv")]


def _shares(gate: NeuralGate, tau: float) -> list[LayerShares]:
    return [
        LayerShares(subject, layer, *gate.shares(subject, layer, tau))
        for subject in gate.subjects
        for layer in gate.layers
    ]


def _write_results(out: Path, results: dict[str, Any]) -> None:
    with written_whole(out / "results.json") as draft:
        draft.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


def _versions() -> dict[str, str]:
    return {name: version(name) for name in ("lightning-neuralgate", "torch", "transformers", "lightning")}


def _finished(folder: Path, seed: int, settings: DemoSettings) -> dict[str, Any] | None:
    file = folder / "results.json"
    if not file.is_file():
        return None
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    same = (found["seed"], found["settings"], found["versions"]) == (seed, asdict(settings), _versions())
    return found if same else None
