"""Results in the formats of the benchmarks' own tools, so that others can check the figures."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TextIO

from lightning_neuralgate.errors import DataFormatError
from lightning_neuralgate.metrics.functional.mme import SUBTASKS
from lightning_neuralgate.runtime.files import atomic_write
from lightning_neuralgate.tasks.answer_store import read_answered
from lightning_neuralgate.tasks.benchmarks.pope import CATEGORIES
from lightning_neuralgate.tasks.item import AnsweredItem


def export_results(answers: Path, out: Path) -> list[Path]:
    """Write the answers to MME and POPE as their tools read them; other tasks have no such format.

    MME: `mme/<subtask>.txt`, a line `image<TAB>question<TAB>truth<TAB>answer` a question, the two of an image adjacent. POPE:
    `pope/<category>_answers.jsonl` (`question_id, question, answer`) and `pope/<category>_labels.jsonl` (`question_id, image,
    text, label`), line by line in the same order, as its `evaluate.py` reads them.

    Args:
        answers: the file, or the folder with `answers.jsonl`.
        out: the folder to write to.

    Returns:
        The files.

    Raises:
        DataFormatError: the answers hold neither task, or cannot be read; naming the item: a subtask or category that there
            is not, which would name a file, or a field that is missing; a link in `out` that leads out of it.
    """
    for part in ("mme", "pope"):
        if not (out / part).resolve().is_relative_to(out.resolve()):
            raise DataFormatError(f"{out / part} is a link that leads out of {out}; name another folder, or remove it")
    with atomic_write(out.resolve()) as draft:
        draft.mkdir()
        with ExitStack() as stack:
            files: dict[Path, TextIO] = {}
            for one in read_answered(answers):
                for name, line in _lines(one):
                    if name not in files:
                        (draft / name).parent.mkdir(exist_ok=True)
                        files[name] = stack.enter_context((draft / name).open("w", encoding="utf-8", newline="\n"))
                    files[name].write(line + "\n")
        if not files:
            raise DataFormatError(f"{answers} holds no answers to MME or POPE, so there is nothing to export")
    return sorted(out / name for name in files)


def _lines(one: AnsweredItem) -> Iterator[tuple[Path, str]]:
    if one.task == "mme":
        truth = one.truth.capitalize()
        # the tool splits at tabs and line ends, and looks at the first four characters, which have to keep their places
        cells = (text.translate(_BLANKS) for text in (one.image, one.prompt, truth, one.answer))
        yield Path("mme") / f"{_one_of(one, 'subtask', SUBTASKS)}.txt", "\t".join(_encodable(cell) for cell in cells)
    elif one.task == "pope":
        category = _one_of(one, "category", (*CATEGORIES, "")) or "pope"
        number, question = _text(one, "question_id"), _text(one, "question")
        question_id: int | str = int(number) if number.isdecimal() and len(number) <= _DIGITS else number
        answer = {"question_id": question_id, "question": question, "answer": one.answer}
        label = {"question_id": question_id, "image": one.image, "text": question, "label": one.truth}
        yield Path("pope") / f"{category}_answers.jsonl", json.dumps(answer)
        yield Path("pope") / f"{category}_labels.jsonl", json.dumps(label)


def _text(one: AnsweredItem, name: str) -> str:
    value = one.fields.get(name)
    if not isinstance(value, str):
        raise DataFormatError(
            f"item '{one.item_id}' of '{one.task}': 'fields.{name}' has to be text, found {value!r:.80}"
        )
    return value


def _one_of(one: AnsweredItem, name: str, known: Sequence[str]) -> str:
    """A field that names a file, which answers from elsewhere could lead out of its folder."""
    value = _text(one, name)
    if value not in known:
        there = ", ".join(filter(None, known))
        raise DataFormatError(
            f"item '{one.item_id}' of '{one.task}': 'fields.{name}' is {value!r:.80}; there are {there}"
        )
    return value


_DIGITS = 18
"""Longer numbers stay text, as other tools read them."""
_BLANKS = str.maketrans("\t\n\r", "   ")


def _encodable(text: str) -> str:
    """Text without lone surrogates, which no UTF-8 file can hold."""
    return text.encode("utf-8", "replace").decode("utf-8")
