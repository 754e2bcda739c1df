"""Run a loaded edited model with its unedited weights: swap the rows of an edit in memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lightning_neuralgate.edit.delta import EditDelta
from lightning_neuralgate.edit.weight_files import WeightFiles
from lightning_neuralgate.errors import UnsupportedSetupError
from lightning_neuralgate.hf.model_files import common_ending


class SwappableEdit:
    """The rows that an edit changed in a loaded model, before and after the edit.

    Memory: twice the changed rows, in the model's dtype.

    Args:
        model: the edited model, as loaded from `files`.
        files: the weight files of the edited model.
        delta: the edit.

    Raises:
        DeltaFormatError: a changed tensor is not floating-point.
        UnsupportedSetupError: a changed tensor of the files is not a parameter of the loaded model.
    """

    def __init__(self, model: nn.Module, files: WeightFiles, delta: EditDelta) -> None:
        parameters: dict[str, Any] = dict(model.named_parameters())
        self._changes: list[_Change] = []
        for name, changed in delta.tensors.items():
            base, edited = changed.base_and_edited(files.tensors[name].row_bytes(), name)
            rows = torch.from_numpy(changed.rows)
            self._changes.append(_change(name, parameters, changed.shape, rows, base, edited))

    @contextmanager
    def unedited(self) -> Iterator[None]:
        """Restore the unedited weights in the block, exactly; the edited ones return at its end."""
        try:
            for change in self._changes:
                change.put(change.base)
            yield
        finally:
            for change in self._changes:
                change.put(change.edited)


class _Change(NamedTuple):
    parameter: Tensor
    rows: Tensor
    base: Tensor
    edited: Tensor

    @torch.no_grad()
    def put(self, values: Tensor) -> None:
        _rows_of(self.parameter)[self.rows] = values.to(self.parameter.device)


def _rows_of(parameter: Tensor) -> Tensor:
    """Return a view of a parameter with one row per element of its first dimension; one row for a scalar."""
    return parameter.detach().view(parameter.shape[0] if parameter.ndim else 1, -1)


def _change(
    name: str, parameters: Mapping[str, Tensor], shape: tuple[int, ...], rows: Tensor, base: Tensor, edited: Tensor
) -> _Change:
    """Find the parameter of a tensor: its name ends most like the tensor's, and it holds the edited rows."""
    for other in sorted(parameters, key=lambda other: -common_ending(name, other)):
        parameter = parameters[other]
        if tuple(parameter.shape) != shape:
            continue
        expected = edited.to(parameter.dtype)
        if torch.equal(_rows_of(parameter)[rows].cpu(), expected):
            return _Change(parameter, rows, base.to(parameter.dtype), expected)
    raise UnsupportedSetupError(
        f"no parameter of the loaded model holds the edited rows of '{name}', so the edit cannot be swapped in memory; "
        "transformers may have merged or converted that tensor. Write the unedited model with `neuralgate revert`, and use "
        "one model at a time"
    )
