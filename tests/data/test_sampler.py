from __future__ import annotations

import pytest
import torch
from torch.utils.data import DataLoader

from lightning_neuralgate.data.sampler import ResumableLoader, ResumableSampler


def loader(rows: int = 10, workers: int = 0, **order: int) -> ResumableLoader:
    return ResumableLoader(
        list(range(rows)), ResumableSampler(rows, seed=4, **order), batch_size=3, num_workers=workers
    )


def batches(loader: ResumableLoader) -> list[list[int]]:
    return [batch.tolist() for batch in loader]


@pytest.mark.parametrize("rows", [1, 2, 5, 6, 7])
@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("shuffle", [True, False])
def test_every_row_occurs_once_apart_from_marked_duplicates(rows: int, world: int, shuffle: bool) -> None:
    shares = [list(ResumableSampler(rows, shuffle, 5, rank, world)) for rank in range(world)]
    assert {len(share) for share in shares} == {-(-rows // world)}
    assert sorted(row for share in shares for row in share if row >= 0) == list(range(rows))
    assert all(0 <= ~row < rows for share in shares for row in share if row < 0)
    if not shuffle:
        assert [share[0] for share in shares[:rows]] == list(range(min(rows, world)))


def test_first_epoch_is_in_the_order_of_a_seeded_dataloader() -> None:
    torch.manual_seed(4)
    expected = [batch.tolist() for batch in DataLoader(list(range(10)), batch_size=3, shuffle=True)]  # type: ignore[arg-type]
    torch.manual_seed(99)
    assert batches(loader()) == expected


def test_orders_differ_between_epochs_and_seeds() -> None:
    orders = []
    for seed in (0, 1):
        order = ResumableSampler(30, seed=seed)
        for epoch in range(4):
            order.set_epoch(epoch)
            orders.append(tuple(order))
    assert len(set(orders)) == len(orders)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("stop", [1, 2, 4])
@pytest.mark.parametrize("epoch", [0, 2])
def test_resumed_loader_continues_with_the_next_batch(workers: int, stop: int, epoch: int) -> None:
    uninterrupted = loader(workers=workers)
    uninterrupted.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
    expected, state = [], {}
    for number, batch in enumerate(uninterrupted, 1):
        expected.append(batch.tolist())
        if number == stop:
            state = uninterrupted.state_dict()
    resumed = loader(workers=workers)
    resumed.load_state_dict(state)
    found = iter(resumed)
    resumed.sampler.set_epoch(epoch)  # type: ignore[attr-defined]  # as Lightning does, after iter()
    assert [batch.tolist() for batch in found] == expected[stop:]
    assert resumed.state_dict() == uninterrupted.state_dict()
    assert len(resumed) == len(uninterrupted), "the length includes the batches before the resume"
    for either in (uninterrupted, resumed):
        either.sampler.set_epoch(epoch + 1)  # type: ignore[attr-defined]
    assert batches(resumed) == batches(uninterrupted)


def test_state_at_the_end_of_an_epoch_does_not_shorten_the_next_one() -> None:
    uninterrupted = loader()
    batches(uninterrupted)
    resumed = loader()
    resumed.load_state_dict(uninterrupted.state_dict())
    for either in (uninterrupted, resumed):
        either.sampler.set_epoch(1)  # type: ignore[attr-defined]
    assert batches(resumed) == batches(uninterrupted)
