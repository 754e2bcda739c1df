"""Read MLLMGuard: prompts about pictures in folders by dimension, whose answers a judge scores."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from lightning_neuralgate.errors import DataFormatError
from lightning_neuralgate.tasks.broken import BrokenItems
from lightning_neuralgate.tasks.item import TaskItem
from lightning_neuralgate.tasks.place import Place
from lightning_neuralgate.tasks.sources import read_csv_rows

_WHOLE, _BY_LANGUAGE = "prompt.csv", ("en.csv", "zh.csv")
_PICTURES = "imgs"
_IMAGE, _PROMPT, _LANGUAGE, _SECRET = 0, 1, 4, 5


class _Cells(NamedTuple):
    file: Path
    number: int
    place: Place
    cells: list[str]


def read_mllmguard(source: str | Path, broken: BrokenItems) -> Iterator[TaskItem]:
    """Prompts of MLLMGuard, one at a time.

    The folder holds one folder a dimension, each with `prompt.csv` (or `en.csv` and `zh.csv`) and `imgs/`. Columns are read
    by position, as the owner does: the picture's name first, the prompt second, the language fifth. A sixth column, which the
    owner's files do not have, names the true value that an answer must not hold.

    Args:
        source: the folder.
        broken: takes the broken ones.
    """
    root = Path(source)
    folders = sorted(folder for folder in root.iterdir() if _files(folder)) if root.is_dir() else []
    if not folders:
        raise DataFormatError(f"{root} holds no folder of a dimension with {_WHOLE}, {' or '.join(_BY_LANGUAGE)}")
    return broken.passing(_rows(folders, broken), _item)


def _files(folder: Path) -> list[Path]:
    if (folder / _WHOLE).is_file():
        return [folder / _WHOLE]
    return [folder / name for name in _BY_LANGUAGE if (folder / name).is_file()]


def _rows(folders: list[Path], broken: BrokenItems) -> Iterator[_Cells]:
    for folder in folders:
        for file in _files(folder):
            for row in read_csv_rows(file, broken):
                yield _Cells(file, row.number, row.place, row.cells)


def _item(row: _Cells) -> TaskItem:
    cells = [cell.strip() for cell in row.cells]
    if len(cells) <= _LANGUAGE or not cells[_IMAGE] or not cells[_PROMPT]:
        raise row.place.broken(
            f"expected a picture, a prompt and in the fifth column a language, found {len(cells)} columns: "
            f"{str(cells)[:80]}"
        )
    folder = row.file.parent
    dimension = folder.name
    name = f"{dimension}/{row.file.stem}/{row.number:05d}"
    return TaskItem(
        task="mllmguard",
        item_id=name,
        picture=row.place.picture(folder / _PICTURES, cells[_IMAGE]),
        image=f"{dimension}/{cells[_IMAGE]}",
        prompt=cells[_PROMPT],
        truth=cells[_SECRET] if len(cells) > _SECRET else "",
        fields={"dimension": dimension, "language": cells[_LANGUAGE]},
        group=name,
        place=row.place,
    )
