from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from lightning_neuralgate.edit.delta import DELTA_NAME, EditDelta
from lightning_neuralgate.edit.projection import project_edit
from lightning_neuralgate.edit.weight_files import WeightFiles
from lightning_neuralgate.errors import GateMismatchError, WeightFilesError
from lightning_neuralgate.hf.decoder import find_decoder
from tests.gate.test_key_space import random_keys
from tests.helpers.reference import relative_error
from tests.helpers.tiny_llava import tiny_llava


def save(folder: Path, dtype: torch.dtype, layers: tuple[int, ...] = (), part: str = "mlp.down_proj") -> Path:
    """Save a tiny LLaVA with random changes of some layers."""
    model: Any = tiny_llava().to(dtype)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for layer in layers:
            weight = find_decoder(model).layer(layer).get_submodule(part).weight
            weight += 0.1 * torch.randn(weight.shape, generator=generator).to(dtype)  # type: ignore[operator]
    model.save_pretrained(folder)
    return folder


def weights(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "model.safetensors")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_equals_the_formula(tmp_path: Path, dtype: torch.dtype) -> None:
    base, edited, out = save(tmp_path / "base", dtype), save(tmp_path / "edited", dtype, (0, 1)), tmp_path / "out"
    EditDelta.between(base, edited, {"gate": "abc"}).save(edited / DELTA_NAME)
    keys = random_keys((0, 1))
    projected = project_edit(base, edited, out, keys, share=0.8)
    before, after, found = weights(base), weights(edited), weights(out)
    changed = sorted(name for name in before if not torch.equal(before[name], after[name]))
    assert [tensor.name for tensor in projected] == changed
    for layer, (name, kept, projector) in enumerate(projected):
        change = after[name].float() - before[name].float()
        new = change @ keys.projector(layer, share=0.8).matrix
        assert relative_error(found[name].float(), before[name].float() + new) < (
            1e-6 if dtype == torch.float32 else 5e-3
        )
        assert kept == pytest.approx(float(new.norm() / change.norm()) ** 2, rel=1e-3)
        assert projector is not None
        assert 0 < kept < 1
    assert all(torch.equal(found[name], before[name]) for name in set(before) - set(changed))
    delta = EditDelta.load(out / DELTA_NAME)
    assert delta.provenance == {"gate": "abc", "projected": f"{keys.fingerprint}, share 0.8"}
    delta.revert(out, tmp_path / "reverted")
    assert WeightFiles(tmp_path / "reverted").checksum == WeightFiles(base).checksum


def test_what_cannot_be_projected_is_refused(tmp_path: Path) -> None:
    base, edited = save(tmp_path / "base", torch.float32), save(tmp_path / "edited", torch.float32, (0, 1))
    keys, out = random_keys(), tmp_path / "out"
    with pytest.raises(GateMismatchError, match=r"the edit changed .*layers\.0\.mlp\.down_proj.* layers \[1\] alone"):
        project_edit(base, edited, out, keys, share=0.8)
    other = save(tmp_path / "other", torch.float32, (1,), "self_attn.o_proj")
    with pytest.raises(GateMismatchError, match=r"self_attn\.o_proj"):
        project_edit(base, other, out, keys, share=0.8)
    with pytest.raises(ValueError, match="and not both"):
        project_edit(base, edited, out, keys, 0.8, 1.0)
    with pytest.raises(WeightFilesError, match="exists"):
        project_edit(base, edited, base, keys, share=0.8)
    assert project_edit(base, base, out, keys, share=0.8) == []
    assert not out.exists()
