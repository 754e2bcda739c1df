from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from lightning_neuralgate.attacks.base import Context, Question
from lightning_neuralgate.data.rendering.draw import render
from lightning_neuralgate.data.rendering.spec import load_subject_spec


@pytest.fixture(scope="session")
def document(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The picture of a passport."""
    file = tmp_path_factory.mktemp("documents") / "passport.png"
    render(load_subject_spec("passport"), 3).image.save(file)
    return file


@pytest.fixture
def ask(document: Path) -> Callable[..., Question]:
    """Build a question, by default about the passport's number."""

    def question(
        picture: Path = document, record: str = "0", subject: str = "passport", sensitive: bool = True, query: str = ""
    ) -> Question:
        query = query or f"What is the passport number of this {subject}?"
        name = f"test/{record}/{sensitive}/{query}"
        return Question(
            name, "test", record, sensitive, query, subject, "passport number", "293120", (), picture
        )  # fmt: skip

    return question


@pytest.fixture
def context(ask: Callable[..., Question], tmp_path: Path) -> Context:
    """A run with a passport and another record, of a receipt."""
    receipt = tmp_path / "receipt.png"
    Image.new("RGB", (200, 300), (240, 220, 40)).save(receipt)
    return Context([ask(), ask(receipt, "1", "receipt")], tmp_path / "pictures")
