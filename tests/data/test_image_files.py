from __future__ import annotations

import hashlib
import io
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from lightning_neuralgate.data.image_files import MAX_PIXELS, picture_digest, read_image
from lightning_neuralgate.data.pictures import CachingProcessor
from lightning_neuralgate.errors import DataFormatError
from tests.data.picture_files import FILES, SIZE, png, swapped_profile
from tests.data.test_collator import idefics3


@pytest.mark.parametrize("name", FILES)
def test_a_picture_is_read_as_a_viewer_shows_it(name: str) -> None:
    image = read_image(FILES[name]())
    assert (image.mode, image.size) == ("RGB", SIZE)
    grey = np.asarray(image.convert("L")).astype(int)
    assert grey[:, :7].max() < 60, "the writing is dark"
    assert grey[:, 9:].min() > 200, "the sheet is white"


def test_colours_follow_the_embedded_profile() -> None:
    stream = io.BytesIO()
    Image.new("RGB", SIZE, (250, 10, 10)).save(stream, "PNG", icc_profile=swapped_profile())
    red, _, blue = read_image(stream.getvalue()).getpixel((3, 3))  # type: ignore[misc]
    assert blue > 200 > 100 > red


def test_a_damaged_profile_is_ignored() -> None:
    stream = io.BytesIO()
    Image.new("RGB", SIZE, (250, 10, 10)).save(stream, "PNG", icc_profile=swapped_profile()[:200])
    assert read_image(stream.getvalue()).getpixel((3, 3)) == (250, 10, 10)


def test_alpha_is_kept_on_request() -> None:
    image = read_image(FILES["transparent, LA"](), alpha=True)
    assert image.mode == "RGBA"
    assert (image.getpixel((2, 2)), image.getpixel((12, 2))) == ((20, 20, 20, 255), (20, 20, 20, 0))


def _saved(image: Image.Image, kind: str) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind)
    return stream.getvalue()


REFUSED = {
    "PostScript": (
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n",
        "not one of the formats",
    ),
    "a Targa file": (_saved(Image.new("RGB", SIZE), "TGA"), "not one of the formats"),
    "a bomb": (png(b"", 8, 0, size=(60000, 60000)), "pixels"),
    "a smaller bomb": (png(b"", 8, 0, size=(11000, 11000)), "11000 x 11000 pixels"),
    "floating point": (_saved(Image.new("F", SIZE, 0.5), "TIFF"), "viewers show differently"),
    "32 bits": (_saved(Image.new("I", SIZE, 70000), "TIFF"), "32 bits or a sign"),
    "LAB colours": (_saved(Image.new("LAB", SIZE), "TIFF"), "kind LAB"),
    "a file cut short": (FILES["grey of 16 bits, PNG"]()[:-30], "truncated"),
    "nothing": (b"", "not one of the formats"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_other_files_are_refused_with_record_and_file(tmp_path: Path, name: str) -> None:
    content, reason = REFUSED[name]
    (tmp_path / "scan.png").write_bytes(content)
    with pytest.raises(DataFormatError, match=rf"record r7: picture .*scan\.png cannot be read: .*{reason}"):
        read_image(tmp_path / "scan.png", "r7")


def test_the_bound_is_on_pixels_not_on_sides() -> None:
    assert MAX_PIXELS < 60000**2
    assert read_image(png(bytes(30000), 8, 0, size=(30000, 1))).size == (30000, 1)


def test_a_digest_tells_apart_what_looks_different(tmp_path: Path) -> None:
    # the indices of the pixels are the same; an older reader's answers about a file must not be used again
    first, second = Image.new("P", SIZE), Image.new("P", SIZE)
    first.putpalette([255, 0, 0])
    second.putpalette([0, 0, 255])
    assert picture_digest(first) != picture_digest(second)
    (tmp_path / "a.png").write_bytes(FILES["turned, JPEG"]())
    assert picture_digest(tmp_path / "a.png") != hashlib.sha256(FILES["turned, JPEG"]()).hexdigest()


@pytest.mark.parametrize("name", ["turned, JPEG", "turned, TIFF"])
def test_cached_results_have_the_size_of_the_turned_picture(tmp_path: Path, name: str) -> None:
    stream = io.BytesIO(FILES[name]())
    with Image.open(stream) as image:
        stored = image.resize((image.width * 8, image.height * 4), Image.Resampling.NEAREST)
        stored.save(tmp_path / "a.png", exif=image.getexif())
    processor, options = idefics3(), {"return_tensors": "pt", "add_special_tokens": True}
    cache = CachingProcessor(processor)
    for _ in range(3):
        found = cache("<image>What?", tmp_path / "a.png", **options)
        expected = processor(text=["<image>What?"], images=[read_image(tmp_path / "a.png")], **options)
        assert found["input_ids"].tolist() == expected["input_ids"].tolist()
    assert cache.cached_bytes > 0


class StripRefusing:
    """A processor that refuses strips, as Qwen2-VL's does."""

    image_processor = SimpleNamespace()

    def __call__(self, text: object, images: list[Image.Image], **options: object) -> dict[str, object]:
        raise ValueError("absolute aspect ratio must be smaller than 200")


@pytest.mark.parametrize("max_bytes", [0, 1000])
def test_a_strip_that_the_processor_refuses_is_named(tmp_path: Path, max_bytes: int) -> None:
    Image.new("RGB", (5000, 1)).save(tmp_path / "strip.png")
    with pytest.raises(
        DataFormatError, match=r"record r7: the processor cannot use picture .*strip\.png of 5000 x 1 pix"
    ):
        CachingProcessor(StripRefusing(), max_bytes)("", tmp_path / "strip.png", "r7")
