"""One loaded model that answers with its edited and with its unedited weights."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from threading import Lock
from typing import Any, NamedTuple

import torch

from lightning_neuralgate.attacks.scoring import EDITED, UNEDITED
from lightning_neuralgate.data.collator import QueryRow
from lightning_neuralgate.data.targets import answer_rows
from lightning_neuralgate.edit.delta import DELTA_NAME, EditDelta
from lightning_neuralgate.edit.swapping import SwappableEdit
from lightning_neuralgate.edit.weight_files import WEIGHT_PATTERNS, WeightFiles
from lightning_neuralgate.errors import UnsupportedSetupError
from lightning_neuralgate.models.loading import Precision, load_model, model_folder

MAX_NEW_TOKENS = 60


class Version(NamedTuple):
    """A version of the loaded model.

    Attributes:
        role: "edited" or "unedited"; empty for a model that is alone.
        name: the folder or repository that it comes from.
    """

    role: str
    name: str

    @property
    def label(self) -> str:
        """Role and name."""
        return f"{self.role} ({self.name})" if self.role else self.name


class LoadedModel:
    """A model, alone or in two versions that differ by an edit. Weights are swapped, so that one model is in memory.

    Args:
        model: the model with the edited weights, or without an edit.
        processor: its processor.
        name: its name.
        unedited_name: name of the unedited version; needed with `edit`.
        edit: the rows that the edit changed.
        scope: the scope of the gate that the edit was made with, if it is known.

    Attributes:
        versions: the unedited and the edited version, or the only one.
    """

    def __init__(
        self,
        model: Any,
        processor: Any,
        name: str,
        unedited_name: str = "",
        edit: SwappableEdit | None = None,
        scope: str | None = None,
    ) -> None:
        self.model, self.processor, self.edit, self.scope = model, processor, edit, scope
        pair = (Version(UNEDITED, unedited_name), Version(EDITED, name))
        self.versions = (Version("", name),) if edit is None else pair
        self.tokenizer = getattr(processor, "tokenizer", processor)
        self._lock = Lock()  # requests of a web page come in threads

    @classmethod
    def load(
        cls,
        name: str,
        beside: str | None = None,
        dtype: Precision = "float32",
        trust_remote_code: bool = False,
        both: bool = False,
    ) -> LoadedModel:
        """Load an edited model, and the rows that make it the unedited one.

        Args:
            name: the edited model, as in `load_model`.
            beside: the unedited model, whose weight files are compared with those of the edited one.
            dtype: dtype of the weights.
            trust_remote_code: whether code in the checkpoint may run.
            both: without `beside`, use the edit file in the folder of the edited model, which must then exist.

        Raises:
            ModelLayoutError: a model does not exist or cannot be loaded.
            WeightFilesError: the two models do not have the same tensors, or the edit file is that of another model.
            UnsupportedSetupError: there is no edit file; nothing was edited; the edit cannot be swapped in memory.
        """
        if beside is None and not both:
            model, processor = load_model(name, dtype, trust_remote_code)
            return cls(_placed(model), processor, name)
        folder = model_folder(name)
        files = WeightFiles(folder)
        if beside is not None:
            delta = EditDelta.between(model_folder(beside, WEIGHT_PATTERNS), folder)
        elif (folder / DELTA_NAME).is_file():
            delta = EditDelta.load(folder / DELTA_NAME)
            delta.check_fits(files, delta.edited)
        else:
            raise UnsupportedSetupError(
                f"{folder} has no {DELTA_NAME}, from which the unedited weights are restored; name the unedited model with "
                "--beside"
            )
        if not delta.tensors:
            raise UnsupportedSetupError(
                f"{name} has the weights of the unedited model; name an edited one, or another --beside"
            )
        model, processor = load_model(name, dtype, trust_remote_code)
        edit = SwappableEdit(model, files, delta)
        unedited = beside or f"{name} without its edit"
        return cls(_placed(model), processor, name, unedited, edit, delta.provenance.get("scope"))

    def answers(self, version: Version, rows: Sequence[QueryRow], max_new_tokens: int = MAX_NEW_TOKENS) -> list[str]:
        """Return greedy answers of one version to some prompts."""
        swapped = self.edit.unedited() if self.edit is not None and version.role == UNEDITED else nullcontext()
        with self._lock, swapped:
            return answer_rows(self.model, self.processor, rows, max_new_tokens)


def _placed(model: Any) -> Any:
    return model.to("cuda" if torch.cuda.is_available() else "cpu")
