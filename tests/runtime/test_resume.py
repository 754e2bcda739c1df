"""Trainings that are interrupted at every batch and resumed."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import EarlyStopping
from torch import Tensor

from lightning_neuralgate.data.records import RecordSplits
from lightning_neuralgate.edit.editor import PrivacyEditModule
from lightning_neuralgate.errors import ResumeError
from lightning_neuralgate.evaluation.callback import RefusalMetricsCallback
from lightning_neuralgate.gate.callback import NeuralGateCallback
from lightning_neuralgate.hf.decoder import find_decoder
from lightning_neuralgate.locate.locator import PrivacyLocatorModule
from lightning_neuralgate.runtime.resume import _checksum, check_same_run, fit_resumably
from lightning_neuralgate.runtime.run_folder import remove_progress
from tests.helpers.tiny_llava import tiny_llava, tiny_processor
from tests.helpers.training import QUIET, datamodule, random_gate, train

LAYER = 1
SETTINGS: dict[str, Any] = {**QUIET, "num_sanity_val_steps": 0, "limit_val_batches": 1}


class Killed(Exception):
    pass


class Kill(Callback):
    """Interrupt a training before its next batch, after `after` batches; -1 for never."""

    def __init__(self, after: int) -> None:
        self.left, self.batches = after, 0

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if self.left == 0:
            raise Killed
        self.left -= 1
        self.batches += 1


def edit(
    splits: RecordSplits, folder: Path, kill: Kill, settings: dict[str, Any], workers: int = 0, **options: Any
) -> Tensor:
    """Run an edit and return the edited weight."""
    model = tiny_llava()
    paper = settings["schedule"] == "paper"
    module = PrivacyEditModule(model, [LAYER], tiny_processor(), max_new_tokens=2, lr=1e-2, **settings)
    gate = NeuralGateCallback(random_gate(model), scope="all", tau=0.5)
    added = options.pop("added", {})
    trainer = Trainer(callbacks=[gate, kill], **{**SETTINGS, "max_epochs": 3, **options})
    batches = {"pairs_per_batch": 1 if paper else 3, "shuffle": not paper, "seed": 2, "num_workers": workers, **added}
    fit_resumably(trainer, module, datamodule(splits, **batches), folder, settings, every_seconds=0)
    weight: Tensor = find_decoder(model).output_projection(LAYER).weight.detach()  # type: ignore[assignment]
    return weight


MINIBATCH = {"schedule": "minibatch"}
SETUPS: dict[str, tuple[dict[str, Any], dict[str, Any], int]] = {
    "minibatch": (MINIBATCH, {}, 0),
    "accumulated": (MINIBATCH, {"accumulate_grad_batches": 2}, 2),
    "with validation": (MINIBATCH, {"val_check_interval": 2, "check_val_every_n_epoch": None}, 0),
    "paper": ({"schedule": "paper", "steps_per_pair": 2}, {"max_epochs": 1}, 0),
    "added rows": (MINIBATCH, {"added": {"recovery_share": 0.6, "indirect_share": 0.6}}, 0),
}


@pytest.mark.parametrize("setup", ["minibatch", pytest.param("accumulated", marks=pytest.mark.slow)])
def test_an_interrupted_edit_ends_in_the_same_weights(splits: RecordSplits, tmp_path: Path, setup: str) -> None:
    settings, options, workers = SETUPS[setup]
    uninterrupted = Kill(-1)
    expected = edit(splits, tmp_path / "full", uninterrupted, settings, workers, **options)
    assert not torch.equal(expected, find_decoder(tiny_llava()).output_projection(LAYER).weight)  # type: ignore[arg-type]
    redone = options.get("accumulate_grad_batches", 1) - 1
    for after in range(uninterrupted.batches):
        folder, first, second = tmp_path / f"after-{after}", Kill(after), Kill(-1)
        with pytest.raises(Killed):
            edit(splits, folder, first, settings, workers, **options)
        found = edit(splits, folder, second, settings, workers, **options)
        assert torch.equal(found, expected), f"killed after {after} batches"
        assert uninterrupted.batches <= first.batches + second.batches <= uninterrupted.batches + redone


@pytest.mark.parametrize("setup", SETUPS)
def test_an_edit_can_be_interrupted_many_times(splits: RecordSplits, tmp_path: Path, setup: str) -> None:
    settings, options, workers = SETUPS[setup]
    expected = edit(splits, tmp_path / "full", Kill(-1), settings, workers, **options)
    starts, batches = 0, options.get("accumulate_grad_batches", 1)
    while True:
        starts += 1
        try:
            found = edit(splits, tmp_path / "interrupted", Kill(batches), settings, workers, **options)
        except Killed:
            continue
        break
    assert starts > 5
    assert torch.equal(found, expected)
    assert len(list((tmp_path / "interrupted").glob("step-*"))) == 2, "older checkpoints are removed"
    assert not list((tmp_path / "interrupted").glob("*.draft"))


def test_early_stopping_after_a_resume(splits: RecordSplits, tmp_path: Path) -> None:
    def stopped(folder: Path, kill: Kill) -> int:
        module = PrivacyEditModule(tiny_llava(), [LAYER], tiny_processor(), lr=0.0, max_new_tokens=2)
        stop = EarlyStopping("val/eta", mode="max", patience=1)
        trainer = Trainer(max_epochs=9, callbacks=[kill, stop], **SETTINGS)
        fit_resumably(trainer, module, datamodule(splits, pairs_per_batch=4), folder, {}, every_seconds=0)
        return trainer.global_step

    steps = stopped(tmp_path / "full", Kill(-1))
    assert steps == 4, "two batches per epoch, no improvement in the second"
    for after in range(steps):
        with pytest.raises(Killed):
            stopped(tmp_path / f"{after}", Kill(after))
        assert stopped(tmp_path / f"{after}", Kill(-1)) == steps


class KillAtTheEnd(Kill):
    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        raise Killed


def test_hooks_at_the_end_of_training_run_after_a_resume(splits: RecordSplits, tmp_path: Path) -> None:
    def measure(folder: Path, kill: Kill) -> tuple[list[int], set[str]]:
        module = PrivacyEditModule(tiny_llava(), [LAYER], tiny_processor(), max_new_tokens=2)
        metrics = RefusalMetricsCallback({"test": splits.test}, tiny_processor(), 4, max_new_tokens=2)
        trainer = Trainer(max_epochs=2, callbacks=[kill, metrics], **SETTINGS)
        fit_resumably(trainer, module, datamodule(splits, pairs_per_batch=3), folder, {}, every_seconds=0)
        return [step for step, _ in metrics.history], set(trainer.callback_metrics)

    expected = measure(tmp_path / "full", Kill(-1))
    assert expected[0] == [0, 4, 6]
    with pytest.raises(Killed):
        measure(tmp_path / "interrupted", KillAtTheEnd(-1))
    assert measure(tmp_path / "interrupted", Kill(-1)) == expected


def test_a_run_bounded_by_steps_keeps_no_progress(splits: RecordSplits, tmp_path: Path) -> None:
    options = {"max_steps": 2, "max_epochs": -1}
    with pytest.warns(UserWarning, match="bound the run by max_epochs"):
        edit(splits, tmp_path / "run", Kill(-1), MINIBATCH, **options)
    assert not (tmp_path / "run").exists()


def test_hyperparameters_that_a_checkpoint_cannot_restore_are_refused(splits: RecordSplits, tmp_path: Path) -> None:
    module = PrivacyEditModule(tiny_llava(), [LAYER], tiny_processor())
    module.hparams["where"] = Path("somewhere")
    with pytest.raises(ResumeError, match=r"hyperparameter 'where' is .*; make it a plain value"):
        fit_resumably(Trainer(max_epochs=1, **SETTINGS), module, datamodule(splits), tmp_path, {})


def test_progress_of_an_unknown_run_is_refused(splits: RecordSplits, tmp_path: Path) -> None:
    with pytest.raises(Killed):
        edit(splits, tmp_path / "run", Kill(2), MINIBATCH)
    (tmp_path / "run" / "run.json").unlink()
    with pytest.raises(ResumeError, match="of an unknown run"):
        edit(splits, tmp_path / "run", Kill(-1), MINIBATCH)


def test_a_partly_written_checkpoint_is_ignored(splits: RecordSplits, tmp_path: Path) -> None:
    with pytest.raises(Killed):
        edit(splits, tmp_path / "interrupted", Kill(2), MINIBATCH)
    (tmp_path / "interrupted" / "step-000000009.ckpt.draft").write_bytes(b"incomplete")
    found = edit(splits, tmp_path / "interrupted", Kill(-1), MINIBATCH)
    assert torch.equal(found, edit(splits, tmp_path / "full", Kill(-1), MINIBATCH))


def test_progress_of_a_run_with_other_settings_is_refused(splits: RecordSplits, tmp_path: Path) -> None:
    with pytest.raises(Killed):
        edit(splits, tmp_path / "run", Kill(1), {"schedule": "minibatch", "alpha": 1.0})
    with pytest.raises(ResumeError, match=r"alpha: 1\.0 there, 2\.0 now; module\.alpha.*delete the folder"):
        edit(splits, tmp_path / "run", Kill(-1), {"schedule": "minibatch", "alpha": 2.0})
    (tmp_path / "run" / "run.json").write_text("[1", encoding="utf-8")
    with pytest.raises(ResumeError, match=r"run\.json cannot be read"):
        edit(splits, tmp_path / "run", Kill(-1), {"schedule": "minibatch", "alpha": 1.0})
    remove_progress(tmp_path / "run")
    edit(splits, tmp_path / "run", Kill(-1), {"schedule": "minibatch", "alpha": 2.0})


def checkpoints(folder: Path) -> list[Path]:
    return sorted(folder.glob("step-*.ckpt"))


def test_a_checkpoint_with_code_is_refused(splits: RecordSplits, tmp_path: Path) -> None:
    with pytest.raises(Killed):
        edit(splits, tmp_path / "run", Kill(1), MINIBATCH)
    (checkpoint,) = checkpoints(tmp_path / "run")
    content = torch.load(checkpoint, weights_only=True)
    torch.save({**content, "more": Path}, checkpoint)
    checkpoint.rename(checkpoint.with_name(f"step-000000001-{_checksum(checkpoint)}.ckpt"))
    with pytest.raises(ResumeError, match=r"no checkpoint in .* can be read .*[Ww]eights.only.*; delete the folder"):
        edit(splits, tmp_path / "run", Kill(-1), MINIBATCH)


@pytest.mark.parametrize("damage", ["empty", "cut short", "one bit", "text"])
def test_a_damaged_checkpoint_is_noticed_and_the_one_before_is_used(
    splits: RecordSplits, tmp_path: Path, damage: str
) -> None:
    expected = edit(splits, tmp_path / "full", Kill(-1), MINIBATCH)
    with pytest.raises(Killed):
        edit(splits, tmp_path / "run", Kill(3), MINIBATCH)
    older, latest = checkpoints(tmp_path / "run")
    for file in (latest, older):
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 1
        damaged = {"empty": b"", "cut short": content[:-100], "one bit": content, "text": b"no checkpoint"}
        file.write_bytes(bytes(damaged[damage]))
        if file == latest:
            shutil.copytree(tmp_path / "run", tmp_path / "copy")
    with pytest.raises(ResumeError, match=r"no checkpoint in .* can be read \(.*\); delete the folder to start anew"):
        edit(splits, tmp_path / "run", Kill(-1), MINIBATCH)
    second = Kill(-1)
    with pytest.warns(UserWarning, match="damaged checkpoint, resuming from the one before"):
        assert torch.equal(edit(splits, tmp_path / "copy", second, MINIBATCH), expected)
    full = Kill(-1)
    edit(splits, tmp_path / "other", full, MINIBATCH)
    assert second.batches == full.batches - 2


def test_settings_alone_bind_no_other_run(tmp_path: Path) -> None:
    check_same_run(tmp_path, {"dtype": "float16"})
    check_same_run(tmp_path, {"dtype": "float32"})
    (tmp_path / "part-0.jsonl").write_text("progress")
    with pytest.raises(ResumeError, match="dtype: 'float32' there, 'float16' now"):
        check_same_run(tmp_path, {"dtype": "float16"})


class InterruptedLocator(PrivacyLocatorModule):
    """Count the located records, and raise before one of them."""

    left, count = -1, 0

    def _learn(self, batch: Any) -> Any:
        if self.left == 0:
            raise Killed
        self.left -= 1
        self.count += 1
        return super()._learn(batch)


def test_located_records_are_not_located_again(splits: RecordSplits, tmp_path: Path) -> None:
    edited = tiny_llava()
    find_decoder(edited).output_projection(LAYER).weight.data *= 2  # type: ignore[operator, union-attr]

    def locate(folder: Path | None, stop: int = -1, model: Any = None, **options: Any) -> InterruptedLocator:
        locator = InterruptedLocator(model or tiny_llava(), [0, LAYER], max_steps=4, cache_dir=folder, **options)
        locator.left = stop
        train(locator, datamodule(splits, records_per_batch=1), max_steps=-1, max_epochs=1)
        return locator

    expected = locate(None)
    for stop in range(len(splits.edit)):
        with pytest.raises(Killed):
            locate(tmp_path / f"{stop}", stop)
        resumed = locate(tmp_path / f"{stop}")
        assert resumed.count == len(splits.edit) - stop
        assert resumed.gate.fingerprint == expected.gate.fingerprint
        for record, vectors in expected.vectors.items():
            assert all(torch.equal(resumed.vectors[record][layer], value) for layer, value in vectors.items())
    assert locate(tmp_path / "1").count == 0
    file = next((tmp_path / "2").iterdir())
    assert locate(tmp_path / "1", model=edited).count == len(splits.edit), (
        "cached for another model of the same identity"
    )
    assert locate(tmp_path / "1", alpha=2.0).count == len(splits.edit), "cached for other settings"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    for damaged in (b"nonsense", b"", bytes(content)):
        file.write_bytes(damaged)
        with pytest.warns(UserWarning, match=rf"{file.name} is damaged .*, so its records are located again"):
            resumed = locate(tmp_path / "2")
        assert resumed.count == 1
        assert resumed.gate.fingerprint == expected.gate.fingerprint
