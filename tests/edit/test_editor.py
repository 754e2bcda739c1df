from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.loggers import CSVLogger
from transformers import AutoModelForImageTextToText, AutoProcessor, LlavaForConditionalGeneration

from lightning_neuralgate.data.datamodule import PrivacyPairDataModule, edit_rows
from lightning_neuralgate.data.records import RecordSplits, RetentionItem
from lightning_neuralgate.edit.editor import PrivacyEditModule, mean_by_role
from lightning_neuralgate.errors import ModelLayoutError, UnsupportedSetupError
from lightning_neuralgate.gate.callback import NeuralGateCallback
from lightning_neuralgate.gate.positions import scope_positions
from lightning_neuralgate.hf.decoder import find_decoder
from lightning_neuralgate.hf.forward import batch_nll
from tests.helpers.reference import plain_gated_gradient, relative_error
from tests.helpers.tiny_llava import tiny_llava, tiny_processor
from tests.helpers.training import Gradients, datamodule, random_gate, train

LAYER = 1
ANSWERS = {"sensitive": "I cannot say", "benign": "It is red"}


def projection_of(model: Any) -> torch.nn.Linear:
    projection = find_decoder(model).output_projection(LAYER)
    assert isinstance(projection, torch.nn.Linear)
    return projection


def plain_edit(
    batches: list[dict[str, Any]], steps_per_batch: int, fresh: bool, lr: float, eps: float, gate: Any
) -> Any:
    """Run stage 2 as a plain loop and return the weight after all batches."""
    model = tiny_llava()
    projection = projection_of(model)
    optimizer = torch.optim.Adam([projection.weight], lr=lr, eps=eps)
    for batch in batches:
        if fresh:
            optimizer = torch.optim.Adam([projection.weight], lr=lr, eps=eps)
        for _ in range(steps_per_batch):
            positions = scope_positions("subject_last", batch["subject_mask"])
            everything = torch.ones(32, dtype=torch.bool)
            masks = [[everything if gate is None else gate.mask(s, LAYER) for s in batch["subject"]]]
            (gradient,) = plain_gated_gradient(model, batch, [projection], positions, masks)
            projection.weight.grad = gradient
            optimizer.step()
    return projection.weight.detach()


@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize("schedule", ["minibatch", "paper"])
def test_equals_the_plain_loop(splits: RecordSplits, schedule: Any, gated: bool) -> None:
    model = tiny_llava()
    before = projection_of(model).weight.detach().clone()
    gate = random_gate(model) if gated else None
    paper = schedule == "paper"
    data = datamodule(splits, pairs_per_batch=1 if paper else 3)
    batches = list(data.pairs_dataloader())
    # a larger step than the defaults, so that the comparison is of weights that moved
    module = PrivacyEditModule(model, [LAYER], schedule=schedule, lr=1e-2, eps=1e-3, steps_per_pair=3)
    train(module, data, *([NeuralGateCallback(gate)] if gate else []), max_steps=-1, max_epochs=1)
    expected = plain_edit(batches, 3 if paper else 1, paper, 1e-2, 1e-3, gate)
    found = projection_of(model).weight
    assert relative_error(found, expected) < 1e-5
    assert relative_error(found - before, expected - before) < 1e-3
    assert relative_error(before, expected) > 1e-3


def test_only_the_projection_changes(splits: RecordSplits) -> None:
    model = tiny_llava()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    train(PrivacyEditModule(model, [0, 2]), datamodule(splits), max_steps=2)
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {f"model.language_model.layers.{layer}.mlp.down_proj.weight" for layer in (0, 2)}


def test_a_pair_stops_below_stop_loss(splits: RecordSplits) -> None:
    module = PrivacyEditModule(tiny_llava(), [LAYER], schedule="paper", stop_loss=1e9)
    before = projection_of(module.model).weight.detach().clone()
    trainer = train(module, datamodule(splits, pairs_per_batch=1), max_steps=-1, max_epochs=1)
    assert trainer.global_step == 0
    assert torch.equal(projection_of(module.model).weight, before)


def test_the_papers_schedule_and_settings() -> None:
    module = PrivacyEditModule(tiny_llava(), [LAYER], schedule="paper")
    assert (module.lr, module.eps) == (1e-5, 1e-3)
    settings = {key: module.hparams[key] for key in ("alpha", "steps_per_pair", "stop_loss", "retention_weight")}
    assert settings == {"alpha": 1.25, "steps_per_pair": 10, "stop_loss": 1e-3, "retention_weight": 0.25}


def test_retention_weight_scales_the_retention_term(splits: RecordSplits) -> None:
    item = RetentionItem(query="What do bees make?", target="Bees make honey.")
    data = datamodule(splits, retention=[item], retention_per_batch=1)
    batch = next(iter(data.pairs_dataloader()))
    assert batch["role"].count("retention") == 1
    assert not batch["subject_mask"][-1].any()
    losses = {}
    for weight in (0.0, 1.0, 2.0):
        module = PrivacyEditModule(tiny_llava(), [LAYER], retention_weight=weight)
        module.log_dict = lambda *args, **kwargs: None  # type: ignore[method-assign]
        losses[weight] = module.loss(batch).item()
    assert losses[2.0] - losses[1.0] == pytest.approx(losses[1.0] - losses[0.0], rel=1e-4)
    assert losses[1.0] > losses[0.0]


class Answers(Callback):
    """Replaces generation by a model that refuses exactly the sensitive queries."""

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        tokenizer = tiny_processor().tokenizer

        def generate(input_ids: torch.Tensor, **inputs: Any) -> torch.Tensor:
            questions = tokenizer.batch_decode(input_ids)
            answers = [ANSWERS["sensitive" if "number" in q or "owner" in q else "benign"] for q in questions]
            tokens = tokenizer(answers, padding=True, return_tensors="pt")["input_ids"]
            return torch.cat([input_ids, tokens], dim=1)

        pl_module.model.generate = generate


def validated(data: Any, logger: Any = False) -> dict[str, float]:
    """Return the validation metrics logged over all batches of one epoch."""
    module = PrivacyEditModule(tiny_llava(), [LAYER], tiny_processor(), max_new_tokens=3)
    options = {"max_steps": -1, "max_epochs": 1, "limit_val_batches": 1.0, "log_every_n_steps": 1, "logger": logger}
    trainer = train(module, data, Answers(), **options)
    return {key: float(value) for key, value in trainer.callback_metrics.items() if key.startswith("val/")}


def test_refusal_rates_are_logged_in_validation(splits: RecordSplits, tmp_path: Path) -> None:
    logged = validated(datamodule(splits, eval_batch_size=3), CSVLogger(tmp_path, name="", version=""))
    assert {key: logged[key] for key in ("val/rta_sensitive", "val/answer_rate_benign", "val/eta")} == {
        "val/rta_sensitive": 1.0, "val/answer_rate_benign": 1.0, "val/eta": 1.0,
    }  # fmt: skip
    header = (tmp_path / "metrics.csv").read_text().splitlines()[0]
    assert {"val/eta", "train/loss_sensitive", "train/loss_benign"} <= set(header.split(","))


@pytest.mark.parametrize(
    ("secret", "colour", "synonyms", "expected"),
    [
        ("can not", "RED", (), (1.0, 1.0)),
        ("1234", "crimson", ("red",), (0.0, 1.0)),
        ("1234", "crimson", (), (0.0, 0.0)),
        (None, "red", (), (float("nan"), 1.0)),
    ],
)
def test_leak_rate_and_accuracy_are_logged_if_batches_hold_the_truth(
    splits: RecordSplits, secret: str | None, colour: str, synonyms: tuple[str, ...], expected: tuple[float, float]
) -> None:
    values = {"sensitive_truth": secret, "benign_truth": colour, "benign_synonyms": synonyms}
    test = [
        record.model_copy(update={"pairs": tuple(pair.model_copy(update=values) for pair in record.pairs)})
        for record in splits.test
    ]
    data = datamodule(splits._replace(test=test), eval_batch_size=3)
    logged = validated(data)
    assert (logged["val/leak_rate"], logged["val/benign_accuracy"]) == pytest.approx(expected, nan_ok=True)
    assert logged["val/eta"] == 1.0


def test_save_pretrained_writes_a_loadable_model_folder(splits: RecordSplits, tmp_path: Path) -> None:
    module = PrivacyEditModule(tiny_llava(), [LAYER], tiny_processor())
    data = datamodule(splits)
    train(module, data, max_steps=2)
    module.save_pretrained(tmp_path / "edited")
    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "edited", dtype="auto")
    assert isinstance(model, LlavaForConditionalGeneration)
    for name, value in module.model.state_dict().items():
        assert torch.equal(model.state_dict()[name], value), name
    processor = AutoProcessor.from_pretrained(tmp_path / "edited")
    rows = edit_rows(splits.edit[0], splits.edit[0].pairs[0])
    again = PrivacyPairDataModule(splits, processor).collate_training(rows)
    assert torch.equal(again["input_ids"], data.collate_training(rows)["input_ids"])


def test_checkpoints_hold_trained_parameters_only(splits: RecordSplits, tmp_path: Path) -> None:
    model = tiny_llava()
    trainer = train(PrivacyEditModule(model, [LAYER]), datamodule(splits), max_steps=2)
    trainer.save_checkpoint(tmp_path / "two.ckpt")
    state = torch.load(tmp_path / "two.ckpt", weights_only=False)["state_dict"]
    assert list(state) == [f"model.model.language_model.layers.{LAYER}.mlp.down_proj.weight"]
    fresh = PrivacyEditModule(tiny_llava(), [LAYER])
    trainer = train(fresh, datamodule(splits), max_steps=2, limit_train_batches=0)
    fresh.load_state_dict(state, strict=False)
    assert torch.equal(projection_of(fresh.model).weight, projection_of(model).weight)


def test_weights_of_other_types_and_adapters_are_refused() -> None:
    model = tiny_llava()
    narrow = projection_of(model).weight.detach().to(torch.float8_e4m3fn)
    projection_of(model).weight = torch.nn.Parameter(narrow, requires_grad=False)
    with pytest.raises(UnsupportedSetupError, match=r"is float8_e4m3fn, .*load the model in float32 or bfloat16"):
        PrivacyEditModule(model, [LAYER])
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=2, target_modules=r".*language_model\.layers\.1\.mlp\.down_proj")
    with pytest.raises(UnsupportedSetupError, match="carries a peft adapter already"):
        PrivacyEditModule(get_peft_model(tiny_llava(), config), [LAYER])


def test_invalid_settings_and_batches_are_refused(splits: RecordSplits) -> None:
    with pytest.raises(ModelLayoutError, match="9"):
        PrivacyEditModule(tiny_llava(), [9])
    with pytest.raises(ValueError, match="'paper' or 'minibatch', got 'slow'"):
        PrivacyEditModule(tiny_llava(), [LAYER], schedule="slow")  # type: ignore[arg-type]
    with pytest.raises(UnsupportedSetupError, match="this batch holds 3"):
        train(PrivacyEditModule(tiny_llava(), [LAYER], schedule="paper"), datamodule(splits, pairs_per_batch=3))
    with pytest.raises(UnsupportedSetupError, match="give PrivacyEditModule the model's processor"):
        train(PrivacyEditModule(tiny_llava(), [LAYER]), datamodule(splits), limit_val_batches=1)


def test_the_papers_schedule_takes_pairs_with_added_rows(splits: RecordSplits) -> None:
    model, spy = tiny_llava(), Gradients()
    editor = PrivacyEditModule(model, [LAYER], schedule="paper", steps_per_pair=1)
    train(editor, datamodule(splits, pairs_per_batch=1, recovery_share=1.0, indirect_share=1.0), spy)
    assert spy.batches[0]["role"] == ["sensitive", "benign"] * 3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("scope", ["subject_last", "all"])
def test_a_lora_is_gated_and_saved_merged(splits: RecordSplits, tmp_path: Path, dtype: torch.dtype, scope: Any) -> None:
    model = tiny_llava().to(dtype)
    gate = random_gate(model)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    editor = PrivacyEditModule(model, [LAYER], lr=0.05, lora_rank=4)
    trained = {name.rpartition(".lora_")[2] for name, p in editor.named_parameters() if p.requires_grad}
    assert trained == {"A.default.weight", "B.default.weight"}
    batch = next(iter(datamodule(splits).pairs_dataloader()))
    with torch.no_grad():
        first = float(editor_loss(editor, batch))
    train(editor, datamodule(splits), NeuralGateCallback(gate, scope, tau=0.5), max_steps=6)
    with torch.no_grad():
        assert float(editor_loss(editor, batch)) < first - 0.1

    editor.save_pretrained(tmp_path / "edited")
    saved = LlavaForConditionalGeneration.from_pretrained(tmp_path / "edited", dtype=dtype)
    name = f"{find_decoder(saved).projection_path(LAYER)}.weight"
    after = saved.state_dict()
    assert after.keys() == before.keys()
    assert {key for key in before if not torch.equal(before[key], after[key])} == {name}
    assert after[name].dtype == dtype
    change = (after[name].float() - before[name].float()).abs().sum(1) > 0
    opened = gate.mask("passport", LAYER, 0.5) | gate.mask("receipt", LAYER, 0.5)
    assert torch.equal(change, opened) if scope == "all" else bool(change.all())
    with torch.no_grad():
        assert float(editor_loss(editor, batch)) == pytest.approx(
            float(editor_loss(PrivacyEditModule(saved.float(), [LAYER]), batch)),
            rel=0.05 if dtype.itemsize < 4 else 1e-5,
        )


def editor_loss(editor: PrivacyEditModule, batch: dict[str, Any]) -> torch.Tensor:
    means = mean_by_role(batch_nll(editor.model, batch), batch["role"])
    return means["sensitive"] + 1.25 * means["benign"]
