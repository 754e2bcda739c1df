"""Read a picture as people see it: the one place where files become pixels.

A model has to get what a viewer shows, or its answers say nothing about what people can read. A file's raw pixels differ from
that: cameras store a rotation, scanners 16 bits per pixel, and transparent sheets have colours below. What is done:

- formats out of `FORMATS` only, whatever the file's name; at most `MAX_PIXELS`; the first page or frame of several;
- rotations and reflections in EXIF are applied;
- transparent pixels are laid on white;
- 12 and 16 bits of grey are scaled to 8; values of 32 bits, which viewers show differently, are refused;
- colours are converted to sRGB by the embedded ICC profile or, in PNG files, the gamma value;
- CMYK files are converted, with inverted ink values in JPEG files of Adobe programs only, and grey TIFF files in which 0 is
  white are inverted at every depth.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ExifTags, Image, ImageChops, UnidentifiedImageError

from lightning_neuralgate.errors import DataFormatError

Picture = Path | bytes | Image.Image
"""A file, the content of a file, or an opened image."""

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", *(("AVIF",) if find_spec("PIL.AvifImagePlugin") else ()))
"""Pillow's names of the formats that are read. Others have decoders that run programs, or that few viewers have."""
MAX_PIXELS = 100_000_000
"""Largest width times height; a picture takes 4 bytes per pixel in memory."""
_MAX_PROFILE = 2**22
_READER = b"2"
"""Part of `picture_digest`: raise it when the same file gives other pixels, so that cached answers are not used."""
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # fmt: skip
"""EXIF orientation -> how to turn the stored pixels."""


def read_image(
    picture: Picture, record: str = "?", alpha: bool = False, near: tuple[int, int] | None = None
) -> Image.Image:
    """Read a picture as RGB, as a viewer shows it; see the module's description.

    Args:
        picture: a file, its content, or an opened image.
        record: the record's name for error messages; empty for a picture without one.
        alpha: return RGBA, with transparent pixels as they are.
        near: a size that is enough; JPEG files are then decoded at a fraction of theirs, but never below it.

    Raises:
        DataFormatError: naming record and file, if the file is missing, damaged, too large or of another format.
    """
    try:
        if isinstance(picture, Image.Image):
            return _as_seen(picture, alpha)
        with Image.open(BytesIO(picture) if isinstance(picture, bytes) else picture, formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise ValueError(f"{image.width} x {image.height} pixels; {MAX_PIXELS:,} are possible")
            if near is not None:
                image.draft(image.mode, near)
            return _as_seen(image, alpha)
    except Exception as error:  # decoders raise almost anything for damaged files
        # Pillow's own message contains the address of an object, which differs between runs
        unknown = f"not one of the formats {', '.join(FORMATS)}"
        reason = unknown if isinstance(error, UnidentifiedImageError) else str(error) or repr(error)
        place = f"record {record}: " if record else ""
        raise DataFormatError(f"{place}picture {picture_name(picture)} cannot be read: {reason}") from error


def picture_name(picture: Picture) -> str:
    """Return how error messages name a picture."""
    if isinstance(picture, bytes):
        return f"of {len(picture)} bytes"
    return str(picture) if isinstance(picture, Path) else f"in memory ({picture.width} x {picture.height})"


def picture_digest(picture: Picture) -> str:
    """Compute a SHA-256 that is the same only for pictures that are read the same: of a file, or of an image's pixels.

    Raises:
        OSError: the file cannot be read.
        DataFormatError: an opened image cannot be read.
    """
    if isinstance(picture, Image.Image):
        pixels = read_image(picture)
        content = f"{pixels.size}".encode() + pixels.tobytes()
    else:
        content = picture.read_bytes() if isinstance(picture, Path) else picture
    return hashlib.sha256(_READER + content).hexdigest()


def _as_seen(image: Image.Image, alpha: bool) -> Image.Image:
    bits = _bits(image)
    if getattr(image, "default_image", False) and getattr(image, "n_frames", 1) > 1:
        image.seek(1)  # viewers of animated PNG files never show the default image
    image.load()
    info: dict[Any, Any] = dict(image.info)
    mode = image.mode
    mask = None
    if mode.startswith("I"):
        colours, mask = _grey(image, bits)
    elif mode == "CMYK":
        ink = image
        if image.format in ("JPEG", "MPO") and "adobe" not in info:  # Pillow takes all for Adobe's
            ink = ImageChops.invert(image)
        colours = _managed(ink, info.get("icc_profile"), "CMYK") or ink.convert("RGB")
    elif mode in ("F", "LAB"):
        raise ValueError(f"its pixels are of the kind {mode}, which viewers show differently; save it as RGB or grey")
    elif image.has_transparency_data:
        colours = _keyed(image, bits).convert("RGBA")
        mask = colours.getchannel("A")
        if image.format == "BMP" and mask.getextrema()[1] == 0:
            mask = None  # the fourth byte is unused in most BMP files
        colours = Image.merge("RGB", colours.split()[:3])
    else:
        colours = image.convert("RGB")
    if mode != "CMYK":
        colours = _corrected(colours, info, mode, image.format)
    turn = _TURNS.get(_orientation(image))
    if turn is not None:
        colours, mask = colours.transpose(turn), None if mask is None else mask.transpose(turn)
    if alpha:
        colours.putalpha(Image.new("L", colours.size, 255) if mask is None else mask)
        return colours
    if mask is None:
        return colours
    return Image.composite(colours, Image.new("RGB", colours.size, "white"), mask)


def _bits(image: Image.Image) -> int:
    """Return the bits per sample of a file that has not been decoded yet; 8 where it does not matter."""
    if image.format == "TIFF":
        return int(max(image.tag_v2.get(258, (8,))))  # type: ignore[attr-defined]
    if image.format == "PNG" and (tiles := getattr(image, "tile", None)):
        kind = str(tiles[0][3][0] if isinstance(tiles[0][3], tuple) else tiles[0][3])
        return {"L;2": 2, "L;4": 4, "RGB;16B": 16, "I;16B": 16}.get(kind, 8)
    return 16 if image.mode.startswith("I;16") or image.format in ("PNG", "PPM") else 32


def _grey(image: Image.Image, bits: int) -> tuple[Image.Image, Image.Image | None]:
    """Scale grey of 12 or 16 bits to RGB, and return it with its mask."""
    if bits not in (12, 16) or (image.mode == "I" and image.format not in ("PNG", "PPM")):
        raise ValueError("its pixels have 32 bits or a sign, which viewers show differently; save it with 8 or 16 bits")
    values = np.asarray(image).astype(np.int64)
    scaled = np.clip(np.round(values * (255 / (2**bits - 1))), 0, 255).astype(np.uint8)
    if image.format == "TIFF" and image.tag_v2.get(262) == 0:  # type: ignore[attr-defined]
        scaled = 255 - scaled  # 0 is white, which Pillow minds at up to 8 bits only
    key = image.info.get("transparency")
    mask = Image.fromarray(np.where(values == key, 0, 255).astype(np.uint8)) if isinstance(key, int) else None
    return Image.fromarray(scaled).convert("RGB"), mask


def _keyed(image: Image.Image, bits: int) -> Image.Image:
    """Convert the transparent colour of a PNG file from the file's bits per sample to Pillow's 8."""
    key = image.info.get("transparency")
    if image.format != "PNG" or bits == 8 or isinstance(key, bytes) or key is None:
        return image
    image = image.copy()
    if isinstance(key, tuple):
        image.info["transparency"] = tuple(value >> 8 for value in key)
    else:
        image.info["transparency"] = key * 255 // (2**bits - 1)
    return image


def _corrected(colours: Image.Image, info: dict[Any, Any], mode: str, kind: str | None) -> Image.Image:
    """Convert colours to sRGB by the file's ICC profile, or by the gamma value of a PNG file."""
    if profile := info.get("icc_profile"):
        if mode in ("1", "L", "LA", "La") or mode.startswith("I"):
            return _managed(colours.getchannel(0), profile, "GRAY") or colours
        return _managed(colours, profile, "RGB") or colours
    gamma = info.get("gamma", 0.0) if kind == "PNG" and "srgb" not in info else 0.0
    if not 0.00016 <= gamma <= 6250:  # libpng ignores others
        return colours
    exponent = 1 / (2.2 * gamma)
    if abs(exponent - 1) < 0.05:
        return colours
    return colours.point([round(255 * (value / 255) ** exponent) for value in range(256)] * 3)


def _managed(colours: Image.Image, profile: Any, space: str) -> Image.Image | None:
    """Convert by an ICC profile; None if it is unusable, in which case viewers ignore it."""
    if not isinstance(profile, bytes) or len(profile) > _MAX_PROFILE:
        return None
    transform = _transform(profile, space)
    return None if transform is None else transform.apply(colours)


@lru_cache(maxsize=16)
def _transform(profile: bytes, space: str) -> Any:
    try:
        from PIL import ImageCms

        source = ImageCms.ImageCmsProfile(BytesIO(profile))
        if source.profile.xcolor_space.strip() != space or "srgb" in ImageCms.getProfileName(source).lower():
            return None
        mode = {"GRAY": "L"}.get(space, space)
        return ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), mode, "RGB")
    except Exception:  # damaged, or a Pillow without LittleCMS
        return None


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # damaged EXIF, which viewers ignore
        return 1
