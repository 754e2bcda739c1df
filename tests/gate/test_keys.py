"""The input covariance equals a plain loop over rows without padding, and gives the projections that its formulas promise."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from torch import Tensor

from lightning_neuralgate.data.collator import PrivacyPairCollator, QueryRow
from lightning_neuralgate.data.prompts import PromptDataModule, ordinary_rows
from lightning_neuralgate.data.records import RecordSplits
from lightning_neuralgate.errors import GateMismatchError, KeysFormatError, NeuralGateError, UnsupportedSetupError
from lightning_neuralgate.gate.key_collector import KeyCollector
from lightning_neuralgate.gate.keys import CONFIG_NAME, WEIGHTS_NAME, InputCovariance
from lightning_neuralgate.hf.decoder import find_decoder
from lightning_neuralgate.hf.identity import ModelIdentity
from tests.helpers.reference import NOT_INPUTS, one_row, relative_error
from tests.helpers.tiny_llava import tiny_llava, tiny_processor
from tests.helpers.training import QUIET


def collect(model: Any, rows: list[QueryRow], layers: list[int], batch_size: int = 3) -> InputCovariance:
    collector = KeyCollector(model, layers)
    prompts = PromptDataModule(rows, tiny_processor(), batch_size)
    Trainer(**QUIET).predict(collector, datamodule=prompts, return_predictions=False)
    return collector.covariance


def keys_of(model: Any, rows: list[QueryRow], layer: int) -> Tensor:
    """All inputs of a layer's projection, (n, k), from one row at a time."""
    seen: list[Tensor] = []
    projection = find_decoder(model).output_projection(layer)
    handle = projection.register_forward_pre_hook(lambda module, args: seen.append(args[0][0].double()))
    with torch.no_grad():
        for row in rows:
            inputs = one_row(PrivacyPairCollator(tiny_processor())([row]), 0)
            model(**{name: value for name, value in inputs.items() if name not in NOT_INPUTS})
    handle.remove()
    return torch.cat(seen)


@pytest.fixture
def rows(splits: RecordSplits) -> list[QueryRow]:
    """Nine prompts of different lengths, with pictures and without."""
    return ordinary_rows(splits.edit, (), ["Tell me the colour of a receipt, please, and more."])


@pytest.fixture
def keys(rows: list[QueryRow]) -> InputCovariance:
    return collect(tiny_llava(), rows, [0, 1])


@pytest.mark.parametrize("batch_size", [1, 3, 9])
def test_equals_a_loop_over_rows_without_padding(rows: list[QueryRow], batch_size: int) -> None:
    model = tiny_llava()
    later = find_decoder(model).layer(2)
    calls: list[Any] = []
    later.register_forward_pre_hook(lambda *_: calls.append(1))
    keys = collect(model, rows, [1, 0], batch_size)
    assert not calls, "the pass ends at the last layer that is collected"
    assert [len(module._forward_pre_hooks) for module in find_decoder(model).layer(1).modules()].count(1) == 0
    for layer in (0, 1):
        expected = keys_of(tiny_llava(), rows, layer)
        assert (keys.tokens, keys.prompts) == (len(expected), len(rows))
        assert relative_error(keys.covariance(layer), (expected.T @ expected / len(expected)).float()) < 1e-6


def test_duplicates_of_other_processes_do_not_count(rows: list[QueryRow]) -> None:
    collate = PrivacyPairCollator(tiny_processor())
    batch = collate(rows[:2])
    collectors = [KeyCollector(tiny_llava(), [1]) for _ in range(2)]
    collectors[0].predict_step(batch, 0)
    collectors[1].predict_step({**collate([rows[0], rows[1], rows[8]]), "counted": [True, True, False]}, 0)
    for collector in collectors:
        collector.on_predict_end()
    first, second = (collector.covariance for collector in collectors)
    assert (first.tokens, first.prompts) == (second.tokens, second.prompts)
    assert relative_error(second.covariance(1), first.covariance(1)) < 1e-6


def test_bad_runs_are_refused(rows: list[QueryRow]) -> None:
    collector = KeyCollector(tiny_llava(), [1])
    with pytest.raises(NeuralGateError, match="no input covariance yet"):
        _ = collector.covariance
    batch = PrivacyPairCollator(tiny_processor())(rows[:2])
    projection = find_decoder(collector.model).output_projection(1)
    projection.register_forward_pre_hook(lambda module, args: (args[0][:, 1:],), prepend=True)
    with pytest.raises(UnsupportedSetupError, match="give the mask of the image-expanded sequence"):
        collector.predict_step(batch, 0)
    with pytest.raises(ValueError, match="distinct"):
        KeyCollector(tiny_llava(), [1, 1])


def test_a_hard_projection_removes_the_fewest_directions_with_the_share(keys: InputCovariance) -> None:
    covariance = keys.covariance(1).double()
    project = keys.projector(1, share=0.9)
    p, energy = project.matrix.double(), covariance.trace()
    assert relative_error(p @ p, p) < 1e-5
    assert float((p @ covariance @ p).trace() / energy) <= 0.1
    weaker = project.directions[:, :-1].double()
    assert float((weaker.T @ covariance @ weaker).trace() / energy) < 0.9
    assert project.removed == project.directions.shape[1] == round(48 - float(p.trace()))
    change = torch.randn(5, 48)
    change[2] = 0
    assert relative_error(project(change), change @ project.matrix) < 1e-5
    assert torch.equal(project(change)[2], torch.zeros(48))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(project(change), project.to("cpu")(change.clone()))
        assert project(change).dtype == torch.float32


def test_a_soft_projection_is_the_formula(keys: InputCovariance) -> None:
    covariance = keys.covariance(1).double()
    mean = covariance.trace() / len(covariance)
    for soft in (0.01, 1.0):
        expected = torch.linalg.inv(torch.eye(48, dtype=torch.float64) + covariance / (soft * mean)).float()
        project = keys.projector(1, soft=soft)
        assert relative_error(project.matrix, expected) < 1e-4
        assert project.removed == pytest.approx(48 - float(expected.trace()), rel=1e-4)
    assert keys.projector(1, soft=0.01).removed > keys.projector(1, soft=1.0).removed


@pytest.mark.parametrize(
    "strength", [{}, {"share": 0.5, "soft": 1.0}, {"share": 0.0}, {"share": 1.0}, {"soft": 0.0}, {"soft": float("nan")}]
)
def test_bad_strengths_are_refused(keys: InputCovariance, strength: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"give either the share|must lie between 0 and 1|must be above 0"):
        keys.projector(1, **strength)


def test_saved_and_loaded(keys: InputCovariance, tmp_path: Path) -> None:
    folder = tmp_path / "keys"
    keys.save_pretrained(folder)
    loaded = InputCovariance.from_pretrained(folder)
    assert (loaded.fingerprint, loaded.layers, loaded.tokens) == (keys.fingerprint, [0, 1], keys.tokens)
    loaded.check_fits(tiny_llava())
    with pytest.raises(GateMismatchError, match=r"input covariance was collected in another model .*checksum"):
        loaded.check_fits(tiny_llava(seed=1))
    with pytest.raises(GateMismatchError, match=r"no layer 2; it covers \[0, 1\]"):
        loaded.projector(2, share=0.9)
    assert any(line.startswith("layer 1: of 48 input directions, ") for line in loaded.described())


def test_damaged_files_are_refused(keys: InputCovariance, tmp_path: Path) -> None:
    folder = tmp_path / "keys"
    keys.save_pretrained(folder)
    config = json.loads((folder / CONFIG_NAME).read_text())
    for changes, message in (
        ({"format_version": 2}, "format_version 2, this version reads 1"),
        ({"fingerprint": "0"}, "not of the same input covariance"),
        ({"tokens": 0}, "at least one layer and one token"),
        ({"model": {}}, "cannot be read as input covariance: .*; collect again"),
    ):
        (folder / CONFIG_NAME).write_text(json.dumps({**config, **changes}))
        with pytest.raises(KeysFormatError, match=message):
            InputCovariance.from_pretrained(folder)
    (folder / WEIGHTS_NAME).write_bytes(b"damaged")
    with pytest.raises(KeysFormatError, match="collect again"):
        InputCovariance.from_pretrained(folder)
    (folder / WEIGHTS_NAME).unlink()
    with pytest.raises(KeysFormatError, match="`neuralgate keys` writes it"):
        InputCovariance.from_pretrained(folder)


@pytest.mark.parametrize(
    ("matrix", "message"),
    [
        (torch.ones(2, 3), "square"),
        (torch.full((2, 2), float("nan")), "not finite"),
        (torch.zeros(2, 2), "no positive trace"),
        (torch.tensor([[1.0, 1.0], [0.0, 1.0]]), "not symmetric"),
    ],
)
def test_other_matrices_are_refused(matrix: Tensor, message: str) -> None:
    identity = ModelIdentity("Tiny", "0", "model.layers", "mlp.down_proj", 2, 4)
    with pytest.raises(KeysFormatError, match=message):
        InputCovariance({1: matrix}, identity, 1, 1)
    with pytest.raises(KeysFormatError, match="layers 0 to 1"):
        InputCovariance({2: torch.eye(2)}, identity, 1, 1)
