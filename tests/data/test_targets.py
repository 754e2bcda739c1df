from __future__ import annotations

import pytest

from lightning_neuralgate.data import targets
from lightning_neuralgate.data.records import RetentionItem
from lightning_neuralgate.errors import DataFormatError


def test_an_empty_answer_names_the_retention_question(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(targets, "_cached_answers", lambda model, processor, rows, batch_size: [""] * len(rows))
    with pytest.raises(DataFormatError, match=r"^retention question: .* answer to 'What is it\?' is empty"):
        targets.fill_targets([], [RetentionItem(query="What is it?")], model=None, processor=None)
