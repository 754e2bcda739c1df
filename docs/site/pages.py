"""Pages of the documentation site that are not in `docs/`: files of the project, notebooks, and options of all commands."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from lightning_neuralgate.cli import SUBCOMMANDS, build_parser

ROOT = Path(__file__).parents[2]
COPIED = {
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "SECURITY.md": "security.md",
    "lightning_neuralgate/models/assets/MODEL_CARD.md": "model-card.md",
}
"""File of the project -> page."""
NOTEBOOKS = {f"examples/{file.name}": f"{file.stem}.md" for file in sorted((ROOT / "examples").glob("*.ipynb"))}
"""Notebook -> page."""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages."""
    for source, page in COPIED.items():
        text = (ROOT / source).read_text(encoding="utf-8")
        files.append(File.generated(config, page, content=_linked(text)))
    for source, page in NOTEBOOKS.items():
        files.append(File.generated(config, page, content="\n\n".join(_notebook(ROOT / source))))
    files.append(File.generated(config, "options.md", content="\n".join(_options())))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Make links to files of the project links to their pages."""
    for source, page in {**COPIED, **NOTEBOOKS}.items():
        markdown = markdown.replace(f"](../{source}", f"]({page}")
    return markdown


def _notebook(file: Path) -> Iterator[str]:
    """Yield the cells of a notebook as Markdown."""
    for cell in json.loads(file.read_text(encoding="utf-8"))["cells"]:
        text = "".join(cell["source"])
        yield f"```python\n{text}\n```" if cell["cell_type"] == "code" else text.replace(".ipynb)", ".md)")


def _linked(text: str) -> str:
    """Make links of a file at the top of the project fit a page next to those of `docs/`."""
    for source, page in COPIED.items():
        text = text.replace(f"]({source}", f"]({page}")
    return re.sub(r"\]\((?:\.\./)*(?:\.\./\.\./docs|docs)/", "](", text)


def _options() -> Iterator[str]:
    yield "# Options of all commands\n"
    yield "Made from the parser of this version. `--config FILE` reads options from a YAML file.\n"
    for name, about in SUBCOMMANDS.items():
        yield f"## {name}\n"
        yield f"{about[0].upper()}{about[1:]}.\n"
        yield "| option | meaning | default |"
        yield "| --- | --- | --- |"
        parser: Any = build_parser(name)
        (subcommands,) = (action for action in parser._actions if action.dest == "subcommand")
        for action in subcommands.choices[name]._actions:
            if action.help == "==SUPPRESS==" or action.dest in ("help", "print_config", "print_shtab"):
                continue
            words = [word for word in action.option_strings if not word.endswith("+")]  # which append to a list
            option = ", ".join(f"`{word}`" for word in words) or f"`{action.dest}`"
            default = "" if action.default is None or str(action.default) == "==SUPPRESS==" else f"`{action.default}`"
            cells = (option, _cell(str(action.help or "")), _cell(default))
            yield f"| {' | '.join(cells)} |"
        yield ""


def _cell(text: str) -> str:
    text = re.sub(r"\s+", " ", text.replace("|", "\\|")).replace("<", "&lt;")
    return re.sub(r"%\((default|type)\)s", "", text).replace("%%", "%")
