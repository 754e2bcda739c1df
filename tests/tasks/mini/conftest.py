"""Records the scenes that mini sets draw, so that questions can be checked against them."""

from __future__ import annotations

import pytest

from lightning_neuralgate.data.scenes.draw import Scene
from lightning_neuralgate.tasks.mini.pictures import Pictures


@pytest.fixture
def scenes(monkeypatch: pytest.MonkeyPatch) -> list[Scene]:
    """Every scene drawn so far; the last one is in the question that was returned last."""
    drawn: list[Scene] = []
    draw = Pictures.scene

    def record(self: Pictures, *arguments: object, **named: object) -> Scene:
        drawn.append(draw(self, *arguments, **named))  # type: ignore[arg-type]
        return drawn[-1]

    monkeypatch.setattr(Pictures, "scene", record)
    return drawn
