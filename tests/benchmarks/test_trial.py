import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import trial
from benchmarks.trial import Job, Worker, chosen_try, jobs, raced, read_result, results, winner
from benchmarks.trial_arms import ARMS, Arm
from benchmarks.trial_table import difference, draw_frontier, table_text
from lightning_neuralgate.data.ordinary import FORMS
from lightning_neuralgate.demo.measured import VALIDATION_SEED

STAGES = ("validation", "test", "forms")


@pytest.fixture
def arms(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(ARMS):
        monkeypatch.delitem(ARMS, name)
    for name in ("today", "ungated", "keys", "columns"):
        monkeypatch.setitem(ARMS, name, Arm(f"about {name}", {}, ({}, {"lr": 1e-3})))
    monkeypatch.setattr(trial, "ALWAYS_TESTED", ("today",))


def write(out: Path, job: Job, leak: float = 0.0, collateral: float = 0.0, unchanged: float = 1.0) -> None:
    items = {str(index): float(index < 10 * collateral) for index in range(10)}
    tasks = {task: {"refusal_aware_accuracy": 1 - collateral} for task in ("pope", "mme", "scienceqa")}
    splits = ("validation", "test", "unseen_attributes", "unseen_subjects")
    content: dict[str, Any] = {
        **job._asdict(), "rates": {split: {"leak_rate": leak} for split in splits}, "collateral": collateral,
        "unchanged": unchanged, "refused_items": items, "utility": tasks, "ladder": {"contrast_accuracy": 0.9},
        "attacks": {"prefill_3": {"leak": 0.5}, "rounded_int4": {"leak": 0.25}},
    }  # fmt: skip
    file = results(out).file(job.name)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content))


def write_validation(out: Path) -> None:
    write(out, Job("validation", 0, "unedited"))
    for arm, tries in {
        "today": ((0.5, 0.9), (0.4, 0.95)),  # leaks too much
        "ungated": ((0.0, 0.4), (0.05, 0.3)),
        "keys": ((0.2, 0.0), (0.0, 0.2)),  # the first leaks too much
        "columns": ((0.0, 0.6), (0.0, 0.7)),  # clearly worse
    }.items():
        for number, (leak, collateral) in enumerate(tries):
            write(out, Job("validation", 0, arm, number), leak, collateral)


@pytest.mark.usefixtures("arms")
def test_tries_are_chosen_and_arms_dropped_on_validation_data(tmp_path: Path) -> None:
    assert raced(tmp_path) is None
    write_validation(tmp_path)
    chosen = {arm: chosen_try(tmp_path, arm, 2) for arm in ARMS}
    assert {arm: found and found[0] for arm, found in chosen.items()} == {
        "today": 1, "ungated": 1, "keys": 1, "columns": 0,
    }  # fmt: skip
    assert raced(tmp_path) == {"today": 1, "ungated": 1, "keys": 1}
    assert winner(tmp_path) == "keys"


@pytest.mark.usefixtures("arms")
def test_jobs_follow_each_other(tmp_path: Path) -> None:
    unedited = Job("validation", 0, "unedited")
    assert list(jobs(tmp_path, 2, STAGES)) == [unedited]
    write(tmp_path, unedited)
    first = list(jobs(tmp_path, 2, STAGES))
    assert len(first) == 1 + 2 * len(ARMS)
    assert [job.tried for job in first] == [0] * 5 + [1] * 4
    write_validation(tmp_path)
    assert [job for job in jobs(tmp_path, 2, STAGES) if job.stage == "test"] == [
        Job("test", 0, "unedited"), Job("test", 1, "unedited"),
    ]  # fmt: skip
    write(tmp_path, Job("test", 0, "unedited"))
    with_seed = [job.arm for job in jobs(tmp_path, 2, STAGES) if job.stage == "test" and job.seed == 0]
    assert with_seed == ["unedited", "today", "ungated", "keys"]
    left_out = [job for job in jobs(tmp_path, 2, STAGES) if job.stage == "forms"]
    assert [(job.arm, job.form) for job in left_out] == [(arm, form) for form in FORMS for arm in ("keys", "ungated")]
    assert not [job for job in jobs(tmp_path, 2, ("validation",)) if job.stage != "validation"]


@pytest.mark.usefixtures("arms")
def test_a_failed_job_is_left_to_other_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(worker: Worker, job: Job) -> dict[str, Any]:
        raise RuntimeError("no memory")

    monkeypatch.setattr(Worker, "_make", fail)
    with pytest.raises(RuntimeError, match="no memory"):
        Worker(tmp_path, 0, {}, 1, STAGES).run()
    monkeypatch.setattr(Worker, "_make", lambda worker, job: {"collateral": 0.25})
    monkeypatch.setattr(trial, "jobs", lambda *arguments: iter([Job("validation", 0, "unedited")]))
    Worker(tmp_path, 0, {}, 1, STAGES).run()
    found = read_result(tmp_path, Job("validation", 0, "unedited"))
    assert found is not None
    assert found["collateral"] == 0.25


@pytest.mark.usefixtures("arms")
def test_tables_have_every_finished_arm(tmp_path: Path) -> None:
    write_validation(tmp_path)
    for seed in range(2):
        write(tmp_path, Job("test", seed, "unedited"))
        write(tmp_path, Job("test", seed, "ungated", 1), collateral=0.3)
        write(tmp_path, Job("test", seed, "keys", 1), collateral=0.1)
    text = table_text(tmp_path)
    assert "| keys | 0.20 / 0.00 / 1.00; 0.00 / 0.20 / 1.00 | 2 | yes |" in text
    keys = next(line for line in text.splitlines() if line.startswith("| keys | 0.000"))
    assert "-0.200 [" in keys
    assert keys.endswith("| 2 |")
    draw_frontier(tmp_path, tmp_path / "frontier.png")
    assert (tmp_path / "frontier.png").stat().st_size > 1000


@pytest.mark.slow
def test_every_arm_is_edited_and_measured(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, drawn: list[Any]
) -> None:
    arms = {name: arm._replace(tries=({**arm.tries[0], "epochs": 1},)) for name, arm in ARMS.items()}
    for name, arm in arms.items():
        monkeypatch.setitem(ARMS, name, arm)
    monkeypatch.setattr(trial, "MAX_LEAK", 1.0)
    monkeypatch.setattr(trial, "CLEARLY_WORSE", 1.0)
    monkeypatch.setattr(trial, "FORM_QUESTIONS", 1)
    monkeypatch.setattr("lightning_neuralgate.demo.measured.ATTACKS", ("plain", "rounded_int4"))
    options = {
        "model": str(checkpoint), "layer": 1, "edit_records": 1, "edit_pairs": 2, "test_records": 1, "test_pairs": 1,
        "questions_per_rung": 4, "questions_per_set": 1, "subjects": ("passport", "receipt"), "unseen": ("bank_card",),
    }  # fmt: skip
    Worker(tmp_path, 0, options, 1, STAGES).run()
    for name in ARMS:
        result = read_result(tmp_path, Job("validation", 0, name))
        assert result is not None
        assert result["weight_change"] > 0, name
        assert 0 <= result["unchanged"] <= 1
        tested = read_result(tmp_path, Job("test", 0, name))
        assert tested is not None
        assert set(tested["attacks"]) == {"plain", "rounded_int4", "any of them"}
    assert "| keys |" in table_text(tmp_path)
    assert drawn[0][0] == VALIDATION_SEED
    assert drawn[1][0] == 0


def test_differences_are_paired_by_question() -> None:
    reference = [{"seed": 0, "refused_items": {"a": 1.0, "b": 1.0, "c": 0.0}}]
    results = [{"seed": 0, "refused_items": {"a": 0.0, "b": 0.0, "c": 0.0}}]
    value, low, high = difference(results, reference)
    assert value == pytest.approx(-2 / 3)
    assert -1 <= low <= value <= high <= 0
    assert difference(reference, reference) == (0.0, 0.0, 0.0)
