"""MLLMGuard: prompts about pictures, in one folder per dimension; a judge scores the answers."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from lightning.pytorch.utilities import rank_zero_warn

from lightning_neuralgate.data.options import DataOptions
from lightning_neuralgate.errors import DataFormatError
from lightning_neuralgate.evaluation.answers import AnsweredItem
from lightning_neuralgate.metrics.functional import leaks
from lightning_neuralgate.metrics.functional.mllmguard import (
    JUDGED_TRUTHFULNESS,
    MLLMGUARD_DIMENSIONS,
    mllmguard_tally,
)
from lightning_neuralgate.metrics.functional.tally import Tally
from lightning_neuralgate.runtime.parsing import LONGEST_LINE
from lightning_neuralgate.tasks.benchmarks.base import Benchmark, TallySettings, refused_flags
from lightning_neuralgate.tasks.item import BrokenItems, Place, TaskItem
from lightning_neuralgate.tasks.questions import Source
from lightning_neuralgate.tasks.sources import read_csv_rows
from lightning_neuralgate.tasks.verdicts import GuardScorer

OTHER_PROTOCOLS = ("noise-injection", "noise-consistency", "position-swapping")
"""Subsets of truthfulness with scoring rules of their own, by the names of their folders and categories."""
_COMBINED, _BY_LANGUAGE = "prompt.csv", ("en.csv", "zh.csv")
_PICTURES = "imgs"
_IMAGE, _PROMPT, _LANGUAGE = 0, 1, 4


class _Columns(NamedTuple):
    """Indices of a file's columns after picture and prompt; None if there is no such column."""

    language: int
    secret: int | None
    category: int | None


class _Cells(NamedTuple):
    file: Path
    number: int
    place: Place
    cells: list[str]
    columns: _Columns


def read_mllmguard(source: str | Path, broken: BrokenItems) -> Iterator[TaskItem]:
    """Yield MLLMGuard's prompts.

    The source holds one folder per dimension, each with `prompt.csv` (or `en.csv` and `zh.csv`) and `imgs/`. As in the
    owner's code, picture and prompt are the first and second column. The language is in the column `Lan`, else in the fifth.
    A column `secret`, which the owner's files lack, holds the true value that an answer must not contain. Rows of
    `OTHER_PROTOCOLS` are left out, and unknown dimensions are kept, each with a warning.

    Args:
        source: the folder.
        broken: collects broken rows.
    """
    root = Path(source)
    folders = sorted(folder for folder in root.iterdir() if _files(folder)) if root.is_dir() else []
    if not folders:
        raise DataFormatError(f"{root} holds no folder of a dimension with {_COMBINED}, {' or '.join(_BY_LANGUAGE)}")
    known = (*MLLMGUARD_DIMENSIONS, *JUDGED_TRUTHFULNESS, *OTHER_PROTOCOLS)
    if unknown := [folder.name for folder in folders if folder.name.lower().replace(" ", "-") not in known]:
        rank_zero_warn(
            f"{root}: MLLMGuard has no dimension called {', '.join(unknown)}; its answers still count in the means over "
            f"dimensions. The owner's are {', '.join(MLLMGUARD_DIMENSIONS)}; rename folders, or move them away"
        )
    return broken.parse_all(_rows(folders, broken), _item)


def _files(folder: Path) -> list[Path]:
    if (folder / _COMBINED).is_file():
        return [folder / _COMBINED]
    return [folder / name for name in _BY_LANGUAGE if (folder / name).is_file()]


def _rows(folders: list[Path], broken: BrokenItems) -> Iterator[_Cells]:
    for folder in folders:
        for file in _files(folder):
            columns, left_out = _columns(file), 0
            for row in read_csv_rows(file, broken):
                if _of_another_protocol(folder, row.cells, columns):
                    left_out += 1
                else:
                    yield _Cells(file, row.number, row.place, row.cells, columns)
            if left_out:
                rank_zero_warn(
                    f"{file}: {left_out} rows are left out, because MLLMGuard does not score noise injection and position "
                    "swapping by ASD and PAR"
                )


def _columns(file: Path) -> _Columns:
    header: list[str] = []
    # errors in the file are reported where its rows are read; a header is not longer than a line may be
    with suppress(csv.Error), file.open(encoding="utf-8-sig", errors="replace", newline="") as lines:
        header = next((row for row in csv.reader(io.StringIO(lines.read(LONGEST_LINE), newline="")) if row), [])
    places = {name.strip().lower(): place for place, name in reversed(list(enumerate(header)))}
    return _Columns(
        places.get("lan", places.get("language", _LANGUAGE)), places.get("secret"), places.get("category ii")
    )


def _of_another_protocol(folder: Path, cells: list[str], columns: _Columns) -> bool:
    place = columns.category
    category = "" if place is None or place >= len(cells) else cells[place]
    return any(name.strip().lower().replace(" ", "-") in OTHER_PROTOCOLS for name in (folder.name, category))


def _item(row: _Cells) -> TaskItem:
    cells = [cell.strip() for cell in row.cells]
    language, secret = row.columns.language, row.columns.secret
    if len(cells) <= max(language, secret or 0) or not cells[_IMAGE] or not cells[_PROMPT]:
        wanted = f"a language in column {language + 1}" + ("" if secret is None else f", a secret in {secret + 1}")
        raise row.place.error(f"expected a picture, a prompt, {wanted}; found {len(cells)} columns: {str(cells)[:80]}")
    truth = "" if secret is None else cells[secret]
    try:
        leaks("", truth or "none")
    except DataFormatError as error:  # now, not after an hour of answering
        raise row.place.error(f"column 'secret': {error}") from error
    folder = row.file.parent
    dimension = folder.name
    name = f"{dimension}/{row.file.stem}/{row.number:05d}"
    return TaskItem(
        task="mllmguard",
        item_id=name,
        picture=row.place.picture(folder / _PICTURES, cells[_IMAGE]),
        image=f"{dimension}/{cells[_IMAGE]}",
        prompt=cells[_PROMPT],
        truth=truth,
        fields={"dimension": dimension, "language": cells[language]},
        group=name,
        place=row.place,
    )


@dataclass(frozen=True)
class MllmguardSource:
    """Where MLLMGuard is.

    Attributes:
        mllmguard: folder with MLLMGuard's dimensions.
    """

    mllmguard: str | None = None


class MllmguardTally:
    """Tally of a judge's scores.

    Args:
        guard: scores the answers.
    """

    def __init__(self, guard: GuardScorer) -> None:
        self.guard = guard
        self.rows: list[tuple[str, str, float | None, bool]] = []

    def add(self, answers: list[AnsweredItem], refused: list[bool | None]) -> None:
        """See `TaskTally`."""
        for answer, score, refuses in zip(answers, self.guard(answers), refused_flags(refused), strict=True):
            self.rows.append((answer.item_id, answer.field("dimension", str), score, refuses))

    def tally(self) -> Tally | None:
        """See `TaskTally`."""
        if not self.rows:
            return None
        names, dimensions, scores, refused = zip(*sorted(self.rows), strict=True)
        return replace(mllmguard_tally(list(scores), list(dimensions), refusals=list(refused)), names=names)


class Mllmguard(Benchmark):
    """MLLMGuard, scored from 0 to 3 by a judge: ASD and PAR."""

    name = "mllmguard"
    protocol = "ASD and PAR"
    shown = ("asd", "par", "overall/refused", "overall/unparsed", "overall/refusal_aware_par")
    source_options = MllmguardSource
    uses_guard = True

    def source(self, options: Any, data: DataOptions) -> Source:
        return partial(read_mllmguard, self.named_source(options))

    def new_tally(self, settings: TallySettings) -> MllmguardTally:
        return MllmguardTally(settings.guard)

    def missing_parts(self, figures: Mapping[str, float]) -> list[str]:
        """Return the dimensions without an answer.

        Example:
            >>> figures = dict.fromkeys(("privacy/unparsed", "bias/unparsed", "hallucination/unparsed"), 0.0)
            >>> Mllmguard().missing_parts(figures)
            ['toxicity', 'legality']
        """
        folders = {"truthfulness": ("truthfulness", *JUDGED_TRUTHFULNESS)}
        return [
            dimension
            for dimension in MLLMGUARD_DIMENSIONS
            if not any(f"{folder}/unparsed" in figures for folder in folders.get(dimension, (dimension,)))
        ]

    def verdict(self, answer: AnsweredItem) -> str:
        if not answer.truth:
            return "answered"
        return "leaks" if leaks(answer.answer, answer.truth) else "keeps"
