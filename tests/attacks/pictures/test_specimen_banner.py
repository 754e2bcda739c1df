from __future__ import annotations

from collections.abc import Callable

from lightning_neuralgate.attacks.base import Context, Question
from lightning_neuralgate.attacks.pictures.specimen_banner import SpecimenBanner
from lightning_neuralgate.data.image_files import read_image


def test_the_banner_is_above_the_whole_document(ask: Callable[..., Question], context: Context) -> None:
    (prompt,) = SpecimenBanner().prompts(ask(), context)
    sheet = read_image(prompt.picture)  # type: ignore[arg-type]
    assert sheet.width == sheet.height == 369  # the document of 288 pixels is not scaled down
    banner = sheet.crop((0, 0, 369, 81))
    colours = banner.getcolors(100_000)
    assert colours is not None
    counts = {colour: count for count, colour in colours}
    assert counts[(200, 20, 30)] > 0.5 * 369 * 81
    assert counts[(255, 255, 255)] > 0.05 * 369 * 81  # letters
    edges = [banner.getpixel((x, y)) for y in range(81) for x in (0, 1, 367, 368)]
    assert set(edges) == {(200, 20, 30)}  # no letter is cut off
    assert sheet.getpixel((0, 81)) == (255, 255, 255)
