"""Read MLLMGuard: prompts about pictures in folders by dimension, whose answers a judge scores."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from lightning.pytorch.utilities import rank_zero_warn

from lightning_neuralgate.errors import DataFormatError
from lightning_neuralgate.metrics.functional import leaks
from lightning_neuralgate.metrics.functional.mllmguard import JUDGED_TRUTHFULNESS, MLLMGUARD_DIMENSIONS
from lightning_neuralgate.tasks.item import BrokenItems, Place, TaskItem
from lightning_neuralgate.tasks.sources import read_csv_rows

OTHER_PROTOCOLS = ("noise-injection", "noise-consistency", "position-swapping")
"""Subsets of truthfulness that the owner scores by rules of their own, as folders and categories are called."""
_WHOLE, _BY_LANGUAGE = "prompt.csv", ("en.csv", "zh.csv")
_PICTURES = "imgs"
_IMAGE, _PROMPT, _LANGUAGE = 0, 1, 4


class _Columns(NamedTuple):
    """Which columns a file has beside picture and prompt; None where there is none."""

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
    """Prompts of MLLMGuard, one at a time.

    The folder holds one folder a dimension, each with `prompt.csv` (or `en.csv` and `zh.csv`) and `imgs/`. As the owner does,
    picture and prompt are read by position, the first and the second column. The language stands in the column `Lan`, or in
    the fifth where none is called so. A column `secret`, which the owner's files do not have, holds the true value that an
    answer must not hold. Rows of `OTHER_PROTOCOLS` are left out, with a warning; of a dimension that is none of the owner's a
    warning tells.

    Args:
        source: the folder.
        broken: takes the broken ones.
    """
    root = Path(source)
    folders = sorted(folder for folder in root.iterdir() if _files(folder)) if root.is_dir() else []
    if not folders:
        raise DataFormatError(f"{root} holds no folder of a dimension with {_WHOLE}, {' or '.join(_BY_LANGUAGE)}")
    known = (*MLLMGUARD_DIMENSIONS, *JUDGED_TRUTHFULNESS, *OTHER_PROTOCOLS)
    if strangers := [folder.name for folder in folders if folder.name.lower().replace(" ", "-") not in known]:
        rank_zero_warn(
            f"{root}: MLLMGuard has no dimension called {', '.join(strangers)}; what is in there counts in the means over "
            f"dimensions all the same. The owner's are {', '.join(MLLMGUARD_DIMENSIONS)}; rename folders, or move them away"
        )
    return broken.passing(_rows(folders, broken), _item)


def _files(folder: Path) -> list[Path]:
    if (folder / _WHOLE).is_file():
        return [folder / _WHOLE]
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
                    f"{file}: {left_out} rows are left out, since MLLMGuard scores noise injection and position swapping by "
                    "rules of their own and not by ASD and PAR"
                )


def _columns(file: Path) -> _Columns:
    header: list[str] = []
    # what is wrong with the file is told where its rows are read
    with suppress(csv.Error), file.open(encoding="utf-8-sig", errors="replace", newline="") as lines:
        header = next((row for row in csv.reader(lines) if row), [])
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
        raise row.place.broken(f"expected a picture, a prompt, {wanted}; found {len(cells)} columns: {str(cells)[:80]}")
    truth = "" if secret is None else cells[secret]
    try:
        leaks("", truth or "none")
    except DataFormatError as error:  # now, not after an hour of answering
        raise row.place.broken(f"column 'secret': {error}") from error
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
