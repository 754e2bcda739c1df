"""Sensitive and benign questions about tiny pictures, and the models that answer them."""

from __future__ import annotations

from typing import Any

import pytest

from lightning_neuralgate.attacks.base import Question
from lightning_neuralgate.attacks.questions import attack_questions
from lightning_neuralgate.data.records import RecordSplits
from tests.helpers.tiny_llava import tiny_llava, tiny_processor
from tests.helpers.tiny_minigpt import tiny_minigpt, tiny_minigpt_processor


@pytest.fixture
def questions(splits: RecordSplits) -> list[Question]:
    """Two sensitive questions and a benign one about each of two pictures."""
    return attack_questions({"test": splits.test[1:3]})


@pytest.fixture(params=["llava", "minigpt"])
def model_and_processor(request: pytest.FixtureRequest) -> tuple[Any, Any]:
    if request.param == "llava":
        return tiny_llava(), tiny_processor()
    return tiny_minigpt(), tiny_minigpt_processor()
