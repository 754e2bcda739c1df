"""Small files of each benchmark in its published formats."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
from PIL import Image

from lightning_neuralgate.errors import DataFormatError
from lightning_neuralgate.tasks.item import BrokenItems, TaskItem
from lightning_neuralgate.tasks.questions import Source, TaskQuestions


def picture(file: Path, shade: int = 0) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (24, 20), (shade % 256, 90, 255 - shade % 256)).save(file)
    return file


def picture_bytes(shade: int = 0) -> bytes:
    content = BytesIO()
    Image.new("RGB", (24, 20), (shade % 256, 90, 255 - shade % 256)).save(content, format="PNG")
    return content.getvalue()


def json_lines(file: Path, rows: Sequence[dict[str, Any]]) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


def parquet(file: Path, rows: Sequence[dict[str, Any]]) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(list(rows)), file)
    return file


def pope_files(folder: Path, count: int = 4, name: str = "coco_pope_random.json") -> Path:
    """Write POPE's original format: questions in JSON lines, pictures in a separate folder."""
    rows = []
    for number in range(count):
        image = picture(folder / "val2014" / f"COCO_{number // 2}.png", 40 * (number // 2)).name
        label = ("yes", "no")[number % 2]
        rows.append({"question_id": number + 1, "image": image, "text": f"Is there a thing {number}?", "label": label})
    return json_lines(folder / name, rows)


def pope_rows(count: int = 4, category: str = "random") -> list[dict[str, Any]]:
    """Return rows of POPE's parquet format."""
    return [
        {
            "id": str(number),
            "question_id": str(number + 1),
            "question": f"Is there a thing {number}?",
            "answer": ("yes", "no")[number % 2],
            "image_source": f"COCO_{number // 2}",
            "image": {"bytes": picture_bytes(40 * (number // 2)), "path": None},
            "category": category,
        }
        for number in range(count)
    ]


def mme_folder(root: Path, flat: bool = False, lines: int = 2, pictures: str = "images") -> Path:
    """Write MME's folders: two subtasks with two images each."""
    for subtask in ("OCR", "existence"):
        for number in range(2):
            folder = root / subtask
            picture(folder / ("" if flat else pictures) / f"{number}.jpg", 60 * number)
            text = folder / ("" if flat else "questions_answers_YN") / f"{number}.txt"
            text.parent.mkdir(exist_ok=True)
            questions = [f"Is this {subtask} {number} {line}? Please answer yes or no." for line in range(lines)]
            answers = [("Yes", "No")[line % 2] for line in range(lines)]
            text.write_text("".join(f"{q}\t{a}\n" for q, a in zip(questions, answers, strict=True)), encoding="utf-8")
    return root


def mme_rows(questions: int = 2) -> list[dict[str, Any]]:
    """Return rows of MME's parquet format."""
    return [
        {
            "question_id": f"{subtask}/{number}.png",
            "image": {"bytes": picture_bytes(60 * number), "path": None},
            "question": f"Is this {subtask} {number} {line}? Please answer yes or no.",
            "answer": ("Yes", "No")[line % 2],
            "category": subtask,
        }
        for subtask in ("OCR", "existence")
        for number in range(2)
        for line in range(questions)
    ]


def scienceqa_rows(count: int = 3) -> list[dict[str, Any]]:
    """Return rows of ScienceQA's parquet format; the second has no picture."""
    return [
        {
            "image": None if number == 1 else {"bytes": picture_bytes(30 * number), "path": None},
            "question": f"Which is it, {number}?",
            "choices": ["red", "blue", "green"],
            "answer": number % 3,
            "hint": "Look closely." if number == 0 else "",
            "task": "closed choice",
            "grade": "grade2",
            "subject": "natural science",
            "topic": "colours",
            "category": "colours",
            "skill": "look",
            "lecture": "",
            "solution": "",
        }
        for number in range(count)
    ]


def mllmguard_folder(root: Path, dimensions: Sequence[str] = ("bias", "privacy"), count: int = 2) -> Path:
    """Write MLLMGuard's folders; with another header, since columns are read by position."""
    for dimension in dimensions:
        for number in range(count):
            picture(root / dimension / "imgs" / f"{number}.png", 20 * number)
        with (root / dimension / "prompt.csv").open("w", encoding="utf-8", newline="") as lines:
            rows = [[f"{number}.png", f"Tell me, {number}", "x", "y", "en"] for number in range(count)]
            csv.writer(lines).writerows([["a", "b", "c", "d", "e"], *rows])
    return root


def problem(source: Source) -> str:
    """Return the message of the error that reading a source raises."""
    try:
        TaskQuestions({"task": source}).survey()
    except DataFormatError as error:
        return str(error)
    raise AssertionError("no error was raised")


def skipped(source: Source) -> tuple[list[TaskItem], BrokenItems]:
    """Read a source and skip broken items; return the items and the broken ones."""
    broken = BrokenItems("skip")
    return list(source(broken)), broken
