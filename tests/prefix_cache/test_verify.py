from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence

import pytest
import torch
from torch import Tensor, nn

from lightning_neuralgate.prefix_cache.verify import TOLERANCES, FastPath, WholeSequences, difference

Compute = Callable[[], Tensor]
MODEL = nn.Linear(1, 1)


def constant(value: float) -> Compute:
    return lambda: torch.tensor([value, 1.0])


def run(compute: Compute) -> Mapping[str, Sequence[Tensor]]:
    return {"losses": [compute()]}


def test_an_agreeing_fast_path_is_verified_once() -> None:
    path, calls = FastPath("Sharing"), list[str]()

    def counted(compute: Compute) -> Mapping[str, Sequence[Tensor]]:
        calls.append("run")
        return run(compute)

    plain, fast = constant(1.0), constant(1.00001)
    for _ in range(3):
        assert path.choose(MODEL, plain, lambda: fast, counted) is fast
    assert path.verified
    assert calls == ["run", "run"]


def test_nothing_runs_in_parts_under_a_hook_that_needs_whole_sequences() -> None:
    class Watch(WholeSequences):
        def __call__(self, *_: object) -> None: ...

    path, plain, fast = FastPath("Sharing"), constant(1.0), constant(1.0)
    inner = nn.Linear(1, 1)
    model = nn.Sequential(inner)
    handle = inner.register_forward_pre_hook(Watch())
    assert path.choose(model, plain, lambda: pytest.fail("built"), run) is plain
    handle.remove()
    assert path.choose(model, plain, lambda: fast, run) is fast


def test_a_difference_disables_it_with_one_warning() -> None:
    path, plain = FastPath("Sharing"), constant(1.0)
    with pytest.warns(UserWarning, match=r"Sharing is not supported for Linear \(losses differ by 0.14 of their norm"):
        assert path.choose(MODEL, plain, lambda: constant(1.2), run) is plain
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert path.choose(MODEL, plain, lambda: pytest.fail("built again"), run) is plain
    assert not path.enabled


def test_an_error_disables_it_before_and_skips_one_batch_after_verification() -> None:
    def unsupported() -> Compute:
        raise ValueError("attention reaches back 4 tokens only")

    plain, fast = constant(1.0), constant(1.0)
    path = FastPath("Sharing")
    with pytest.warns(UserWarning, match="not supported for Linear .attention reaches back 4 tokens only"):
        assert path.choose(MODEL, plain, unsupported, run) is plain
    assert not path.enabled
    path = FastPath("Sharing")
    assert path.choose(MODEL, plain, lambda: fast, run) is fast
    with pytest.warns(UserWarning, match="not supported for record 7 "):
        assert path.choose(MODEL, plain, unsupported, run, "record 7") is plain
    assert path.choose(MODEL, plain, lambda: fast, run) is fast


def test_out_of_memory_is_raised() -> None:
    def full() -> Compute:
        raise torch.cuda.OutOfMemoryError("no room")

    path = FastPath("Sharing")
    with pytest.raises(torch.cuda.OutOfMemoryError):
        path.choose(MODEL, constant(1.0), full, run)
    assert path.enabled


def test_a_disabled_or_restored_path_is_not_compared() -> None:
    plain, fast = constant(1.0), constant(9.0)
    assert FastPath("Sharing", enabled=False).choose(MODEL, plain, lambda: fast, run) is plain
    path = FastPath("Sharing")
    path.restore(True)
    assert path.choose(MODEL, plain, lambda: fast, run) is fast
    path.restore(False)
    assert path.choose(MODEL, plain, lambda: fast, run) is plain


def test_comparing_turns_autocast_off_and_the_chosen_computation_is_built_under_it() -> None:
    seen: list[bool] = []

    def build() -> Compute:
        seen.append(torch.is_autocast_enabled("cpu"))
        return constant(1.0)

    with torch.autocast("cpu", torch.bfloat16):
        FastPath("Sharing").choose(MODEL, constant(1.0), build, run)
    assert seen == [False, True]


@pytest.mark.parametrize("kind", sorted(TOLERANCES))
@pytest.mark.parametrize("full_precision", [True, False])
def test_tolerances(kind: str, full_precision: bool) -> None:
    allowed = TOLERANCES[kind][0 if full_precision else 1]
    plain = {kind: [torch.tensor([2.0])]}
    assert difference(plain, {kind: [torch.tensor([2.0 * (1 + 0.9 * allowed)])]}, full_precision) is None
    assert kind in str(difference(plain, {kind: [torch.tensor([2.0 * (1 + 1.1 * allowed)])]}, full_precision))
    assert kind in str(difference(plain, {kind: [torch.tensor([float("nan")])]}, full_precision))
