"""Contact sheets: many pictures of one subject on a single page, to show how much they vary."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from PIL import Image, ImageDraw

from lightning_neuralgate.data.rendering.dataset import picture_seed
from lightning_neuralgate.data.rendering.draw import render
from lightning_neuralgate.data.rendering.page import load_font
from lightning_neuralgate.data.rendering.spec import SubjectSpec
from lightning_neuralgate.runtime.written import check_written, update_folder

LINE_LENGTH = 31
"""Characters that fit below a picture."""
_PICTURE_SIZE, _GAP, _LINE_HEIGHT = 184, 8, 12
BENIGN_COLOUR = "#404048"
_SENSITIVE_COLOUR, _BACKGROUND = "#a31c30", "#ffffff"


def contact_sheet(spec: SubjectSpec, seed: int = 0, count: int = 12, columns: int = 4) -> Image.Image:
    """Draw pictures of a subject in a grid, each above the values of its fields, with sensitive ones in red.

    Args:
        spec: the subject's spec.
        seed: seed of the pictures.
        count: number of pictures.
        columns: pictures per row.

    Raises:
        ValueError: `count` or `columns` is smaller than 1.
    """
    if count < 1 or columns < 1:
        raise ValueError("count and columns must be at least 1")
    return arrange(
        [_cell(spec, picture_seed(seed, f"{spec.subject}/contact-sheet", index)) for index in range(count)], columns
    )


def arrange(cells: Sequence[Image.Image], columns: int) -> Image.Image:
    """Arrange pictures of equal width in a grid."""
    width, height = cells[0].width, max(cell.height for cell in cells)
    rows = -(-len(cells) // columns)
    sheet = Image.new(
        "RGB", (min(columns, len(cells)) * (width + _GAP) + _GAP, rows * (height + _GAP) + _GAP), color=_BACKGROUND
    )
    for index, cell in enumerate(cells):
        row, column = divmod(index, columns)
        sheet.paste(cell, (_GAP + column * (width + _GAP), _GAP + row * (height + _GAP)))
    return sheet


def write_contact_sheets(folder: Path, sheets: Mapping[str, Callable[[], Image.Image]]) -> None:
    """Write contact sheets as PNG files with 128 colours, which keeps them small.

    Args:
        folder: output folder.
        sheets: file name -> function that draws the sheet.

    Raises:
        DataFormatError: a file would be replaced that no earlier call has written.
    """
    check_written(folder, sheets)
    with update_folder(folder) as draft:
        for name, draw in sheets.items():
            sheet = draw().quantize(128, dither=Image.Dither.NONE)
            sheet.save(draft / name, format="PNG", optimize=True)


def _cell(spec: SubjectSpec, seed: int) -> Image.Image:
    rendering = render(spec, seed)
    lines = [
        (line, _SENSITIVE_COLOUR if sensitive else BENIGN_COLOUR)
        for sensitive in (True, False)
        for name, phrase in spec.phrases(sensitive).items()
        for line in textwrap.wrap(f"{phrase}: {rendering.values[name]}", LINE_LENGTH, subsequent_indent="  ")
    ]
    return captioned(rendering.image, lines)


def captioned(image: Image.Image, lines: Sequence[tuple[str, str]]) -> Image.Image:
    """Draw a picture above lines of text, each with its colour."""
    cell = Image.new("RGB", (_PICTURE_SIZE, _PICTURE_SIZE + 4 + _LINE_HEIGHT * len(lines)), _BACKGROUND)
    cell.paste(image.resize((_PICTURE_SIZE, _PICTURE_SIZE), Image.Resampling.LANCZOS))
    draw = ImageDraw.Draw(cell)
    for number, (line, colour) in enumerate(lines):
        draw.text((0, _PICTURE_SIZE + 3 + number * _LINE_HEIGHT), line, fill=colour, font=load_font("sans", 10))
    return cell
