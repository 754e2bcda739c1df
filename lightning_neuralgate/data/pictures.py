"""Pictures as a processor makes them, each decoded and processed once as long as there is room.

A picture comes again in each query about it, and in each epoch. What the processor's image processor has made of it is kept,
the least recently used given up first; the text around it is processed anew every time.
"""

from __future__ import annotations

import copy
import hashlib
from collections import OrderedDict
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from lightning_neuralgate.errors import DataFormatError

ROOM = 256 * 2**20
"""Bytes of processed pictures that are kept unless somebody asks for more or less: about 190 of 336 by 336 pixels."""


Picture = Path | bytes | Image.Image
"""A file, the bytes of one, or what was read from it."""


def read_image(picture: Picture, record: str = "?") -> Image.Image:
    """Read a picture as RGB.

    Raises:
        DataFormatError: naming record and file, when it is missing or no picture.
    """
    if isinstance(picture, Image.Image):
        return picture.convert("RGB")
    try:
        with Image.open(BytesIO(picture) if isinstance(picture, bytes) else picture) as image:
            return image.convert("RGB")
    # Pillow's readers raise SyntaxError and ValueError, too, at files that are damaged
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        where = f"of {len(picture)} bytes" if isinstance(picture, bytes) else str(picture)
        # Pillow's own words name an object in memory, another one in each run
        reason = "no format of pictures that Pillow knows" if isinstance(error, UnidentifiedImageError) else error
        raise DataFormatError(f"record {record}: picture {where} cannot be read: {reason}") from error


def picture_digest(picture: Picture) -> str:
    """SHA-256 of a picture's file, or of the pixels of one that was read."""
    if isinstance(picture, Path):
        picture = picture.read_bytes()
    content = picture if isinstance(picture, bytes) else f"{picture.mode}{picture.size}".encode() + picture.tobytes()
    return hashlib.sha256(content).hexdigest()


class PictureProcessor:
    """Calls a Hugging Face processor with a text and a picture, as `processor(text=[...], images=[...])` would.

    Only what comes as a file is kept. It counts as the same as long as its inode, size and times are, and its result as long
    as the settings of the image processor are. The first picture that comes again is processed both ways; where the results
    differ, as with a processor that looks at pixels itself, nothing is kept from then on. The processor itself is never
    changed. A copy that is sent to another process, such as a DataLoader's worker, begins with nothing.

    Args:
        processor: the model's processor.
        room: bytes of processed pictures that are kept at most; 0 keeps none.

    Attributes:
        held: bytes that are kept now.
    """

    def __init__(self, processor: Any, room: int = ROOM) -> None:
        if room < 0:
            raise ValueError(f"the room for processed pictures must not be negative, got {room}")
        self.processor, self.room, self.held = processor, room, 0
        self._kept: OrderedDict[Any, tuple[Any, int]] = OrderedDict()
        self._holds: bool | None = None if room and getattr(processor, "image_processor", None) is not None else False

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_kept": OrderedDict(), "held": 0}

    def __call__(self, text: str, path: Picture, record: str = "?", **options: Any) -> dict[str, Any]:
        """What the processor makes of a text and its picture.

        Raises:
            DataFormatError: naming record and file, when it is missing or no picture.
        """
        if self._holds is False or not isinstance(path, Path):
            return dict(self.processor(text=[text], images=[read_image(path, record)], **options))
        key = self._key(path, record)
        if key not in self._kept:
            return self._through(key, text, read_image(path, record), options)
        self._kept.move_to_end(key)
        with Image.open(path) as header:  # says its size, and is not decoded
            found = self._through(key, text, header, options)
        if self._holds is None:
            expected = dict(self.processor(text=[text], images=[read_image(path, record)], **options))
            self._holds = _same(found, expected)
            if not self._holds:
                self._kept.clear()
                self.held = 0
            return expected
        return found

    def _key(self, path: Path, record: str) -> Any:
        try:
            told = path.stat()
        except OSError as error:
            raise DataFormatError(f"record {record}: picture {path} cannot be read: {error}") from error
        file = (str(path), told.st_dev, told.st_ino, told.st_size, told.st_mtime_ns, told.st_ctime_ns)
        return file, repr(vars(self.processor.image_processor))

    def _through(self, key: Any, text: str, image: Image.Image, options: Mapping[str, Any]) -> dict[str, Any]:
        processor = copy.copy(self.processor)
        processor.image_processor = _Remembering(self.processor.image_processor, self, key)
        return dict(processor(text=[text], images=[image], **options))

    def recall(self, key: Any) -> Any:
        """What is kept under a key, as a copy whose entries may be taken out; None where there is nothing."""
        return copy.copy(self._kept[key][0]) if key in self._kept else None

    def keep(self, key: Any, made: Any) -> None:
        """Keep what was made of a picture, if there is room for it at all."""
        size = _bytes(made)
        if size > self.room:
            return
        self._kept[key] = (copy.copy(made), size)
        self.held += size
        while self.held > self.room:
            self.held -= self._kept.popitem(last=False)[1][1]


class _Remembering:
    """In the place of an image processor for one picture: answers from what is kept, and keeps what it has to make."""

    def __init__(self, inner: Any, pictures: PictureProcessor, key: Any) -> None:
        self._inner, self._pictures, self._key = inner, pictures, key

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def __call__(self, images: Any, *args: Any, **options: Any) -> Any:
        found = self._pictures.recall(self._key)
        if found is None:
            found = self._inner(images, *args, **options)
            self._pictures.keep(self._key, found)
        return found


def _bytes(made: Any) -> int:
    if isinstance(made, (Tensor, np.ndarray)):
        return int(made.nbytes)
    if isinstance(made, Mapping):
        return sum(_bytes(value) for value in made.values())
    if isinstance(made, (list, tuple)):
        return sum(map(_bytes, made))
    return 0


def _same(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    return one.keys() == other.keys() and all(
        torch.equal(value, other[key]) if isinstance(value, Tensor) else value == other[key]
        for key, value in one.items()
    )
