"""What the attacks through the picture share: reading and scaling pictures, and files that are drawn once."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable
from pathlib import Path

from PIL import Image

from lightning_neuralgate.attacks.base import Context, Question
from lightning_neuralgate.data.image_files import picture_digest, read_image
from lightning_neuralgate.errors import DataFormatError

MAX_EDGE = 1024
"""Longest edge of a drawn picture, in pixels; larger ones are scaled down first, which bounds the size of the files."""
SHEET_EDGE = 288
"""Smallest edge of a picture that is composed of several parts or has text in it, in pixels."""


def redrawn(
    attack: str,
    question: Question,
    context: Context,
    draw: Callable[[Image.Image, random.Random], Image.Image],
    *parts: str,
) -> Path:
    """Return the file of an attack's version of a question's picture, drawn on first use.

    Its name depends on attack, record and the picture's content, so that all questions about a picture share one file.

    Args:
        attack: name of the attack, which includes its strength.
        question: the question.
        context: the run.
        draw: maps the picture, RGB with edges of at most `MAX_EDGE`, to another; its source of random numbers depends on
            attack and record alone.
        parts: whatever else the drawing depends on, such as text in it.

    Raises:
        DataFormatError: naming record and file, if the picture cannot be read.
    """
    record = f"{question.split}/{question.record}"
    key = "\0".join([record, content_digest(question), *parts])
    name = f"{attack}/{hashlib.sha256(key.encode(errors='surrogatepass')).hexdigest()[:32]}"
    return context.drawn_picture(name, lambda: draw(source_picture(question), context.rng(attack, record)))


def content_digest(question: Question) -> str:
    """Return a digest of a question's picture (`picture_digest`).

    Raises:
        DataFormatError: naming record and file, if the file cannot be read.
    """
    try:
        return picture_digest(question.picture)
    except OSError as error:
        raise DataFormatError(
            f"record {question.record}: picture {question.picture} cannot be read: {error}"
        ) from error


def source_picture(question: Question) -> Image.Image:
    """Read a question's picture, scaled down to edges of at most `MAX_EDGE`."""
    picture = read_image(question.picture, question.record)
    return fitted(picture, MAX_EDGE, MAX_EDGE) if max(picture.size) > MAX_EDGE else picture


def fitted(picture: Image.Image, width: int, height: int) -> Image.Image:
    """Scale a picture to the largest size of the same proportions that fits into a box, at least 1 x 1."""
    scale = min(width / picture.width, height / picture.height)
    size = max(1, round(picture.width * scale)), max(1, round(picture.height * scale))
    return picture.resize(size, Image.Resampling.LANCZOS)


def sheet_edge(picture: Image.Image, share: float) -> int:
    """Return the edge of a square sheet on which a picture takes a share of the edge, from `SHEET_EDGE` to `MAX_EDGE`.

    Sheets are square because many image processors crop a picture to its central square.
    """
    return min(MAX_EDGE, max(SHEET_EDGE, round(max(picture.size) / share)))
