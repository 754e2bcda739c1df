"""Models in half precision: locate, edit, save, reload and revert in each type."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from transformers import LlavaForConditionalGeneration

from lightning_neuralgate.data.records import RecordSplits
from lightning_neuralgate.edit.delta import EditDelta
from lightning_neuralgate.edit.editor import PrivacyEditModule
from lightning_neuralgate.edit.weight_files import WeightFiles
from lightning_neuralgate.gate.callback import NeuralGateCallback
from lightning_neuralgate.hf.decoder import find_decoder
from lightning_neuralgate.hf.forward import batch_nll
from lightning_neuralgate.hf.master_weights import MasterLinear
from lightning_neuralgate.locate.locator import PrivacyLocatorModule
from tests.helpers.tiny_llava import tiny_llava, tiny_processor
from tests.helpers.training import QUIET, UserModule, datamodule, random_gate, train

LAYER = 1
TYPES = [torch.float32, torch.bfloat16, torch.float16]
HALF = TYPES[1:]


def projection_of(model: Any) -> Any:
    return find_decoder(model).output_projection(LAYER)


@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_locate_edit_save_reload_revert(splits: RecordSplits, tmp_path: Path, dtype: torch.dtype) -> None:
    tiny_llava().to(dtype).save_pretrained(tmp_path / "base")
    model = LlavaForConditionalGeneration.from_pretrained(tmp_path / "base", dtype=dtype).eval()
    data = datamodule(splits)

    locator = PrivacyLocatorModule(model, [LAYER], max_steps=4)
    train(locator, data, max_steps=-1, max_epochs=1)
    assert locator.vectors
    assert all(v[LAYER].dtype == torch.float32 for v in locator.vectors.values())

    before = {name: value.clone() for name, value in model.state_dict().items()}
    editor = PrivacyEditModule(model, [LAYER], tiny_processor(), lr=3e-5)
    locator.gate.check_fits(model)
    train(editor, data, NeuralGateCallback(random_gate(model), "all", tau=0.5), max_steps=4)
    weight = projection_of(model).weight
    assert weight.dtype == torch.float32
    others = {
        name: value for name, value in model.state_dict().items() if bool((value != before[name].to(value.dtype)).any())
    }
    assert [name.rpartition(".layers.")[2] for name in others] == [f"{LAYER}.mlp.down_proj.weight"]

    editor.save_pretrained(tmp_path / "edited")
    saved = LlavaForConditionalGeneration.from_pretrained(tmp_path / "edited", dtype="auto").eval()
    assert {value.dtype for value in saved.state_dict().values()} == {dtype}
    batch = next(iter(data.pairs_dataloader()))
    with torch.no_grad():
        assert torch.equal(batch_nll(saved, batch), batch_nll(model, batch)), "not evaluated what is saved"

    delta = EditDelta.between(tmp_path / "base", tmp_path / "edited")
    delta.revert(tmp_path / "edited", tmp_path / "reverted")
    delta.apply(tmp_path / "base", tmp_path / "again")
    base, again = WeightFiles(tmp_path / "base"), WeightFiles(tmp_path / "again")
    assert WeightFiles(tmp_path / "reverted").checksum == base.checksum != again.checksum
    assert again.checksum == WeightFiles(tmp_path / "edited").checksum
    assert all(
        (tmp_path / folder / "model.safetensors").read_bytes() == (tmp_path / source / "model.safetensors").read_bytes()
        for folder, source in (("reverted", "base"), ("again", "edited"))
    )

    rounding = editor.rounding()
    if dtype == torch.float32:
        assert rounding is None
        return
    assert rounding is not None
    name = next(iter(others))
    changed, kept = (int((a != before[name].to(a.dtype)).sum()) for a in (weight, saved.state_dict()[name]))
    assert rounding == (str(dtype).removeprefix("torch."), changed, kept)
    assert 0 < kept < changed


@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_small_steps_add_up_in_the_masters(splits: RecordSplits, dtype: torch.dtype) -> None:
    def trained(kind: torch.dtype) -> Any:
        model = tiny_llava().to(dtype).to(kind)
        weight = projection_of(model).weight
        before = weight.detach().float().clone()
        editor = PrivacyEditModule(model, [LAYER], lr=1e-4, share_prefixes=False)
        train(editor, datamodule(splits), max_steps=-1, max_epochs=8)
        return projection_of(model).weight.detach() - before, editor

    change, editor = trained(dtype)
    expected, _ = trained(torch.float32)
    assert float(change.abs().max()) < 1e-3
    assert torch.nn.functional.cosine_similarity(change.flatten(), expected.flatten(), dim=0) > 0.9
    logged = float(editor.trainer.callback_metrics["train/rounding_kept"])
    assert logged == pytest.approx(editor.rounding().share)
    assert logged < 1


def test_a_dialled_edit_is_the_one_that_apply_makes(splits: RecordSplits, tmp_path: Path) -> None:
    tiny_llava().bfloat16().save_pretrained(tmp_path / "base")
    model = LlavaForConditionalGeneration.from_pretrained(tmp_path / "base", dtype="auto")
    editor = PrivacyEditModule(model, [LAYER], lr=1e-2)
    train(editor, datamodule(splits), max_steps=3)
    editor.save_pretrained(tmp_path / "full")
    with editor.unedited.scaled(0.3):
        editor.save_pretrained(tmp_path / "part")
    delta = EditDelta.between(tmp_path / "base", tmp_path / "full")
    delta.apply(tmp_path / "base", tmp_path / "applied", 0.3)
    assert WeightFiles(tmp_path / "part").checksum == WeightFiles(tmp_path / "applied").checksum


def test_an_edit_resumes_with_its_masters(splits: RecordSplits, tmp_path: Path) -> None:
    def module() -> PrivacyEditModule:
        return PrivacyEditModule(tiny_llava().bfloat16(), [LAYER], lr=1e-4)

    whole, resumed, data = module(), module(), datamodule(splits)
    train(whole, data, max_steps=4)
    trainer = train(module(), data, max_steps=2)
    trainer.save_checkpoint(tmp_path / "two.ckpt")
    (saved,) = torch.load(tmp_path / "two.ckpt", weights_only=True)["state_dict"].values()
    assert saved.dtype == torch.float32
    Trainer(**QUIET, max_steps=4, limit_val_batches=0).fit(resumed, data, ckpt_path=tmp_path / "two.ckpt")
    assert torch.equal(projection_of(resumed.model).weight, projection_of(whole.model).weight)


@pytest.mark.parametrize("scope", ["subject_last", "all"])
def test_the_callback_keeps_masters_during_fit(splits: RecordSplits, scope: Any) -> None:
    model = tiny_llava().bfloat16()
    module = UserModule(model, lr=1e-5)
    kinds = []

    class Spy(NeuralGateCallback):
        def on_train_batch_end(self, *args: Any) -> None:
            super().on_train_batch_end(*args)
            linear = projection_of(model)
            kinds.append((type(linear), linear.weight.dtype, find_decoder(model).output_projection(0).weight.dtype))

    before = projection_of(model).weight
    values = before.detach().clone()
    train(module, datamodule(splits), Spy(random_gate(model), scope, tau=0.5), max_steps=40, max_epochs=40)
    assert set(kinds) == {(MasterLinear, torch.float32, torch.bfloat16)}
    assert type(projection_of(model)) is torch.nn.Linear
    assert projection_of(model).weight is before
    assert before.dtype == torch.bfloat16
    assert not torch.equal(before, values)
