from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_neuralgate.data.collator import PrivacyPairCollator, QueryRow
from lightning_neuralgate.data.records import RecordSplits, RetentionItem
from lightning_neuralgate.edit.editor import PrivacyEditModule
from lightning_neuralgate.errors import UnsupportedSetupError
from lightning_neuralgate.gate.callback import NeuralGateCallback
from lightning_neuralgate.gate.positions import (
    Divergence,
    PositionRule,
    Positions,
    ShuffledPositions,
    Tail,
    position_rule,
)
from lightning_neuralgate.hf.decoder import find_decoder
from tests.helpers.reference import plain_gated_gradient, relative_error
from tests.helpers.tiny_llava import tiny_llava, tiny_processor
from tests.helpers.training import Gradients, UserModule, datamodule, random_gate, train
from tests.test_readme import code_blocks


def collated(splits: RecordSplits, **options: Any) -> dict[str, Any]:
    item = RetentionItem(query="What is the owner?", image=splits.edit[0].image, target="The colour")
    data = datamodule(splits, retention=[item], retention_per_batch=1, **options)
    return next(iter(data.pairs_dataloader()))  # type: ignore[no-any-return]


def open_text(batch: dict[str, Any], row: int, closed: Tensor | None) -> str:
    """Return the text of a row's tokens that are not closed."""
    assert closed is not None
    ids = batch["input_ids"][row][batch["attention_mask"][row].bool() & ~closed[row]]
    return tiny_processor().tokenizer.decode(ids)  # type: ignore[no-any-return]


@pytest.mark.parametrize("side", ["left", "right"])
def test_divergence_closes_what_twins_begin_with_and_tail_all_up_to_the_answer(splits: RecordSplits, side: Any) -> None:
    batch = collated(splits, padding_side=side, pairs_per_batch=2, recovery_share=1.0, indirect_share=1.0)
    count = len(batch["role"])
    assert batch["twin"] == [row ^ 1 for row in range(count - 1)] + [None]
    assert {batch["role"][row] for row in batch["twin"][0:-1:2]} == {"benign"}
    mask = batch["subject_mask"]
    closed = {scope: position_rule(scope)(mask, batch).closed for scope in ("divergence", "tail")}  # type: ignore[arg-type]

    first = " number of this passport?"
    assert open_text(batch, 0, closed["divergence"]).startswith(first)
    assert open_text(batch, 1, closed["divergence"]).startswith(first.replace("number", "colour"))
    tail = open_text(batch, 0, closed["tail"])
    template = tail.removesuffix("I cannot")
    assert template
    assert tail == f"{template}I cannot"
    assert "passport" not in tail
    for row in range(count - 1):
        assert open_text(batch, row, closed["tail"]).startswith(template), (
            "the same in all rows, openings stand behind it"
        )
    assert len(set(batch["tail_tokens"])) > 1, "some answers are started"
    for found in closed.values():
        assert found is not None
        assert found[:-1].any(1).all()
        assert not found[-1].any(), "retention is open"
    for row, twin in enumerate(batch["twin"][:-1]):
        a, b = (batch["input_ids"][i][closed["divergence"][i]] for i in (row, twin))  # type: ignore[index]
        assert torch.equal(a, b), "the two are closed in what they share"


def test_tails_without_a_chat_template_hold_the_last_token_of_the_prompt() -> None:
    processor = tiny_processor()
    processor.chat_template = None
    assert PrivacyPairCollator(processor).tail_tokens([QueryRow("What is the colour?", "benign", None)]) == [1]


@pytest.mark.parametrize("scope", ["divergence", Divergence(then="all"), Divergence(then="subject_last"), "tail"])
def test_an_edit_sums_what_the_positions_let_through(splits: RecordSplits, scope: Any) -> None:
    """Also in two passes over shared prefixes and own tokens; closed positions contribute nothing to any row."""
    model = tiny_llava()
    gate = random_gate(model)
    item = RetentionItem(query="What is the owner?", image=splits.edit[0].image, target="The colour")
    data = datamodule(splits, pairs_per_batch=3, retention=[item], retention_per_batch=1)
    found = {}
    for share in (True, False):
        editor, kept = PrivacyEditModule(tiny_llava(), [1], share_prefixes=share), Gradients()
        train(editor, data, NeuralGateCallback(gate, scope, tau=0.5), kept)
        assert editor._losses.fast_path.verified is share
        (found[share],) = kept.grads[0].values()
    batch = kept.batches[0]
    positions = position_rule(scope)(batch["subject_mask"], batch)
    projection: Any = find_decoder(model).output_projection(1)
    projection.weight.requires_grad_(True)

    def gradient(where: Tensor, rates: list[Tensor]) -> Tensor:
        edited = {key: value[:-1] if isinstance(value, (Tensor, list)) else value for key, value in batch.items()}
        return plain_gated_gradient(model, edited, [projection], where[:-1], [rates])[0]

    none = [torch.zeros(32, dtype=torch.bool) for _ in batch["role"]]
    rates = [gate.mask(subject, 1, 0.5) if subject else ~none[0] for subject in batch["subject"]]
    assert positions.closed is not None
    nowhere = torch.zeros_like(positions.closed)
    gated = nowhere if positions.gated is None else positions.gated & ~positions.closed
    # sums over positions: the part gated by rows, without the closed part
    expected = gradient(gated, rates) - gradient(nowhere, none) + gradient(positions.closed, none)
    retention = retention_gradient(model, projection, batch)
    assert relative_error(found[False], expected + retention) < 1e-4
    assert relative_error(found[True], found[False]) < 1e-4
    assert relative_error(gradient(nowhere, none), expected) > 0.05


def retention_gradient(model: Any, projection: Any, batch: dict[str, Any]) -> Tensor:
    last = {key: value[-1:] if isinstance(value, (Tensor, list)) else value for key, value in batch.items()}
    last["role"] = ["retention"]
    nowhere = torch.zeros_like(last["subject_mask"])
    masks = [torch.ones(32, dtype=torch.bool)]
    return 0.25 * plain_gated_gradient(model, last, [projection], nowhere, [masks])[0]


def test_the_rule_of_the_docs(splits: RecordSplits) -> None:
    """Gradient passes where the answer's first token is predicted, and nowhere else."""
    (block,) = (block for block in code_blocks("docs/trainer.md", "python") if "FirstAnswerToken" in block)
    names: dict[str, Any] = {}
    exec(block.split("NeuralGateCallback")[0], names)
    rule: PositionRule = names["FirstAnswerToken"]()
    model, kept = tiny_llava(), Gradients()
    callback = NeuralGateCallback(random_gate(model), rule)
    assert "FirstAnswerToken" in callback.state_key
    train(UserModule(model, lr=0.0), datamodule(splits), callback, kept)
    batch, (found,) = kept.batches[0], kept.grads[0].values()
    projection: Any = find_decoder(model).output_projection(1)
    closed = rule(batch["subject_mask"], batch).closed
    assert closed is not None
    assert (~closed).sum(1).tolist() == [1] * len(closed)
    masks = [torch.zeros(32, dtype=torch.bool)] * len(batch["role"])
    (expected,) = plain_gated_gradient(model, batch, [projection], closed, [masks])  # type: ignore[arg-type]
    assert relative_error(found, expected) < 1e-5


def test_full_rows_are_run_where_a_row_of_a_shared_prefix_has_no_twin(splits: RecordSplits) -> None:
    class Alone(Divergence):
        def __call__(self, subject_mask: Tensor, batch: Mapping[str, Any]) -> Positions:
            return super().__call__(subject_mask, {**batch, "twin": [None, None, *batch["twin"][2:]]})

    editor = PrivacyEditModule(tiny_llava(), [1])
    with pytest.warns(UserWarning, match="not gated alike in it by the scope 'divergence'"):
        train(editor, datamodule(splits), NeuralGateCallback(random_gate(editor.model), Alone()))
    assert not editor._losses.fast_path.verified


def test_shuffled_positions_are_as_many(splits: RecordSplits) -> None:
    batch = collated(splits, pairs_per_batch=2)
    real = batch["attention_mask"].bool()
    for scope in (Divergence(then="all"), "subject"):
        plain = position_rule(scope)(batch["subject_mask"], batch)  # type: ignore[arg-type]
        first, again, other = (
            ShuffledPositions(scope, seed)(batch["subject_mask"], batch)  # type: ignore[arg-type]
            for seed in (0, 0, 1)
        )
        for name, mask in plain._asdict().items():
            found = getattr(first, name)
            if mask is None:
                assert found is None
                continue
            assert torch.equal((found & real).sum(1), (mask & real).sum(1))
            assert torch.equal(found, getattr(again, name))
            if not mask[real].all():
                assert not torch.equal(found, mask)
                assert not torch.equal(found, getattr(other, name))


def test_batches_that_lack_what_a_rule_needs_are_refused(splits: RecordSplits, tmp_path: Path) -> None:
    batch = collated(splits)
    for rule, key, way_out in ((Divergence(), "twin", "twins=function"), (Tail(), "tail_tokens", "template_tokens")):
        with pytest.raises(UnsupportedSetupError, match=rf"needs '{key}' in the batch, found .*{way_out}"):
            rule(batch["subject_mask"], {name: value for name, value in batch.items() if name != key})
    with pytest.raises(UnsupportedSetupError, match="there are twins for 1"):
        Divergence(twins=lambda batch: [None])(batch["subject_mask"], batch)
    alternating = Divergence(twins=lambda batch: [row ^ 1 for row in range(len(batch["role"]) - 1)] + [None])
    expected = Divergence()(batch["subject_mask"], batch).closed
    assert torch.equal(alternating(batch["subject_mask"], {**batch, "twin": None}).closed, expected)  # type: ignore[arg-type]
