"""Draw the cast of the demo, an animated SVG, from the folder of a finished run.

    neuralgate demo --out runs/demo
    python recipes/draw_demo_cast.py --run runs/demo

The text is what `neuralgate demo` prints to standard output: the stages, and the tables and the headline of `results.json`,
printed by the same functions. A stage takes as long in the cast as its share of the run's seconds. Progress bars, which go to
standard error, are left out. The animation is CSS without a script and plays once; it ends with the whole text, which is
also what viewers without animations, and readers who prefer reduced motion, see from the start.
"""

from __future__ import annotations

import argparse
import io
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

from lightning_neuralgate.cli.demo import print_ordinary, print_table
from lightning_neuralgate.demo.run import STAGES, stage_line
from lightning_neuralgate.errors import DataFormatError
from lightning_neuralgate.runtime.parsing import read_json_object

COMMAND = "neuralgate demo"
DURATION = 12.0
"""Seconds until the last line appears."""
FONT_SIZE, CHARACTER, LINE, PADDING, BAR = 12, 7.225, 17, 16, 30
"""In pixels: size of the text, width of a character, heights of a line, of the margin and of the title bar."""
MAX_BYTES = 300_000
_BORDERS = tuple("┏┃┡│├└")
"""First characters of the lines of a table."""


class Line(NamedTuple):
    """A line of the terminal, and the second at which it appears."""

    text: str
    second: float


def cast_lines(results: Mapping[str, Any], command: str = COMMAND) -> list[Line]:
    """Return the lines that the demo printed.

    Args:
        results: content of `results.json`.
        command: the command that made the run.

    Raises:
        DataFormatError: the results have no seconds of each stage.
    """
    seconds = results.get("seconds") or {}
    if missing := [name for name in STAGES if not isinstance(seconds.get(name), (int, float))]:
        raise DataFormatError(f"results.json: seconds of stage '{missing[0]}' are missing; run `neuralgate demo` again")
    lines, passed = [Line(f"$ {command}", 0.0)], 0.0
    total = sum(seconds[name] for name in STAGES) or 1.0
    for name in STAGES:
        lines.append(Line(stage_line(name), 0.5 + (DURATION - 0.5) * passed / total))
        passed += seconds[name]
    printed = io.StringIO()
    with redirect_stdout(printed):
        print_table(dict(results))
        print_ordinary(dict(results))
    return lines + [Line(text.rstrip(), DURATION) for text in printed.getvalue().rstrip().splitlines()]


def wrap(line: Line, columns: int) -> list[Line]:
    """Break a line that is longer than the terminal is wide, as a terminal does."""
    starts = range(0, max(len(line.text), 1), columns)
    return [Line(line.text[start : start + columns], line.second) for start in starts]


def draw_cast(lines: Sequence[Line], title: str) -> str:
    """Return the SVG; it is as wide as the widest line of a table."""
    columns = max((len(line.text) for line in lines if line.text[:1] in _BORDERS), default=100)
    shown = [part for line in lines for part in wrap(line, columns)]
    width = round(columns * CHARACTER + 2 * PADDING)
    height = BAR + len(shown) * LINE + 2 * PADDING
    rows = []
    for number, line in enumerate(shown):
        place = f'x="{PADDING}" y="{BAR + PADDING + (number + 1) * LINE - 5}"'
        style = f' style="animation-delay: {line.second:.2f}s"' if line.second else ""
        kind = ' class="command"' if number == 0 else ""
        # a fixed width keeps the columns of tables aligned in any font
        fixed = f'textLength="{len(line.text) * CHARACTER:.1f}" lengthAdjust="spacingAndGlyphs"'
        rows.append(f"<text {place} {fixed}{kind}{style}>{escape(line.text)}</text>" if line.text else "")
    dots = "".join(f'<circle cx="{18 + 18 * place}" cy="15" r="5"/>' for place in range(3))
    return f"""<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" \
role="img" aria-labelledby="title">
<title id="title">{escape(title)}</title>
<style>
text {{ font: {FONT_SIZE}px ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace; }}
text {{ fill: #e6edf3; white-space: pre; animation: appear 1ms both; }}
.command {{ fill: #6fdd8b; }}
.caption {{ fill: #9198a1; animation: none; }}
circle {{ fill: #3d444d; }}
@keyframes appear {{ from {{ opacity: 0; }} }}
@media (prefers-reduced-motion: reduce) {{ text {{ animation: none; }} }}
</style>
<rect width="{width}" height="{height}" rx="10" fill="#0d1117"/>
{dots}
<text class="caption" x="{width / 2:.0f}" y="19" text-anchor="middle">{escape(title)}</text>
<g xml:space="preserve">
{chr(10).join(filter(None, rows))}
</g>
</svg>
"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the run and write the cast."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, default=Path("runs/demo"), help="Folder that `neuralgate demo` wrote.")
    parser.add_argument("--out", type=Path, default=Path("docs/images/demo.svg"), help="SVG file to write.")
    parser.add_argument("--command", default=COMMAND, help="The command that made the run, as it is shown.")
    options = parser.parse_args(arguments)
    file = options.run / "results.json"
    if not file.is_file():
        raise DataFormatError(f"{file} is missing: run `{COMMAND} --out {options.run}` first, or name a run with --run")
    results = read_json_object(file, own=True)
    lines = cast_lines(results, options.command)
    model = (results.get("settings") or {}).get("model", "unknown model")
    total = sum(results["seconds"].values())
    picture = draw_cast(lines, f"{options.command} on {model}: {total:.0f} s, shown in {DURATION:.0f} s")
    size = len(picture.encode())
    if size > MAX_BYTES:
        raise DataFormatError(f"the cast has {size:,} bytes, more than {MAX_BYTES:,}: the run printed too much")
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(picture, encoding="utf-8", newline="\n")
    print(f"written: {options.out} ({size:,} bytes)")


if __name__ == "__main__":
    main()
