"""The notebooks are stored without outputs, and run on a tiny model."""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any

import pytest

from tests.demo.report.data import answers, run
from tests.helpers.tiny_llava import tiny_llava
from tests.helpers.training import random_gate

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "examples").glob("*.ipynb"))
FILES = {
    "first_edit": ("data/records.jsonl", "gate/gate.json", "edited/config.json"),
    "your_own_pictures": ("data/records.jsonl", "edited/config.json"),
    "callback_in_a_fine_tuning": ("gate/gate.json", "adapter/adapter_config.json", "merged/config.json"),
    "reading_a_report": (),
}
"""Notebook -> files that it writes."""


def read_cells(notebook: Path) -> list[dict[str, Any]]:
    cells: list[dict[str, Any]] = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    return cells


def test_there_are_tests_for_all_notebooks() -> None:
    assert {notebook.stem for notebook in NOTEBOOKS} == set(FILES)


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda notebook: notebook.stem)
def test_notebooks_have_no_outputs_and_one_cell_of_parameters(notebook: Path) -> None:
    code = [cell for cell in read_cells(notebook) if cell["cell_type"] == "code"]
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)
    assert sum("parameters" in cell["metadata"].get("tags", []) for cell in code) == 1
    for cell in code:
        ast.parse("".join(cell["source"]))


def write_run(folder: Path) -> None:
    """Write the files of a demo's run that the notebook reads, with made-up figures."""
    (folder / "results.json").write_text(json.dumps(run()), encoding="utf-8")
    from lightning_neuralgate.evaluation.answers import write_answers

    write_answers(folder / "answers.jsonl", answers(folder, records=2))
    random_gate(tiny_llava()).save_pretrained(folder / "gate")


@pytest.mark.slow
@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda notebook: notebook.stem)
def test_notebooks_run(notebook: Path, checkpoint: Path, tmp_path: Path) -> None:
    import nbformat
    from nbclient import NotebookClient

    values = {"MODEL": str(checkpoint), "LAYER": 1, "EPOCHS": 1, "OUT": str(tmp_path / "out"), "RUN": str(tmp_path)}
    write_run(tmp_path)
    content = nbformat.read(notebook, as_version=4)
    nbformat.validate(content)
    place = next(i for i, cell in enumerate(content.cells) if "parameters" in cell.metadata.get("tags", []))
    smaller = "\n".join(f"{name} = {value!r}" for name, value in values.items())
    content.cells.insert(place + 1, nbformat.v4.new_code_cell(smaller))
    NotebookClient(
        content, timeout=500, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    ).execute()
    for name in FILES[notebook.stem]:
        assert (tmp_path / "out" / name).is_file(), name
