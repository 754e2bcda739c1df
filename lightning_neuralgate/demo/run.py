"""The demo: render records, locate, edit with and without the gate, evaluate, and write the report.

Evaluated are the edit's own test queries, and ordinary questions, which an edit should leave alone (`ordinary.py`).
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from lightning_neuralgate.attacks.run import ModelAnswers
from lightning_neuralgate.data.records import PrivacyRecord
from lightning_neuralgate.demo.attacks import attack_figures, attack_model
from lightning_neuralgate.demo.experiment import EditSettings, Experiment
from lightning_neuralgate.demo.ordinary import (
    PARTS,
    Figures,
    answer_questions,
    draw_questions,
    ladder_examples,
    measured_parts,
)
from lightning_neuralgate.demo.report import LayerShares, write_report
from lightning_neuralgate.demo.workers import WorkerPool
from lightning_neuralgate.edit.delta import DELTA_NAME, EditDelta
from lightning_neuralgate.edit.weight_files import WEIGHT_PATTERNS
from lightning_neuralgate.errors import UnsupportedSetupError
from lightning_neuralgate.evaluation.answers import JudgedAnswer, read_answers, write_answers
from lightning_neuralgate.evaluation.rates import summarize
from lightning_neuralgate.evaluation.statistics import bootstrap_intervals
from lightning_neuralgate.gate.neural_gate import NeuralGate
from lightning_neuralgate.models.loading import EMBEDDED_MODELS, embedded_model, model_folder
from lightning_neuralgate.runtime.files import atomic_write, check_output
from lightning_neuralgate.runtime.parsing import read_json_object
from lightning_neuralgate.runtime.run_folder import UNFINISHED, remove_progress, run_folder
from lightning_neuralgate.runtime.versions import library_versions

ARMS = ("unedited", "gated", "ungated")
"""The models that are compared, named like the arms of a trial."""
STAGES = {
    "model": "load the model (an embedded model is built on first use)",
    "render": "render the records and draw the ordinary questions",
    "targets": "generate the benign targets with the unedited model",
    "locate": "stage 1: locate privacy neurons",
    "answer_unedited": "answer the test queries and the ordinary questions with the unedited model",
    "edits": "stage 2: edit with the gate and without it, and answer the same with both edited models",
}
"""Stage -> what it does, in order; `results.json` has the seconds of each."""


def stage_line(name: str) -> str:
    """Return the line that the demo prints when a stage starts.

    >>> stage_line("locate")
    '[4/6] stage 1: locate privacy neurons'
    """
    return f"[{list(STAGES).index(name) + 1}/{len(STAGES)}] {STAGES[name]}"


class _StageTimer:
    """Print each stage as it starts, and record the seconds per stage."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        print(stage_line(name), flush=True)
        start = time.perf_counter()
        yield
        self.seconds[name] = round(time.perf_counter() - start, 2)


def run_demo(
    out: Path, seed: int = 0, settings: EditSettings | None = None, compare_with: Path | None = None, processes: int = 1
) -> dict[str, Any]:
    """Run the demo for one seed.

    Writes to `out`: `results.json`, `report.html`, `answers.jsonl`, `data/` (records and pictures), `gate/`, `edited/`
    (the gated model as a Hugging Face folder, with the edit file), `logs/` (TensorBoard and CSV), `questions/` (the drawn
    ordinary questions), and `utility/` and `ladder/` (each model's answers to them); with `settings.attacks` also `attacks/`.

    Args:
        out: output folder.
        seed: seed of data and training.
        settings: what to render, locate and edit.
        compare_with: `out` of another demo, whose numbers the report shows in the same table.
        processes: number of processes that share the work (`WorkerPool`).

    Returns:
        The content of `results.json`.

    Raises:
        UnsupportedSetupError: `compare_with` holds no results, or is the same folder as `out`.
    """
    other = _read_other_results(compare_with, out)
    settings = (settings or EditSettings()).resolved()
    check_output("the output folder", out, {"the model's folder": settings.model})
    with run_folder(out / UNFINISHED):
        return _run_demo(out, seed, settings, other, processes)


def _run_demo(
    out: Path, seed: int, settings: EditSettings, other: dict[str, Any] | None, processes: int
) -> dict[str, Any]:
    timer = _StageTimer()
    with timer.stage("model"):
        experiment = Experiment(out, seed, settings)
    with WorkerPool(experiment, processes) as pool:
        with timer.stage("render"):
            experiment.render()
            draw_questions(experiment)
        with timer.stage("targets"):
            experiment.fill_targets()
        with timer.stage("locate"):
            gate = _locate(pool)
        with timer.stage("answer_unedited"):
            answers = [answer for part in pool.starmap(Experiment.answer, _split_test_records(pool)) for answer in part]
            parts = measured_parts(experiment)
            figures = pool.starmap(answer_questions, [("unedited", part) for part in parts])
            ordinary = {part: {"unedited": found} for part, found in zip(parts, figures, strict=True)}
            under_attack = {"unedited": pool.starmap(attack_model, [("unedited",)])[0]}
        with timer.stage("edits"):
            edits: dict[str, NeuralGate | None] = {"gated": gate, "ungated": None}
            weight_changes = {}
            edited = pool.starmap(_edit, list(edits.items()))
            for arm, (change, edited_answers, figures_of_parts, attacked) in zip(edits, edited, strict=True):
                under_attack[arm] = attacked
                weight_changes[arm] = change
                answers += edited_answers
                for part, found in figures_of_parts.items():
                    ordinary[part][arm] = found

    by_arm = {arm: [answer for answer in answers if answer.model == arm] for arm in ARMS}
    results = {
        **{arm: summarize(rows) for arm, rows in by_arm.items()},
        "intervals": {arm: bootstrap_intervals(rows) for arm, rows in by_arm.items()},
        **ordinary,
        **({"attacks": attack_figures(experiment, under_attack)} if settings.attacks else {}),
        "ladder_examples": ladder_examples(out, ARMS) if "ladder" in parts else {},
        "weight_change": weight_changes,
        "refusal_variant": "prefix",
        "seconds": timer.seconds,
        "seed": seed,
        "precision": experiment.precision,
        "settings": asdict(settings),
        "versions": _versions(settings.model),
    }
    write_answers(out / "answers.jsonl", answers)
    _write_results(out, results)
    write_report(out / "report.html", results, answers, _layer_shares(gate, settings.tau), experiment.data, other)
    remove_progress(out / UNFINISHED)
    return results


def run_demo_seeds(
    out: Path,
    seeds: Sequence[int],
    settings: EditSettings | None = None,
    compare_with: Path | None = None,
    processes: int = 1,
) -> dict[str, Any]:
    """Run the demo once per seed, in folders `seed-N`, and write mean, standard deviation and per-seed results.

    A seed with results from the same settings and versions is not run again. `compare_with` and `processes` are as in
    `run_demo`.
    """
    other = _read_other_results(compare_with, out)
    if not seeds:
        raise UnsupportedSetupError("the demo needs at least one seed; give --seeds 1 or more")
    settings = (settings or EditSettings()).resolved()
    per_seed = {}
    for seed in seeds:
        folder = out / f"seed-{seed}"
        previous = _finished_results(folder, seed, settings)
        per_seed[str(seed)] = previous or run_demo(folder, seed, settings, processes=processes)
    first = next(iter(per_seed.values()))
    averaged = [key for key in (*ARMS, *PARTS, "attacks") if key in first]
    runs = [{key: run[key] for key in averaged} for run in per_seed.values()]
    results: dict[str, Any] = _combine(runs, statistics.fmean)
    spread = _combine(runs, lambda values: statistics.stdev(values) if len(values) > 1 else 0.0)
    results |= {
        "spread": spread,
        "seeds": list(seeds),
        "per_seed": per_seed,
        "refusal_variant": first["refusal_variant"],
        "ladder_examples": first["ladder_examples"],
        "seconds": {
            stage: statistics.fmean(run["seconds"][stage] for run in per_seed.values()) for stage in first["seconds"]
        },
        "settings": asdict(settings),
        "versions": first["versions"],
    }
    _write_results(out, results)
    first_folder = out / f"seed-{seeds[0]}"
    gate = NeuralGate.from_pretrained(first_folder / "gate")
    answers = read_answers(first_folder / "answers.jsonl")
    shares = _layer_shares(gate, settings.tau)
    write_report(out / "report.html", results, answers, shares, first_folder / "data", other)
    return results


def _combine(nested: Sequence[Any], combine: Callable[[Sequence[float]], float]) -> Any:
    """Combine equally nested mappings number by number; entries that one of them lacks are left out."""
    if not isinstance(nested[0], Mapping):
        return combine(nested)
    keys = [key for key in nested[0] if all(key in values for values in nested)]
    return {key: _combine([values[key] for values in nested], combine) for key in keys}


def _locate(pool: WorkerPool) -> NeuralGate:
    experiment = pool.experiment
    cache_dir = experiment.out / UNFINISHED / "records"
    records, count = experiment.splits.edit, pool.processes
    if count > 1:
        pool.starmap(_locate_records, [(records[rank::count], cache_dir, f"locate-{rank}") for rank in range(count)])
    # with several processes this only collects what the workers wrote to the cache
    gate = experiment.locate(cache_dir=cache_dir, name="locate" if count == 1 else None)
    gate.save_pretrained(experiment.out / "gate")
    return gate


def _locate_records(experiment: Experiment, records: Sequence[PrivacyRecord], cache_dir: Path, name: str) -> None:
    experiment.locate(records, cache_dir, name)


def _split_test_records(pool: WorkerPool) -> list[tuple[str, Mapping[str, Sequence[PrivacyRecord]]]]:
    """Return arguments of `Experiment.answer`, one part of the test records per process.

    The records are split at the ends of batches, so that the answers stay the same.
    """
    records = [(split, record) for split, members in pool.experiment.test_splits.items() for record in members]
    boundaries = [0, *pool.experiment.batch_ends([record for _, record in records])]
    num_batches = len(boundaries) - 1
    parts: list[dict[str, list[PrivacyRecord]]] = []
    for rank in range(pool.processes):
        first_batch, end_batch = num_batches * rank // pool.processes, num_batches * (rank + 1) // pool.processes
        start, stop = boundaries[first_batch], boundaries[end_batch]
        part: dict[str, list[PrivacyRecord]] = {}
        for split, record in records[start:stop]:
            part.setdefault(split, []).append(record)
        parts.append(part)
    return [("unedited", part) for part in parts if part]


def _edit(
    experiment: Experiment, arm: str, gate: NeuralGate | None
) -> tuple[dict[str, float], list[JudgedAnswer], dict[str, Figures], ModelAnswers | None]:
    editor = experiment.edit(gate, arm)
    change, answers = experiment.weight_change(experiment.settings.layer), experiment.answer(arm)
    ordinary = {part: answer_questions(experiment, arm, part) for part in measured_parts(experiment)}
    if gate is not None:
        edited = experiment.out / "edited"
        editor.save_pretrained(edited)
        # lets `neuralgate play` and `revert` restore the unedited weights
        delta = EditDelta.between(model_folder(experiment.settings.model, WEIGHT_PATTERNS), edited, library_versions())
        delta.save(edited / DELTA_NAME)
    return change, answers, ordinary, attack_model(experiment, arm)


def _layer_shares(gate: NeuralGate, tau: float) -> list[LayerShares]:
    return [
        LayerShares(
            subject, layer, *gate.shares(subject, layer, tau), classes=_neuron_classes(gate, subject, layer, tau)
        )
        for subject in gate.subjects
        for layer in gate.layers
    ]


def _neuron_classes(gate: NeuralGate, subject: str, layer: int, tau: float) -> list[int]:
    """Return 0, 1 or 2 for each neuron: inactive, weakly or strongly active."""
    classes: list[int] = ((gate.rates(subject, layer) > 0).int() + gate.mask(subject, layer, tau).int()).tolist()
    return classes


def _write_results(out: Path, results: dict[str, Any]) -> None:
    with atomic_write(out / "results.json") as draft:
        draft.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


def _read_results(folder: Path) -> dict[str, Any] | None:
    file = folder / "results.json"
    if not file.is_file():
        return None
    return read_json_object(file, own=True, hint="delete it, or run that demo again")


def _read_other_results(folder: Path | None, out: Path) -> dict[str, Any] | None:
    if folder is None:
        return None
    if folder.resolve() == out.resolve():
        raise UnsupportedSetupError(
            f"{folder} is the output folder of this demo, which would overwrite the results to compare with; "
            "give another --out"
        )
    results = _read_results(folder)
    if results is None:
        raise UnsupportedSetupError(f"{folder} holds no results.json; give the --out folder of another demo")
    return results


def _versions(model: str) -> dict[str, str]:
    packages = {name: version(name) for name in ("lightning-neuralgate", "torch", "transformers", "lightning")}
    return packages | ({model: embedded_model(model).key()} if model in EMBEDDED_MODELS else {})


def _finished_results(folder: Path, seed: int, settings: EditSettings) -> dict[str, Any] | None:
    results = _read_results(folder)
    if results is None:
        return None
    stored_settings = json.loads(json.dumps(asdict(settings)))  # tuples become lists, as in the file
    expected = (seed, stored_settings, _versions(settings.model))
    return results if (results.get("seed"), results.get("settings"), results.get("versions")) == expected else None
