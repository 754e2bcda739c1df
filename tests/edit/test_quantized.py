"""Models in 8 and 4 bits: locate, edit, save, reload and revert; refusals of what cannot be saved."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from lightning_neuralgate.data.records import RecordSplits
from lightning_neuralgate.edit.delta import DELTA_NAME, EditDelta
from lightning_neuralgate.edit.editor import PrivacyEditModule
from lightning_neuralgate.edit.weight_files import WeightFiles
from lightning_neuralgate.errors import UnsupportedSetupError
from lightning_neuralgate.gate.callback import NeuralGateCallback
from lightning_neuralgate.hf.decoder import find_decoder
from lightning_neuralgate.hf.forward import batch_nll
from lightning_neuralgate.hf.quantized import keep_gradients, quantized_layers
from lightning_neuralgate.locate.locator import PrivacyLocatorModule
from lightning_neuralgate.models.loading import load_model
from tests.helpers.tiny_llava import tiny_llava, tiny_processor
from tests.helpers.training import datamodule, random_gate, train

LAYER = 1
KINDS = ["float32", "bfloat16", "int8", "nf4"]
QUANTIZED = KINDS[2:]

needs_bitsandbytes = pytest.mark.skipif(
    find_spec("bitsandbytes") is None, reason="needs bitsandbytes: pip install 'lightning-neuralgate[quantized]'"
)


def projection_of(model: Any) -> Any:
    return find_decoder(model).output_projection(LAYER)


def save_base(folder: Path, dtype: torch.dtype = torch.float32) -> Path:
    tiny_llava().to(dtype).save_pretrained(folder)
    tiny_processor().save_pretrained(folder)
    return folder


def load(folder: Path, kind: str, dtype: str = "float32") -> Any:
    model, _ = load_model(folder, quantize=kind, dtype=dtype) if kind in QUANTIZED else load_model(folder, kind)  # type: ignore[arg-type]
    return model


@needs_bitsandbytes
@pytest.mark.parametrize("kind", KINDS)
def test_locate_edit_save_reload_revert(splits: RecordSplits, tmp_path: Path, kind: str) -> None:
    base = save_base(tmp_path / "base", torch.bfloat16 if kind == "bfloat16" else torch.float32)
    model, data = load(base, kind), datamodule(splits)

    locator = PrivacyLocatorModule(model, [LAYER], max_steps=4)
    train(locator, data, max_steps=-1, max_epochs=1)
    gates = locator.vectors
    assert gates
    locator.gate.check_fits(load(base, kind))

    before = {name: value.clone() for name, value in model.state_dict().items()}
    editor = PrivacyEditModule(model, [LAYER], tiny_processor(), lr=1e-3)
    locator.gate.check_fits(model)
    train(editor, data, NeuralGateCallback(random_gate(model), "all", tau=0.5), max_steps=4)
    assert projection_of(model).weight.dtype == torch.float32
    path = find_decoder(model).projection_path(LAYER)
    after = model.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in after if not name.startswith(path))

    editor.save_pretrained(tmp_path / "edited")
    reloaded = load(tmp_path / "edited", kind)
    assert len(quantized_layers(reloaded)) == len(quantized_layers(model)) == (20 if kind in QUANTIZED else 0)
    batch = next(iter(data.pairs_dataloader()))
    with torch.no_grad():
        assert torch.equal(batch_nll(reloaded, batch), batch_nll(model, batch)), "not evaluated what is saved"

    delta = EditDelta.between(base, tmp_path / "edited")
    (changed,) = delta.tensors
    assert changed.endswith(f"layers.{LAYER}.mlp.down_proj.weight")
    if kind in QUANTIZED:
        written = EditDelta.load(tmp_path / "edited" / DELTA_NAME)
        assert (written.base, written.edited) == (delta.base, delta.edited)
    delta.revert(tmp_path / "edited", tmp_path / "reverted")
    delta.apply(base, tmp_path / "again")
    assert WeightFiles(tmp_path / "reverted").checksum == WeightFiles(base).checksum
    for folder, source in (("reverted", base), ("again", tmp_path / "edited")):
        assert (tmp_path / folder / "model.safetensors").read_bytes() == (source / "model.safetensors").read_bytes()


@needs_bitsandbytes
@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16], ids=str)
def test_computing_in_another_type_than_the_checkpoint(
    splits: RecordSplits, tmp_path: Path, stored: torch.dtype
) -> None:
    base = save_base(tmp_path / "base", stored)
    model = load(base, "nf4", "float32" if stored == torch.bfloat16 else "bfloat16")
    editor = PrivacyEditModule(model, [LAYER], tiny_processor(), lr=1e-4)
    train(editor, datamodule(splits), max_steps=2)
    rounding = editor.rounding()
    assert (rounding is None) == (stored == torch.float32)
    editor.save_pretrained(tmp_path / "edited")
    assert {tensor.dtype for tensor in WeightFiles(tmp_path / "edited").tensors.values()} == {
        "F32" if stored == torch.float32 else "BF16"
    }
    reloaded = load(tmp_path / "edited", "nf4", str(model.dtype).removeprefix("torch."))
    batch = next(iter(datamodule(splits).pairs_dataloader()))
    with torch.no_grad():
        assert torch.equal(batch_nll(reloaded, batch), batch_nll(model, batch))


@needs_bitsandbytes
def test_an_edited_model_is_edited_again_and_a_lora_is_merged(splits: RecordSplits, tmp_path: Path) -> None:
    folders = [save_base(tmp_path / "base"), tmp_path / "first", tmp_path / "second"]
    for source, out, rank in zip(folders, folders[1:], (0, 2), strict=False):
        editor = PrivacyEditModule(load(source, "nf4"), [LAYER], tiny_processor(), lr=1e-2, lora_rank=rank)
        train(editor, datamodule(splits), max_steps=2)
        editor.save_pretrained(out)
        editor.save_pretrained(out)  # replaces its own files
        assert len(EditDelta.load(out / DELTA_NAME).tensors) == 1
        batch = next(iter(datamodule(splits).pairs_dataloader()))
        with torch.no_grad():
            torch.testing.assert_close(batch_nll(load(out, "nf4"), batch), batch_nll(editor.model, batch))
    for folder in reversed(folders[1:]):
        EditDelta.load(folder / DELTA_NAME).revert(folder, tmp_path / f"{folder.name}-reverted")
    assert WeightFiles(tmp_path / "first-reverted").checksum == WeightFiles(folders[0]).checksum


@needs_bitsandbytes
def test_gradients_pass_layers_that_were_converted_for_inference() -> None:
    from bitsandbytes.nn import Linear4bit

    torch.manual_seed(0)
    layer = Linear4bit(64, 64, bias=False, compute_dtype=torch.float32, quant_type="nf4", compress_statistics=False)
    layer.eval().requires_grad_(False).to("cpu")
    inputs = torch.randn(2, 64)
    model = nn.Sequential(layer)
    with torch.no_grad():
        model(inputs)  # converts the weight where the CPU has AVX512-BF16
    keep_gradients(model)
    tracked = inputs.clone().requires_grad_(True)
    model(tracked).sum().backward()
    assert tracked.grad is not None
    with torch.no_grad():
        torch.testing.assert_close(model(torch.eye(64)).T.sum(0), tracked.grad[0])


@needs_bitsandbytes
def test_what_cannot_be_saved_is_refused(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base")
    model = load(base, "nf4")
    with pytest.raises(UnsupportedSetupError, match="attention cannot be edited in a quantized model"):
        PrivacyEditModule(model, [LAYER], projection="attention")
    model.save_pretrained(tmp_path / "quantized")
    tiny_processor().save_pretrained(tmp_path / "quantized")
    with pytest.raises(UnsupportedSetupError, match="is quantized already"):
        load(tmp_path / "quantized", "int8")
    with pytest.raises(
        UnsupportedSetupError, match=r"are quantized, and an edit cannot be saved there: load the full-"
    ):
        PrivacyEditModule(load_model(tmp_path / "quantized")[0], [LAYER])
    (base / "model.safetensors").unlink()
    with pytest.raises(UnsupportedSetupError, match="needs the full-precision checkpoint that it was loaded from"):
        PrivacyEditModule(model, [LAYER])


def test_other_quantized_layers_are_refused() -> None:
    model = tiny_llava()
    weight = projection_of(model).weight
    projection_of(model).weight = nn.Parameter(weight.to(torch.int8), requires_grad=False)
    for rank in (0, 2):
        with pytest.raises(UnsupportedSetupError, match=r"is quantized \(int8 in a Linear\), and a model edited there"):
            PrivacyEditModule(model, [LAYER], tiny_processor(), lora_rank=rank)


def test_tensors_without_readable_rows_are_refused() -> None:
    class Int8Tensor(torch.Tensor):
        """Of a floating-point type, like torchao's."""

    model = tiny_llava()
    layer = find_decoder(model).layers[0].mlp.up_proj
    layer.register_buffer("values", layer.weight.data.as_subclass(Int8Tensor))
    with pytest.raises(UnsupportedSetupError, match=r"quantized as Int8Tensor, of which no checksum"):
        PrivacyLocatorModule(model, [LAYER])


def test_a_missing_library_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lightning_neuralgate.errors import MissingDependencyError
    from lightning_neuralgate.models import quantizing

    monkeypatch.setattr(quantizing, "find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'lightning-neuralgate\[quantized\]'"):
        load(save_base(tmp_path / "base"), "nf4")
    assert "quantization_config" not in json.loads((tmp_path / "base" / "config.json").read_text())
