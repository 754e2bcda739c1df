"""NLL of many continuations of one prompt, compared with each row alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lightning_neuralgate.data.collator import PrivacyPairCollator, QueryRow
from lightning_neuralgate.data.records import RecordSplits
from lightning_neuralgate.hf.forward import batch_nll
from lightning_neuralgate.prefix_cache.continuations import _FAST_PATHS, continuation_nll
from tests.helpers.shifted_positions import shift_cached_positions
from tests.helpers.tiny_llava import tiny_llava, tiny_processor
from tests.helpers.tiny_minigpt import tiny_minigpt, tiny_minigpt_processor

# one begins another, two are equal, all begin alike
VALUES = ["48213", "4821", "48", "48207", "4", "48213", "4-8-2 and more", "4 rotors"]


def rows(splits: RecordSplits, opening: str = "The number is", picture: bool = True) -> list[QueryRow]:
    image = splits.test[0].image if picture else None
    return [QueryRow("What is it?", "sensitive", image, target=value, opening=opening) for value in VALUES]


def alone(model: Any, processor: Any, rows: list[QueryRow]) -> torch.Tensor:
    batches = [PrivacyPairCollator(processor)([row]) for row in rows]
    return torch.cat([batch_nll(model, batch).detach() * (batch["labels"] >= 0).sum() for batch in batches])


@pytest.mark.parametrize(
    ("model", "processor"),
    [(tiny_llava(), tiny_processor()), (tiny_minigpt(), tiny_minigpt_processor())],
    ids=["llava", "minigpt"],
)
@pytest.mark.parametrize("picture", [True, False])
def test_values_are_those_of_each_row_alone(
    splits: RecordSplits, model: Any, processor: Any, picture: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for opening in ("The number is", ""):
        chosen = rows(splits, opening, picture)
        expected = alone(model, processor, chosen)
        batch = PrivacyPairCollator(processor)(chosen)
        for limit in (3, 128):
            monkeypatch.setattr("lightning_neuralgate.prefix_cache.continuations._TREE_ROWS", limit)
            assert torch.allclose(continuation_nll(model, batch), expected, rtol=1e-4)
        assert _FAST_PATHS[model].verified


def test_common_tokens_are_run_once(splits: RecordSplits) -> None:
    model = tiny_llava()
    batch = PrivacyPairCollator(tiny_processor())(rows(splits))
    continuation_nll(model, batch)
    lengths: list[int] = []
    layer = model.model.language_model.layers[0]
    layer.register_forward_hook(lambda module, args, output: lengths.append(args[0].shape[0] * args[0].shape[1]))
    continuation_nll(model, batch)
    prompt, tree = lengths
    target_tokens = int((batch["labels"] >= 0).sum())
    assert prompt < int(batch["attention_mask"].sum(1).min())
    assert tree < target_tokens / 1.5


def test_full_rows_are_run_where_positions_cannot_be_shared(splits: RecordSplits) -> None:
    model, processor = tiny_llava(), tiny_processor()
    expected = alone(model, processor, rows(splits))
    shift_cached_positions(model)
    batch = PrivacyPairCollator(processor)(rows(splits))
    with pytest.warns(UserWarning, match="Prefix sharing between continuations is not supported"):
        assert torch.allclose(continuation_nll(model, batch, batch_size=3), expected, rtol=1e-4)
    assert torch.allclose(continuation_nll(model, batch), expected, rtol=1e-4)
