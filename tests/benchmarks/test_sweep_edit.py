from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.sweep_edit import (
    BASE,
    CELLS,
    COLUMNS,
    PREPARE,
    Jobs,
    find_cell,
    limit_records,
    shuffle_gate,
    slug,
    table_lines,
    take_from_demo,
)
from lightning_neuralgate.data.records import RecordSplits
from lightning_neuralgate.demo.experiment import EditSettings
from lightning_neuralgate.gate.neural_gate import NeuralGate
from lightning_neuralgate.hf.identity import ModelIdentity

PARTS = {"picture": {"share": 0.5}, "scope all": {"taken_away": 0.9, "cosine": 0.4, "adam_steps_changed": 0.7}}


class FakeJobs(Jobs):
    """Jobs without a model; the rates of a cell are its seed / 10."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.ran: list[tuple[int, str]] = []

    def _rates(self, seed: int) -> dict[str, dict[str, float]]:
        return {split: {rate: seed / 10 for _, rate in COLUMNS.values()} for split, _ in COLUMNS.values()}

    def _prepare(self, seed: int) -> dict[str, Any]:
        self.ran.append((seed, PREPARE))
        return {"rates": self._rates(seed), "parts": PARTS}

    def _cell(self, seed: int, name: str) -> dict[str, Any]:
        assert self.file(seed, PREPARE).is_file(), "a cell needs its seed's gate"
        self.ran.append((seed, name))
        return {"rates": self._rates(seed), "weight_change": 0.1, "rows_changed": 1.0}


def test_every_cell_runs_exactly_once(tmp_path: Path) -> None:
    jobs = FakeJobs(tmp_path, 0, [0, 1])
    jobs.run()
    assert sorted(jobs.ran) == sorted((seed, name) for seed in (0, 1) for name in (PREPARE, *CELLS))
    again = FakeJobs(tmp_path, 0, [0, 1, 2])
    again.run()
    assert {seed for seed, _ in again.ran} == {2}


def test_sweep_can_be_limited_to_the_first_cells(tmp_path: Path) -> None:
    for cells in (0, 2):
        FakeJobs(tmp_path, 0, [0], cells).run()
        done = {file.stem for file in (tmp_path / "seed-0" / "cells").glob("*.json")}
        assert done == {slug(name) for name in (PREPARE, *list(CELLS)[:cells])}


def test_cells_claimed_by_another_process_are_skipped(tmp_path: Path) -> None:
    other, mine = FakeJobs(tmp_path, 0, [0]), FakeJobs(tmp_path, 1, [0])
    other._save(0, PREPARE, other._prepare(0))
    claimed = next(iter(CELLS))
    assert other._claim(0, claimed)
    mine.run()
    assert (0, claimed) not in mine.ran
    assert len(mine.ran) == len(CELLS) - 1


def test_failed_jobs_can_be_retried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(seed: int) -> dict[str, Any]:
        raise RuntimeError("out of memory")

    jobs = FakeJobs(tmp_path, 0, [0])
    monkeypatch.setattr(jobs, "_prepare", fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        jobs.run()
    assert not jobs.file(0, PREPARE).is_file()
    other = FakeJobs(tmp_path, 1, [0])
    other.run()
    assert len(other.ran) == 1 + len(CELLS)


def demo_results(folder: Path, **settings: Any) -> None:
    folder.mkdir(parents=True)
    rates = {arm: {"test": {"rta_sensitive": share}} for arm, share in (("gated", 0.25), ("ungated", 0.75))}
    change = {arm: {"weight_change": 0.1, "rows_changed": 1.0} for arm in rates}
    run = {**rates, "weight_change": change, "settings": {**BASE, "judge": True, "images": True, **settings}}
    (folder / "results.json").write_text(json.dumps(run))


@pytest.mark.parametrize(
    ("settings", "names"),
    [({}, ["gate, subject's last token", "ungated"]), ({"lr": 6e-3}, ["gate, lr 6e-3", "ungated, lr 6e-3"])],
)
def test_demo_results_fill_the_cells_with_its_settings(
    tmp_path: Path, settings: dict[str, Any], names: list[str]
) -> None:
    demo_results(tmp_path / "demo" / "seed-0", **settings)
    take_from_demo(tmp_path / "demo", tmp_path / "sweep", 1)
    jobs = FakeJobs(tmp_path / "sweep", 0, [0])
    jobs.run()
    assert {name for _, name in jobs.ran} == {PREPARE, *CELLS} - set(names)
    shares = [json.loads(jobs.file(0, name).read_text())["rates"]["test"]["rta_sensitive"] for name in names]
    assert shares == [0.25, 0.75]


@pytest.mark.parametrize("settings", [{"lr": 1e-3}, {"images": False}])
def test_demo_with_other_settings_raises(tmp_path: Path, settings: dict[str, Any]) -> None:
    demo_results(tmp_path / "demo" / "seed-0", **settings, alpha=0.7)
    with pytest.raises(SystemExit, match="no cell has the settings of the gated edit"):
        take_from_demo(tmp_path / "demo", tmp_path / "sweep", 1)
    assert not (tmp_path / "sweep").exists()


def test_demo_defaults_are_a_cell() -> None:
    settings = asdict(EditSettings().resolved())
    assert find_cell(settings, gated=True) is not None
    assert find_cell(settings, gated=False) is not None


def test_file_names_of_cells_are_unique() -> None:
    assert len({slug(name) for name in (PREPARE, *CELLS)}) == 1 + len(CELLS)


def test_table_has_means_and_deviations(tmp_path: Path) -> None:
    FakeJobs(tmp_path, 0, [1, 3]).run()
    table = "\n".join(table_lines(tmp_path))
    assert "Seeds [1, 3]" in table
    for name in CELLS:
        assert f"| {name} | 0.200 ± 0.141 |" in table
    assert "| picture | 0.500 ± 0.000 |" in table
    assert "| `all` | 0.900 ± 0.000 | 0.400 ± 0.000 | 0.700 ± 0.000 |" in table


def test_shuffled_gate_opens_other_rows() -> None:
    identity = ModelIdentity("Tiny", "0", "model.layers", "mlp.down_proj", 2, 64)
    rates = {"passport": {1: torch.arange(64) / 64}, "receipt": {1: torch.arange(64) / 64}}
    gate = NeuralGate(rates, identity, {"passport": 4, "receipt": 4})
    other = shuffle_gate(gate, 0)
    assert torch.equal(other.rates("passport", 1).sort().values, gate.rates("passport", 1))
    assert not torch.equal(other.rates("passport", 1), gate.rates("passport", 1))
    assert torch.equal(other.rates("passport", 1), other.rates("receipt", 1)), "the overlap of subjects is unchanged"


@pytest.mark.parametrize("count", [1, 2])
def test_limit_records_per_subject(splits: RecordSplits, count: int) -> None:
    limited = limit_records(splits.edit, count)
    for subject in {record.subject for record in splits.edit}:
        held = [record for record in splits.edit if record.subject == subject]
        assert [record for record in limited if record.subject == subject] == held[:count]
    assert limit_records(splits.edit, None) == splits.edit
