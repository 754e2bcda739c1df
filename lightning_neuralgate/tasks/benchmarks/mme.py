"""Read MME: two yes/no questions an image, in folders or as parquet."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

from lightning_neuralgate.metrics.functional.mme import SUBTASKS
from lightning_neuralgate.tasks.item import BrokenItems, Place, TaskItem
from lightning_neuralgate.tasks.sources import Row, rows_of, text_lines

_QUESTIONS = "questions_answers_YN"
_PICTURES = (".jpg", ".png", ".jpeg")


class _Image(NamedTuple):
    """An image with its questions: (question, truth, place) each."""

    subtask: str
    name: str
    picture: Path | bytes
    questions: Sequence[tuple[str, str, Place]]
    place: Place


def read_mme(source: str | Path, broken: BrokenItems) -> Iterator[TaskItem]:
    """Questions of MME, one at a time, the two of an image one after the other.

    Three forms are known: MME's folders, `<subtask>/images/*` (or `image/*`) with `questions_answers_YN/*.txt`, and
    `<subtask>/*.jpg|png` with `*.txt` beside them, each text file of two lines `question<TAB>Yes|No`; and the hub's parquet
    (`question_id, image, question, answer, category`).

    Args:
        source: MME's folder, parquet files, or a data set on the hub, see `sources.rows_of`.
        broken: takes what is broken, a whole image each: also one that has not exactly two questions.
    """
    path = Path(source)
    folders = sorted(folder for folder in path.iterdir() if _texts(folder)) if path.is_dir() else []
    if folders:
        texts = (text for files in broken.passing(_in_order(folders), _text_files) for text in files)
        images: Iterator[_Image] = broken.passing(texts, _from_text)
    else:
        rows = broken.passing(rows_of(source, broken), _checked)
        images = broken.passing(_adjacent(rows), _from_rows)
    for items in broken.passing(images, _items):
        yield from items


def _texts(folder: Path) -> list[Path]:
    """The text files with questions in a subtask's folder."""
    if (folder / _QUESTIONS).is_dir():
        return sorted((folder / _QUESTIONS).glob("*.txt"))
    return sorted(file for file in folder.glob("*.txt") if folder.name in SUBTASKS or _picture_of(file, [folder]))


def _in_order(folders: Iterable[Path]) -> list[Path]:
    return sorted(folders, key=lambda one: (SUBTASKS.index(one.name) if one.name in SUBTASKS else -1, one.name))


def _text_files(folder: Path) -> list[Path]:
    if folder.name not in SUBTASKS:
        raise Place(str(folder)).broken(f"MME has no subtask of that name, only {', '.join(SUBTASKS)}")
    return _texts(folder)


def _picture_of(text: Path, folders: Iterable[Path]) -> Path | None:
    names = (folder / f"{text.stem}{ending}" for folder in folders for ending in _PICTURES)
    return next((name for name in names if name.is_file()), None)


def _from_text(text: Path) -> _Image:
    folder = text.parent.parent if text.parent.name == _QUESTIONS else text.parent
    found = _picture_of(text, (folder / "images", folder / "image", folder))
    whole = Place(str(text))
    if found is None:
        raise whole.broken(f"there is no picture {text.stem} ({', '.join(_PICTURES)}) beside it")
    picture = whole.picture(folder, found.relative_to(folder).as_posix())
    questions = []
    for number, (_, line) in enumerate(text_lines(text), start=1):
        place = Place(str(text), f"question {number}")
        question, tab, truth = line.strip().rpartition("\t")
        if not tab or truth.strip().lower() not in ("yes", "no"):
            raise place.broken(f"expected 'question<TAB>Yes' or '<TAB>No', found {line.strip()[-80:]!r}")
        questions.append((question.strip(), truth.strip().lower(), place))
    return _Image(folder.name, found.name, picture, questions, questions[-1][2] if questions else whole)


def _checked(row: Row) -> tuple[Row, str, str]:
    subtask, image = row.text("category"), row.text("question_id").rpartition("/")[2]
    if subtask not in SUBTASKS:
        raise row.place.broken(f"field 'category' is {subtask!r}; MME has {', '.join(SUBTASKS)}")
    return row, subtask, image


def _adjacent(rows: Iterable[tuple[Row, str, str]]) -> Iterator[list[tuple[Row, str, str]]]:
    for _, same in groupby(rows, key=lambda checked: checked[1:]):
        yield list(same)


def _from_rows(rows: Sequence[tuple[Row, str, str]]) -> _Image:
    first, subtask, image = rows[0]
    questions = [(row.text("question").strip(), row.one_of("answer", ("yes", "no")), row.place) for row, *_ in rows]
    return _Image(subtask, image, first.picture(), questions, questions[-1][2])


def _items(image: _Image) -> list[TaskItem]:
    group = f"{image.subtask}/{image.name}"
    if len(image.questions) != 2:
        raise image.place.broken(f"image '{group}' has {len(image.questions)} questions; MME asks two of each image")
    return [
        TaskItem(
            task="mme",
            item_id=f"{group}/{number}",
            picture=image.picture,
            image=image.name,
            prompt=question,
            truth=truth,
            fields={"subtask": image.subtask},
            group=group,
            place=place,
        )
        for number, (question, truth, place) in enumerate(image.questions)
    ]
