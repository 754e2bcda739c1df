"""The picture that questions are about: drawn from a shipped subject, with known values, or a file of the user's."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path

from PIL import Image

from lightning_neuralgate.data.image_files import read_image
from lightning_neuralgate.data.rendering.draw import render
from lightning_neuralgate.data.rendering.spec import FieldSpec, SubjectSpec, load_subject_spec, shipped_subjects
from lightning_neuralgate.errors import DataFormatError
from lightning_neuralgate.gate.spans import find_subject, normalize_subject

_SEEDS = 10**6


@dataclass(frozen=True)
class AskedPicture:
    """A picture in memory, and what is known about it.

    Attributes:
        name: file name, or subject and seed.
        png: the picture, as viewers show it, as a PNG file.
        spec: the subject's spec; None for a picture that was not drawn.
        values: value of each field; empty for a picture that was not drawn.
    """

    name: str
    png: bytes
    spec: SubjectSpec | None = None
    values: Mapping[str, str] = field(default_factory=dict)

    @property
    def subject(self) -> str:
        """The drawn subject, such as "passport"; empty for other pictures."""
        return "" if self.spec is None else self.spec.subject

    def asked_field(self, question: str) -> tuple[str, FieldSpec] | None:
        """Return name and spec of the field that a question names last; None if it names none or nothing is known.

        Example:
            >>> picture = draw_picture("passport", seed=0)
            >>> name, spec = picture.asked_field("Which passport number is it?")
            >>> name, spec.sensitive, picture.values[name]
            ('number', True, '100392')
        """
        fields = {} if self.spec is None else self.spec.fields
        found = [
            (span[1], span[1] - span[0], name)
            for name in fields
            if (span := find_subject(question, fields[name].phrase))
        ]
        return (max(found)[2], fields[max(found)[2]]) if found else None


def draw_picture(subject: str, seed: int) -> AskedPicture:
    """Draw a shipped subject.

    Args:
        subject: its name, such as "passport" or "student ID".
        seed: seed of values and variations.

    Raises:
        DataFormatError: there is no such subject.
        MissingDependencyError: Faker or matplotlib is not installed.
    """
    spec = load_subject_spec(subject_name(subject))
    rendering = render(spec, seed)
    return AskedPicture(f"{spec.subject} from seed {seed}", _png(rendering.image), spec, rendering.values)


def new_seed() -> int:
    """Return a seed for a picture that has not been drawn before, as far as that goes."""
    return random.SystemRandom().randrange(_SEEDS)


def subject_name(subject: str) -> str:
    """Return the name of a subject's spec: "Student ID" is student_id."""
    return normalize_subject(subject).replace(" ", "_")


def open_picture(source: str | Path | bytes, name: str) -> AskedPicture:
    """Open a picture file, or the content of one.

    Raises:
        DataFormatError: it is no file, or not a picture.
    """
    if not isinstance(source, bytes):
        source = Path(source)
        if not source.exists():
            raise DataFormatError(
                f"{source} is neither a file nor a subject that can be drawn; there are {', '.join(shipped_subjects())}"
            )
        if source.is_dir():
            raise DataFormatError(f"{source} is a folder; give a picture in it")
    return AskedPicture(name, _png(read_image(source, record="" if isinstance(source, Path) else name)))


def picture_of(image: str, seed: int | None) -> AskedPicture:
    """Return the picture that a command names: a file if there is one, else a shipped subject, drawn from a seed.

    Args:
        image: a file, or a shipped subject.
        seed: seed of a drawn picture; another one each time if None.

    Raises:
        DataFormatError: see `open_picture`; a seed for a file.
    """
    if not Path(image).exists() and subject_name(image) in shipped_subjects():
        return draw_picture(image, new_seed() if seed is None else seed)
    picture = open_picture(image, Path(image).name)
    if seed is not None:
        raise DataFormatError(f"--seed is for a subject that is drawn, and {image} is a file; leave it out")
    return picture


def _png(image: Image.Image) -> bytes:
    stream = BytesIO()
    image.save(stream, format="PNG")
    return stream.getvalue()
