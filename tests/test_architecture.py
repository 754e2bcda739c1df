"""docs/architecture.md names files that exist, and lists the layers as import-linter checks them."""

from __future__ import annotations

import re
import tomllib
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "lightning_neuralgate"
PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")


def sections() -> dict[str, str]:
    titles_and_texts = re.split(r"^## (.+)$", PAGE, flags=re.MULTILINE)[1:]
    return dict(zip(titles_and_texts[::2], titles_and_texts[1::2], strict=True))


def named_paths(text: str) -> list[str]:
    return re.findall(r"`([\w/]+(?:/|\.py))`", text)


def test_named_files_exist() -> None:
    paths = named_paths(PAGE)
    assert len(paths) > 30
    for path in paths:
        assert (PACKAGE / path).exists() or (ROOT / path).exists(), path


def test_a_walk_names_each_file_at_most_twice() -> None:
    walks = {title: text for title, text in sections().items() if title.startswith("From ")}
    assert len(walks) == 3
    for title, text in walks.items():
        for path, count in Counter(named_paths(text)).items():
            assert count <= 2, f"{title}: {path}"


def test_layers_are_those_of_the_import_linter() -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"][
        "contracts"
    ]
    layers = next(contract["layers"] for contract in contracts if contract["type"] == "layers")
    rows = [line.split("|")[1] for line in sections()["Layers"].splitlines() if line.startswith("| `")]
    shown = [" | ".join(name.rstrip("/").removesuffix(".py") for name in named_paths(row)) for row in rows]
    assert shown == layers
