"""The main job in one go, on the embedded model: locate, gate, edit with and without the gate, measure, report."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from lightning_neuralgate.data.records import PrivacyRecord
from lightning_neuralgate.demo.experiment import EditSettings, Experiment
from lightning_neuralgate.demo.report import LayerShares, write_report
from lightning_neuralgate.demo.workers import WorkerPool
from lightning_neuralgate.errors import UnsupportedSetupError
from lightning_neuralgate.evaluation.answers import JudgedAnswer, read_answers, write_answers
from lightning_neuralgate.evaluation.rates import summarize
from lightning_neuralgate.evaluation.statistics import bootstrap_intervals
from lightning_neuralgate.gate.neural_gate import NeuralGate
from lightning_neuralgate.models.loading import EMBEDDED_MODELS, embedded_model
from lightning_neuralgate.runtime.files import atomic_write
from lightning_neuralgate.runtime.resume import remove_progress

ARMS = ("unedited", "gated", "ungated")
_TITLES = {
    "model": "load the model (the embedded one is built on first use)",
    "render": "draw the records",
    "targets": "ask the unedited model for the benign targets",
    "locate": "stage 1: locate privacy neurons",
    "answer_unedited": "ask the unedited model the test queries",
    "edits": "stage 2: edit with the gate, and from the same start without it; ask both the test queries",
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


def run_demo(
    out: Path, seed: int = 0, settings: EditSettings | None = None, beside: Path | None = None, processes: int = 1
) -> dict[str, Any]:
    """Run the whole job for one seed.

    Leaves in `out`: `results.json`, `report.html`, `answers.jsonl`, `data/` (records and pictures), `gate/`, `edited/`
    (the gated model, a normal Hugging Face folder) and `logs/` (TensorBoard and CSV).

    Args:
        out: the folder.
        seed: of data and training.
        settings: what to render, locate and edit.
        beside: folder of another demo, whose numbers the report shows beside these.
        processes: how many share the work (`WorkerPool`).

    Returns:
        What `results.json` holds.

    Raises:
        UnsupportedSetupError: there are no results in `beside`, or it is `out`.
    """
    other = _results_beside(beside, out)
    settings = (settings or EditSettings()).resolved()
    clock = _Clock()
    with clock.stage("model"):
        bench = Experiment(out, seed, settings)
    with WorkerPool(bench, processes) as crew:
        with clock.stage("render"):
            bench.render()
        with clock.stage("targets"):
            bench.fill_targets()
        with clock.stage("locate"):
            gate = _locate(crew)
        with clock.stage("answer_unedited"):
            answers = [answer for told in crew.share(_answer, _answer_shares(crew)) for answer in told]
        with clock.stage("edits"):
            gates = {"gated": gate, "ungated": None}
            changes = {}
            for arm, (change, told) in zip(gates, crew.share(_edit, list(gates.items())), strict=True):
                changes[arm] = change
                answers += told

    by_arm = {arm: [answer for answer in answers if answer.model == arm] for arm in ARMS}
    results = {
        **{arm: summarize(rows) for arm, rows in by_arm.items()},
        "intervals": {arm: bootstrap_intervals(rows) for arm, rows in by_arm.items()},
        "weight_change": changes,
        "refusal_variant": "prefix",
        "seconds": clock.seconds,
        "seed": seed,
        "precision": bench.precision,
        "settings": asdict(settings),
        "versions": _versions(settings.model),
    }
    write_answers(out / "answers.jsonl", answers)
    _write_results(out, results)
    write_report(out / "report.html", results, answers, _shares(gate, settings.tau), bench.data, other)
    return results


def run_demo_seeds(
    out: Path,
    seeds: Sequence[int],
    settings: EditSettings | None = None,
    beside: Path | None = None,
    processes: int = 1,
) -> dict[str, Any]:
    """Run the demo once per seed, into `seed-N` folders, and sum them up: mean, spread (standard deviation), and each.

    A seed that already has results from the same settings and versions is not run again. `beside` and `processes` are as in
    `run_demo`.
    """
    other = _results_beside(beside, out)
    if not seeds:
        raise UnsupportedSetupError("the demo needs at least one seed")
    settings = (settings or EditSettings()).resolved()
    per_seed = {}
    for seed in seeds:
        folder = out / f"seed-{seed}"
        done = _finished(folder, seed, settings)
        per_seed[str(seed)] = done or run_demo(folder, seed, settings, processes=processes)
    results: dict[str, Any] = {arm: {} for arm in ARMS}
    spread: dict[str, Any] = {arm: {} for arm in ARMS}
    first = next(iter(per_seed.values()))
    for arm in ARMS:
        for split in first[arm]:
            rows = [run[arm][split] for run in per_seed.values()]
            keys = [key for key in rows[0] if all(key in row for row in rows)]
            results[arm][split] = {key: statistics.fmean(row[key] for row in rows) for key in keys}
            spread[arm][split] = {
                key: statistics.stdev([row[key] for row in rows]) if len(rows) > 1 else 0.0 for key in keys
            }
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
    told = read_answers(shown / "answers.jsonl")
    write_report(out / "report.html", results, told, _shares(gate, settings.tau), shown / "data", other)
    return results


def _locate(crew: WorkerPool) -> NeuralGate:
    bench, found = crew.bench, crew.bench.out / "unfinished" / "records"
    records, count = bench.splits.edit, crew.processes
    if count > 1:
        crew.share(_locate_some, [(records[one::count], found, f"locate-{one}") for one in range(count)])
    gate = bench.locate(cache_dir=found, name="locate" if count == 1 else None)
    gate.save_pretrained(bench.out / "gate")
    remove_progress(found.parent)
    return gate


def _locate_some(bench: Experiment, records: Sequence[PrivacyRecord], found: Path, name: str) -> None:
    bench.locate(records, found, name)


def _answer_shares(crew: WorkerPool) -> list[tuple[Mapping[str, Sequence[PrivacyRecord]]]]:
    """The test records for each process, as even as whole batches allow."""
    records = [(split, record) for split, some in crew.bench.tested.items() for record in some]
    cuts = [0, *crew.bench.batch_ends([record for _, record in records])]
    shares: list[dict[str, list[PrivacyRecord]]] = []
    for one in range(crew.processes):
        first, last = (cuts[(len(cuts) - 1) * end // crew.processes] for end in (one, one + 1))
        share: dict[str, list[PrivacyRecord]] = {}
        for split, record in records[first:last]:
            share.setdefault(split, []).append(record)
        shares.append(share)
    return [(share,) for share in shares if share]


def _answer(bench: Experiment, records: Mapping[str, Sequence[PrivacyRecord]]) -> list[JudgedAnswer]:
    return bench.answer("unedited", records)


def _edit(bench: Experiment, arm: str, gate: NeuralGate | None) -> tuple[dict[str, float], list[JudgedAnswer]]:
    editor = bench.edit(gate, arm)
    change, answers = bench.weight_change(bench.settings.layer), bench.answer(arm)
    if gate is not None:
        editor.save_pretrained(bench.out / "edited")
    return change, answers


def _shares(gate: NeuralGate, tau: float) -> list[LayerShares]:
    return [
        LayerShares(subject, layer, *gate.shares(subject, layer, tau))
        for subject in gate.subjects
        for layer in gate.layers
    ]


def _write_results(out: Path, results: dict[str, Any]) -> None:
    with atomic_write(out / "results.json") as draft:
        draft.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


def _results_beside(folder: Path | None, out: Path) -> dict[str, Any] | None:
    if folder is None:
        return None
    if folder.resolve() == out.resolve():
        raise UnsupportedSetupError(
            f"{folder} is this demo's own folder; give another --out, or what it holds is replaced"
        )
    file = folder / "results.json"
    if not file.is_file():
        raise UnsupportedSetupError(f"{folder} holds no results.json; give the --out folder of another demo")
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return found


def _versions(model: str) -> dict[str, str]:
    packages = {name: version(name) for name in ("lightning-neuralgate", "torch", "transformers", "lightning")}
    return packages | ({model: embedded_model(model).key()} if model in EMBEDDED_MODELS else {})


def _finished(folder: Path, seed: int, settings: EditSettings) -> dict[str, Any] | None:
    file = folder / "results.json"
    if not file.is_file():
        return None
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    same = (found["seed"], found["settings"], found["versions"]) == (
        seed,
        json.loads(json.dumps(asdict(settings))),
        _versions(settings.model),
    )
    return found if same else None
