"""Read pictures, and cache what a model's image processor makes of them.

A picture is needed again for every query about it, and in every epoch. The output of the processor's image processor is
cached, least recently used first out; the text is processed again every time.
"""

from __future__ import annotations

import copy
import hashlib
from collections import OrderedDict
from collections.abc import Callable, Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from lightning_neuralgate.errors import DataFormatError

CACHE_BYTES = 256 * 2**20
"""Default size of the cache of processed pictures: about 190 pictures of 336 x 336 pixels."""

Picture = Path | bytes | Image.Image
"""A file, the content of a file, or an opened image."""


def read_image(picture: Picture, record: str = "?") -> Image.Image:
    """Read a picture as RGB.

    Raises:
        DataFormatError: naming record and file, if the file is missing or not a picture.
    """
    if isinstance(picture, Image.Image):
        return picture.convert("RGB")
    try:
        with Image.open(BytesIO(picture) if isinstance(picture, bytes) else picture) as image:
            return image.convert("RGB")
    # Pillow also raises SyntaxError and ValueError for damaged files
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        where = f"of {len(picture)} bytes" if isinstance(picture, bytes) else str(picture)
        # Pillow's own message contains the address of an object, which differs between runs
        reason = "not an image format that Pillow knows" if isinstance(error, UnidentifiedImageError) else error
        raise DataFormatError(f"record {record}: picture {where} cannot be read: {reason}") from error


def picture_digest(picture: Picture) -> str:
    """Compute the SHA-256 of a picture's file, or of the pixels of an opened image."""
    if isinstance(picture, Path):
        picture = picture.read_bytes()
    content = picture if isinstance(picture, bytes) else f"{picture.mode}{picture.size}".encode() + picture.tobytes()
    return hashlib.sha256(content).hexdigest()


class CachingProcessor:
    """Call a Hugging Face processor as `processor(text=[text], images=[picture])`, with a cache for picture files.

    An entry is valid as long as the file's inode, size and times and the image processor's settings are unchanged. The
    first cache hit is compared with the uncached result; if they differ, as with a processor that looks at the pixels
    itself, the cache is turned off. The processor itself is never modified. Pickling, for a DataLoader worker, leaves the
    cached entries out.

    Args:
        processor: the model's processor.
        max_bytes: upper bound of the cached entries' size; 0 turns the cache off.

    Attributes:
        cached_bytes: current size of the cached entries.
    """

    def __init__(self, processor: Any, max_bytes: int = CACHE_BYTES) -> None:
        if max_bytes < 0:
            raise ValueError(f"the size of the picture cache must not be negative, got {max_bytes}")
        self.processor, self.max_bytes, self.cached_bytes = processor, max_bytes, 0
        self._entries: OrderedDict[Any, tuple[Any, int]] = OrderedDict()
        self._enabled = max_bytes > 0 and getattr(processor, "image_processor", None) is not None
        self._verified = False

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_entries": OrderedDict(), "cached_bytes": 0}

    def __call__(self, text: str, picture: Picture, record: str = "?", **options: Any) -> dict[str, Any]:
        """Process a text and its picture.

        Raises:
            DataFormatError: naming record and file, if the file is missing or not a picture.
        """
        if not self._enabled or not isinstance(picture, Path):
            return dict(self.processor(text=[text], images=[read_image(picture, record)], **options))
        key = self._key(picture, record)
        if key not in self._entries:
            return self._process(key, text, read_image(picture, record), options)
        self._entries.move_to_end(key)
        with Image.open(picture) as header:  # gives the size without decoding the pixels
            cached = self._process(key, text, header, options)
        if self._verified:
            return cached
        expected = dict(self.processor(text=[text], images=[read_image(picture, record)], **options))
        self._verified = _equal(cached, expected)
        if not self._verified:
            self._enabled = False
            self._entries.clear()
            self.cached_bytes = 0
        return expected

    def _key(self, path: Path, record: str) -> Any:
        try:
            stat = path.stat()
        except OSError as error:
            raise DataFormatError(f"record {record}: picture {path} cannot be read: {error}") from error
        file = (str(path), stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)
        return file, repr(vars(self.processor.image_processor))

    def _process(self, key: Any, text: str, image: Image.Image, options: Mapping[str, Any]) -> dict[str, Any]:
        processor = copy.copy(self.processor)
        processor.image_processor = _CachedImageProcessor(self.processor.image_processor, self, key)
        return dict(processor(text=[text], images=[image], **options))

    def get_or_compute(self, key: Any, compute: Callable[[], Any]) -> Any:
        """Return the cached value of a key, computing it first if needed, as a copy that the caller may take apart."""
        if key in self._entries:
            return copy.copy(self._entries[key][0])
        value = compute()
        size = _byte_count(value)
        if size <= self.max_bytes:
            self._entries[key] = (copy.copy(value), size)
            self.cached_bytes += size
            while self.cached_bytes > self.max_bytes:
                self.cached_bytes -= self._entries.popitem(last=False)[1][1]
        return value


class _CachedImageProcessor:
    """Stand-in for an image processor that returns the cached result of one picture."""

    def __init__(self, image_processor: Any, cache: CachingProcessor, key: Any) -> None:
        self._image_processor, self._cache, self._key = image_processor, cache, key

    def __getattr__(self, name: str) -> Any:
        return getattr(self._image_processor, name)

    def __call__(self, images: Any, *args: Any, **options: Any) -> Any:
        return self._cache.get_or_compute(self._key, lambda: self._image_processor(images, *args, **options))


def _byte_count(value: Any) -> int:
    if isinstance(value, (Tensor, np.ndarray)):
        return int(value.nbytes)
    if isinstance(value, Mapping):
        return sum(map(_byte_count, value.values()))
    if isinstance(value, (list, tuple)):
        return sum(map(_byte_count, value))
    return 0


def _equal(first: Mapping[str, Any], second: Mapping[str, Any]) -> bool:
    return first.keys() == second.keys() and all(
        torch.equal(value, second[key]) if isinstance(value, Tensor) else value == second[key]
        for key, value in first.items()
    )
