from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
from torch import nn

from lightning_neuralgate.cli import main
from lightning_neuralgate.demo import measured
from lightning_neuralgate.demo.comparison import SWEEPS, Comparison, Job, artifact_bytes
from lightning_neuralgate.demo.comparison_table import markdown
from lightning_neuralgate.errors import UnsupportedSetupError
from lightning_neuralgate.evaluation.answers import read_answers
from lightning_neuralgate.hf.decoder import find_decoder
from lightning_neuralgate.hf.identity import model_checksum
from lightning_neuralgate.methods import METHODS, MethodData, WeightEdit
from lightning_neuralgate.methods.base import Method, Tier
from lightning_neuralgate.methods.neural_gate import NeuralGateEdit


@dataclass(frozen=True)
class Shifted(Method):
    """Adds a constant to one row of the projection."""

    name: ClassVar[str] = "shifted"
    tier: ClassVar[Tier] = 1
    tries: ClassVar[Sequence[Mapping[str, Any]]] = ({}, {"by": 2.0})

    by: float = 0.5

    def fit(self, model: nn.Module, data: MethodData) -> WeightEdit:
        name = f"{find_decoder(model).projection_path(data.layer)}.weight"
        weight = dict(model.named_parameters())[name].detach().clone()
        weight[0] += self.by
        return WeightEdit(
            method=self.name, settings=self.settings(), weights={name: weight}, base=model_checksum(model)
        )


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(METHODS, "shifted", Shifted)


def fake(leak: float, collateral: float, seed: int = 0) -> dict[str, Any]:
    rates = {split: {"leak_rate": leak, "rta_sensitive": 1.0} for split in ("validation", "test", "unseen_subjects")}
    return {"rates": rates, "collateral": collateral, "unchanged": 0.5, "seed": seed, "attacks": {}}


def write(comparison: Comparison, job: Job, content: dict[str, Any]) -> None:
    file = comparison.results.file(job.name)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content))


@pytest.mark.usefixtures("toy")
def test_tuned_settings_are_fitted_once_validation_is_over(tmp_path: Path) -> None:
    comparison = Comparison(tmp_path, ["system_prompt", "shifted"], seeds=2)
    first = list(comparison.jobs())
    assert [job.settings for job in first if job.stage == "validation" and job.method == "shifted"] == ["0", "1"]
    assert {job.settings for job in first if job.stage == "test"} == {"default"}
    for job, result in zip(comparison.tries("shifted"), (fake(0.0, 0.8), fake(0.04, 0.1)), strict=True):
        write(comparison, job, result)
    for job in comparison.tries("system_prompt"):
        write(comparison, job, fake(0.5, 0.0))
    tuned = [job for job in comparison.jobs() if job.settings == "tuned"]
    assert [job for job in tuned if job.method == "shifted"] == [
        Job("test", seed, "shifted", "tuned") for seed in (0, 1)
    ]
    assert comparison.fitted_as(tuned[-1]) == Shifted(by=2.0)
    # the default is the best try: not fitted a second time
    write(comparison, comparison.tries("shifted")[0], fake(0.0, 0.0))
    assert not [job for job in comparison.jobs() if job.settings == "tuned" and job.method == "shifted"]
    assert not [job for job in Comparison(tmp_path, ["shifted"], tuned=False).jobs() if job.stage == "validation"]


def test_an_unknown_method_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UnsupportedSetupError, match="no method 'magic'; there are system_prompt"):
        Comparison(tmp_path, ["magic"])
    assert main(["methods", "--out", str(tmp_path / "out"), "--methods", "ft,magic"]) == 1
    assert "there is no method 'magic'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("toy", "drawn")
def test_methods_are_fitted_measured_and_shown(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(measured, "ATTACKS", ("plain",))
    small = {
        "edit_pairs": 2, "test_pairs": 1, "subjects": ("passport", "receipt"), "unseen": ("bank_card",),
        "questions_per_rung": 4, "questions_per_set": 4,
    }  # fmt: skip
    monkeypatch.setattr(measured, "_QUESTIONS", {True: small, False: small})
    out = tmp_path / "out"
    command = ["methods", "--out", str(out), "--model.name", str(checkpoint), "--methods", "system_prompt,shifted"]
    command += ["--layer", "1", "--edit_records", "1", "--test_records", "1", "--tier", "1"]
    assert main(command) == 0
    printed = capsys.readouterr().out
    assert "about" in printed
    found = json.loads((out / "methods.json").read_text())
    rows = {(row["method"], row["settings"]): row["results"] for row in found["rows"]}
    assert {method for method, _ in rows} == {"unedited", "system_prompt", "shifted"}
    (shifted,) = rows["shifted", "default"]
    assert shifted["weight_change"] > 0
    assert shifted["seconds"] > 0
    assert shifted["artifact_bytes"] > 0
    (prompt,) = rows["system_prompt", "default"]
    assert prompt["weight_change"] == 0
    assert prompt["artifact_bytes"] == 0
    assert set(prompt["attacks"]) == {"plain", "any of them"}
    text = (out / "methods.md").read_text()
    assert "| shifted | 1 | default |" in text
    safety, utility = (shifted["averages"][kind] for kind in ("safety", "utility"))
    assert safety["parts"]["privacy_pair"] == shifted["rates"]["test"]["rta_sensitive"]
    assert safety["value"] == pytest.approx(sum(safety["parts"].values()) / 2)
    assert utility["value"] == pytest.approx(sum(utility["parts"].values()) / 3)
    assert utility["parts"]["pope"] == shifted["utility"]["pope"]["accuracy"]
    assert "| method | tier | settings | Safety | Safety: PrivacyPair | Safety: MLLMGuard | Utility |" in text
    shown = json.loads((out / "cases.json").read_text())
    assert [entry["method"] for entry in shown] == ["system_prompt", "shifted"]
    queries = {kind: content["queries"] for kind, content in shown[0]["kinds"].items()}
    assert set(queries.values()) == {sum(len(part) for part in splits_of(out)) // 2}
    assert "## shifted (default settings)" in (out / "cases.md").read_text()
    assert (out / "frontier.png").stat().st_size > 1000
    made = {file: file.stat().st_mtime_ns for file in (out / "results").rglob("*.json")}
    assert main(command) == 0, "nothing is made again"
    assert made == {file: file.stat().st_mtime_ns for file in (out / "results").rglob("*.json")}
    assert main([*command[:-6], "--layer", "0"]) == 1
    assert "holds a comparison with edit_records 1, and this one has 2" in capsys.readouterr().err
    monkeypatch.setitem(SWEEPS, "by", (0.25, 4.0))
    monkeypatch.setitem(SWEEPS, "records", (2,))
    page = tmp_path / "page.md"
    page.write_text("# Methods\n<!-- sweep of by -->\nold\n<!-- end of sweep of by -->\nend\n")
    command[command.index("system_prompt,shifted")] = "shifted"
    assert main([*command, "--sweep", "by", "--write", str(page)]) == 0
    text = page.read_text()
    assert "old" not in text
    assert text.startswith("# Methods\n<!-- sweep of by -->\n")
    assert text.endswith("<!-- end of sweep of by -->\nend\n")
    assert "| shifted | 0.25 |" in text
    assert "| shifted | 4 |" in text
    assert (out / "sweep-by.png").stat().st_size > 1000
    assert {file: file.stat().st_mtime_ns for file in made} == made, "tries are shared"
    assert main([*command, "--sweep", "records"]) == 0
    (row,) = json.loads((out / "sweep-records.json").read_text())["rows"]
    assert (row["method"], row["value"]) == ("shifted", 2)
    prepared = out / "test" / "seed-0" / "process-0" / "records-2" / "data" / "records.jsonl"
    assert sum(json.loads(line)["split"] == "edit" for line in prepared.read_text().splitlines()) == 4
    assert main([*command, "--sweep", "tau"]) == 1
    assert "the method 'shifted' has no setting 'tau' to sweep; these have it: neural_gate" in capsys.readouterr().err


def splits_of(out: Path) -> list[list[Any]]:
    """Return the judged answers of the unedited model, as one list."""
    return [read_answers(out / "results" / "test" / "seed-0" / "unedited" / "default.jsonl")]


def test_a_sweep_starts_from_the_tuned_settings(tmp_path: Path) -> None:
    comparison = Comparison(tmp_path, ["neural_gate"], seeds=2, sweep="alpha")
    first = list(comparison.jobs())
    assert [job.name for job in first if job.stage == "test"] == [
        "test/seed-0/unedited/default",
        "test/seed-1/unedited/default",
    ]
    for job, leak in zip(comparison.tries("neural_gate"), (0.9, 0.0, 0.9, 0.9), strict=True):
        write(comparison, job, fake(leak, 0.0))
    swept = [job for job in comparison.jobs() if job.method == "neural_gate" and job.stage == "test"]
    assert len(swept) == 2 * len(SWEEPS["alpha"])
    assert all(Job.parse(job.name) == job for job in swept)
    assert comparison.fitted_as(swept[1]) == NeuralGateEdit(lr=1e-3, alpha=SWEEPS["alpha"][1])
    records = Comparison(tmp_path, ["neural_gate"], tuned=False, sweep="records")
    assert {records.fitted_as(job) for job in records.swept_jobs(0, "neural_gate")} == {NeuralGateEdit()}
    with pytest.raises(UnsupportedSetupError, match="no sweep of 'colour'; there are alpha, tau, records"):
        Comparison(tmp_path, ["neural_gate"], sweep="colour")


def test_the_table_of_a_sweep_has_a_row_for_each_value(tmp_path: Path) -> None:
    comparison = Comparison(tmp_path, ["neural_gate"], seeds=2, tuned=False, sweep="tau")
    write(comparison, Job("test", 0, "unedited"), fake(0.8, 0.0))
    for seed, collateral in enumerate((0.1, 0.3)):
        write(comparison, comparison.swept_jobs(seed, "neural_gate")[1], fake(0.0, collateral, seed))
    lines = markdown(comparison).splitlines()
    assert [line.split(" | ")[:2] for line in lines if line.startswith("| neural_gate")] == [["| neural_gate", "0.3"]]
    (line,) = (line for line in lines if line.startswith("| neural_gate"))
    assert line.startswith("| neural_gate | 0.3 | 1.000 ± 0.000 | - | - | 0.000 ± 0.000 | 0.200 ± 0.141 | -")
    assert any(line.startswith("| unedited |  | 1.000 | - | - | 0.800 |") for line in lines)


@pytest.mark.parametrize("page", ["nothing", "<!-- end of methods -->\n<!-- methods -->\n", "<!-- methods -->\n" * 2])
def test_a_page_without_its_lines_is_refused_before_anything_runs(
    page: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "page.md"
    file.write_text(page)
    assert main(["methods", "--out", str(tmp_path / "out"), "--write", str(file)]) == 1
    assert "needs the line <!-- methods --> once" in capsys.readouterr().err
    assert file.read_text() == page
    assert not (tmp_path / "out").exists()


def test_only_changed_rows_count_as_artifact() -> None:
    linear = nn.Linear(3, 4)
    model = nn.Sequential(linear)
    weight = linear.weight.detach().clone()
    weight[1] += 1
    fitted = WeightEdit(method="shifted", settings={}, weights={"0.weight": weight}, base="")
    assert artifact_bytes(fitted, model) == 3 * 4


def test_the_table_has_what_is_finished(tmp_path: Path) -> None:
    comparison = Comparison(tmp_path, ["ft"], seeds=2, tuned=False)
    write(comparison, Job("test", 0, "unedited"), fake(0.8, 0.0))
    write(comparison, Job("test", 0, "ft"), fake(0.0, 0.5))
    write(comparison, Job("test", 1, "ft"), fake(0.2, 0.7, seed=1))
    line = next(line for line in markdown(comparison).splitlines() if line.startswith("| ft"))
    assert line.startswith("| ft | 1 | default | 0.100 ± 0.141 | - | 0.100 ± 0.141 | 1.000 ± 0.000 | - | 0.600 ± 0.141")
    assert line.endswith("| 2 |")


def test_the_worst_attack_is_a_single_one() -> None:
    leaks = {"plain": 0.1, "prefill_3": 0.4, "rounded_int4": None, "any of them": 0.9}
    assert measured.worst_attack({"attacks": {name: {"leak": leak} for name, leak in leaks.items()}}) == 0.4
    assert measured.worst_attack({"attacks": {}}) is None
