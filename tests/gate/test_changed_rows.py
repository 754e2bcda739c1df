"""The share of rows that training has changed, without a copy of them."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor, nn

from lightning_neuralgate.changed_rows import ChangedRows, fingerprints
from lightning_neuralgate.data.records import RecordSplits
from lightning_neuralgate.gate.autograd import Scope, gated_places
from lightning_neuralgate.gate.callback import NeuralGateCallback
from lightning_neuralgate.hf.decoder import find_decoder
from tests.helpers.tiny_llava import tiny_llava
from tests.helpers.training import SomebodysModule, datamodule, random_gate, train

NAME = "gate/layer_1/rows_changed"


def of(parameter: Tensor) -> Tensor:
    found = fingerprints(parameter)
    assert found is not None
    return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("shape", [(300, 7), (5, 40), (300,), (0, 4)], ids=str)
def test_each_change_of_one_element_shows_in_its_row_alone(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    weight = torch.randn(shape).to(dtype)
    kept, before = weight.clone(), of(weight)
    assert before.shape == shape[:1]
    assert before.unique().numel() == kept.unique(dim=0).shape[0]
    for row in range(0, shape[0], 3):
        for column in range(len(weight[row].flatten())):
            changed = weight.clone()
            element = changed[row].view(-1)[column : column + 1]
            element.copy_(torch.nextafter(element.float(), torch.tensor(9.0)) if dtype.itemsize > 2 else -element)
            assert (of(changed) != before).nonzero().flatten().tolist() == [row]
    assert torch.equal(weight, kept), "taking fingerprints must leave the weight alone"
    assert torch.equal(of(weight), before)


def test_bits_count_and_not_values() -> None:
    """As for every other claim of bit-identity: minus zero is not zero, and a NaN is what it was."""
    weight = torch.tensor([[0.0, 1.0], [float("nan"), 1.0]])
    before = of(weight)
    weight[0, 0] = -0.0
    assert (of(weight) != before).tolist() == [True, False]


def test_fingerprints_of_old_checkpoints_stay_comparable() -> None:
    weight = torch.tensor([[1.0, -2.0, 0.5], [0.0, 0.0, 0.0]])
    assert of(weight).tolist() == [-7479927215883288576, 0]


def test_a_layout_in_memory_does_not_matter() -> None:
    weight = torch.randn(9, 6)
    assert torch.equal(of(weight.T.contiguous().T), of(weight))
    assert torch.equal(of(torch.cat([weight, weight], 1)[:, :6]), of(weight))


class Shares(Callback):
    """Which share of a weight's rows differs after each step, by comparison with a copy."""

    def __init__(self, weight: Tensor) -> None:
        self.weight, self.before = weight, weight.detach().clone()
        self.seen: list[float] = []

    def on_train_batch_end(self, *args: Any, **kwargs: Any) -> None:
        self.seen.append(float((self.weight != self.before).any(1).double().mean()))


def logged(folder: Path) -> list[float]:
    with (folder / "metrics.csv").open() as file:
        return [float(row[NAME]) for row in csv.DictReader(file) if row[NAME]]


def short_fit(
    module: LightningModule, splits: RecordSplits, folder: Path, *callbacks: Callback, **options: Any
) -> Trainer:
    settings: dict[str, Any] = {"max_steps": 6, "log_every_n_steps": 1, "logger": CSVLogger(folder, "", ""), **options}
    return train(module, datamodule(splits, pairs_per_batch=1), *callbacks, **settings)


@pytest.mark.parametrize("scope", ["subject_last", "all"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_it_is_the_share_that_a_copy_gives(
    splits: RecordSplits, tmp_path: Path, scope: Scope, dtype: torch.dtype
) -> None:
    model = tiny_llava().to(dtype)
    gate = random_gate(model)
    weight: Any = find_decoder(model).output_projection(1).weight
    spy = Shares(weight)
    short_fit(SomebodysModule(model), splits, tmp_path, NeuralGateCallback(gate, scope, tau=0.5), spy)
    assert logged(tmp_path) == pytest.approx(spy.seen, abs=0)
    opened = [gate.mask(subject, 1, 0.5) for subject in gate.subjects]
    if scope == "all" and dtype == torch.float32:
        assert spy.seen[0] == float(opened[0].double().mean())
        assert spy.seen[-1] == float((opened[0] | opened[1]).double().mean()) < 1
    assert len(spy.seen) == 6


def test_rows_of_a_projection_with_a_bias_are_those_of_its_weight(splits: RecordSplits, tmp_path: Path) -> None:
    model = tiny_llava()
    mlp: Any = find_decoder(model).layer(1).mlp
    with_bias = nn.Linear(48, 32)
    with_bias.load_state_dict({"weight": mlp.down_proj.weight, "bias": torch.zeros(32)})
    mlp.down_proj = with_bias
    spy = Shares(with_bias.weight)
    short_fit(SomebodysModule(model), splits, tmp_path, NeuralGateCallback(random_gate(model), "all", tau=0.5), spy)
    assert logged(tmp_path) == spy.seen
    assert 0 < spy.seen[-1] < 1


def test_nothing_is_measured_between_logging_steps(
    splits: RecordSplits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    share = ChangedRows.share
    monkeypatch.setattr(ChangedRows, "share", lambda self, name, place: calls.append(name) or share(self, name, place))
    model = tiny_llava()
    callback = NeuralGateCallback(random_gate(model))
    short_fit(SomebodysModule(model), splits, tmp_path, callback, log_every_n_steps=3)
    assert len(calls) == len(logged(tmp_path)) == 2


def test_a_resumed_training_goes_on_counting(splits: RecordSplits, tmp_path: Path) -> None:
    """From the first beginning: rows that were open to one subject alone are not forgotten while the other is trained."""
    gate = random_gate(tiny_llava())
    parts = [[record for record in splits.edit if record.subject == subject] for subject in gate.subjects]
    opened = [gate.mask(subject, 1, 0.5) for subject in gate.subjects]

    def fit(part: int, checkpoint: Path | None, tau: float = 0.5) -> Trainer:
        trainer = Trainer(
            max_epochs=part + 1, accelerator="cpu", logger=CSVLogger(tmp_path / str(part), "", ""), log_every_n_steps=1,
            enable_checkpointing=False, enable_progress_bar=False, limit_val_batches=0,
            callbacks=[NeuralGateCallback(gate, "all", tau)],
        )  # fmt: skip
        data = datamodule(splits._replace(edit=parts[part]), pairs_per_batch=1)
        trainer.fit(SomebodysModule(tiny_llava()), data, ckpt_path=checkpoint, weights_only=True)
        return trainer

    first = tmp_path / "first.ckpt"
    fit(0, None).save_checkpoint(first)
    assert set(logged(tmp_path / "0")) == {float(opened[0].double().mean())}
    fit(1, first)
    assert set(logged(tmp_path / "1")) == {float((opened[0] | opened[1]).double().mean())}

    other = opened[0] | gate.mask(gate.subjects[1], 1, 0.6)
    fit(1, first, tau=0.6)  # its state is filed under other settings
    assert set(logged(tmp_path / "1")) == {float(other.double().mean())}

    state = torch.load(first, weights_only=True)
    (own,) = state["callbacks"].values()
    del own["rows"]
    torch.save(state, first)
    fit(1, first)  # of an older release, which kept no fingerprints: the beginning is where it resumes
    assert set(logged(tmp_path / "1")) == {float(opened[1].double().mean())}


def test_another_fit_begins_anew(splits: RecordSplits, tmp_path: Path) -> None:
    model = tiny_llava()
    gate = random_gate(model)
    callback = NeuralGateCallback(gate, "all", tau=0.5)
    short_fit(SomebodysModule(model), splits, tmp_path, callback)
    passports = splits._replace(edit=[record for record in splits.edit if record.subject == "passport"])
    short_fit(SomebodysModule(model), passports, tmp_path / "again", callback)
    assert set(logged(tmp_path / "again")) == {float(gate.mask("passport", 1, 0.5).double().mean())}


def test_it_takes_a_thousandth_of_the_weights_that_it_watches() -> None:
    projection = nn.Linear(8192, 64, bias=False)
    (place,) = gated_places(projection, "here")
    rows = ChangedRows()
    rows.begin({"here": place})
    kept = sum(value.numel() * value.element_size() for value in rows.beginning.values())
    assert kept <= projection.weight.numel() * projection.weight.element_size() / 1000
