"""Cache of what a model's image processor makes of picture files.

A picture is needed again for every query about it, and in every epoch. The output of the processor's image processor is
cached, least recently used first out; the text is processed again every time.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from lightning_neuralgate.data.image_files import Picture, picture_name, read_image
from lightning_neuralgate.errors import DataFormatError

CACHE_BYTES = 256 * 2**20
"""Default size of the cache of processed pictures: about 190 pictures of 336 x 336 pixels."""


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
        self._entries: OrderedDict[Any, _Entry] = OrderedDict()
        self._enabled = max_bytes > 0 and getattr(processor, "image_processor", None) is not None
        self._verified = False

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_entries": OrderedDict(), "cached_bytes": 0}

    def __call__(self, text: str, picture: Picture, record: str = "?", **options: Any) -> dict[str, Any]:
        """Process a text and its picture.

        Raises:
            DataFormatError: naming record and file, if the file is missing or not a picture, or the processor cannot use it.
        """
        if not self._enabled or not isinstance(picture, Path):
            return self._run(self.processor, text, picture, read_image(picture, record), record, options)
        key = self._key(picture, record)
        if key not in self._entries:
            image = read_image(picture, record)
            return self._run(self._with_cache(key, image.size), text, picture, image, record, options)
        self._entries.move_to_end(key)
        size = self._entries[key].size
        # processors need the size, for the number of image tokens, but not the pixels
        cached = self._run(self._with_cache(key, size), text, picture, Image.new("RGB", size), record, options)
        if self._verified:
            return cached
        expected = self._run(self.processor, text, picture, read_image(picture, record), record, options)
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

    def _with_cache(self, key: Any, size: tuple[int, int]) -> Any:
        processor = copy.copy(self.processor)
        processor.image_processor = _CachedImageProcessor(self.processor.image_processor, self, key, size)
        return processor

    def _run(
        self, processor: Any, text: str, picture: Picture, image: Image.Image, record: str, options: Mapping[str, Any]
    ) -> dict[str, Any]:
        try:
            return dict(processor(text=[text], images=[image], **options))
        except Exception as error:  # a processor may raise anything, such as for a strip of 5000 x 1 pixels
            raise DataFormatError(
                f"record {record}: the processor cannot use picture {picture_name(picture)} of {image.width} x "
                f"{image.height} pixels: {str(error) or repr(error)}"
            ) from error

    def get_or_compute(self, key: Any, size: tuple[int, int], compute: Callable[[], Any]) -> Any:
        """Return the cached value of a key, computing it first if needed, as a copy that the caller may take apart."""
        if key in self._entries:
            return copy.copy(self._entries[key].value)
        value = compute()
        byte_count = _byte_count(value)
        if byte_count <= self.max_bytes:
            self._entries[key] = _Entry(copy.copy(value), byte_count, size)
            self.cached_bytes += byte_count
            while self.cached_bytes > self.max_bytes:
                self.cached_bytes -= self._entries.popitem(last=False)[1].byte_count
        return value


class _Entry(NamedTuple):
    """A cached result, its size in bytes, and width and height of the picture."""

    value: Any
    byte_count: int
    size: tuple[int, int]


class _CachedImageProcessor:
    """Stand-in for an image processor that returns the cached result of one picture."""

    def __init__(self, image_processor: Any, cache: CachingProcessor, key: Any, size: tuple[int, int]) -> None:
        self._image_processor, self._cache, self._key, self._size = image_processor, cache, key, size

    def __getattr__(self, name: str) -> Any:
        return getattr(self._image_processor, name)

    def __call__(self, images: Any, *args: Any, **options: Any) -> Any:
        return self._cache.get_or_compute(
            self._key, self._size, lambda: self._image_processor(images, *args, **options)
        )


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
