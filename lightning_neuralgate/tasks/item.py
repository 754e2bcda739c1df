"""One question of a benchmark, and what a model said to it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lightning_neuralgate.tasks.place import Place


@dataclass(frozen=True)
class TaskItem:
    """One question about one picture.

    Attributes:
        task: the benchmark, such as "pope".
        item_id: the question's name, unique within its task.
        picture: the picture, as a file or as the bytes of one.
        image: what the picture is called in the task's files.
        prompt: what the model is asked, to the letter.
        truth: the right answer as the task writes it ("yes", "B", a secret); empty where there is none.
        fields: what else the scores and exports of the task need, as JSON can hold it.
        group: questions of one group are scored together, such as MME's two about one image; the item's own name where
            it stands alone.
        place: where it was read.
    """

    task: str
    item_id: str
    picture: Path | bytes
    image: str
    prompt: str
    truth: str = ""
    fields: Mapping[str, Any] = field(default_factory=dict)
    group: str = ""
    place: Place = field(default=Place(""), compare=False)

    def answered(self, answer: str) -> AnsweredItem:
        """The item with what a model said, without the picture."""
        return AnsweredItem(self.task, self.item_id, self.image, self.prompt, self.truth, dict(self.fields), answer)


@dataclass(frozen=True)
class AnsweredItem:
    """A question with its answer: a line of `answers.jsonl`. Everything that scores and exports need stands in it.

    Attributes:
        task, item_id, image, prompt, truth, fields: see `TaskItem`.
        answer: what the model said, without the prompt.
    """

    task: str
    item_id: str
    image: str
    prompt: str
    truth: str
    fields: dict[str, Any]
    answer: str

    @property
    def key(self) -> tuple[str, str]:
        """What sorts answers and tells them apart."""
        return self.task, self.item_id
