from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lightning_neuralgate.data.datamodule import LEAD_INS, PrivacyPairDataModule, locate_rows
from lightning_neuralgate.data.records import RecordSplits, RetentionItem
from lightning_neuralgate.errors import DataFormatError, DataLeakError
from lightning_neuralgate.hf.forward import IGNORED
from tests.helpers.tiny_llava import tiny_llava, tiny_processor
from tests.helpers.training import UserModule, train, without_targets


def fake_trainer(rank: int, world: int, epoch: int = 0, **more: Any) -> Any:
    """The attributes of a Trainer that a data module uses."""
    return SimpleNamespace(lightning_module=None, current_epoch=epoch, global_rank=rank, world_size=world, **more)


def test_locate_rows_are_six_contexts_and_a_benign_query(splits: RecordSplits) -> None:
    record = splits.edit[0]
    rows = locate_rows(record)
    assert [row.role for row in rows] == ["sensitive"] * 6 + ["benign"]
    assert [row.context for row in rows[:6]] == ["", *LEAD_INS]
    assert {row.query for row in rows[:6]} == {record.pairs[0].sensitive}
    assert {row.target for row in rows[:6]} == {record.pairs[0].refusal}
    assert (rows[6].query, rows[6].target) == (record.pairs[0].benign, record.pairs[0].benign_target)


def test_fitted_module_chooses_the_training_batches(splits: RecordSplits) -> None:
    data = PrivacyPairDataModule(splits, tiny_processor(), pairs_per_batch=3, shuffle=False)
    assert [batch["role"].count("sensitive") for batch in data.train_dataloader()] == [3, 3, 2]
    data.trainer = SimpleNamespace(lightning_module=SimpleNamespace(data_view="records"))  # type: ignore[assignment]
    batches = list(data.train_dataloader())
    assert [set(batch["record_id"]) for batch in batches] == [{record.record_id} for record in splits.edit]


def test_seed_shuffles_the_pairs_and_keeps_all_of_them(splits: RecordSplits) -> None:
    def order(seed: int) -> list[tuple[str, ...]]:
        data = PrivacyPairDataModule(splits, tiny_processor(), pairs_per_batch=1, seed=seed)
        return [tuple(batch["input_ids"][0].tolist()) for batch in data.pairs_dataloader()]

    assert order(1) == order(1) != order(2)
    assert sorted(order(1)) == sorted(order(2))
    assert len(order(1)) == 8


def test_retention_rows_follow_the_pairs(splits: RecordSplits) -> None:
    items = [RetentionItem(query=f"What is {i}?", target=f"It is {i}") for i in range(5)]
    data = PrivacyPairDataModule(splits, tiny_processor(), items, pairs_per_batch=2, retention_per_batch=3)
    for batch in data.pairs_dataloader():
        assert batch["role"] == ["sensitive", "benign"] * 2 + ["retention"] * 3
        assert batch["subject"][-3:] == ["", "", ""]
        assert (batch["labels"][-3:] != IGNORED).any(1).all()


def test_retention_rows_depend_on_seed_epoch_rank_and_pairs_only(splits: RecordSplits) -> None:
    items = [RetentionItem(query=f"What is {i}?", target=f"It is {i}") for i in range(40)]

    def drawn(epoch: int = 0, rank: int = 0, seed: int = 0, workers: int = 0) -> list[list[list[int]]]:
        data = PrivacyPairDataModule(
            splits, tiny_processor(), items, pairs_per_batch=2, retention_per_batch=3, shuffle=False,
            num_workers=workers, seed=seed,
        )  # fmt: skip
        data.trainer = fake_trainer(rank, rank + 1, epoch)
        return [batch["input_ids"][-3:].tolist() for batch in data.pairs_dataloader()]

    expected = drawn()
    assert expected == drawn() == drawn(workers=2), "workers draw the same rows as the main process"
    assert len({str(batch) for batch in expected}) == len(expected) == 4, "batches have different rows"
    for other in (drawn(epoch=1), drawn(rank=1), drawn(seed=1)):
        assert all(first != second for first, second in zip(expected, other, strict=False))


def test_validation_prompts_are_all_queries_of_the_test_split(splits: RecordSplits) -> None:
    data = PrivacyPairDataModule(splits, tiny_processor(), eval_batch_size=3)
    batches = list(data.val_dataloader())
    assert sum(len(batch["role"]) for batch in batches) == 2 * sum(len(record.pairs) for record in splits.test)
    assert all((batch["labels"] == IGNORED).all() for batch in batches)
    assert all(batch["attention_mask"][:, -1].all() for batch in batches), "prompts are padded on the left"


@pytest.mark.parametrize("view", ["records", "prompts"])
def test_duplicates_on_other_processes_are_not_counted(splits: RecordSplits, view: str) -> None:
    def batches(rank: int, world: int) -> list[dict[str, Any]]:
        data = PrivacyPairDataModule(splits, tiny_processor(), eval_batch_size=1)
        data.trainer = fake_trainer(rank, world)
        return list(data.records_dataloader() if view == "records" else data.val_dataloader())

    def content(batch: dict[str, Any]) -> str:
        return f"{batch['record_id']} {batch['input_ids'].tolist()}"

    single = batches(0, 1)
    assert len(single) % 3
    shares = [batches(rank, 3) for rank in range(3)]
    assert len({len(share) for share in shares}) == 1, "collective calls need as many batches on every process"
    counted = [batch for share in shares for batch in share if all(batch["counted"])]
    duplicates = [batch for share in shares for batch in share if not any(batch["counted"])]
    assert sorted(map(content, counted)) == sorted(map(content, single))
    assert len(counted) + len(duplicates) == 3 * len(shares[0])


def test_overfit_batches_repeats_the_same_batches(splits: RecordSplits) -> None:
    class SeenBatches(UserModule):
        def __init__(self) -> None:
            super().__init__(tiny_llava())
            self.seen: list[str] = []

        def training_step(self, batch: dict[str, Any], batch_idx: int) -> torch.Tensor:
            self.seen.append(str(batch["input_ids"].tolist()))
            return super().training_step(batch, batch_idx)

    module = SeenBatches()
    data = PrivacyPairDataModule(splits, tiny_processor(), pairs_per_batch=2)
    train(module, data, max_steps=-1, max_epochs=3, overfit_batches=2)
    assert len(module.seen) == 6
    assert module.seen[:2] == module.seen[2:4] == module.seen[4:]


def test_invalid_data_is_refused(splits: RecordSplits) -> None:
    with pytest.raises(DataLeakError):
        PrivacyPairDataModule(splits._replace(test=splits.edit), tiny_processor())
    with pytest.raises(DataFormatError, match="no edit records"):
        PrivacyPairDataModule(splits._replace(edit=[]), tiny_processor())
    with pytest.raises(DataFormatError, match="no retention items"):
        PrivacyPairDataModule(splits, tiny_processor(), retention_per_batch=1)
    item = RetentionItem(query="What do bees make?", target="Bees make honey.")
    assert PrivacyPairDataModule(splits, tiny_processor(), [item]).retention_per_batch == 1, "used by default if given"
    assert PrivacyPairDataModule(splits, tiny_processor()).retention_per_batch == 0
    with pytest.raises(
        DataFormatError, match=r"record passport-edit-0: .* has no target; generate it with fill_targets"
    ):
        next(iter(PrivacyPairDataModule(without_targets(splits), tiny_processor()).pairs_dataloader()))
