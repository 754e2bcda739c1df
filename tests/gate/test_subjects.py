from __future__ import annotations

import csv
import pickle
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor
from torch.utils.data import DataLoader

from lightning_neuralgate.data.records import RecordSplits
from lightning_neuralgate.errors import GateMismatchError, SubjectNotFoundError, UnsupportedSetupError
from lightning_neuralgate.gate.callback import NeuralGateCallback
from lightning_neuralgate.gate.subjects import SubjectsInBatch, SubjectsInText
from lightning_neuralgate.hf.decoder import find_decoder
from lightning_neuralgate.hf.forward import model_inputs
from tests.helpers.reference import relative_error
from tests.helpers.tiny_llava import tiny_llava, tiny_processor
from tests.helpers.training import SUBJECTS, Gradients, datamodule, enable_checkpointing, random_gate, train

WEIGHT = "vlm.model.language_model.layers.1.mlp.down_proj.weight"


def collated(splits: RecordSplits, **options: Any) -> list[dict[str, Any]]:
    return list(datamodule(splits, pairs_per_batch=2, **options).pairs_dataloader())


class Sample(NamedTuple):
    """A batch that is not a mapping and has no subjects."""

    tokens: Tensor
    attention: Tensor
    pixels: Tensor
    labels: Tensor


def sample_loader(batches: list[dict[str, Any]]) -> DataLoader[Any]:
    samples = [Sample(b["input_ids"], b["attention_mask"], b["pixel_values"], b["labels"]) for b in batches]
    return DataLoader(samples, batch_size=None)  # type: ignore[arg-type]


class SampleModule(LightningModule):
    """Fine-tuning on `Sample` batches with the model's own loss."""

    def __init__(self, vlm: Any, manual: bool = False) -> None:
        super().__init__()
        self.vlm = vlm.requires_grad_(False)
        find_decoder(vlm).output_projection(1).requires_grad_(True)
        self.automatic_optimization = not manual

    def training_step(self, batch: Sample, batch_idx: int) -> Tensor | None:
        loss: Tensor = self.vlm(batch.tokens, batch.pixels, attention_mask=batch.attention, labels=batch.labels).loss
        if self.automatic_optimization:
            return loss
        optimizer: Any = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(loss)
        optimizer.step()
        return None

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD([p for p in self.parameters() if p.requires_grad], lr=0.1)


class MappingModule(SampleModule):
    """The same training on batches with subjects."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor | None:
        return super().training_step(
            Sample(batch["input_ids"], batch["attention_mask"], batch["pixel_values"], batch["labels"]), batch_idx
        )


def gradient_from(batches: list[dict[str, Any]], scope: Any = "subject_last", **options: Any) -> Tensor:
    """Return the gradient of a step on batches with subjects."""
    model, spy = tiny_llava(), Gradients()
    data = DataLoader(batches, batch_size=None)  # type: ignore[arg-type]
    train(MappingModule(model), data, NeuralGateCallback(random_gate(model), scope), spy, **options)
    return spy.grads[0][WEIGHT]


@pytest.mark.parametrize("manual", [False, True], ids=["automatic", "manual"])
@pytest.mark.parametrize("scope", ["subject_last", "all"])
def test_subjects_from_token_ids_equal_those_in_the_batch(splits: RecordSplits, manual: bool, scope: Any) -> None:
    batches = collated(splits)
    weights = []
    for module, data, options in (
        (SampleModule, sample_loader(batches), {"tokenizer": tiny_processor()}),
        (MappingModule, DataLoader(batches, batch_size=None), {}),  # type: ignore[arg-type]
    ):
        model = tiny_llava()
        callback = NeuralGateCallback(random_gate(model), scope, tau=0.5, **options)  # type: ignore[arg-type]
        train(module(model, manual), data, callback, max_steps=3)
        weights.append(find_decoder(model).output_projection(1).weight.detach())
    base: Any = find_decoder(tiny_llava()).output_projection(1).weight
    assert torch.equal(weights[0], weights[1])
    assert relative_error(weights[0], base) > 1e-4


@pytest.mark.parametrize("padding_side", ["left", "right"])
def test_token_ids_give_the_mask_of_the_collator(splits: RecordSplits, padding_side: str) -> None:
    find = SubjectsInText(tiny_processor().tokenizer, SUBJECTS)
    for batch in collated(splits, padding_side=padding_side):
        mask, names = find(batch)
        assert torch.equal(mask, batch["subject_mask"])
        assert names == batch["subject"]


class Letters:
    """A tokenizer with one letter per token; 0 is padding."""

    def decode(self, token_ids: Any, /, **kwargs: object) -> str:
        return "".join("#" if value == 0 else chr(value) for value in token_ids)


def found(
    text: str, labels: list[int] | None = None, subjects: tuple[str, ...] = ("id", "student id", "passport")
) -> Any:
    ids = torch.tensor([[ord(letter) if letter != "_" else -200 for letter in text]])
    inputs = {"input_ids": ids} | ({} if labels is None else {"labels": torch.tensor([labels])})
    mask, (name,) = SubjectsInText(Letters(), subjects)(inputs)
    return "".join(letter for letter, marked in zip(text, mask[0].tolist(), strict=True) if marked), name


def test_the_last_named_subject_counts() -> None:
    assert found("Read the student ID!") == ("student ID", "student id")
    assert found("the passport and the ID?") == ("ID", "id")
    assert found("____ Passports, please") == ("Passports", "passport")
    assert found("a driver licence") == ("", None)
    assert found("its idea") == ("", None)


def test_answers_are_not_searched_if_the_prompt_names_a_subject() -> None:
    prompt, answer = "which passport? ", "No ID here"
    labels = [-100] * len(prompt) + [1] * len(answer)
    assert found(prompt + answer, labels) == ("passport", "passport")
    assert found(prompt + answer) == ("ID", "id")
    # if the prompt has labels too, it cannot be distinguished from the answer
    assert found("# " + prompt + answer, [-100] * 2 + [1] * len(prompt + answer)) == ("ID", "id")
    assert found(prompt + answer, [1] * len(prompt + answer)) == ("ID", "id")


def test_find_subjects_is_called_with_the_batch(splits: RecordSplits) -> None:
    model = tiny_llava()
    gate = random_gate(model)
    seen: list[Any] = []

    def third_token(batch: Any) -> tuple[Tensor, list[str]]:
        seen.append(batch)
        mask = torch.zeros_like(batch.tokens, dtype=torch.bool)
        mask[:, 2] = True
        return mask, ["Passport"] * len(mask)

    batches = collated(splits)
    spy = Gradients()
    train(
        SampleModule(model),
        sample_loader(batches),
        NeuralGateCallback(gate, find_subjects=third_token),
        spy,
        max_steps=2,
    )
    assert [type(batch) for batch in seen] == [Sample] * 2
    marked = {
        **batches[0],
        "subject_mask": third_token(seen[0])[0],
        "subject": ["passport"] * len(batches[0]["subject"]),
    }
    assert torch.equal(spy.grads[0][WEIGHT], gradient_from([marked]))


def test_calling_only_a_submodule_is_refused(splits: RecordSplits) -> None:
    class CallsSubmodule(SampleModule):
        def training_step(self, batch: Sample, batch_idx: int) -> Tensor:
            hidden = self.vlm.get_input_embeddings()(batch.tokens)
            return self.vlm.model.language_model(inputs_embeds=hidden).last_hidden_state.mean()  # type: ignore[no-any-return]

    model = tiny_llava()
    callback = NeuralGateCallback(random_gate(model), tokenizer=tiny_processor())
    with pytest.raises(UnsupportedSetupError, match="call the full model with input_ids"):
        train(CallsSubmodule(model), sample_loader(collated(splits)), callback)


def test_batches_without_subjects_are_refused(splits: RecordSplits) -> None:
    model = tiny_llava()
    with pytest.raises(UnsupportedSetupError, match=r"found Sample\. .*pass the model's tokenizer"):
        train(SampleModule(model), sample_loader(collated(splits)), NeuralGateCallback(random_gate(model)))


def test_invalid_masks_and_subjects_are_refused(splits: RecordSplits) -> None:
    model = tiny_llava()
    batches = collated(splits)

    def short(batch: Any) -> tuple[Tensor, list[str]]:
        return torch.ones(2, 3, dtype=torch.bool), ["passport"]

    def unknown(batch: Any) -> tuple[Tensor, list[str]]:
        return torch.ones_like(batch.tokens, dtype=torch.bool), ["drone"] * len(batch.tokens)

    with pytest.raises(UnsupportedSetupError, match=r"got shape \(2, 3\) and 1 subjects"):
        train(SampleModule(model), sample_loader(batches), NeuralGateCallback(random_gate(model), find_subjects=short))
    with pytest.raises(GateMismatchError, match="'drone', the gate covers passport, receipt"):
        train(
            SampleModule(model),
            sample_loader(batches),
            NeuralGateCallback(random_gate(model), find_subjects=unknown),
        )
    with pytest.raises(ValueError, match="not both"):
        NeuralGateCallback(random_gate(model), tokenizer=tiny_processor(), find_subjects=short)


def test_subjects_in_the_batch_are_returned_unchanged(splits: RecordSplits) -> None:
    batch = collated(splits)[0]
    mask, subjects = SubjectsInBatch()(batch)
    assert mask is batch["subject_mask"]
    assert subjects == batch["subject"]
    assert "subject_mask" not in model_inputs(batch)


def test_labels_on_the_prompt_do_not_hide_the_subject(splits: RecordSplits) -> None:
    """Many collators make labels of all tokens except padding and image tokens."""
    find = SubjectsInText(tiny_processor().tokenizer, SUBJECTS)
    image = tiny_processor().tokenizer.convert_tokens_to_ids("<image>")
    for batch in collated(splits):
        labels = batch["input_ids"].masked_fill((batch["attention_mask"] == 0) | (batch["input_ids"] == image), -100)
        mask, names = find({"input_ids": batch["input_ids"], "labels": labels})
        assert names == batch["subject"]
        # the benign answers of these records name the subject again
        rows = [row for row, role in enumerate(batch["role"]) if role == "sensitive"]
        assert torch.equal(mask[rows], batch["subject_mask"][rows])


def test_warns_if_no_batch_names_a_subject(splits: RecordSplits) -> None:
    model = tiny_llava()
    batches = collated(splits) * 6
    gate = random_gate(model, subjects=("drone",))
    with pytest.warns(UserWarning, match=r"none of the first 10 batches names a subject of the gate \(drone\)"):
        train(
            SampleModule(model),
            sample_loader(batches),
            NeuralGateCallback(gate, tokenizer=tiny_processor()),
            max_steps=11,
        )


def without_subject(batch: dict[str, Any], rows: list[int]) -> dict[str, Any]:
    mask = batch["subject_mask"].clone()
    mask[rows] = False
    return {**batch, "subject_mask": mask}


def test_rows_without_a_subject_are_counted_and_logged(splits: RecordSplits, tmp_path: Path) -> None:
    model, first = tiny_llava(), collated(splits)[0]
    batches = [first, without_subject(first, [0, 3])]
    with pytest.warns(UserWarning, match=rf"2 of the first {2 * len(first['role'])} rows have no subject of the gate"):
        train(
            MappingModule(model), DataLoader(batches, batch_size=None), NeuralGateCallback(random_gate(model)),  # type: ignore[arg-type]
            max_steps=2, logger=CSVLogger(tmp_path, name=""), log_every_n_steps=1,
        )  # fmt: skip
    rows = list(csv.DictReader(next(tmp_path.rglob("metrics.csv")).open()))
    assert [float(row["gate/rows_without_subject"]) for row in rows] == [0.0, 2.0]


def test_added_rows_without_a_subject_are_counted_without_a_warning(splits: RecordSplits, tmp_path: Path) -> None:
    data = datamodule(splits, indirect_share=1.0)
    (batch,) = data.pairs_dataloader()
    unnamed = [not subject for subject in batch["subject"]]
    assert sum(unnamed) > 0.1 * len(unnamed)
    assert all(added for added, without in zip(batch["added"], unnamed, strict=True) if without)
    model, logger = tiny_llava(), CSVLogger(tmp_path, name="")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        train(MappingModule(model), data, NeuralGateCallback(random_gate(model)), logger=logger, log_every_n_steps=1)
    assert not [warning for warning in caught if "no subject of the gate" in str(warning.message)]
    (row,) = csv.DictReader(next(tmp_path.rglob("metrics.csv")).open())
    assert float(row["gate/rows_without_subject"]) == sum(unnamed)
    model = tiny_llava()
    with pytest.raises(SubjectNotFoundError, match="would be trained ungated"):
        train(MappingModule(model), data, NeuralGateCallback(random_gate(model), strict=True))


def test_strict_refuses_the_first_row_without_a_subject(splits: RecordSplits) -> None:
    batch = collated(splits)[0]
    for broken, options, match in (
        (without_subject(batch, [1]), {}, f"rows 1 of batch 0 .records {batch['record_id'][1]}. have no subject"),
        (batch, {"tokenizer": tiny_processor()}, r"rows 0, .* have no subject of the gate \(drone\)"),
    ):
        model = tiny_llava()
        gate = random_gate(model, subjects=("drone",) if options else SUBJECTS)
        callback = NeuralGateCallback(gate, strict=True, **options)  # type: ignore[arg-type]
        with pytest.raises(SubjectNotFoundError, match=match):
            train(MappingModule(model), DataLoader([broken], batch_size=None), callback)  # type: ignore[arg-type]


def test_retention_rows_need_no_subject(splits: RecordSplits) -> None:
    model, batch = tiny_llava(), collated(splits)[0]
    batch = {**without_subject(batch, [0, 1]), "role": ["retention", "retention", *batch["role"][2:]]}

    callback = NeuralGateCallback(random_gate(model), strict=True)
    train(MappingModule(model), DataLoader([batch], batch_size=None), callback)  # type: ignore[arg-type]
    assert callback.ungated_rows.in_batch == 0


def test_the_callback_can_be_pickled(splits: RecordSplits) -> None:
    model = tiny_llava()
    callback = pickle.loads(pickle.dumps(NeuralGateCallback(random_gate(model), tokenizer=tiny_processor())))
    spy = Gradients()
    train(SampleModule(model), sample_loader(collated(splits)), callback, spy)
    assert torch.equal(spy.grads[0][WEIGHT], gradient_from(collated(splits)))


class TwoPasses(SampleModule):
    """Two forward passes, one with passports and one with receipts, and one backward pass over both."""

    def training_step(self, batch: Sample, batch_idx: int) -> Tensor:
        rows = torch.arange(len(batch.tokens))
        losses = [super(TwoPasses, self).training_step(Sample(*(v[part] for v in batch)), 0) for part in rows.chunk(2)]
        return torch.stack([loss for loss in losses if loss is not None]).mean()


@pytest.mark.parametrize("reentrant", [None, False, True])
def test_two_forward_passes_before_a_backward_pass(splits: RecordSplits, reentrant: bool | None) -> None:
    model = tiny_llava()
    batches = list(datamodule(splits, pairs_per_batch=8).pairs_dataloader())
    assert len(set(batches[0]["subject"])) == 2
    gate = random_gate(model)
    callback = NeuralGateCallback(gate, "from_subject", tokenizer=tiny_processor())
    if reentrant is None:
        spy = Gradients()
        train(TwoPasses(model), sample_loader(batches), callback, spy)
        halves = list(datamodule(splits, pairs_per_batch=4).pairs_dataloader())
        assert len(halves) == 2
        expected = gradient_from(halves, "from_subject", accumulate_grad_batches=2)
        # halves are padded to their own lengths, and have the same number of labels
        assert relative_error(spy.grads[0][WEIGHT], expected) < 1e-5
        return
    model.train()
    enable_checkpointing(model, reentrant)
    with pytest.raises(UnsupportedSetupError, match="call backward after each forward pass"):
        train(TwoPasses(model), sample_loader(batches), callback)
