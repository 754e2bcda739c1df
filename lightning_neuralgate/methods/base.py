"""What a method is (`Method`), and what it fits: a change of weights (`WeightEdit`) or a hook (`Steering`)."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

import torch
from torch import Tensor, nn

from lightning_neuralgate.edit.delta import DELTA_NAME, EditDelta
from lightning_neuralgate.edit.saving import check_model_output, save_model
from lightning_neuralgate.errors import GateMismatchError
from lightning_neuralgate.hf.decoder import find_hf_model
from lightning_neuralgate.hf.identity import model_checksum
from lightning_neuralgate.methods.data import MethodData
from lightning_neuralgate.runtime.versions import library_versions

Tier = Literal[1, 2, 3]
Report = Mapping[str, float | str]
MOST_TRIES = 4
_Method = TypeVar("_Method", bound="Method")


@dataclass(frozen=True, kw_only=True)
class FittedMethod(ABC):
    """What a method has fitted: something to put on a model and take off again.

    An evaluation answers with `with fitted.applied(model):` and the processor `fitted.prompted(processor)`.

    Attributes:
        method: name of the method.
        settings: its settings, as JSON can hold them.
        report: figures of the fit, such as the rank of a solve, for tables and provenance.
    """

    method: str
    settings: Mapping[str, Any]
    report: Report = field(default_factory=dict)

    @abstractmethod
    def applied(self, model: nn.Module) -> AbstractContextManager[None]:
        """Put it on the unedited model while the block runs; afterwards the model is bit-identical to before.

        Raises:
            GateMismatchError: it was fitted to another model.
        """

    def prompted(self, processor: Any) -> Any:
        """Return the processor that prompts have to be made with: the given one, or a copy with a prompt of its own."""
        return processor


@dataclass(frozen=True, kw_only=True)
class WeightEdit(FittedMethod):
    """An edit of weights.

    Attributes:
        weights: name of each changed parameter -> its edited value, on the CPU.
        base: `model_checksum` of the unedited model.
    """

    weights: Mapping[str, Tensor]
    base: str

    @contextmanager
    def applied(self, model: nn.Module) -> Iterator[None]:
        model = find_hf_model(model)
        if (found := model_checksum(model)) != self.base:
            raise GateMismatchError(
                f"the edit of '{self.method}' was fitted to a model with checksum {self.base[:16]}, this one has "
                f"{found[:16]}: restore its unedited weights, or fit the method to it"
            )
        with restored(model, self.weights):
            set_weights(model, self.weights)
            yield

    def save_pretrained(self, folder: str | Path, model: nn.Module, processor: Any, base: str | Path) -> EditDelta:
        """Write the edited model as a Hugging Face folder, with its edit file, which `neuralgate revert` undoes.

        Args:
            folder: output folder; an earlier edit in it is replaced.
            model: the unedited model, as it was loaded from `base` in the dtype of its files.
            processor: its processor, saved with it, or None.
            base: folder of the unedited model.

        Raises:
            GateMismatchError: the edit was fitted to another model.
            DataFormatError, WeightFilesError: the folder cannot be written, see `save_model`, or `EditDelta.between`.
        """
        folder = Path(folder)
        check_model_output(folder)
        with self.applied(model):
            (folder / DELTA_NAME).unlink(missing_ok=True)  # describes the weights that are about to be replaced
            state = find_hf_model(model).state_dict()
            save_model(find_hf_model(model), processor, state, folder, self.weights)
        origin = {"method": self.method, "settings": json.dumps(dict(self.settings), default=str)}
        origin |= {f"report {name}": str(value) for name, value in self.report.items()} | library_versions()
        delta = EditDelta.between(base, folder, origin)
        delta.save(folder / DELTA_NAME)
        return delta


@dataclass(frozen=True)
class Method(ABC):
    """A way to make a model refuse sensitive queries and answer benign ones. A subclass is a dataclass of its settings.

    Attributes:
        name: its name in the registry and in tables.
        tier: 1: what a user tries first, 2: the baselines of the paper, 3: further ones.
        tries: at most four changes of the settings among which a tuning on validation records may choose; the same number of
            trials for all methods makes a fair comparison.
    """

    name: ClassVar[str]
    tier: ClassVar[Tier]
    tries: ClassVar[Sequence[Mapping[str, Any]]] = ({},)

    @abstractmethod
    def fit(self, model: nn.Module, data: MethodData) -> FittedMethod:
        """Fit the method to the unedited model. Afterwards the model's weights are bit-identical to before, and frozen.

        Args:
            model: the Hugging Face model.
            data: the training records.

        Returns:
            A `WeightEdit` or a `Steering`.
        """

    def variants(self: _Method) -> list[_Method]:
        """Return the method with the settings of each of its `tries`.

        Raises:
            ValueError: there are no tries or too many, or one names a setting that the method does not have.
        """
        if not 1 <= len(self.tries) <= MOST_TRIES:
            raise ValueError(f"'{self.name}' has {len(self.tries)} tries; a method has 1 to {MOST_TRIES}")
        known = {entry.name for entry in fields(self)}
        if unknown := sorted({name for changes in self.tries for name in changes} - known):
            raise ValueError(f"'{self.name}' has no setting '{unknown[0]}', only {', '.join(sorted(known))}")
        return [replace(self, **changes) for changes in self.tries]

    def settings(self) -> dict[str, Any]:
        """Return the settings as JSON can hold them."""
        return {name: value for name, value in asdict(self).items() if isinstance(value, (str, int, float, type(None)))}


@contextmanager
def restored(model: nn.Module, names: Iterable[str]) -> Iterator[None]:
    """Restore parameters of a model, by name, at the end of the block, bit for bit."""
    parameters = dict(model.named_parameters())
    kept = {name: parameters[name].detach().clone() for name in names}
    try:
        yield
    finally:
        set_weights(model, kept)


@torch.no_grad()
def set_weights(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Copy values into parameters of a model, by name."""
    parameters = dict(model.named_parameters())
    for name, value in weights.items():
        parameters[name].copy_(value)
