from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor

from lightning_neuralgate.data.records import RecordSplits
from lightning_neuralgate.errors import DataFormatError, GateFormatError, GateMismatchError, UnsupportedSetupError
from lightning_neuralgate.gate.callback import NeuralGateCallback
from lightning_neuralgate.gate.columns import ColumnGate, ColumnRule
from lightning_neuralgate.gate.neural_gate import NeuralGate
from lightning_neuralgate.hf.decoder import find_decoder
from lightning_neuralgate.hf.identity import ModelIdentity
from lightning_neuralgate.locate.column_contrast import locate_columns
from tests.helpers.tiny_llava import tiny_llava, tiny_processor
from tests.helpers.training import SUBJECTS, UserModule, datamodule, random_gate, train


def column_gate(share: float = 0.25, seed: int = 0) -> ColumnGate:
    contrasts = {1: torch.rand(48, generator=torch.Generator().manual_seed(0))}
    return ColumnGate(contrasts, ModelIdentity.of(tiny_llava(seed)), queries=8, share=share)


class DecayingModule(UserModule):
    """Trained by AdamW, which moves weights without a gradient, too."""

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW([p for p in self.parameters() if p.requires_grad], lr=1e-2, weight_decay=0.5)


def test_closed_columns_stay_bit_identical(splits: RecordSplits) -> None:
    def trained(gate: NeuralGate, columns: ColumnRule | None, scope: Any = "subject_last", steps: int = 2) -> Tensor:
        model = tiny_llava()
        data = datamodule(splits, pairs_per_batch=2)
        train(DecayingModule(model), data, NeuralGateCallback(gate, scope, columns=columns), max_steps=steps)
        return find_decoder(model).output_projection(1).weight.detach()  # type: ignore[no-any-return, union-attr]

    before: Tensor = find_decoder(tiny_llava()).output_projection(1).weight.detach()  # type: ignore[assignment, union-attr]
    gate, columns = random_gate(tiny_llava()), column_gate()
    closed = ~columns.mask(1)
    assert closed.sum() == 36
    assert torch.equal(trained(gate, columns)[:, closed], before[:, closed])
    found, free = trained(gate, columns, steps=1), trained(gate, None, steps=1)
    assert torch.equal(found[:, ~closed], free[:, ~closed]), "Adam takes each element alone"
    assert not (found == free)[:, closed].any()
    rows = ~torch.stack([gate.mask(subject, 1, 0.3) for subject in SUBJECTS]).any(0)
    both = trained(gate, columns, "all")
    assert torch.equal(both[rows], before[rows])
    assert torch.equal(both[:, closed], before[:, closed])
    assert not torch.equal(both[~rows][:, ~closed], before[~rows][:, ~closed])
    everything = NeuralGate.uniform(tiny_llava(), [1], SUBJECTS)
    assert torch.equal(trained(everything, None, "all"), trained(everything, column_gate(share=1.0)))


def test_controls_open_as_many_rows_or_columns() -> None:
    columns = column_gate()
    shuffled = columns.shuffled(3)
    assert shuffled.mask(1).sum() == columns.mask(1).sum() == 12
    assert not torch.equal(shuffled.mask(1), columns.mask(1))
    assert torch.equal(shuffled.mask(1), columns.shuffled(3).mask(1))
    assert not torch.equal(shuffled.mask(1), columns.shuffled(4).mask(1))
    gate = random_gate(tiny_llava())
    overlap = {}
    for name, control in {"located": gate, "shuffled": gate.shuffled(0), "random": gate.random(0)}.items():
        masks = [control.mask(subject, 1, 0.5) for subject in SUBJECTS]
        assert [mask.sum() for mask in masks] == [gate.mask(subject, 1, 0.5).sum() for subject in SUBJECTS]
        assert (name == "located") == torch.equal(masks[0], gate.mask(SUBJECTS[0], 1, 0.5))
        overlap[name] = int((masks[0] & masks[1]).sum())
    assert overlap["located"] == overlap["shuffled"] != overlap["random"]
    assert gate.filled(1.0).mask("passport", 1, 0.9).all()
    assert not gate.filled(0.0).mask("passport", 1, 0.0).any()
    assert len({control.fingerprint for control in (gate, gate.shuffled(0), gate.shuffled(1), gate.random(0))}) == 4


def test_columns_are_saved_with_the_model_that_they_belong_to(splits: RecordSplits, tmp_path: Path) -> None:
    columns = column_gate(share=0.5)
    columns.save_pretrained(tmp_path)
    loaded = ColumnGate.from_pretrained(tmp_path)
    assert torch.equal(loaded.mask(1), columns.mask(1))
    assert (loaded.fingerprint, loaded.queries, str(loaded)) == (columns.fingerprint, 8, str(columns))
    columns.shuffled(0).save_pretrained(tmp_path / "other")
    (tmp_path / "columns.json").write_bytes((tmp_path / "other" / "columns.json").read_bytes())
    with pytest.raises(GateFormatError, match="checksums differ"):
        ColumnGate.from_pretrained(tmp_path)
    (tmp_path / "columns.safetensors").write_bytes(b"?")
    with pytest.raises(GateFormatError, match="cannot be read as column gate"):
        ColumnGate.from_pretrained(tmp_path)
    model = tiny_llava()
    with pytest.raises(GateMismatchError, match="the column gate was located in another model"):
        train(
            UserModule(model), datamodule(splits), NeuralGateCallback(random_gate(model), columns=column_gate(seed=1))
        )


def test_columns_that_cannot_be_masked_are_refused(splits: RecordSplits) -> None:
    class Short(ColumnRule):
        def mask(self, layer: int) -> Tensor:
            return torch.ones(3, dtype=torch.bool)

    model = tiny_llava()
    gate = random_gate(model)
    with pytest.raises(GateMismatchError, match=r"shape \(3,\), expected bool of shape \(48,\)"):
        train(UserModule(model), datamodule(splits), NeuralGateCallback(gate, columns=Short()))
    wrapped = get_peft_model(model, LoraConfig(r=2, target_modules=r".*language_model\.layers\.1\.mlp\.down_proj"))
    module = UserModule(wrapped)  # type: ignore[arg-type]
    find_decoder(wrapped).output_projection(1).base_layer.requires_grad_(False)  # type: ignore[union-attr, operator]
    with pytest.raises(UnsupportedSetupError, match="is an adapter"):
        train(module, datamodule(splits), NeuralGateCallback(gate, columns=column_gate()))


def test_columns_are_located_where_twins_differ_and_behind_the_question(splits: RecordSplits) -> None:
    model = tiny_llava()
    batches = list(datamodule(splits, pairs_per_batch=3).pairs_dataloader())
    gate = locate_columns(model, batches, [1])
    assert (gate.queries, int(gate.mask(1).sum())) == (16, 2)

    tokenizer = tiny_processor().tokenizer
    seen: dict[str, list[Tensor]] = {}
    for batch in batches:
        inputs: list[Tensor] = []
        handle = find_decoder(model).output_projection(1).register_forward_pre_hook(lambda m, a: inputs.append(a[0]))  # noqa: B023
        with torch.no_grad():
            model(**{k: batch[k] for k in ("input_ids", "attention_mask", "pixel_values")})
        handle.remove()
        for row, role in enumerate(batch["role"]):
            ids = batch["input_ids"][row].tolist()
            behind = ids.index(tokenizer.eos_token_id)  # the template ends the question with it
            answer = int((batch["labels"][row] != -100).nonzero()[0, 0])
            seen.setdefault(role, []).append(inputs[0][row, behind:answer].double().mean(0))
    sensitive, benign = (torch.stack(seen[role]) for role in ("sensitive", "benign"))
    sd = ((sensitive.var(0, correction=0) + benign.var(0, correction=0)) / 2).sqrt()
    at_tail = (sensitive.mean(0) - benign.mean(0)).abs() / sd
    assert (gate.contrasts(1) >= at_tail.float() * 0.999).all(), "the larger one of two sites"
    assert torch.isclose(gate.contrasts(1), at_tail.float(), rtol=1e-3).any()
    with pytest.raises(DataFormatError, match="at least two query pairs"):
        locate_columns(model, [{**batches[0], "twin": [None] * len(batches[0]["role"])}], [1])
