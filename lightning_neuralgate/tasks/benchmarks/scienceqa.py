"""ScienceQA-IMG: multiple choice about pictures, as parquet or JSON lines."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from lightning_neuralgate.data.options import DataOptions
from lightning_neuralgate.evaluation.answers import AnsweredItem
from lightning_neuralgate.metrics.functional.forms import AnswerForm
from lightning_neuralgate.metrics.functional.scienceqa import OPTIONS, scienceqa_choice, scienceqa_tally
from lightning_neuralgate.tasks.benchmarks.base import (
    Benchmark,
    TallyParts,
    TallySettings,
    checked_truth,
    refused_flags,
    right_or_wrong,
)
from lightning_neuralgate.tasks.item import BrokenItems, TaskItem
from lightning_neuralgate.tasks.questions import Source
from lightning_neuralgate.tasks.sources import Row, read_rows

INSTRUCTION = "Answer with the option's letter from the given choices directly."


def read_scienceqa(source: str | Path, broken: BrokenItems, images: Path | None = None) -> Iterator[TaskItem]:
    """Yield ScienceQA's questions that have a picture; others are skipped silently.

    A row has `image, question, choices, answer` (the index of the right choice) and may have `hint`, `subject`, `topic`.
    The prompt is the hint, the question, a line `A. ...` for each choice, and LLaVA's instruction to answer with the letter.

    Args:
        source: a file, a folder of files, or a dataset on the hub, see `sources.read_rows`.
        broken: collects broken rows.
        images: folder of the pictures that JSON lines name.
    """
    numbered = _numbered(source, broken, images)
    return broken.parse_all((pair for pair in numbered if pair[1].values.get("image") is not None), _item)


def _numbered(source: str | Path, broken: BrokenItems, images: Path | None) -> Iterator[tuple[int, Row]]:
    """Yield rows with their index, counting broken ones, so that skipping those renames no question."""
    unread = BrokenItems(broken.on_broken, broken.task)
    moved = 0
    for number, row in enumerate(read_rows(source, unread, images)):
        broken.skipped += unread.skipped[moved:]
        moved = unread.count
        yield number + moved, row
    broken.skipped += unread.skipped[moved:]


def _item(numbered: tuple[int, Row]) -> TaskItem:
    number, row = numbered
    choices: Any = row.values.get("choices")
    if not isinstance(choices, list) or not all(isinstance(choice, str) for choice in choices):
        raise row.place.error(f"field 'choices' has to be a list of texts, found {str(choices)[:80]}")
    if not 1 <= len(choices) <= len(OPTIONS):
        raise row.place.error(f"{len(choices)} choices; LLaVA's rule knows 1 to {len(OPTIONS)}")
    answer: Any = row.values.get("answer")
    if not isinstance(answer, int) or isinstance(answer, bool) or not 0 <= answer < len(choices):
        raise row.place.error(f"field 'answer' has to be from 0 to {len(choices) - 1}, found {answer!r}")
    hint = str(row.values.get("hint") or "").strip()
    listed = [f"{letter}. {choice}" for letter, choice in zip(OPTIONS, choices, strict=False)]
    name = str(row.values.get("id") or f"{row.source_name}/{number:06d}")
    return TaskItem(
        task="scienceqa",
        item_id=name,
        picture=row.picture(),
        image=name,
        prompt="\n".join([*([hint] if hint else []), row.text("question").strip(), *listed, INSTRUCTION]),
        truth=OPTIONS[answer],
        fields={"choices": choices, "subject": str(row.values.get("subject") or "")},
        group=name,
        place=row.place,
    )


@dataclass(frozen=True)
class ScienceQaSource:
    """Where ScienceQA is.

    Attributes:
        scienceqa: ScienceQA as parquet or JSON lines.
        scienceqa_images: folder of the pictures that JSON lines name.
    """

    scienceqa: str | None = None
    scienceqa_images: Path | None = None


class ScienceQaTally(TallyParts):
    """Tally by LLaVA's rule."""

    def add(self, answers: list[AnsweredItem], refused: list[bool | None]) -> None:
        """See `TaskTally`."""
        counts = [len(answer.field("choices", list)) for answer in answers]
        truths = [checked_truth(answer, OPTIONS[:count]) for answer, count in zip(answers, counts, strict=True)]
        tally = scienceqa_tally([answer.answer for answer in answers], truths, counts, refused_flags(refused))
        self.parts.append(replace(tally, names=tuple(answer.item_id for answer in answers)))


class ScienceQa(Benchmark):
    """ScienceQA-IMG, scored by LLaVA's rule."""

    name = "scienceqa"
    protocol = "LLaVA's rule"
    shown = ("accuracy", "refused", "unparsed", "refusal_aware_accuracy")
    source_options = ScienceQaSource

    def source(self, options: Any, data: DataOptions) -> Source:
        return partial(read_scienceqa, self.named_source(options), images=options.scienceqa_images)

    def new_tally(self, settings: TallySettings) -> ScienceQaTally:
        return ScienceQaTally()

    def form(self, answer: AnsweredItem) -> tuple[AnswerForm, Sequence[str]]:
        return "choice", answer.field("choices", list)

    def verdict(self, answer: AnsweredItem) -> str:
        choice = scienceqa_choice(answer.answer, len(answer.field("choices", list)))
        return "unparsed" if choice is None else right_or_wrong(choice == answer.truth)
