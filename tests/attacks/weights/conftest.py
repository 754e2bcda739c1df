from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_neuralgate.attacks.base import Context
from lightning_neuralgate.attacks.questions import attack_questions
from lightning_neuralgate.data.records import RecordSplits
from lightning_neuralgate.hf.decoder import find_decoder
from tests.helpers.tiny_llava import tiny_llava, tiny_processor
from tests.helpers.tiny_minigpt import tiny_minigpt, tiny_minigpt_processor


@dataclass
class Run:
    """A model whose last layer is edited, and what attacks get."""

    model: Any
    processor: Any
    context: Context

    def changed(self, attack: Any) -> Any:
        return attack.changed(self.model, self.processor, self.context)

    def without_unedited(self) -> Run:
        return replace(self, context=replace(self.context, load_unedited=None))

    def bits(self) -> dict[str, bytes]:
        """Return the bytes of every tensor."""
        return {name: value.numpy().tobytes() for name, value in self.model.state_dict().items()}

    def changed_names(self, before: dict[str, bytes]) -> set[str]:
        return {name for name, value in self.bits().items() if value != before[name]}


@pytest.fixture
def run(request: pytest.FixtureRequest, splits: RecordSplits, tmp_path: Path) -> Run:
    """Return a run with a tiny LLaVA, or, parametrized with "minigpt", a tiny MiniGPT-4."""
    load, processor = tiny_llava, tiny_processor()
    if getattr(request, "param", "llava") == "minigpt":
        load, processor = tiny_minigpt, tiny_minigpt_processor()
    model = load()
    layout = find_decoder(model)
    with torch.no_grad():
        layout.output_projection(layout.num_layers - 1).weight[::2] += 0.1
    questions = attack_questions({"test": splits.test})
    return Run(model, processor, Context(questions, tmp_path, processor.tokenizer, load))
