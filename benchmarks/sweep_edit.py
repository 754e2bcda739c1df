"""Sweep over settings of the edit on the embedded model: effects on refusals and benign answers, with and without gate.

    python benchmarks/sweep_edit.py --out runs/sweep --seeds 3

Each cell is an edit from the same unedited weights, evaluated on the same test queries. Finished cells are not run again, so
an interrupted sweep resumes. The tables are printed and written to `docs/sweep-table.md` (or `--table FILE`). `--jobs`
processes with one thread each share the cells. `--demo FOLDER` takes the cells with the demo's settings from a finished
`neuralgate demo --seeds N --out FOLDER`.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from lightning_neuralgate.runtime.files import atomic_write

ROOT = Path(__file__).parents[1]

BASE: dict[str, Any] = {
    "layer": 10, "tau": 0.5, "scope": "subject_last", "lr": 3e-3, "epochs": 4, "pairs_per_batch": 3, "alpha": 1.25,
    "retention_weight": 1.0, "retention_per_batch": 1, "edit_records": 2, "edit_pairs": 6, "test_records": 2,
    "test_pairs": 2, "judge": False, "public_questions": False,
}  # fmt: skip
"""Base settings of all cells: the demo's edit before this sweep chose its learning rate, without the second judge."""

UNGATED = {"gate": None}
SHUFFLED = {"gate": "shuffled"}
PUBLIC = {"public_questions": True, "retention_weight": 0.25}
CELLS: dict[str, dict[str, Any]] = {
    "gate, subject's last token": {"scope": "subject_last"},
    "ungated": {**UNGATED},
    "gate, all positions": {"scope": "all"},
    "gate, from the subject on": {"scope": "from_subject"},
    "no pictures in the edit": {"images": False},
    "1 record per subject": {"records": 1},
    "ungated, lr 1.5e-3": {**UNGATED, "lr": 1.5e-3},
    "no retention": {"retention_weight": 0.0},
    "2 epochs": {"epochs": 2},
    "ungated, lr 6e-3": {**UNGATED, "lr": 6e-3},
    "alpha 0.5": {"alpha": 0.5},
    "layer 16": {**UNGATED, "layer": 16},
    "gate, all positions, rows shuffled": {**SHUFFLED, "scope": "all"},
    "gate, all positions, tau 0.3": {"scope": "all", "tau": 0.3},
    "gate, lr 6e-3": {"lr": 6e-3},
    "alpha 3": {"alpha": 3.0},
    "layer 4": {**UNGATED, "layer": 4},
    "gate, full subject": {"scope": "subject"},
    "gate, lr 6e-3, public questions": {"lr": 6e-3, **PUBLIC},
    "ungated, lr 6e-3, public questions": {**UNGATED, "lr": 6e-3, **PUBLIC},
}
"""Changes of each cell: settings of the edit, its gate, or the number of records. The most informative cells come first."""
PREPARE = "unedited"
COLUMNS = {
    "test: RtA": ("test", "rta_sensitive"),
    "leak": ("test", "leak_rate"),
    "answered": ("test", "answer_rate_benign"),
    "unseen attributes: RtA": ("unseen_attributes", "rta_sensitive"),
    "answered ": ("unseen_attributes", "answer_rate_benign"),
    "EtA": ("unseen_attributes", "eta"),
    "unseen subjects: RtA": ("unseen_subjects", "rta_sensitive"),
    "leak ": ("unseen_subjects", "leak_rate"),
    "answered  ": ("unseen_subjects", "answer_rate_benign"),
    "EtA ": ("unseen_subjects", "eta"),
}


def slug(name: str) -> str:
    """Turn the name of a cell into a file name."""
    return "".join(char if char.isalnum() or char == "." else "-" for char in name).replace("--", "-").strip("-")


class Jobs:
    """Cells of some seeds, shared by several processes through files: `NAME.json` is finished, `NAME.claim` is claimed."""

    def __init__(self, out: Path, worker: int, seeds: list[int], cells: int = len(CELLS)) -> None:
        self.out, self.worker = out, worker
        # all seeds of a cell before the next cell, so that an interrupted sweep has complete cells
        self.pending = [(seed, name) for name in (PREPARE, *list(CELLS)[:cells]) for seed in seeds]
        self.experiments: dict[int, Any] = {}

    def file(self, seed: int, name: str) -> Path:
        return self.out / f"seed-{seed}" / "cells" / f"{slug(name)}.json"

    def run(self) -> None:
        """Run jobs until none is pending; the cells of a seed wait until it is prepared."""
        while self.pending:
            job = next((job for job in self.pending if self._ready(*job)), None)
            if job is None:
                time.sleep(1)
            elif self._claim(*job):
                start = time.perf_counter()
                try:
                    self._save(*job, self._prepare(job[0]) if job[1] == PREPARE else self._cell(*job))
                except BaseException:
                    self.file(*job).with_suffix(".claim").unlink()  # let other processes retry
                    raise
                seconds = time.perf_counter() - start
                print(f"seed {job[0]}, {job[1]}: {seconds:.0f} s, {len(self.pending) - 1} cells left", flush=True)
            self.pending = [job for job in self.pending if not self.file(*job).is_file() and not self._is_claimed(*job)]

    def _ready(self, seed: int, name: str) -> bool:
        return name == PREPARE or self.file(seed, PREPARE).is_file()

    def _is_claimed(self, seed: int, name: str) -> bool:
        # jobs of a seed that another process is preparing are not claimed, and stay pending
        return self.file(seed, name).with_suffix(".claim").is_file()

    def _claim(self, seed: int, name: str) -> bool:
        file = self.file(seed, name)
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            file.with_suffix(".claim").touch(exist_ok=False)
        except FileExistsError:
            return False
        return not file.is_file()

    def _save(self, seed: int, name: str, content: Mapping[str, Any]) -> None:
        with atomic_write(self.file(seed, name)) as draft:
            draft.write_text(json.dumps({"cell": name, "seed": seed, **content}, indent=1) + "\n")

    def _experiment(self, seed: int) -> Any:
        from lightning_neuralgate.demo.experiment import EditSettings, Experiment

        if seed not in self.experiments:
            folder = self.out / f"seed-{seed}" / f"worker-{self.worker}"
            experiment = self.experiments[seed] = Experiment(folder, seed, EditSettings(**BASE))
            experiment.render()
            experiment.fill_targets()
        return self.experiments[seed]

    def _prepare(self, seed: int) -> dict[str, Any]:
        """Locate the gate (unless it exists); return the unedited model's rates and the parts of the edit's gradient."""
        from lightning_neuralgate.evaluation.rates import summarize
        from lightning_neuralgate.gate.neural_gate import NeuralGate
        from lightning_neuralgate.gate.positions import SUBJECT_SCOPES

        experiment = self._experiment(seed)
        folder = self.out / f"seed-{seed}" / "gate"
        if not folder.is_dir():
            experiment.locate().save_pretrained(folder)
        gate = NeuralGate.from_pretrained(folder)
        return {
            "rates": summarize(experiment.answer("unedited")),
            "parts": gradient_parts(experiment, gate, SUBJECT_SCOPES),
        }

    def _cell(self, seed: int, name: str) -> dict[str, Any]:
        from lightning_neuralgate.evaluation.rates import summarize
        from lightning_neuralgate.gate.neural_gate import NeuralGate

        experiment, changes = self._experiment(seed), CELLS[name]
        gate: Any = NeuralGate.from_pretrained(self.out / f"seed-{seed}" / "gate")
        if "gate" in changes:
            gate = shuffle_gate(gate, seed) if changes["gate"] == "shuffled" else None
        cell = replace(
            experiment.settings, **{key: value for key, value in changes.items() if key not in ("gate", "records")}
        )
        splits = experiment.splits
        experiment.splits = splits._replace(edit=limit_records(splits.edit, changes.get("records")))
        experiment.edit(gate, slug(name), cell)
        change = experiment.weight_change(cell.layer)
        rates = summarize(experiment.answer(name))
        experiment.splits = splits
        return {"rates": rates, **change, "settings": asdict(cell)}


def take_from_demo(demo: Path, out: Path, seeds: int) -> None:
    """Copy the results of the demo's two edits to the cells with the same settings."""
    for seed in range(seeds):
        run = json.loads((demo / f"seed-{seed}" / "results.json").read_text())
        for arm in ("gated", "ungated"):
            name = find_cell(run["settings"], gated=arm == "gated")
            if name is None:
                sys.exit(f"no cell has the settings of the {arm} edit in {demo}/seed-{seed}: {run['settings']}")
            jobs = Jobs(out, 0, [seed])
            jobs.file(seed, name).parent.mkdir(parents=True, exist_ok=True)
            jobs._save(seed, name, {"rates": run[arm], **run["weight_change"][arm], "settings": run["settings"]})


def find_cell(settings: Mapping[str, Any], gated: bool) -> str | None:
    """Name of the cell with these settings, ignoring the second judge, which does not affect answers."""
    for name, changes in CELLS.items():
        expected = {**BASE, "gate": "located", "records": None, "images": True, **changes}
        if (expected.pop("gate"), expected.pop("records")) != ("located" if gated else None, None):
            continue
        if all(settings[key] == value for key, value in expected.items() if key != "judge"):
            return name
    return None


def shuffle_gate(gate: Any, seed: int) -> Any:
    """Permute the dimensions of a gate, in the same way for all subjects: as many open rows, but different ones."""
    import torch

    from lightning_neuralgate.gate.neural_gate import NeuralGate

    order = torch.randperm(gate.model.hidden_size, generator=torch.Generator().manual_seed(seed))
    rates = {subject: {layer: gate.rates(subject, layer)[order] for layer in gate.layers} for subject in gate.subjects}
    return NeuralGate(rates, gate.model, gate.records)


def limit_records(records: list[Any], count: int | None) -> list[Any]:
    """The first `count` records of each subject; all of them for None."""
    if count is None:
        return records
    subjects = dict.fromkeys(record.subject for record in records)
    return [record for subject in subjects for record in [r for r in records if r.subject == subject][:count]]


def gradient_parts(experiment: Any, gate: Any, scopes: tuple[str, ...]) -> dict[str, dict[str, float]]:
    """Contributions of token positions to the first weight gradient of the edit, and the effect of the gate on it.

    For each group of positions: the norm of its contribution over the norm of the gradient. Contributions are not orthogonal,
    so these shares need not sum to one. For each scope: the share of the gradient's norm that the gate removes, the cosine
    between gradient and gated gradient, and the share of elements whose first Adam step (the sign of the gradient) changes.
    """
    import torch

    from lightning_neuralgate.data.datamodule import PrivacyPairDataModule
    from lightning_neuralgate.edit.editor import PrivacyEditModule
    from lightning_neuralgate.gate.positions import scope_positions
    from lightning_neuralgate.gate.spans import normalize_subject
    from lightning_neuralgate.hf.decoder import find_decoder
    from lightning_neuralgate.hf.forward import IGNORED

    s = experiment.settings
    editor = PrivacyEditModule(experiment.model, [s.layer], experiment.processor, alpha=s.alpha, retention_weight=0.0)
    editor.log_dict = lambda *args, **kwargs: None  # type: ignore[method-assign]
    data = PrivacyPairDataModule(experiment.splits, experiment.processor, pairs_per_batch=6, shuffle=False)
    projection = find_decoder(experiment.model).output_projection(s.layer)
    captured: dict[str, torch.Tensor] = {}

    def capture(module: Any, args: Any, output: torch.Tensor) -> None:
        captured["x"] = args[0].detach()
        output.register_hook(lambda grad: captured.__setitem__("grad", grad))

    totals: dict[str, torch.Tensor] = {}
    for batch in data.pairs_dataloader():
        handle = projection.register_forward_hook(capture)
        editor.loss(batch).backward()
        handle.remove()
        experiment.model.zero_grad()
        x, grad, subject = captured["x"].float(), captured["grad"].float(), batch["subject_mask"].bool()
        image = batch["input_ids"] == experiment.model.config.image_token_id
        from_subject, last = scope_positions("from_subject", subject), scope_positions("subject_last", subject)
        answer = batch["labels"] != IGNORED
        groups = {
            "picture": image,
            "question before the subject": ~image & ~from_subject & batch["attention_mask"].bool(),
            "subject but its last token": subject & ~last,
            "subject's last token": last,
            "rest of the question": from_subject & ~subject & ~answer,
            "answer": answer,
            "full": batch["attention_mask"].bool(),
        }
        masks = torch.stack([gate.mask(normalize_subject(name), s.layer, s.tau) for name in batch["subject"]])
        for name, positions in groups.items():
            part = grad[positions].T @ x[positions]
            totals[name] = totals.get(name, 0) + part
        for scope in scopes:
            positions = scope_positions(scope, subject)
            gated = torch.where(positions[:, :, None] & ~masks[:, None, :], 0.0, grad)
            totals[f"scope {scope}"] = totals.get(f"scope {scope}", 0) + gated.flatten(0, 1).T @ x.flatten(0, 1)
    experiment.model.requires_grad_(False)
    full = totals.pop("full")
    parts: dict[str, dict[str, float]] = {}
    for name, part in totals.items():
        if name.startswith("scope "):
            parts[name] = {
                "taken_away": float((full - part).norm() / full.norm()),
                "cosine": float((full * part).sum() / full.norm() / part.norm()),
                "adam_steps_changed": float((full.sign() != part.sign()).float().mean()),
            }
        else:
            parts[name] = {"share": float(part.norm() / full.norm())}
    return parts


def read_cells(out: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(file.read_text()) for file in sorted(out.glob(f"seed-*/cells/{slug(name)}.json"))]


def mean_and_deviation(values: list[float]) -> str:
    """Format mean and standard deviation over seeds."""
    text = f"{statistics.fmean(values):.3f}"
    return text + (f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else "")


def table_lines(out: Path) -> Iterator[str]:
    """Lines of the tables, as Markdown."""
    gradients = read_cells(out, PREPARE)
    seeds = sorted(row["seed"] for row in gradients)
    yield f"Seeds {seeds}; mean ± standard deviation. Cells start from `{json.dumps(BASE)}`.\n"
    yield "## Cells\n"
    yield "| cell | " + " | ".join(COLUMNS) + " | weight change | rows moved | seeds |"
    yield "| --- |" + " ---: |" * (len(COLUMNS) + 3)
    for name in (PREPARE, *CELLS):
        rows = read_cells(out, name)
        if rows:
            cells = [
                mean_and_deviation([row["rates"][split][rate] for row in rows]) for split, rate in COLUMNS.values()
            ]
            for key in ("weight_change", "rows_changed"):
                cells.append(mean_and_deviation([row[key] for row in rows]) if key in rows[0] else "")
            yield f"| {name} | " + " | ".join(cells) + f" | {len(rows)} |"
    if not gradients:
        return
    yield "\n## Where the edit's first gradient comes from\n"
    yield "| part of the text | norm relative to the full gradient |"
    yield "| --- | ---: |"
    names = gradients[0]["parts"]
    for name in (n for n in names if not n.startswith("scope ")):
        yield f"| {name} | {mean_and_deviation([row['parts'][name]['share'] for row in gradients])} |"
    yield "\n## Effect of the gate on the first gradient\n"
    yield "| scope | removed share of the norm | cosine with the full gradient | changed elements of the first Adam step |"
    yield "| --- | ---: | ---: | ---: |"
    for name in (n for n in names if n.startswith("scope ")):
        cells = [
            mean_and_deviation([r["parts"][name][k] for r in gradients])
            for k in ("taken_away", "cosine", "adam_steps_changed")
        ]
        yield f"| `{name.removeprefix('scope ')}` | " + " | ".join(cells) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/sweep"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument(
        "--cells", type=int, default=len(CELLS), help="run only the first cells; 0: only the unedited model"
    )
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes, with one thread each")
    parser.add_argument("--table", type=Path, default=ROOT / "docs" / "sweep-table.md")
    parser.add_argument(
        "--demo", type=Path, help="output folder of a finished demo with these seeds, whose edits are reused"
    )
    parser.add_argument("--only-table", action="store_true", help="only write the table of the finished cells")
    parser.add_argument("--worker", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker is not None:
        Jobs(args.out, args.worker, list(range(args.seeds)), args.cells).run()
        return
    failed = False
    if not args.only_table:
        if args.demo is not None:
            take_from_demo(args.demo, args.out, args.seeds)
        for claim in args.out.glob("seed-*/cells/*.claim"):
            claim.unlink()
        options = {"--out": args.out, "--seeds": args.seeds, "--cells": args.cells}
        command = [sys.executable, __file__, *(str(part) for pair in options.items() for part in pair), "--worker"]
        threads = {**os.environ, "OMP_NUM_THREADS": "1"}
        workers = [subprocess.Popen([*command, str(worker)], env=threads) for worker in range(args.jobs)]
        statuses = [worker.wait() for worker in workers]
        failed = any(statuses)
    text = "\n".join(table_lines(args.out))
    with atomic_write(args.table) as draft:
        draft.write_text(text + "\n", encoding="utf-8")
    print(f"{text}\n\ntable: {args.table}")
    sys.exit(int(failed))


if __name__ == "__main__":
    main()
