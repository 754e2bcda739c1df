"""Draw the picture at the top of the README from a run of `neuralgate demo`.

    neuralgate demo --out runs/demo
    python recipes/draw_readme_picture.py --run runs/demo

The record is the first passport of the test split, unless `--record` names another one. Its first two sensitive questions
and its first benign question, in alphabetical order, are shown with the answers of the unedited and of the edited model as
the run stored them. Writes `answers-light.png` and `answers-dark.png`, twice as large as they are shown on GitHub.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from matplotlib import font_manager
from PIL import Image, ImageDraw, ImageFont

from lightning_neuralgate.errors import DataFormatError
from lightning_neuralgate.evaluation.answers import JudgedAnswer, read_answers

SCALE = 2
"""Pixels of the file per pixel on the page, so that the picture is sharp on high-resolution displays."""
WIDTH, PADDING, PHOTO, GAP = 830, 22, 262, 26
NUMBER_OF_QUESTIONS = {True: 2, False: 1}
"""Sensitive and benign questions in the picture."""


@dataclass(frozen=True)
class Theme:
    """Colours of the picture for one of GitHub's themes."""

    card: str
    border: str
    text: str
    muted: str
    leak: str
    leak_fill: str
    good: str
    good_fill: str


THEMES = {
    "light": Theme("#ffffff", "#d1d9e0", "#1f2328", "#59636e", "#b3261e", "#fdecea", "#1a6b34", "#e6f4ea"),
    "dark": Theme("#0d1117", "#3d444d", "#e6edf3", "#9198a1", "#ff8a80", "#3a1a1c", "#6fdd8b", "#12301c"),
}


class Question(NamedTuple):
    """One question with the answers of both models."""

    before: JudgedAnswer
    after: JudgedAnswer


def choose_questions(answers: Sequence[JudgedAnswer], record_id: str | None, edited: str) -> list[Question]:
    """Choose the record and its questions without looking at the answers.

    Raises:
        DataFormatError: no such record, or the record has too few questions that both models answered.
    """
    test = [answer for answer in answers if answer.split == "test"]
    if record_id is None:
        record_id = min((answer.record_id for answer in test if answer.subject == "passport"), default="passport")
    by_query: dict[tuple[bool, str], dict[str, JudgedAnswer]] = {}
    for answer in test:
        if answer.record_id == record_id:
            by_query.setdefault((answer.sensitive, answer.prompt), {})[answer.model] = answer
    chosen = []
    for sensitive, count in NUMBER_OF_QUESTIONS.items():
        questions = [
            Question(models["unedited"], models[edited])
            for (kind, _), models in sorted(by_query.items())
            if kind is sensitive and {"unedited", edited} <= models.keys()
        ]
        if len(questions) < count:
            kind = "sensitive" if sensitive else "benign"
            raise DataFormatError(
                f"the test split has {len(questions)} {kind} questions on record '{record_id}' that both 'unedited' "
                f"and '{edited}' answered, the picture needs {count}; name another record with --record"
            )
        chosen += questions[:count]
    return chosen


class Canvas:
    """A drawing surface in page pixels."""

    def __init__(self, height: int, theme: Theme) -> None:
        self.image = Image.new("RGBA", (WIDTH * SCALE, height * SCALE))
        self.draw = ImageDraw.Draw(self.image)
        self.theme = theme
        self.box((0, 0, WIDTH - 1, height - 1), theme.card, radius=12, outline=theme.border)

    def box(self, box: tuple[float, float, float, float], fill: str, radius: float, outline: str | None = None) -> None:
        scaled = [SCALE * side for side in box]
        self.draw.rounded_rectangle(scaled, SCALE * radius, fill, outline, width=SCALE)

    def text(self, x: float, y: float, text: str, colour: str, size: float = 13.5, bold: bool = False) -> None:
        self.draw.text((x * SCALE, y * SCALE), text, colour, load_font(size, bold), anchor="ls")

    def photo(self, picture: Image.Image, x: float, y: float) -> None:
        size = (PHOTO * SCALE, PHOTO * SCALE)
        mask = Image.new("L", size)
        ImageDraw.Draw(mask).rounded_rectangle((0, 0, size[0] - 1, size[1] - 1), 8 * SCALE, 255)
        self.image.paste(picture.convert("RGB").resize(size, Image.Resampling.LANCZOS), (x * SCALE, y * SCALE), mask)


def load_font(size: float, bold: bool = False) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which matplotlib brings along."""
    found = font_manager.findfont(
        font_manager.FontProperties(family="DejaVu Sans", weight="bold" if bold else "normal")
    )
    return ImageFont.truetype(found, size * SCALE)


def text_width(text: str, size: float, bold: bool = False) -> float:
    """Width in page pixels."""
    return load_font(size, bold).getlength(text) / SCALE


def wrap(text: str, width: float, size: float) -> list[str]:
    """Break a text into lines of at most a width in page pixels."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if text_width(longer, size) <= width or not lines[-1]:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines


def verdict(answer: JudgedAnswer) -> tuple[str, bool]:
    """A short label for an answer, and whether it is the wanted outcome."""
    if answer.refused:
        return "refused", answer.sensitive
    if answer.sensitive:
        return ("leaked", False) if answer.leaked else ("not refused", False)
    return ("correct", True) if answer.correct else ("answered", True)


def answer_lines(answer: JudgedAnswer, width: float, size: float) -> list[str]:
    """The answer's lines; an ellipsis marks one that ends without punctuation, at the token limit."""
    text = answer.answer.strip()
    return wrap(text if text.endswith((".", "!", "?")) else f"{text} …", width, size)


def draw_picture(questions: Sequence[Question], picture: Image.Image, theme: Theme) -> Image.Image:
    """Draw the picture on the left, and on the right a row for each question with both answers."""
    left = PADDING + PHOTO + GAP
    column_gap = 12
    column = (WIDTH - PADDING - left - column_gap) / 2
    inner, size, line_height = 10, 12.5, 17
    blocks = [[answer_lines(answer, column - 2 * inner, size) for answer in question] for question in questions]
    heights = [max(map(len, block)) * line_height + 34 for block in blocks]
    header, question_height, row_gap = 20, 26, 14
    right_height = header + sum(heights) + len(questions) * question_height + (len(questions) - 1) * row_gap
    height = round(max(right_height, PHOTO) + 2 * PADDING)
    canvas = Canvas(height, theme)
    canvas.photo(picture, PADDING, (height - PHOTO) // 2)
    y = (height - right_height) / 2
    for index, title in enumerate(("BEFORE THE EDIT", "AFTER THE EDIT")):
        canvas.text(left + index * (column + column_gap) + inner, y + 9, title, theme.muted, 10, bold=True)
    y += header
    for question, block, block_height in zip(questions, blocks, heights, strict=True):
        canvas.text(left, y + 17, question.before.prompt, theme.text, 13, bold=True)
        y += question_height
        for index, (answer, lines) in enumerate(zip(question, block, strict=True)):
            x = left + index * (column + column_gap)
            label, wanted = verdict(answer)
            colour, fill = (theme.good, theme.good_fill) if wanted else (theme.leak, theme.leak_fill)
            canvas.box((x, y, x + column, y + block_height), fill, radius=8)
            for number, line in enumerate(lines):
                canvas.text(x + inner, y + 19 + number * line_height, line, theme.text, size)
            canvas.text(x + inner, y + block_height - 9, label, colour, 11, bold=True)
        y += block_height + row_gap
    return canvas.image


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the run and write a light and a dark picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, default=Path("runs/demo"), help="Folder that `neuralgate demo` wrote.")
    parser.add_argument("--out", type=Path, default=Path("docs/images"), help="Folder for the two pictures.")
    parser.add_argument("--record", help="Record of the test split; the first passport when left out.")
    parser.add_argument("--model", default="gated", help="Name of the edited model in answers.jsonl.")
    options = parser.parse_args(arguments)
    questions = choose_questions(read_answers(options.run / "answers.jsonl"), options.record, options.model)
    options.out.mkdir(parents=True, exist_ok=True)
    with Image.open(options.run / "data" / questions[0].before.image) as picture:
        for name, theme in THEMES.items():
            file = options.out / f"answers-{name}.png"
            draw_picture(questions, picture, theme).save(file, optimize=True)
            print(f"written: {file}")


if __name__ == "__main__":
    main()
