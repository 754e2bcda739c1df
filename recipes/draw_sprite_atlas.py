"""Rasterize the emoji of the scenes into the sprite atlas that ships with the package.

    apt-get install fonts-noto-color-emoji
    python recipes/draw_sprite_atlas.py --out lightning_neuralgate/data/scenes/sprites/atlas.png

Reads `sprites/objects.yaml`, draws the emoji of each object with Noto Color Emoji, trims it, and writes one PNG whose
cells are in the order of that file. Run it again after adding an object.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from lightning_neuralgate.data.scenes.sprites import CELL, COLUMNS, object_entries
from lightning_neuralgate.runtime.files import atomic_write

FONT = Path("/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf")
STRIKE = 109
"""The only size, in pixels, at which this bitmap font has glyphs."""
COLOURS = 255
"""Palette size of the atlas; with all colours it would be larger than 2 MB."""


def rasterize(emoji: str, font: ImageFont.FreeTypeFont) -> Image.Image:
    """Draw an emoji into a cell, trimmed and centred; its longer side fills the cell."""
    glyph = Image.new("RGBA", (160, 160), (0, 0, 0, 0))
    ImageDraw.Draw(glyph).text((10, 10), emoji, font=font, embedded_color=True)
    glyph = glyph.crop(glyph.getbbox())
    scale = CELL / max(glyph.size)
    glyph = glyph.resize(
        (max(1, round(glyph.width * scale)), max(1, round(glyph.height * scale))), Image.Resampling.LANCZOS
    )
    cell = Image.new("RGBA", (CELL, CELL), (0, 0, 0, 0))
    cell.paste(glyph, ((CELL - glyph.width) // 2, (CELL - glyph.height) // 2))
    return cell


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--font", type=Path, default=FONT)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    font = ImageFont.truetype(str(args.font), STRIKE)
    entries = object_entries()
    rows = -(-len(entries) // COLUMNS)
    atlas = Image.new("RGBA", (COLUMNS * CELL, rows * CELL), (0, 0, 0, 0))
    for index, entry in enumerate(entries.values()):
        atlas.paste(rasterize(entry.emoji, font), (index % COLUMNS * CELL, index // COLUMNS * CELL))
    with atomic_write(args.out) as draft:
        atlas.quantize(COLOURS, Image.Quantize.FASTOCTREE).save(draft, format="PNG", optimize=True)
    print(f"{len(entries)} objects, {args.out.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
