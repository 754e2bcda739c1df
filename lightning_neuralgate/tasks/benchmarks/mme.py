"""MME: two yes/no questions per image, in folders or as parquet."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

from lightning_neuralgate.data.options import DataOptions
from lightning_neuralgate.evaluation.answers import AnsweredItem
from lightning_neuralgate.metrics.functional.forms import AnswerForm
from lightning_neuralgate.metrics.functional.mme import SUBTASKS, mme_tally, mme_verdict
from lightning_neuralgate.metrics.functional.tally import Tally
from lightning_neuralgate.tasks.benchmarks.base import (
    YES_OR_NO,
    Benchmark,
    TallyParts,
    TallySettings,
    checked_truth,
    refused_flags,
    yes_no_verdict,
)
from lightning_neuralgate.tasks.item import BrokenItems, Place, TaskItem
from lightning_neuralgate.tasks.questions import Source
from lightning_neuralgate.tasks.sources import Row, read_rows, text_lines

_QUESTIONS = "questions_answers_YN"
_PICTURES = (".jpg", ".png", ".jpeg")
_BLANKS = str.maketrans("\t\n\r", "   ")


class _Image(NamedTuple):
    """An image with its questions, each as (question, truth, place)."""

    subtask: str
    name: str
    picture: Path | bytes
    questions: Sequence[tuple[str, str, Place]]
    place: Place


def read_mme(source: str | Path, broken: BrokenItems) -> Iterator[TaskItem]:
    """Yield MME's questions, the two of an image adjacent.

    Three formats are supported: MME's folders, either `<subtask>/images/*` (or `image/*`) with `questions_answers_YN/*.txt`,
    or `<subtask>/*.jpg|png` with `*.txt` in the same folder, each text file with two lines `question<TAB>Yes|No`; and the
    hub's parquet (`question_id, image, question, answer, category`).

    Args:
        source: MME's folder, parquet files, or a dataset on the hub, see `sources.read_rows`.
        broken: collects broken images, including those without exactly two questions.
    """
    path = Path(source)
    folders = [folder for folder in path.iterdir() if _texts(folder)] if path.is_dir() else []
    if folders:
        places = {name: place for place, name in enumerate(SUBTASKS)}
        folders.sort(key=lambda folder: (places.get(folder.name, -1), folder.name))
        texts = (text for files in broken.parse_all(folders, _text_files) for text in files)
        images: Iterator[_Image] = broken.parse_all(texts, _from_text)
    else:
        rows = broken.parse_all(read_rows(source, broken), _checked_row)
        adjacent = (list(same) for _, same in groupby(rows, key=lambda checked: checked[1:]))
        images = broken.parse_all(adjacent, _from_rows)
    for items in broken.parse_all(images, _items):
        yield from items


def _texts(folder: Path) -> list[Path]:
    """Return the text files with questions in a subtask's folder."""
    if (folder / _QUESTIONS).is_dir():
        return sorted((folder / _QUESTIONS).glob("*.txt"))
    return sorted(file for file in folder.glob("*.txt") if folder.name in SUBTASKS or _find_picture(file, [folder]))


def _text_files(folder: Path) -> list[Path]:
    if folder.name not in SUBTASKS:
        raise Place(str(folder)).error(f"MME has no subtask of that name, only {', '.join(SUBTASKS)}")
    return _texts(folder)


def _find_picture(text: Path, folders: Iterable[Path]) -> Path | None:
    names = (folder / f"{text.stem}{ending}" for folder in folders for ending in _PICTURES)
    return next((name for name in names if name.is_file()), None)


def _from_text(text: Path) -> _Image:
    folder = text.parent.parent if text.parent.name == _QUESTIONS else text.parent
    found = _find_picture(text, (folder / "images", folder / "image", folder))
    file = Place(str(text))
    if found is None:
        raise file.error(f"there is no picture {text.stem} ({', '.join(_PICTURES)}) in the same folder")
    picture = file.picture(folder, found.relative_to(folder).as_posix())
    questions = []
    for number, (_, line) in enumerate(text_lines(text), start=1):
        place = Place(str(text), f"question {number}")
        question, tab, truth = line.strip().rpartition("\t")
        if not tab or truth.strip().lower() not in ("yes", "no"):
            raise place.error(f"expected 'question<TAB>Yes' or '<TAB>No', found {line.strip()[-80:]!r}")
        questions.append((question.strip(), truth.strip().lower(), place))
    return _Image(folder.name, found.name, picture, questions, questions[-1][2] if questions else file)


def _checked_row(row: Row) -> tuple[Row, str, str]:
    subtask, image = row.text("category"), row.text("question_id").rpartition("/")[2]
    if subtask not in SUBTASKS:
        raise row.place.error(f"field 'category' is {subtask!r}; MME has {', '.join(SUBTASKS)}")
    return row, subtask, image


def _from_rows(rows: Sequence[tuple[Row, str, str]]) -> _Image:
    first, subtask, image = rows[0]
    questions = [(row.text("question").strip(), row.one_of("answer", ("yes", "no")), row.place) for row, *_ in rows]
    return _Image(subtask, image, first.picture(), questions, questions[-1][2])


def _items(image: _Image) -> list[TaskItem]:
    group = f"{image.subtask}/{image.name}"
    if len(image.questions) != 2:
        raise image.place.error(f"image '{group}' has {len(image.questions)} questions; MME asks two of each image")
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


@dataclass(frozen=True)
class MmeSource:
    """Where MME is.

    Attributes:
        mme: MME's folder, or parquet.
    """

    mme: str | None = None


class MmeTally(TallyParts):
    """Tally by MME's rule, in which the unit is an image. An answer waits for the other one about its image.

    Args:
        partial: leave out images with one answer instead of raising.
    """

    def __init__(self, partial: bool = False) -> None:
        super().__init__()
        self.partial = partial
        self.waiting: dict[tuple[str, str], tuple[AnsweredItem, bool]] = {}
        self.complete: set[tuple[str, str]] = set()

    def add(self, answers: list[AnsweredItem], refused: list[bool | None]) -> None:
        """See `TaskTally`."""
        pairs: list[tuple[AnsweredItem, bool]] = []
        for answer, refuses in zip(answers, refused_flags(refused), strict=True):
            key = (answer.field_in("subtask", SUBTASKS), answer.image)
            if key in self.complete:
                raise answer.error(
                    f"image '{answer.image}' of '{key[0]}' has more than two questions; MME asks two of each image"
                )
            if key in self.waiting:
                pairs += [self.waiting.pop(key), (answer, refuses)]
                self.complete.add(key)
            else:
                self.waiting[key] = (answer, refuses)
        if pairs:
            items = [answer for answer, _ in pairs]
            self.parts.append(
                mme_tally(
                    [answer.answer for answer in items],
                    [checked_truth(answer, YES_OR_NO) for answer in items],
                    [answer.image for answer in items],
                    [answer.fields["subtask"] for answer in items],
                    [refuses for _, refuses in pairs],
                )
            )

    def tally(self) -> Tally | None:
        """See `TaskTally`."""
        if self.waiting and not self.partial:
            answer, _ = next(iter(self.waiting.values()))
            subtask = answer.fields["subtask"]
            raise answer.error(f"image '{answer.image}' of '{subtask}' has 1 questions; MME asks two of each image")
        return super().tally()


class Mme(Benchmark):
    """MME, scored by its official rule with periods dropped."""

    name = "mme"
    protocol = "MME's official rule, periods dropped"
    shown = ("perception", "cognition", "accuracy", "refused", "unparsed", "refusal_aware_accuracy")
    unit = "image"
    source_options = MmeSource
    has_export = True

    def source(self, options: Any, data: DataOptions) -> Source:
        return partial(read_mme, self.named_source(options))

    def new_tally(self, settings: TallySettings) -> MmeTally:
        return MmeTally(settings.partial)

    def missing_parts(self, figures: Mapping[str, float]) -> list[str]:
        """Return the subtasks without a question."""
        return [subtask for subtask in SUBTASKS if f"{subtask}/score" not in figures]

    def form(self, answer: AnsweredItem) -> tuple[AnswerForm, Sequence[str]]:
        return "yes_no", ()

    def verdict(self, answer: AnsweredItem) -> str:
        return yes_no_verdict(mme_verdict(answer.answer), answer.truth)

    def export(self, answer: AnsweredItem) -> Iterator[tuple[Path, str]]:
        """Yield lines as MME's `calculation.py` reads them.

        `mme/<subtask>.txt`, a line `image<TAB>question<TAB>truth<TAB>answer` per question.
        """
        # the tool splits at tabs and line ends, and looks at the first four characters, which have to keep their places
        cells = (answer.image, answer.prompt, answer.truth.capitalize(), answer.answer)
        # no UTF-8 file can hold lone surrogates
        line = "\t".join(cell.translate(_BLANKS).encode("utf-8", "replace").decode("utf-8") for cell in cells)
        yield Path("mme") / f"{answer.field_in('subtask', SUBTASKS)}.txt", line
