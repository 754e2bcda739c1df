"""Contact sheets: many pictures of one subject on one page, to see how much they differ."""

from __future__ import annotations

import textwrap
from pathlib import Path

from PIL import Image, ImageDraw

from lightning_neuralgate.data.rendering.dataset import picture_seed
from lightning_neuralgate.data.rendering.draw import render
from lightning_neuralgate.data.rendering.page import load_font
from lightning_neuralgate.data.rendering.spec import SubjectSpec
from lightning_neuralgate.runtime.files import atomic_write

_EDGE, _GAP, _LINE, _LETTERS = 184, 8, 12, 31
_SECRET, _PLAIN, _PAPER = "#a31c30", "#404048", "#ffffff"


def contact_sheet(spec: SubjectSpec, seed: int = 0, count: int = 12, columns: int = 4) -> Image.Image:
    """Pictures of a subject in rows, each above the values of its fields, the sensitive ones in red.

    Args:
        spec: what to draw.
        seed: the same seed draws the same sheet.
        count: pictures on it.
        columns: pictures in a row.
    """
    if count < 1 or columns < 1:
        raise ValueError("count and columns must be at least 1")
    cells = [_cell(spec, picture_seed(seed, f"{spec.subject}/contact-sheet", index)) for index in range(count)]
    width, height = cells[0].width, max(cell.height for cell in cells)
    rows = -(-count // columns)
    sheet = Image.new("RGB", (min(columns, count) * (width + _GAP) + _GAP, rows * (height + _GAP) + _GAP), color=_PAPER)
    for index, cell in enumerate(cells):
        row, column = divmod(index, columns)
        sheet.paste(cell, (_GAP + column * (width + _GAP), _GAP + row * (height + _GAP)))
    return sheet


def write_contact_sheet(path: Path, spec: SubjectSpec, seed: int = 0) -> None:
    """Write the contact sheet of a subject as a small PNG of 128 colours."""
    with atomic_write(path) as draft:
        sheet = contact_sheet(spec, seed).quantize(128, dither=Image.Dither.NONE)
        sheet.save(draft, format="PNG", optimize=True)


def _cell(spec: SubjectSpec, seed: int) -> Image.Image:
    rendering = render(spec, seed)
    lines = [
        (line, _SECRET if sensitive else _PLAIN)
        for sensitive in (True, False)
        for name, phrase in spec.phrases(sensitive).items()
        for line in textwrap.wrap(f"{phrase}: {rendering.values[name]}", _LETTERS, subsequent_indent="  ")
    ]
    cell = Image.new("RGB", (_EDGE, _EDGE + 4 + _LINE * len(lines)), _PAPER)
    cell.paste(rendering.image.resize((_EDGE, _EDGE), Image.Resampling.LANCZOS))
    draw = ImageDraw.Draw(cell)
    for number, (line, colour) in enumerate(lines):
        draw.text((0, _EDGE + 3 + number * _LINE), line, fill=colour, font=load_font("sans", 10))
    return cell
