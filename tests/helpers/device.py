"""Count device syncs and operations, which determine how busy a GPU is, on a CPU."""

from __future__ import annotations

import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import lightning_neuralgate

_PACKAGE = Path(lightning_neuralgate.__file__).parent
_SYNCING_METHODS = ("item", "__bool__", "__float__", "__int__", "__index__", "tolist", "cpu", "numpy", "nonzero")


class _MaskIndexing(TorchFunctionMode):
    """Call a function at each indexing by a boolean mask.

    A patched `Tensor.__getitem__` would leave its mark on the class: `torch.tensor([torch.tensor(1)])` fails ever after.
    """

    def __init__(self, count: Callable[[], None]) -> None:
        super().__init__()
        self.count = count

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.__getitem__:
            parts = args[1] if isinstance(args[1], tuple) else (args[1],)
            if any(isinstance(part, Tensor) and part.dtype == torch.bool for part in parts):
                self.count()
        return func(*args, **(kwargs or {}))


class DeviceSyncs:
    """Count the lines of this package that read values of a tensor after the batch has been moved to the device.

    Counted are calls of methods that read values, and indexing by a boolean mask, which has to count its elements. Calls
    within other libraries are not counted: Adam, for example, counts its steps on the CPU, whatever the device.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.lines: Counter[str] = Counter()
        for name in _SYNCING_METHODS:
            monkeypatch.setattr(Tensor, name, self._counted(getattr(Tensor, name)))

    def __enter__(self) -> DeviceSyncs:
        self._indexing = _MaskIndexing(self._count)
        self._indexing.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._indexing.__exit__(*error)

    def _counted(self, method: Any) -> Any:
        def call(tensor: Tensor, *args: Any, **options: Any) -> Any:
            self._count()
            with torch._C.DisableTorchFunction():  # which would call and count the method once more
                return method(tensor, *args, **options)

        return call

    def _count(self) -> None:
        skipped = ("_jit_internal.py", "overrides.py", __file__)
        frames = [f for f in traceback.extract_stack()[:-1] if not f.filename.endswith(skipped)]
        caller = Path(frames[-1].filename)
        before_transfer = any(frame.name == "on_before_batch_transfer" for frame in frames)
        if caller.is_relative_to(_PACKAGE) and caller.parent.name != "data" and not before_transfer:
            self.lines[f"{caller.name}: {frames[-1].line}"] += 1

    def take(self) -> Counter[str]:
        """Return the counts since the last call."""
        lines, self.lines = self.lines, Counter()
        return lines


class OperationCounter(TorchDispatchMode):
    """Count the operations that are dispatched while the block runs."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        return func(*args, **(kwargs or {}))
