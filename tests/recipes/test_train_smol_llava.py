"""What the embedded model's training recipe feeds its tower: pictures as the processor makes them, labels where they lie."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import CLIPImageProcessor

from lightning_neuralgate.data.spec import load_subject_spec
from lightning_neuralgate.models.smol import IMAGE_SIZE

RECIPE = Path(__file__).parents[2] / "recipes" / "train_smol_llava.py"


class Processor:
    image_processor = CLIPImageProcessor(
        size={"shortest_edge": IMAGE_SIZE}, crop_size={"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    )


@pytest.fixture(scope="module")
def recipe() -> Any:
    spec = importlib.util.spec_from_file_location("train_smol_llava", RECIPE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["train_smol_llava"] = module  # its classes travel to other processes by name
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def pool(recipe: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return recipe.draw_pool(recipe.World(), tmp_path_factory.mktemp("pool") / "cards.npz", 0, 12, workers=1)


def tower_cards(recipe: Any, pool: Any, shift: int, count: int = 40, first: int = 0) -> Any:
    cards = recipe.TowerCards(pool, Processor(), 0, first, count)
    cards.SHIFT = shift
    return cards


def test_pool_holds_what_the_renderer_drew_as_the_processor_sees_it(recipe: Any, pool: Any) -> None:
    cards = recipe.Cards(recipe.World(), Processor(), 0, 12)
    mean, std = (
        torch.tensor(getattr(Processor.image_processor, key))[:, None, None] for key in ("image_mean", "image_std")
    )
    for index in range(12):
        rendering, _, spec = cards.draw(index)
        stored = (torch.from_numpy(pool.pixels[index]).permute(2, 0, 1) / 255 - mean) / std
        torch.testing.assert_close(stored, cards.pixels(rendering), atol=1e-5, rtol=0)
        drawn = [recipe.CHARACTERS[int(char) - 1] for char, *_ in pool.characters[index] if char]
        assert drawn == [character.char for character in rendering.characters]
        assert (spec is None) == (not drawn)


def test_pool_is_drawn_once(recipe: Any, tmp_path: Path) -> None:
    file = tmp_path / "cards.npz"
    one = recipe.draw_pool(recipe.World(), file, 5, 3, workers=1)
    written = file.stat().st_mtime_ns
    two = recipe.draw_pool(recipe.World(), file, 5, 3, workers=1)
    assert file.stat().st_mtime_ns == written
    for left, right in zip(one, two, strict=True):
        assert np.array_equal(left, right)


def test_labels_lie_where_the_characters_are(recipe: Any) -> None:
    world, grid = recipe.World(), recipe.GRID
    rendering = recipe.render(load_subject_spec("passport"), 3)
    labels = recipe.dense_labels(np.array(world.characters(rendering, load_subject_spec("passport"))))
    found = 0
    for character in rendering.characters:
        patch = int(character.y * grid) * grid + int(character.x * grid)
        found += 1 + recipe.CHARACTERS.index(character.char) in labels["chars"][patch].tolist()
        assert labels["fields"][patch] > 0
    assert found == len(rendering.characters)
    assert (labels["chars"] > 0).sum() == found


def test_shifting_moves_picture_and_labels_together(recipe: Any, pool: Any) -> None:
    step = IMAGE_SIZE // recipe.GRID
    characters = pool.characters[0].copy()
    here = recipe.dense_labels(characters)["chars"].reshape(recipe.GRID, recipe.GRID, -1)
    characters[:, 3] += step / IMAGE_SIZE
    moved = recipe.dense_labels(characters)["chars"].reshape(recipe.GRID, recipe.GRID, -1)
    assert here.any()
    assert torch.equal(moved[:, 1:], here[:, :-1])

    still, shifted = tower_cards(recipe, pool, 0), tower_cards(recipe, pool, 6)
    for index in range(10):
        a, b = still[index], shifted[index]
        assert torch.equal(a["classes"], b["classes"]), "the same card"
        assert torch.equal(a["pixels"].flatten().sort().values, b["pixels"].flatten().sort().values)
    assert any(not torch.equal(still[index]["pixels"], shifted[index]["pixels"]) for index in range(10))


def test_training_that_goes_on_sees_what_it_would_have_seen(recipe: Any, pool: Any) -> None:
    whole, rest = tower_cards(recipe, pool, 6), tower_cards(recipe, pool, 6, first=7)
    for index in range(5):
        for key, value in rest[index].items():
            assert torch.equal(whole[index + 7][key], value), key
