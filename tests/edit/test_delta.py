"""Edit deltas apply and revert exactly, only on their own weights, and can be stacked."""

from __future__ import annotations

import hashlib
import json
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file as save_arrays
from safetensors.torch import load_file, save_file

from lightning_neuralgate.edit.delta import DELTA_NAME, ChangedRows, EditDelta
from lightning_neuralgate.edit.weight_files import WeightFiles
from lightning_neuralgate.errors import DeltaFormatError, WeightFilesError
from lightning_neuralgate.hf.decoder import find_decoder
from tests.helpers.tiny_llava import tiny_llava

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.int8)


def model_folder(path: Path, tensors: dict[str, torch.Tensor]) -> Path:
    path.mkdir()
    save_file(tensors, path / "model.safetensors", {"format": "pt"})
    (path / "config.json").write_text("{}\n")
    return path


def file_hashes(folder: Path) -> dict[str, str]:
    return {
        str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }


def edited_llava(path: Path, seed: int, layer: int, start: Path | None = None, **options: Any) -> Path:
    """Save a tiny LLaVA with three changed rows in an output projection."""
    model = tiny_llava() if start is None else type(tiny_llava()).from_pretrained(start)
    weight: Any = find_decoder(model).output_projection(layer).weight
    rows = torch.randperm(len(weight), generator=torch.Generator().manual_seed(seed))[:3]
    with torch.no_grad():
        weight[rows] += 0.01 * torch.randn(3, weight.shape[1], generator=torch.Generator().manual_seed(seed))
    model.save_pretrained(path, **options)
    return path


@pytest.fixture
def base(tmp_path: Path) -> Path:
    tiny_llava().save_pretrained(tmp_path / "base")
    return tmp_path / "base"


@pytest.fixture
def edited(tmp_path: Path) -> Path:
    return edited_llava(tmp_path / "edited", 1, 1)


@pytest.fixture
def delta(base: Path, edited: Path) -> EditDelta:
    return EditDelta.between(base, edited)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_apply_and_revert_are_exact_in_every_dtype(tmp_path: Path, dtype: torch.dtype) -> None:
    before = torch.arange(-12, 12).reshape(6, 4).to(dtype)
    after = before.clone()
    after[[1, 4]] = after[[1, 4]] * 3 + 1
    flat = torch.zeros(5, dtype=dtype)
    if dtype.is_floating_point:  # equal as numbers or NaN, but with other bits
        flat[0], after[5, 0] = -0.0, float("nan")
    base = model_folder(tmp_path / "base", {"w": before, "same": before.clone(), "bias": torch.zeros(5, dtype=dtype)})
    edited = model_folder(tmp_path / "edited", {"w": after, "same": before.clone(), "bias": flat})
    delta = EditDelta.between(base, edited, {"gate": "abc"})

    assert "same" not in delta.tensors
    assert delta.tensors["w"].rows.tolist() == ([1, 4, 5] if dtype.is_floating_point else [1, 4])
    assert ("bias" in delta.tensors) == dtype.is_floating_point
    delta.save(tmp_path / DELTA_NAME)
    loaded = EditDelta.load(tmp_path / DELTA_NAME)
    assert loaded.provenance == {"gate": "abc"}
    loaded.apply(base, tmp_path / "applied")
    loaded.revert(edited, tmp_path / "reverted")
    assert file_hashes(tmp_path / "applied") == file_hashes(edited)
    assert file_hashes(tmp_path / "reverted") == file_hashes(base)


def test_delta_contains_only_the_changed_rows(base: Path, edited: Path, delta: EditDelta) -> None:
    (changed,) = delta.tensors.values()
    before, after = (load_file(f / "model.safetensors") for f in (base, edited))
    (name,) = (name for name in before if not torch.equal(before[name], after[name]))
    changed_rows = (before[name] != after[name]).any(1).nonzero().flatten()
    assert list(delta.tensors) == [name]
    assert changed.rows.tolist() == changed_rows.tolist()
    assert changed.bits.shape == (3, before[name].shape[1] * 4)
    assert f"{name} (F32, 32 x 48): 3 rows changed" in delta.described()


def test_sharding_does_not_change_the_checksum(base: Path, delta: EditDelta, tmp_path: Path) -> None:
    sharded = tmp_path / "sharded"
    tiny_llava().save_pretrained(sharded, max_shard_size="40KB")
    assert len(list(sharded.glob("*.safetensors"))) > 2
    assert WeightFiles(sharded).checksum == WeightFiles(base).checksum
    delta.apply(sharded, tmp_path / "applied")
    assert WeightFiles(tmp_path / "applied").checksum == delta.edited
    delta.revert(tmp_path / "applied", tmp_path / "back")
    assert file_hashes(tmp_path / "back") == file_hashes(sharded)


def test_edits_stack_and_revert_in_the_opposite_order(base: Path, tmp_path: Path) -> None:
    first = edited_llava(tmp_path / "first", 1, 1)
    second = edited_llava(tmp_path / "second", 2, 0, start=first)
    lower, upper = EditDelta.between(base, first), EditDelta.between(first, second)
    with pytest.raises(WeightFilesError, match="revert that one first"):
        lower.revert(second, tmp_path / "wrong")
    with pytest.raises(WeightFilesError, match="are not the edit's base"):
        upper.apply(base, tmp_path / "wrong")
    with pytest.raises(WeightFilesError, match="nothing to be done"):
        lower.apply(first, tmp_path / "wrong")
    assert not (tmp_path / "wrong").exists()
    upper.revert(second, tmp_path / "one")
    lower.revert(tmp_path / "one", tmp_path / "none")
    assert WeightFiles(tmp_path / "none").checksum == WeightFiles(base).checksum
    lower.apply(tmp_path / "none", tmp_path / "one-again")
    upper.apply(tmp_path / "one-again", tmp_path / "two-again")
    assert file_hashes(tmp_path / "two-again")["model.safetensors"] == file_hashes(second)["model.safetensors"]


def test_a_base_that_differs_in_any_tensor_raises(base: Path, delta: EditDelta, tmp_path: Path) -> None:
    tensors = load_file(base / "model.safetensors")
    untouched = next(name for name in tensors if name not in delta.tensors)
    tensors[untouched].view(-1)[-1] += 1e-3
    other = model_folder(tmp_path / "other", tensors)
    with pytest.raises(WeightFilesError, match="make the edit again on it"):
        delta.apply(other, tmp_path / "out")


def test_a_failure_leaves_no_files(base: Path, delta: EditDelta, tmp_path: Path) -> None:
    before = file_hashes(base)
    broken = EditDelta(delta.tensors, delta.base, "0" * 64)
    with pytest.raises(WeightFilesError, match="the edit file is corrupt"):
        broken.apply(base, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "edited"]
    assert file_hashes(base) == before


def test_output_folders_that_would_overwrite_raise(base: Path, edited: Path, delta: EditDelta) -> None:
    with pytest.raises(WeightFilesError, match="exists"):
        delta.apply(base, edited)
    with pytest.raises(WeightFilesError, match="lies inside"):
        delta.apply(base, base / "inside")


def test_other_dtypes_raise_with_the_way_out(base: Path, tmp_path: Path) -> None:
    half = tmp_path / "half"
    tiny_llava().bfloat16().save_pretrained(half)
    with pytest.raises(WeightFilesError, match=r"F32 .*, then BF16 .*save the base with save_pretrained"):
        EditDelta.between(base, half)


def test_invalid_delta_files_raise(base: Path, tmp_path: Path) -> None:
    with pytest.raises(DeltaFormatError, match=r"none\.safetensors does not exist"):
        EditDelta.load(tmp_path / "none.safetensors")
    (tmp_path / "text.safetensors").write_text("not a tensor in sight")
    with pytest.raises(DeltaFormatError, match=r"text\.safetensors is not an edit delta"):
        EditDelta.load(tmp_path / "text.safetensors")
    with pytest.raises(DeltaFormatError, match="format_version is None"):
        EditDelta.load(base / "model.safetensors")
    good = {"format_version": "1", "base": "a", "edited": "b", "provenance": "{}"}
    layout = {"tensors": json.dumps({"w": {"dtype": "F32", "shape": [4, 1]}})}
    bits = np.zeros((2, 4), np.uint8)
    for tensors, metadata, message in (
        ({"w.rows": np.array([3, 1]), "w.bits": bits}, layout, "row indices must be ascending"),
        ({"w.rows": np.array([1, 4]), "w.bits": bits}, layout, "row indices must be ascending"),
        ({"w.rows": np.array([-1, 2]), "w.bits": bits}, layout, "row indices must be ascending"),
        ({"w.rows": np.array([1]), "w.bits": bits}, layout, "expected bits for 1 rows"),
        ({"w.rows": np.array([1])}, layout, r"w\.bits"),
        ({}, {"tensors": "{}", "provenance": "[1]"}, "its provenance is not a JSON object"),
    ):
        save_arrays(tensors, tmp_path / "bad.safetensors", good | metadata)
        with pytest.raises(DeltaFormatError, match=message):
            EditDelta.load(tmp_path / "bad.safetensors")


def test_rows_that_do_not_match_the_tensor_raise(base: Path, delta: EditDelta, tmp_path: Path) -> None:
    ((name, changed),) = delta.tensors.items()
    narrow = ChangedRows(changed.dtype, changed.shape, changed.rows, changed.bits[:, :-4])
    for tensors in ({name: narrow}, {"nowhere": changed}):
        with pytest.raises(DeltaFormatError, match="do not match that tensor"):
            EditDelta(tensors, delta.base, delta.edited).apply(base, tmp_path / "out")


class TestWeightFiles:
    def test_folder_without_safetensors_raises(self, tmp_path: Path) -> None:
        with pytest.raises(WeightFilesError, match=r"neither model\.safetensors nor"):
            WeightFiles(tmp_path)

    @pytest.mark.parametrize("shard", ["../outside.safetensors", "missing.safetensors"])
    def test_an_index_with_a_missing_or_outside_shard_raises(self, tmp_path: Path, shard: str) -> None:
        folder = tmp_path / "model"
        folder.mkdir()
        save_file({"w": torch.zeros(2)}, tmp_path / "outside.safetensors")
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"w": shard}}))
        with pytest.raises(WeightFilesError, match="not a file in that folder"):
            WeightFiles(folder)

    @pytest.mark.parametrize("content", ["[]", "{", '{"weight_map": 3}', '{"weight_map": {"w": 3}}', "[" * 100_000])
    def test_a_broken_index_raises(self, tmp_path: Path, content: str) -> None:
        (tmp_path / "model.safetensors.index.json").write_text(content)
        with pytest.raises(WeightFilesError, match=r"index\.json.*(not an index of shards|save the model again)"):
            WeightFiles(tmp_path)

    @pytest.mark.parametrize("size", [0, 4, 12, 100, -1])
    def test_a_truncated_file_raises(self, base: Path, size: int) -> None:
        file = base / "model.safetensors"
        file.write_bytes(file.read_bytes()[:size])
        with pytest.raises(WeightFilesError, match="not a complete safetensors file"):
            WeightFiles(base)

    @pytest.mark.parametrize(
        "entry",
        [
            '{"dtype": "F32", "shape": [-4], "data_offsets": [0, 16]}',
            '{"dtype": "F32", "shape": [4.0], "data_offsets": [0, 16]}',
            '{"dtype": "F32", "shape": [4], "data_offsets": [0.0, 16]}',
            '{"dtype": "F32", "shape": [true, 4], "data_offsets": [0, 16]}',
            '{"dtype": "F32", "shape": [2, 999], "data_offsets": [0, 16]}',
            '{"dtype": "F32", "shape": [0, 3], "data_offsets": [0, 16]}',
            '{"dtype": "F32", "shape": [4], "data_offsets": [8, 24]}',
            '{"dtype": "F32", "shape": [4], "data_offsets": [0]}',
            '{"dtype": "F32", "shape": 4, "data_offsets": [0, 16]}',
            '["F32", [4], [0, 16]]',
            "[" * 100_000,
        ],
    )
    def test_an_inconsistent_or_deeply_nested_header_raises(self, tmp_path: Path, entry: str) -> None:
        header = f'{{"w": {entry}}}'.encode()
        (tmp_path / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(16))
        with pytest.raises(WeightFilesError, match="not a complete safetensors file"):
            WeightFiles(tmp_path)

    def test_a_folder_that_cannot_be_copied_raises(self, base: Path, delta: EditDelta, tmp_path: Path) -> None:
        (base / "gone").symlink_to(tmp_path / "nowhere")
        with pytest.raises(WeightFilesError, match="cannot be copied"):
            delta.apply(base, tmp_path / "out")
        assert not (tmp_path / "out").exists()

    def test_scalars_and_empty_tensors(self, tmp_path: Path) -> None:
        tensors = {"scalar": torch.tensor(2.0), "empty": torch.zeros(0, 3), "thin": torch.zeros(3, 0)}
        base = model_folder(tmp_path / "base", tensors)
        edited = model_folder(tmp_path / "edited", tensors | {"scalar": torch.tensor(3.0)})
        delta = EditDelta.between(base, edited)
        assert list(delta.tensors) == ["scalar"]
        delta.apply(base, tmp_path / "applied")
        assert file_hashes(tmp_path / "applied") == file_hashes(edited)


def test_a_header_that_claims_gigabytes_is_not_read(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    with file.open("wb") as stream:
        stream.write((10**9).to_bytes(8, "little"))
        stream.truncate(8 + 10**9)  # sparse
    tracemalloc.start()
    with pytest.raises(WeightFilesError, match=r"the header of 1000000000 bytes is longer than .* 100000000 bytes"):
        WeightFiles(tmp_path)
    assert tracemalloc.get_traced_memory()[1] < 10**7
    tracemalloc.stop()


def test_a_share_of_an_edit_is_w0_plus_c_times_the_change(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    for dtype, wide in (
        (torch.float32, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.float64, torch.float64),
    ):
        base = torch.randn(6, 4, generator=generator).to(dtype)
        edited = base.clone()
        edited[[1, 4]] += torch.randn(2, 4, generator=generator).to(dtype)
        kind = str(dtype).removeprefix("torch.")
        before, after = (
            model_folder(tmp_path / f"{kind}-{n}", {"w": w}) for n, w in (("base", base), ("edited", edited))
        )
        EditDelta.between(before, after).apply(before, tmp_path / f"{kind}-half", scale=0.5)
        found = load_file(tmp_path / f"{kind}-half" / "model.safetensors")["w"]
        expected = base.to(wide) + 0.5 * (edited.to(wide) - base.to(wide))
        assert torch.equal(found, expected.to(dtype))
        own = EditDelta.load(tmp_path / f"{kind}-half" / DELTA_NAME)
        assert own.provenance["scale"] == "0.5"
        own.revert(tmp_path / f"{kind}-half", tmp_path / f"{kind}-reverted")
        assert WeightFiles(tmp_path / f"{kind}-reverted").checksum == WeightFiles(before).checksum
    before, after = (model_folder(tmp_path / f"i-{n}", {"w": torch.full((2, 2), n, dtype=torch.int8)}) for n in (0, 1))
    with pytest.raises(DeltaFormatError, match="only a floating-point edit can be scaled"):
        EditDelta.between(before, after).apply(before, tmp_path / "i-half", scale=0.5)
    assert not (tmp_path / "i-half").exists()
