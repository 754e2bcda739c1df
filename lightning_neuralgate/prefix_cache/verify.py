"""Verify a fast computation against the plain one, once, and fall back to the plain one where they differ.

The fast paths of this package compute the same sums in another order, so their results may differ by rounding only. Whether
a model supports them (its cache, its positions, its attention) is tested on the first batch, which is run both ways.
Autocast is off meanwhile, so that rounding hides as little as possible.

Results are compared tensor by tensor: the norm of the difference over the norm of the plain result. In float32 the limit is
1e-3: rounding stays two orders of magnitude below it, wrong positions and missing tokens lie above. Weights in half precision
round every product to about 0.4 %; losses are means over many of them, so that their limit is closer than that of gradients
and logits.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from enum import Enum, auto
from typing import Any, TypeVar

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from lightning_neuralgate.hf.distributed import all_ranks, is_sharded
from lightning_neuralgate.hf.quantized import rounds_inputs

TOLERANCES = {"losses": (1e-3, 0.05), "gradients": (1e-3, 0.25), "logits": (1e-3, 0.25)}
"""Kind of result -> largest relative difference with weights in float32, and in half precision."""

NOT_SUPPORTED = (TypeError, ValueError, AttributeError, RuntimeError)
"""Errors of a model whose code does not go together with a fast path."""

Computation = TypeVar("Computation")
"""Anything that can be run: a function, or a model's inputs."""
Results = Mapping[str, Sequence[Tensor]]
"""Kind of result, as in `TOLERANCES` -> tensors."""


class WholeSequences:
    """Base of forward pre-hooks under which a token's outputs depend on later tokens.

    While one is registered in a model, its sequences are run whole.
    """


class _State(Enum):
    UNTESTED = auto()
    VERIFIED = auto()
    DISABLED = auto()


class FastPath:
    """Chooses between a fast and a plain computation of the same results.

    The first choice compares both; a difference, or an error of the fast one, disables it with one warning. Once it is
    verified, an error disables it for a single batch only, such as one that is longer than the model's attention window.

    Args:
        name: Name for warnings, such as "Prefix reuse".
        enabled: Whether the fast computation may be used at all.
    """

    def __init__(self, name: str, enabled: bool = True) -> None:
        self.name = name
        self._state = _State.UNTESTED if enabled else _State.DISABLED

    @property
    def enabled(self) -> bool:
        """Whether the fast computation is in use, or about to be verified."""
        return self._state is not _State.DISABLED

    @property
    def verified(self) -> bool:
        """Whether the fast computation was verified."""
        return self._state is _State.VERIFIED

    def restore(self, verified: bool) -> None:
        """Take over the outcome of an earlier comparison."""
        self._state = _State.VERIFIED if verified else _State.DISABLED

    def choose(
        self,
        model: Any,
        plain: Computation,
        build: Callable[[], Computation],
        run: Callable[[Computation], Results],
        batch: str = "this batch",
    ) -> Computation:
        """Return the fast computation where it may be used, the plain one otherwise.

        With sharded weights every rank has to call this at the same time, and all choose alike.

        Args:
            model: The model that both run.
            plain: The plain computation.
            build: Builds the fast computation; may raise one of `NOT_SUPPORTED`.
            run: Runs either of them and returns what is compared.
            batch: Name of the batch for the warning.

        Raises:
            torch.cuda.OutOfMemoryError: The fast computation ran out of memory, which tells nothing about the model.
        """
        hooks = (hook for part in model.modules() for hook in part._forward_pre_hooks.values())
        if any(isinstance(hook, WholeSequences) for hook in hooks):
            return plain
        sharded = is_sharded(model)
        parameter = next(model.parameters())
        # comparing runs forward passes, for which sharded weights need every rank
        if sharded and not all_ranks(self._state is not _State.UNTESTED, parameter.device):
            self._state = _State.UNTESTED
        if self._state is _State.DISABLED:
            return plain
        scope = type(model).__name__
        try:
            if self._state is _State.VERIFIED:
                return build()
            with torch.autocast(parameter.device.type, enabled=False):
                exact = parameter.dtype == torch.float32 and not rounds_inputs(model)
                problem = difference(run(plain), run(build()), exact)
            agree = all_ranks(problem is None, parameter.device) if sharded else problem is None
            self._state = _State.VERIFIED if agree else _State.DISABLED
            if agree:
                return build()
        except NOT_SUPPORTED as error:
            if sharded or isinstance(error, torch.cuda.OutOfMemoryError):
                raise
            problem = str(error) or repr(error)
            if self._state is _State.VERIFIED:
                scope = batch
            self._state = _State.VERIFIED if self._state is _State.VERIFIED else _State.DISABLED
        rank_zero_warn(
            f"{self.name} is not supported for {scope} ({problem or 'another process found a difference'}): full forward "
            "passes are run instead, with the same result in more time"
        )
        return plain


def difference(plain: Results, fast: Results, full_precision: bool) -> str | None:
    """Describe how two results differ, or return None if they agree within `TOLERANCES`.

    Args:
        plain: Tensors of the plain computation.
        fast: Tensors of the fast one, in the same order.
        full_precision: Whether the model computes in float32.

    Example:
        >>> difference({"losses": [torch.tensor([1.0, 2.0])]}, {"losses": [torch.tensor([1.0, 2.1])]}, True)
        'losses differ by 0.045 of their norm, 0.001 is allowed'
    """
    problems = []
    for kind, tensors in plain.items():
        pairs = zip(tensors, fast[kind], strict=True)
        largest = max(float((b - a).norm() / a.norm().clamp(min=1e-12)) for a, b in pairs)
        allowed = TOLERANCES[kind][0 if full_precision else 1]
        if not largest < allowed:  # NaN differs, too
            problems.append(f"{kind} differ by {largest:.2g} of their norm, {allowed} is allowed")
    return "; ".join(problems) or None
