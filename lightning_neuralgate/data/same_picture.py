"""Find pictures that show the same, also after one was saved in another format or size, or was turned or mirrored."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lightning_neuralgate.data.image_files import read_image

_EDGE, _COARSE = 48, 8
"""Cells per side in which lightness, and colours, are compared, whatever a picture's proportions."""
_CELL, _FINEST = 6, 384
"""Larger pictures are then compared in cells of this many pixels, at most this many per side: one other digit has to show."""
_LIGHTNESS, _COLOUR = 20, 10
"""Largest difference of a cell, of 255. On rendered documents, JPEG of quality 40 and half the size differ by 12 in
lightness, one other digit by 62 and more. Pictures of little contrast may differ by a quarter of it."""
_Cells = NDArray[np.int16]


class PictureIndex:
    """Pictures to compare others with.

    A picture that was cropped or otherwise retouched counts as another one.

    Args:
        pictures: file and record id of each picture.

    Raises:
        DataFormatError: naming record and file of one that cannot be read.
    """

    def __init__(self, pictures: Sequence[tuple[Path, str]]) -> None:
        self.pictures = list(pictures)
        cells = [_cells(path, record) for path, record in self.pictures]
        self._lightness = [lightness for lightness, _ in cells]
        limits = [_limit(colours, _COLOUR) for _, colours in cells for _ in range(8)]
        self._limits = np.array(limits, np.int16)
        turned = [view.reshape(-1) for _, colours in cells for view in _views(colours)]
        self._colours = np.stack(turned) if turned else np.empty((0, _COARSE * _COARSE * 3), np.int16)

    def find(self, picture: Path, record: str) -> str | None:
        """Return the record of a picture that shows the same, in any of its eight orientations; None if there is none.

        Raises:
            DataFormatError: naming record and file, if it cannot be read.
        """
        lightness, colours = _cells(picture, record)
        near = np.abs(self._colours - colours.reshape(-1)).max(axis=1, initial=0) <= self._limits
        for number in np.flatnonzero(near):
            index, turn = divmod(int(number), 8)
            if _differ(_views(self._lightness[index])[turn], lightness):
                continue
            path, other = self.pictures[index]
            if _same_in_detail(read_image(path, other), read_image(picture, record), turn):
                return other
        return None


def _same_in_detail(first: Image.Image, second: Image.Image, turn: int) -> bool:
    edge = min(max(first.size), max(second.size), _CELL * _FINEST) // _CELL
    if edge <= _EDGE:
        return True
    return not _differ(_views(_lightness(first, edge))[turn], _lightness(second, edge))


def _differ(first: _Cells, second: _Cells) -> bool:
    return int(np.abs(first - second).max()) > _limit(first, _LIGHTNESS)


def _limit(cells: _Cells, largest: int) -> int:
    return min(largest, max(1, int(np.ptp(cells, axis=(0, 1)).max()) // 4))


def _lightness(image: Image.Image, edge: int) -> _Cells:
    return np.asarray(image.convert("L").resize((edge, edge), Image.Resampling.BILINEAR)).astype(np.int16)


def _cells(path: Path, record: str) -> tuple[_Cells, _Cells]:
    """Return lightness, (48, 48), and colours, (8, 8, 3), of a picture."""
    try:
        stat = path.stat()
        version = stat.st_mtime_ns, stat.st_size, stat.st_ino
    except (OSError, ValueError):
        version = (0, 0, 0)  # reading it raises the error
    return _cells_of_version(path, record, version)


@lru_cache(maxsize=65536)
def _cells_of_version(path: Path, record: str, version: tuple[int, int, int]) -> tuple[_Cells, _Cells]:
    image = read_image(path, record, near=(4 * _EDGE, 4 * _EDGE))
    colours = image.resize((_COARSE, _COARSE), Image.Resampling.BOX)
    return _lightness(image, _EDGE), np.asarray(colours).astype(np.int16)


def _views(cells: _Cells) -> list[_Cells]:
    """Return the eight orientations of a picture."""
    return [np.rot90(side, turns) for side in (cells, cells[:, ::-1]) for turns in range(4)]
