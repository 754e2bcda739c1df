"""What a GPU would notice, seen without one: who waits for the device, and how many operations are sent to it."""

from __future__ import annotations

import traceback
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import lightning_neuralgate

_PACKAGE = Path(lightning_neuralgate.__file__).parent
_ASKS = ("item", "__bool__", "__float__", "__int__", "__index__", "tolist", "cpu", "numpy", "nonzero")


class Waits:
    """Counts what asks a tensor for its values, by the line of this package that does, once batches are on it.

    Looked at are the calls themselves and choosing by a mask, for which the mask has to be counted. What other libraries ask
    by themselves is left out: Adam, for one, counts its steps on the CPU wherever the weights are.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.lines: Counter[str] = Counter()
        for name in _ASKS:
            monkeypatch.setattr(Tensor, name, self._counted(getattr(Tensor, name)))
        choose = Tensor.__getitem__

        def chosen(tensor: Tensor, index: Any) -> Any:
            parts = index if isinstance(index, tuple) else (index,)
            if any(isinstance(part, Tensor) and part.dtype == torch.bool for part in parts):
                self._note()
            return choose(tensor, index)

        monkeypatch.setattr(Tensor, "__getitem__", chosen)

    def _counted(self, method: Any) -> Any:
        def call(tensor: Tensor, *args: Any, **options: Any) -> Any:
            self._note()
            return method(tensor, *args, **options)

        return call

    def _note(self) -> None:
        frames = [f for f in traceback.extract_stack()[:-2] if not f.filename.endswith("_jit_internal.py")]
        asking = Path(frames[-1].filename)
        before = any(frame.name == "on_before_batch_transfer" for frame in frames)
        if asking.is_relative_to(_PACKAGE) and asking.parent.name != "data" and not before:
            self.lines[f"{asking.name}: {frames[-1].line}"] += 1

    def take(self) -> Counter[str]:
        """What was counted since the last time."""
        found, self.lines = self.lines, Counter()
        return found


class Operations(TorchDispatchMode):
    """Counts the operations that are run while the block does."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        return func(*args, **(kwargs or {}))
