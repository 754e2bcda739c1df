"""What a locator keeps of its records stays below a bound, is the same within it, and is gone when a record is done."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers.cache_utils import CacheLayerMixin

from lightning_neuralgate import locator as locator_module
from lightning_neuralgate import upper_pass
from lightning_neuralgate.data.datamodule import locate_rows
from lightning_neuralgate.data.records import RecordSplits
from lightning_neuralgate.errors import UnsupportedSetupError
from lightning_neuralgate.gate.subjects import last_position
from lightning_neuralgate.hf.decoder import find_decoder
from lightning_neuralgate.hf.forward import batch_nll
from lightning_neuralgate.locate.locator import PrivacyLocatorModule
from lightning_neuralgate.prefix_bound import PrefixBound, RowsInTurn, TokenBytes, rows_alone
from lightning_neuralgate.prefix_cache.locate_pass import LocatePass
from tests.helpers.tiny_llava import tiny_llava
from tests.helpers.training import datamodule
from tests.locate.test_locator import fit

LAYERS = [0, 1, 2]
ROWS = 7


def batch_of(splits: RecordSplits, records: int = 1) -> dict[str, Any]:
    rows = [row for record in splits.edit[:records] for row in locate_rows(record)]
    return datamodule(splits).collate_training(rows)


def locator_with(most: int | None, **options: Any) -> PrivacyLocatorModule:
    model = tiny_llava(layers=4)
    model.set_attn_implementation(options.pop("attention", "sdpa"))
    return PrivacyLocatorModule(model, LAYERS, max_steps=4, stop_loss=-1.0, max_prefix_bytes=most, **options)


class Watch:
    """Bytes of all that any cache, or what is made of one, refers to, each stretch of memory once."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.found: list[int] = []
        self._things: weakref.WeakSet[Any] = weakref.WeakSet()
        self._outputs: list[dict[int, Tensor]] = []
        collected = upper_pass.capture_outputs

        @contextmanager
        def capture_outputs(*args: Any) -> Iterator[dict[int, Tensor]]:
            with collected(*args) as seen:
                self._outputs = [seen]
                yield seen
                self._outputs = []

        monkeypatch.setattr(upper_pass, "capture_outputs", capture_outputs)
        for kind in (CacheLayerMixin, LocatePass):
            monkeypatch.setattr(kind, "__init__", self._noted(kind.__init__))

    def _noted(self, init: Any) -> Any:
        def call(thing: Any, *args: Any, **options: Any) -> None:
            self._things.add(thing)
            init(thing, *args, **options)

        return call

    def look(self, *_: Any) -> None:
        seen: dict[int, int] = {}

        def count(value: Any) -> None:
            if isinstance(value, Tensor):
                storage = value.untyped_storage()
                seen[storage.data_ptr()] = storage.nbytes()
            elif isinstance(value, (tuple, list)):
                for part in value:
                    count(part)

        for thing in self._things:
            own = vars(thing)
            wanted = own if isinstance(thing, CacheLayerMixin) else {**own.get("_hidden", {}), 0: own.get("_kept")}
            count(list(wanted.values()))
        count([list(outputs.values()) for outputs in self._outputs])
        self.found.append(sum(seen.values()))

    def learn(self, locator: PrivacyLocatorModule, batch: dict[str, Any]) -> tuple[Any, int]:
        """What a locator finds, and the most that was held when the last layer had run, where a cache is fullest."""
        self.found.clear()
        handle = find_decoder(locator.model).layers[-1].register_forward_hook(self.look)
        vectors, _, _ = locator._learn(batch)
        handle.remove()
        return vectors, max(self.found)


def needed(batch: dict[str, Any], rows: list[int], layers: list[int], attention: str = "sdpa", begun: int = 0) -> int:
    model = tiny_llava(layers=4)
    model.set_attn_implementation(attention)
    return PrefixBound(model, batch, 1).needed(last_position(batch["subject_mask"]), rows, layers, begun)


def same(one: Any, other: Any) -> None:
    assert one.keys() == other.keys()
    for record, layers in other.items():
        for layer, vector in layers.items():
            assert torch.allclose(one[record][layer], vector, atol=1e-4)
            assert torch.equal(one[record][layer] < 0, vector < 0)


def test_what_a_token_takes() -> None:
    model = tiny_llava(layers=4)  # two heads of keys, eight numbers each, of four bytes
    assert TokenBytes.of(model, torch.tensor([[5]])) == TokenBytes(4 * 2 * 2 * 8 * 4, 2 * 2 * 8 * 4, 32 * 4)
    half = TokenBytes.of(model.to(torch.bfloat16), torch.tensor([[5]]))
    assert half == TokenBytes(4 * 2 * 2 * 8 * 2, 2 * 2 * 8 * 2, 32 * 2)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("jointly", [True, False])
@pytest.mark.parametrize("cut", ["records", "layers", "rows", "single rows"])
def test_stays_below_the_bound_with_the_same_result(
    splits: RecordSplits, monkeypatch: pytest.MonkeyPatch, attention: str, jointly: bool, cut: str
) -> None:
    records = 3 if cut == "records" else 1
    batch = batch_of(splits, records)
    every, alone = list(range(records * ROWS)), list(range(ROWS))
    begun = LocatePass(tiny_llava(layers=4), batch, last_position(batch["subject_mask"]), [0]).shared
    chosen = LAYERS if jointly else LAYERS[:1]
    smallest = max(needed(batch, [row], chosen, attention, begun) for row in alone)
    most: Callable[[], int] = {
        "records": lambda: needed(batch, every, LAYERS, attention) - 1,
        "layers": lambda: needed(batch, alone, LAYERS[:2], attention),
        "rows": lambda: needed(batch, alone[:4], chosen, attention, begun),
        "single rows": lambda: smallest,
    }[cut]
    watch = Watch(monkeypatch)
    expected, unbounded = watch.learn(locator_with(None, jointly=jointly, attention=attention), batch)
    bounded = locator_with(most(), jointly=jointly, attention=attention)
    vectors, found = watch.learn(bounded, batch)
    assert bounded._reuse
    same(vectors, expected)
    assert most() / 2 < found <= most()
    assert found < unbounded or cut == "layers"
    parts = list(bounded._portions(batch))
    if cut == "records":
        assert [len(part["record_id"]) // ROWS for part, _ in parts] == [2, 1]
    elif cut == "layers" and not jointly:
        assert [layers for _, layers in parts] == [[0, 1], [2]]
    assert [layer for _, layers in parts for layer in layers] == LAYERS * (2 if cut == "records" else 1)


def test_the_bound_of_rows_is_used_up(splits: RecordSplits) -> None:
    batch = batch_of(splits)
    positions = last_position(batch["subject_mask"])
    model = tiny_llava(layers=4)
    most = needed(batch, [0, 1, 2], LAYERS)
    chunks = PrefixBound(model, batch, most).row_chunks(positions, LAYERS)
    assert [row for chunk in chunks for row in chunk] == list(range(ROWS))
    assert chunks[0] == [0, 1, 2]
    found = PrefixBound(model, batch, most).begun(positions)
    assert found is not None
    assert found[0] >= 5, "the picture and what stands before it"
    assert all(needed(batch, chunk, LAYERS, begun=found[0]) <= most for chunk in chunks)
    assert PrefixBound(model, batch, 10**9).row_chunks(positions, LAYERS) == [list(range(ROWS))]


def test_too_small_for_one_query_is_an_error_that_says_how_much_it_takes(splits: RecordSplits) -> None:
    batch = batch_of(splits)
    begun = LocatePass(tiny_llava(layers=4), batch, last_position(batch["subject_mask"]), [0]).shared
    size = needed(batch, [0], LAYERS, begun=begun)
    with pytest.raises(
        UnsupportedSetupError, match=f"{batch['record_id'][0]}: .* takes {size} bytes, more than .*=99;"
    ):
        locator_with(99)._learn(batch)
    with pytest.raises(ValueError, match="at least 1"):
        locator_with(0)
    plain = locator_with(99, reuse_prefix=False)  # keeps nothing, so nothing is too much
    same(plain._learn(batch)[0], locator_with(None, reuse_prefix=False)._learn(batch)[0])


def test_the_gate_does_not_tell_and_kept_records_are_found_again(splits: RecordSplits, tmp_path: Path) -> None:
    most = needed(batch_of(splits), list(range(4)), [1])
    gates = []
    for bound in (None, most):
        locator = PrivacyLocatorModule(
            tiny_llava(), [1], max_steps=4, cache_dir=tmp_path / "kept", max_prefix_bytes=bound
        )
        if bound is not None:
            locator._learn = lambda batch: pytest.fail("a kept record was located again")  # type: ignore[method-assign]
        gates.append(fit(locator, splits).gate)
    assert gates[0].fingerprint == gates[1].fingerprint


@pytest.mark.parametrize("share", [None, 0.8, 0.4])
def test_nothing_of_a_record_is_held_when_it_is_done(
    splits: RecordSplits, monkeypatch: pytest.MonkeyPatch, share: float | None
) -> None:
    kept: list[weakref.ref[Any]] = []
    alive: list[int] = []

    class Watched(LocatePass):
        def __init__(self, *args: Any) -> None:
            alive.append(sum(ref() is not None for ref in kept))
            super().__init__(*args)
            tensors = [*self._hidden.values(), *(part for pair in self._kept for part in pair)]
            kept.extend(weakref.ref(thing) for thing in [self, self._cache, *tensors])

    monkeypatch.setattr(locator_module, "LocatePass", Watched)
    batch = batch_of(splits, 2)
    every = list(range(2 * ROWS))
    locator = locator_with(None if share is None else int(share * needed(batch, every, LAYERS)), jointly=False)
    gc.collect()
    gc.disable()  # what only the collector of cycles would free is held until it comes
    try:
        for _ in range(2):
            locator._learn(batch)
    finally:
        gc.enable()
    assert len(kept) > 10
    assert not any(ref() is not None for ref in kept)
    assert set(alive) == {0}, "the one before is gone before the next is made"


def test_rows_in_turn_are_rows_at_once(splits: RecordSplits) -> None:
    generator = torch.Generator().manual_seed(0)
    one, other = (torch.randn(5, 3, generator=generator, requires_grad=True) for _ in range(2))
    scale = torch.arange(1.0, 6.0)
    weights = torch.linspace(-1, 1, 5)

    def nll(rows: Any, own: list[Tensor]) -> Tensor:
        return scale[rows[0] : rows[-1] + 1] * (own[0].sin() * own[1]).sum(1)

    found = RowsInTurn.apply(nll, [[0, 1], [2], [3, 4]], one, other)
    expected = nll(range(5), [one, other])
    assert torch.allclose(found, expected)
    for got, wanted in zip(
        torch.autograd.grad(weights @ found, [one, other]),
        torch.autograd.grad(weights @ expected, [one, other]),
        strict=True,
    ):
        assert torch.allclose(got, wanted)
    with torch.no_grad():
        assert torch.equal(RowsInTurn.apply(nll, [[0, 1, 2, 3, 4]], one, other), expected)


def test_rows_alone_say_what_they_say_in_company(splits: RecordSplits) -> None:
    model, batch = tiny_llava(), batch_of(splits)
    with torch.no_grad():
        whole = batch_nll(model, batch)
        part = rows_alone(batch, [1, 4])
        assert part["record_id"] == [batch["record_id"][0]] * 2
        assert part["role"] == [batch["role"][1], batch["role"][4]]
        assert torch.allclose(batch_nll(model, part), whole[[1, 4]], atol=1e-5)
    patches = {**batch, "pixel_values": torch.arange(2 * ROWS)}  # two patches of a picture, in each row
    assert rows_alone(patches, [1, 4])["pixel_values"].tolist() == [2, 3, 8, 9]
    two = {**batch_of(splits, 2), "pixel_values": torch.zeros(4 * ROWS)}
    with pytest.raises(UnsupportedSetupError, match=r"'pixel_values', .* which of its parts"):
        rows_alone(two, [0])


def test_the_command_takes_the_bound(tmp_path: Path) -> None:
    from lightning_neuralgate.cli import build_parser

    for command in ("locate", "layers"):
        words = [command, "--out", str(tmp_path), "--locator.max_prefix_bytes", "1000"]
        layers = ["--locator.layers", "[1]"] if command == "locate" else []
        parsed = build_parser(command).parse_args([*words, *layers])
        assert parsed[command].locator.max_prefix_bytes == 1000


def test_a_row_without_its_subject_is_named_as_without_a_bound(splits: RecordSplits) -> None:
    batch = batch_of(splits)
    batch["subject_mask"][3] = False
    for most in (None, 10**9):
        with pytest.raises(UnsupportedSetupError, match="every row of a located record needs its subject"):
            locator_with(most)._learn(batch)


def test_sharded_weights_and_a_bound_are_refused(splits: RecordSplits) -> None:
    locator = locator_with(10**9)
    locator._device_mesh = object()  # type: ignore[assignment]
    with pytest.raises(UnsupportedSetupError, match="leave it out, and locate with records_per_batch=1"):
        locator.configure_model()
