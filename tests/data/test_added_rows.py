from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch

from lightning_neuralgate.data.added_rows import AddedRows
from lightning_neuralgate.data.datamodule import PrivacyPairDataModule, edit_rows
from lightning_neuralgate.data.records import RecordSplits, RetentionItem
from lightning_neuralgate.hf.forward import IGNORED
from tests.data.test_datamodule import fake_trainer
from tests.helpers.tiny_llava import tiny_processor

RETENTION = [RetentionItem(query=f"What is {i}?", target=f"It is {i}") for i in range(20)]
BOTH: dict[str, Any] = {"recovery_share": 1.0, "indirect_share": 1.0}


def batches(
    splits: RecordSplits, epoch: int = 0, rank: int = 0, world: int = 1, **options: Any
) -> list[dict[str, Any]]:
    defaults = {"pairs_per_batch": 2, "shuffle": False, "retention_per_batch": 1}
    data = PrivacyPairDataModule(splits, tiny_processor(), RETENTION, **{**defaults, **options})
    data.trainer = fake_trainer(rank, world, epoch)
    return list(data.pairs_dataloader())


def texts(batch: dict[str, Any], labels: bool = False) -> list[str]:
    kept = batch["labels"] != IGNORED if labels else batch["attention_mask"].bool()
    tokenizer = tiny_processor().tokenizer
    return [tokenizer.decode(ids[mask]).strip() for ids, mask in zip(batch["input_ids"], kept, strict=True)]


def test_without_shares_batches_hold_the_pairs_and_retention_rows_alone(splits: RecordSplits) -> None:
    data = PrivacyPairDataModule(splits, tiny_processor(), pairs_per_batch=2, shuffle=False)
    pairs = [(record, pair) for record in splits.edit for pair in record.pairs]
    for number, batch in enumerate(data.pairs_dataloader()):
        expected = data.collate_training([row for one in pairs[2 * number : 2 * number + 2] for row in edit_rows(*one)])
        assert list(batch) == [*expected, "twin", "tail_tokens"]
        for key, value in expected.items():
            assert torch.equal(batch[key], value) if isinstance(value, torch.Tensor) else batch[key] == value


def test_rows_are_added_behind_the_pairs(splits: RecordSplits) -> None:
    for plain, batch in zip(batches(splits), batches(splits, **BOTH), strict=True):
        assert batch["role"] == ["sensitive", "benign"] * 6 + ["retention"]
        assert batch["added"] == [False] * 4 + [True] * 8 + [False]
        assert texts(batch)[:4] + texts(batch)[-1:] == texts(plain), "pairs and retention rows are the same"
        targets = texts(batch, labels=True)
        refusals = [target for target, role in zip(targets, batch["role"], strict=True) if role == "sensitive"]
        assert set(refusals) == set(texts(plain, labels=True)[:4:2])
        assert "added" not in plain


def test_each_kind_has_its_own_share_and_depths(splits: RecordSplits) -> None:
    seen: Counter[str] = Counter()
    for epoch in range(60):
        for name in ("recovery_share", "indirect_share"):
            share: dict[str, Any] = {name: 0.25}
            seen[name] += sum(batch["added"].count(True) for batch in batches(splits, epoch, **share)) // 2
    assert all(0.15 < count / (60 * 8) < 0.35 for count in seen.values())
    one, two = (batches(splits, recovery_share=1.0, recovery_depths=depths)[0] for depths in ((1,), (6,)))
    assert one["added"] == two["added"]
    assert all(len(short) < len(long) for short, long in zip(texts(one)[4::2][:2], texts(two)[4::2][:2], strict=True))


def test_rows_depend_on_seed_epoch_and_pair_only(splits: RecordSplits) -> None:
    def added(**options: Any) -> list[str]:
        found = batches(splits, **{**BOTH, **options})
        return sorted(t for batch in found for t, extra in zip(texts(batch), batch["added"], strict=True) if extra)

    expected = added()
    assert expected == added(num_workers=2) == added(pairs_per_batch=3) == added(shuffle=True)
    assert expected == sorted([*added(rank=0, world=2), *added(rank=1, world=2)])
    assert expected != added(epoch=1) != added(epoch=2)
    assert expected != added(seed=1)
    recovery, indirect = (added(**{**dict.fromkeys(BOTH, 0.0), name: 1.0}) for name in BOTH)
    assert expected == sorted([*recovery, *indirect]), "neither option changes the rows of the other"


def test_pictures_are_left_out_of_added_rows_too(splits: RecordSplits) -> None:
    assert all("pixel_values" not in batch for batch in batches(splits, images=False, **BOTH))


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"recovery_share": 1.5}, "recovery_share must be a probability between 0 and 1, got 1.5"),
        ({"indirect_share": -0.1}, "indirect_share must be a probability"),
        ({"indirect_share": float("nan")}, "indirect_share must be a probability"),
        ({"recovery_depths": ()}, "recovery_depths must hold"),
        ({"recovery_depths": (3, 0)}, "at least 1, got"),
        ({"recovery_depths": (1.5,)}, "recovery_depths must hold"),
    ],
)
def test_bad_values_are_refused(splits: RecordSplits, options: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        PrivacyPairDataModule(splits, tiny_processor(), **options)
    with pytest.raises(ValueError, match=match):
        AddedRows(splits.edit, None, **options)


def test_the_identity_of_a_run_holds_the_options(splits: RecordSplits) -> None:
    identities = [
        PrivacyPairDataModule(splits, tiny_processor(), **options).identity
        for options in ({}, {"recovery_share": 0.5}, {"indirect_share": 0.5}, {"recovery_depths": (2,)})
    ]
    assert all(one != other for i, one in enumerate(identities) for other in identities[:i])
