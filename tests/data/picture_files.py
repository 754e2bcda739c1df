"""Picture files in which the raw pixels differ from what a viewer shows.

Each shows a dark left half and a white right half.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageCms

SIZE = (16, 12)


def _halves(dark: int, light: int, kind: type = np.uint8) -> np.ndarray:
    pixels = np.full((SIZE[1], SIZE[0]), light, kind)
    pixels[:, : SIZE[0] // 2] = dark
    return pixels


def _saved(image: Image.Image, kind: str, **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def _chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def png(rows: bytes, depth: int, colour: int, *chunks: tuple[bytes, bytes], size: tuple[int, int] = SIZE) -> bytes:
    """Build a PNG file of raw rows without filter bytes."""
    per_row = len(rows) // size[1] or 1
    filtered = b"".join(b"\0" + rows[start : start + per_row] for start in range(0, len(rows), per_row))
    parts = [_chunk(b"IHDR", struct.pack(">IIBBBBB", *size, depth, colour, 0, 0, 0))]
    parts += [_chunk(name, content) for name, content in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join([*parts, _chunk(b"IDAT", zlib.compress(filtered)), _chunk(b"IEND", b"")])


def _tiff(content: bytes, bits: int, photometric: int) -> bytes:
    tags = {
        256: SIZE[0],
        257: SIZE[1],
        258: bits,
        259: 1,
        262: photometric,
        273: 8,
        277: 1,
        278: SIZE[1],
        279: len(content),
    }
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in sorted(tags.items()))
    return b"II*\0" + struct.pack("<I", 8 + len(content)) + content + struct.pack("<H", len(tags)) + entries + bytes(4)


def _twelve_bits() -> bytes:
    pairs = _halves(0, 4095, np.int64).reshape(-1, 2)
    return _tiff(b"".join(bytes((a >> 4, (a & 15) << 4 | b >> 8, b & 255)) for a, b in pairs), 12, 1)


def _transparent(mode: str) -> bytes:
    """Dark writing on a transparent sheet whose hidden colour is dark too."""
    rgba = Image.new("RGBA", SIZE, (20, 20, 20, 0))
    rgba.paste((20, 20, 20, 255), (0, 0, SIZE[0] // 2, SIZE[1]))
    return _saved(rgba if mode == "RGBA" else rgba.convert(mode), "PNG")


def _palette() -> bytes:
    image = Image.fromarray(_halves(0, 1)).convert("P")
    image.putpalette([20, 20, 20, 21, 21, 21])
    return _saved(image, "PNG", transparency=1)


def _grey() -> Image.Image:
    return Image.fromarray(_halves(20, 255))


def _without_adobe(jpeg: bytes) -> bytes:
    start = jpeg.index(b"\xff\xee")
    (length,) = struct.unpack(">H", jpeg[start + 2 : start + 4])
    return jpeg[:start] + jpeg[start + 2 + length :]


def _ink(inverted: bool) -> bytes:
    """Black ink in the left half; `inverted`: as Adobe programs store it, with their marker."""
    black = Image.fromarray(_halves(235, 0))
    none = Image.new("L", SIZE)
    jpeg = _saved(Image.merge("CMYK", (none, none, none, black)), "JPEG", quality=100)
    if inverted:
        return jpeg
    upside = Image.merge("CMYK", [Image.eval(band, lambda value: 255 - value) for band in (none, none, none, black)])
    return _without_adobe(_saved(upside, "JPEG", quality=100))


def _exif(turn: int, kind: str) -> bytes:
    turned = {6: Image.Transpose.ROTATE_90, 3: Image.Transpose.ROTATE_180, 2: Image.Transpose.FLIP_LEFT_RIGHT}[turn]
    exif = Image.Exif()
    exif[0x0112] = turn
    options: dict[str, object] = {"lossless": True} if kind == "WEBP" else {"quality": 100} if kind == "JPEG" else {}
    return _saved(_grey().convert("RGB").transpose(turned), kind, exif=exif, **options)


def swapped_profile() -> bytes:
    """An ICC profile of a colour space in which red and blue are swapped."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    swapped = profile.replace(b"rXYZ", b"tmp!").replace(b"bXYZ", b"rXYZ").replace(b"tmp!", b"bXYZ")
    return swapped.replace("sRGB".encode("utf-16-be"), "test".encode("utf-16-be"))


def _bmp_unused_alpha() -> bytes:
    pixels = np.zeros((SIZE[1], SIZE[0], 4), np.uint8)
    pixels[..., :3] = _halves(20, 255)[::-1, :, None]
    masks = struct.pack("<IIII", 0xFF0000, 0xFF00, 0xFF, 0xFF000000)
    header = struct.pack("<IiiHHIIiiII", 108, *SIZE, 1, 32, 3, pixels.nbytes, 0, 0, 0, 0) + masks + bytes(52)
    return (
        b"BM"
        + struct.pack("<IHHI", 14 + len(header) + pixels.nbytes, 0, 0, 14 + len(header))
        + header
        + pixels.tobytes()
    )


def _hidden_default_image() -> bytes:
    white = Image.new("L", SIZE, 255)
    return _saved(white, "PNG", save_all=True, append_images=[_grey(), white], default_image=True)


def _16bit_key() -> bytes:
    dark, clear = (20 << 8 | 7,) * 3, (30 << 8 | 9,) * 3
    row = struct.pack(">24H", *dark * 8) + struct.pack(">24H", *clear * 8)
    return png(row * SIZE[1], 16, 2, (b"tRNS", struct.pack(">3H", *clear)))


FILES: dict[str, Callable[[], bytes]] = {
    "grey of 16 bits, PNG": lambda: _saved(Image.fromarray(_halves(20 * 257, 65535, np.uint16)), "PNG"),
    "grey of 16 bits, TIFF": lambda: _saved(Image.fromarray(_halves(20 * 257, 65535, np.uint16)), "TIFF"),
    "grey of 16 bits, PGM": lambda: b"P5 16 12 65535\n" + _halves(20 * 257, 65535, np.dtype(">u2")).tobytes(),
    "grey of 12 bits, TIFF": _twelve_bits,
    "grey of 16 bits, TIFF, 0 is white": lambda: _tiff(_halves(65535 - 20 * 257, 0, np.uint16).tobytes(), 16, 0),
    "transparent, RGBA": lambda: _transparent("RGBA"),
    "transparent, LA": lambda: _transparent("LA"),
    "transparent, palette": _palette,
    "transparent colour, RGB": lambda: _saved(
        Image.merge("RGB", [Image.fromarray(_halves(20, 30))] * 3), "PNG", transparency=(30, 30, 30)
    ),
    "transparent grey of 2 bits": lambda: png(b"\x00\x00\x55\x55" * 12, 2, 0, (b"tRNS", b"\0\1")),
    "transparent grey of 16 bits": lambda: png(
        _halves(20 * 257, 30 * 257, np.dtype(">u2")).tobytes(), 16, 0, (b"tRNS", struct.pack(">H", 30 * 257))
    ),
    "transparent, WebP": lambda: _saved(
        Image.open(io.BytesIO(_transparent("RGBA"))), "WEBP", lossless=True, exact=True
    ),
    "transparent colour of 16 bits": _16bit_key,
    "turned, JPEG": lambda: _exif(6, "JPEG"),
    "turned round, PNG": lambda: _exif(3, "PNG"),
    "mirrored, WebP": lambda: _exif(2, "WEBP"),
    "turned, TIFF": lambda: _exif(6, "TIFF"),
    "ink, Adobe": lambda: _ink(inverted=True),
    "ink, without Adobe's marker": lambda: _ink(inverted=False),
    "linear gamma": lambda: png(_halves(2, 170).tobytes(), 8, 0, (b"gAMA", struct.pack(">I", 100000))),
    "unused alpha, BMP": _bmp_unused_alpha,
    "animated, with another default image": _hidden_default_image,
}
"""Name -> content of a file."""
