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
from lightning_neuralgate.demo.comparison import Comparison, Job, artifact_bytes
from lightning_neuralgate.demo.comparison_table import markdown
from lightning_neuralgate.errors import UnsupportedSetupError
from lightning_neuralgate.hf.decoder import find_decoder
from lightning_neuralgate.hf.identity import model_checksum
from lightning_neuralgate.methods import METHODS, MethodData, WeightEdit
from lightning_neuralgate.methods.base import Method, Tier


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
        "questions_per_rung": 4, "questions_per_set": 2,
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
    assert (out / "frontier.png").stat().st_size > 1000
    made = {file: file.stat().st_mtime_ns for file in (out / "results").rglob("*.json")}
    assert main(command) == 0, "nothing is made again"
    assert made == {file: file.stat().st_mtime_ns for file in (out / "results").rglob("*.json")}
    assert main([*command[:-6], "--layer", "0"]) == 1
    assert "holds a comparison with edit_records 1, and this one has 2" in capsys.readouterr().err


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
