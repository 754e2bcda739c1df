"""An unedited and an edited tiny model, and a stand-in for both whose answers are scripted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from lightning_neuralgate.data.collator import QueryRow
from lightning_neuralgate.play.models import LoadedModel, Version
from tests.helpers.tiny_llava import save_tiny_llava, tiny_llava, tiny_processor


def save_pair(folder: Path) -> None:
    """Save `base` and `edited` into a folder; they differ in half of the rows of one layer."""
    save_tiny_llava(folder / "base")
    model = tiny_llava()
    with torch.no_grad():
        model.model.language_model.layers[1].mlp.down_proj.weight[::2] *= -3
    model.save_pretrained(folder / "edited")
    tiny_processor().save_pretrained(folder / "edited")


class ScriptedModel(LoadedModel):
    """Two versions that answer by a function of role and question.

    Args:
        script: the function.

    Attributes:
        asked: role and row of each question so far.
    """

    def __init__(self, script: Callable[[str, str], str]) -> None:
        super().__init__(None, tiny_processor(), "edited-folder")
        self.versions = (Version("unedited", "base-folder"), Version("edited", "edited-folder"))
        self.script = script
        self.asked: list[tuple[str, QueryRow]] = []

    def answers(self, version: Version, rows: Sequence[QueryRow], max_new_tokens: int = 0) -> list[str]:
        self.asked += [(version.role, row) for row in rows]
        return [self.script(version.role, row.query) for row in rows]
