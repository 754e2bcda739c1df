"""Import time: which modules are imported by what. `python -m benchmarks.startup` measures the seconds."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from functools import lru_cache
from importlib import import_module
from pathlib import Path

import pytest

import lightning_neuralgate
from benchmarks import startup

HEAVY = {
    "torch", "lightning", "transformers", "torchmetrics", "numpy", "PIL", "pydantic", "safetensors", "huggingface_hub",
    "peft", "matplotlib", "datasets", "jinja2", "faker", "gguf", "tqdm", "rich",
}  # fmt: skip


@lru_cache
def imported_by(statement: str) -> set[str]:
    """Names of all modules in a process that has run a statement."""
    code = f"try:\n    {statement}\nfinally:\n    import sys, json; print(json.dumps([*sys.modules]), file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stderr.splitlines()[-1]))


def packages(modules: set[str]) -> set[str]:
    return {module.partition(".")[0] for module in modules}


def test_the_package_and_its_help_import_nothing_heavy() -> None:
    assert not packages(imported_by("import lightning_neuralgate")) & HEAVY
    imported = packages(imported_by("from lightning_neuralgate.cli import main; main(['--help'])"))
    assert "jsonargparse" in imported
    assert not imported & HEAVY


@pytest.mark.parametrize(
    "statement",
    ["from lightning_neuralgate import *", "from lightning_neuralgate.cli import main; main(['locate', '--help'])"],
)
def test_public_names_and_command_help_import_no_optional_library(statement: str) -> None:
    with_lightning = imported_by("import lightning")
    more = imported_by(statement) - with_lightning
    assert "lightning_neuralgate.locate.locator" in more
    # lightning and torchmetrics import rich, matplotlib and others themselves, where they are installed
    late = HEAVY - {"torch", "lightning", "transformers", "torchmetrics"} - {"pydantic", "safetensors", "tqdm"}
    assert not (packages(more) - packages(with_lightning)) & late
    assert not {"matplotlib.pyplot", "torchmetrics.functional.text.bert", "torchvision", "rich.progress"} & more
    models = {name.split(".")[2] for name in more if name.startswith("transformers.models.")}
    assert models <= {"auto", "blip_2"}, (
        "no model code is imported before a model is loaded, except what registering MiniGPT-4 needs"
    )


@pytest.mark.parametrize(
    "statement",
    [
        "from lightning_neuralgate import PrivacyEditModule; from transformers import AutoProcessor",
        "from transformers import AutoProcessor; import lightning_neuralgate",
    ],
)
def test_auto_classes_know_minigpt4_after_import_in_any_order(statement: str) -> None:
    print_config = "from transformers import AutoConfig; print(type(AutoConfig.for_model('minigpt4')).__name__)"
    done = subprocess.run(
        [sys.executable, "-c", f"{statement}; {print_config}"], capture_output=True, text=True, timeout=120, check=True
    )
    assert done.stdout.split() == ["MiniGPT4Config"]


def test_public_names_are_exported_and_visible_to_type_checkers() -> None:
    source = ast.parse(Path(lightning_neuralgate.__file__).read_text(encoding="utf-8"))
    (typed,) = (node for node in source.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
    declared = {
        alias.name: node.module for node in typed.body if isinstance(node, ast.ImportFrom) for alias in node.names
    }
    assert sorted(declared) == sorted(lightning_neuralgate.__all__) == sorted(lightning_neuralgate._LAZY_IMPORTS)
    for name, module in declared.items():
        assert module is not None
        assert getattr(lightning_neuralgate, name) is getattr(import_module(module), name)
        assert name in dir(lightning_neuralgate)
    with pytest.raises(AttributeError, match="no attribute 'NeuralGateCalback'"):
        _ = lightning_neuralgate.NeuralGateCalback


def test_startup_benchmark_reports_medians_and_ratios(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    times = iter([9.0, 9.0, 2.0, 1.0, 4.0, 6.0, 8.0, 4.0])
    monkeypatch.setattr(startup, "STATEMENTS", {"import lightning": "1 + 1", "help": "2 + 2"})
    monkeypatch.setattr(startup, "seconds", lambda statement: next(times))
    monkeypatch.setattr(sys, "argv", ["startup", "--repeats", "3", "--json", str(tmp_path / "results.json")])
    startup.main()
    results = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    assert results["seconds, import lightning"] == results["seconds, help"] == 4.0
    assert results["ratio, help"] == 0.5, "the median of 1 / 2, 6 / 4 and 4 / 8"
    assert "ratio, import lightning" not in results
    assert "| ratio, help | 0.5 |" in capsys.readouterr().out
