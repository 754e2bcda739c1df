from __future__ import annotations

import json
import shlex
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import yaml

from lightning_neuralgate.cli import build_parser
from lightning_neuralgate.demo.experiment import EditSettings
from lightning_neuralgate.errors import DataFormatError
from lightning_neuralgate.hub.card import model_card
from lightning_neuralgate.hub.origin import demo_command, origin_of, without_folders
from lightning_neuralgate.hub.shared import SharedFolder
from tests.demo.report.data import ladder, run

EDITED = SharedFolder("model", {}, {"weights": "ab12", "base": "cd34", "edited": "ab12"}, {"scope": "subject_last"})


def card(results: dict[str, Any] | None, base: str = "", shared: SharedFolder = EDITED) -> tuple[dict[str, Any], str]:
    """Return metadata and text."""
    written = model_card("me/my-model", shared, origin_of(results, base), results)
    _, metadata, text = written.split("---\n", 2)
    return yaml.safe_load(metadata), text


def test_metadata() -> None:
    metadata, _ = card(None, "llava-hf/llava-1.5-7b-hf")
    assert metadata == {
        "base_model": "llava-hf/llava-1.5-7b-hf",
        "base_model_relation": "finetune",
        "library_name": "transformers",
        "pipeline_tag": "image-text-to-text",
        "tags": ["neural-gate", "model-editing", "privacy", "pytorch-lightning"],
    }
    assert card(None, "smol-llava")[0]["base_model"] == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert "base_model" not in card(None, "/home/me/llava")[0]
    edit = SharedFolder("edit", {}, {"base": "cd34", "edited": "ab12"})
    assert card(None, "smol-llava", edit)[0]["library_name"] == "lightning-neuralgate"


def test_figures_are_those_of_the_results() -> None:
    attacks = {
        "gated": {
            "plain": {"unedited/leak": 0.8, "edited/leak": 0.25, "recovered": 0.31, "came_out": 12, "secrets": 48}
        }
    }
    results = run(
        attacks=attacks, ladder={m: ladder(**({"rung_4": 0.75} if m == "gated" else {})) for m in ("unedited", "gated")}
    )
    _, text = card(results)
    assert "The gated edit refuses 75 % of yes/no and choice questions about the edited subjects" in text
    assert "| test | gated | 0.97 | 0.94 | 0.95 |" in text
    assert "| test | unedited | 0.03 | 1.00 | 0.52 |" in text
    assert "fell by 6 points on the test split" in text
    assert "12 of 48 secrets come out" in text
    assert "| plain | 0.80 | 0.25 | 0.31 |" in text
    assert "ungated" not in text.lower()
    assert "Seeds: 7." in text
    assert "| torch | `9.9.9` |" in text
    assert "| weights | `ab12` |" in text


def test_without_results_the_card_states_that_nothing_was_measured() -> None:
    _, text = card(None)
    assert text.count("Not measured") == 3
    assert "No attacks were made" in card(run())[1]


def test_results_of_another_kind_are_refused() -> None:
    with pytest.raises(DataFormatError, match="no model to report on"):
        card({"rows": []})


def test_the_command_has_the_settings_of_the_run() -> None:
    settings = EditSettings(
        epochs=2,
        unseen=("drone",),
        lr=1e-3,
        retention_forms="all",
        retention_without=("yes_no",),
        questions_per_set=None,
    )
    stored = json.loads(json.dumps(asdict(settings)))
    command = demo_command(stored, [3, 4, 5], "32-true")
    parsed = build_parser("demo").parse_args(shlex.split(command)[1:]).demo
    assert (parsed.seed, parsed.seeds) == (3, 3)
    assert json.loads(json.dumps(parsed.settings.as_dict())) == stored | {"precision": "32-true"}


def test_no_local_path_is_shown(tmp_path: Path) -> None:
    results = run(settings={"model": str(tmp_path / "llava"), "subjects": [str(tmp_path / "visa.yaml")]})
    _, text = card(results)
    assert str(tmp_path) not in text
    assert "`llava`" in text
    assert without_folders(r"C:\models\llava") == "llava"


def test_text_is_escaped() -> None:
    made = {"note": "`</code><script>", "other": "a | b\nc"}
    results = run(versions={"<img src=x>": "1"})
    _, text = card(results, shared=SharedFolder("model", {}, {"weights": "ab12"}, made))
    assert "<img" not in text
    assert "| note | `'</code><script>` |" in text  # in code, where markup is text
    assert "| other | `a \\| b c` |" in text
