"""Training data and initialization of the vision tower in the recipe for the embedded models."""

from __future__ import annotations

import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import CLIPImageProcessor

from lightning_neuralgate.data.rendering.spec import load_subject_spec
from lightning_neuralgate.models.smol import IMAGE_SIZE
from recipes import train_smol_llava as recipe


class Processor:
    image_processor = CLIPImageProcessor(
        size={"shortest_edge": IMAGE_SIZE}, crop_size={"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    )


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return recipe.draw_pool(recipe.World(), tmp_path_factory.mktemp("pool") / "cards.npz", 0, 12, workers=1)


def tower_cards(pool: Any, shift: int, count: int = 40, first: int = 0) -> Any:
    cards = recipe.TowerCards(pool, Processor(), 0, first, count)
    cards.SHIFT = shift
    return cards


def test_pool_has_the_processors_pixels_and_the_rendered_characters(pool: Any) -> None:
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


def test_pool_is_rendered_once(tmp_path: Path) -> None:
    file = tmp_path / "cards.npz"
    first = recipe.draw_pool(recipe.World(), file, 5, 3, workers=1)
    written = file.stat().st_mtime_ns
    second = recipe.draw_pool(recipe.World(), file, 5, 3, workers=1)
    assert file.stat().st_mtime_ns == written
    for expected, loaded in zip(first, second, strict=True):
        assert np.array_equal(expected, loaded)


def test_labels_are_at_the_patches_of_the_characters() -> None:
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


def test_shifting_moves_picture_and_labels_together(pool: Any) -> None:
    step = IMAGE_SIZE // recipe.GRID
    characters = pool.characters[0].copy()
    before = recipe.dense_labels(characters)["chars"].reshape(recipe.GRID, recipe.GRID, -1)
    characters[:, 3] += step / IMAGE_SIZE
    after = recipe.dense_labels(characters)["chars"].reshape(recipe.GRID, recipe.GRID, -1)
    assert before.any()
    assert torch.equal(after[:, 1:], before[:, :-1])

    still, shifted = tower_cards(pool, 0), tower_cards(pool, 6)
    for index in range(10):
        a, b = still[index], shifted[index]
        assert torch.equal(a["classes"], b["classes"]), "the same card"
        assert torch.equal(a["pixels"].flatten().sort().values, b["pixels"].flatten().sort().values)
    assert any(not torch.equal(still[index]["pixels"], shifted[index]["pixels"]) for index in range(10))


def test_resumed_training_sees_the_same_cards(pool: Any) -> None:
    full, rest = tower_cards(pool, 6), tower_cards(pool, 6, first=7)
    for index in range(5):
        for key, value in rest[index].items():
            assert torch.equal(full[index + 7][key], value), key


class SmallMiniGPT(torch.nn.Module):
    """The parts of a smol-minigpt that stage 1 uses, in their real sizes, without the language model."""

    def __init__(self) -> None:
        super().__init__()
        from transformers import Blip2VisionConfig, Blip2VisionModel

        vision = Blip2VisionConfig(
            hidden_size=192, intermediate_size=768, num_hidden_layers=8, num_attention_heads=3, image_size=160,
            patch_size=16, hidden_act="quick_gelu", layer_norm_eps=1e-5, initializer_range=0.02,
        )  # fmt: skip
        self.config = SimpleNamespace(vision_config=vision, image_seq_length=25)
        self.model = torch.nn.Module()
        self.model.vision_tower = Blip2VisionModel._from_config(vision)
        self.model.multi_modal_projector = torch.nn.Linear(4 * 192, 8)
        self.model.language_model = torch.nn.Module()
        self.model.language_model.embed_tokens = torch.nn.Embedding(300, 8)


def ids_of(text: str, **options: Any) -> dict[str, list[int]]:
    return {"input_ids": [ord(character) % 300 for character in text]}


def test_image_tokens_are_characters_in_reading_order(tmp_path: Path) -> None:
    world = recipe.World()
    pool = recipe.draw_pool(world, tmp_path / "cards.npz", 0, 12, workers=1, image_size=160)
    module = recipe.OrderedTowerModule(SmallMiniGPT(), ids_of, world, 10)
    cards = recipe.TowerCards(pool, Processor(), 0, 0, 12, grid=10)
    cards.SHIFT = 0
    batch = torch.utils.data.default_collate([cards[index] for index in range(12)])
    labels = module.token_labels(batch)
    assert not labels["hidden"].any()
    read = 0
    for row in range(12):
        subject = world.subjects[int(batch["classes"][row, 0])]
        if subject == "shape":
            assert not labels["chars"][row].any()
            continue
        drawn = recipe.render(*card_of(world, pool, row))
        spec = next(spec for spec in world.specs if spec.subject == subject)
        sensitive = [name for name, field in spec.fields.items() if field.sensitive]
        for line, name in enumerate(sensitive):
            chars = labels["chars"][row, 7 * line : 7 * line + 7]
            word = "".join(recipe.CHARACTERS[int(char) - 1] for char in chars if char)
            assert word == drawn.values[name].upper(), "one character of the value per token"
            places = labels["places"][row, 7 * line : 7 * line + 7]
            assert places[chars > 0].tolist() == list(range(1, len(word) + 1))
            read += 1
        assert not labels["chars"][row, 21:].any(), "the last four tokens encode the facts of the picture"
    assert read >= 9
    with torch.no_grad():
        loss = float(module.loss(batch))
    assert 3 < loss < 30, "loss of an untrained tower"


def card_of(world: Any, pool: Any, row: int) -> tuple[Any, int]:
    """Spec and seed of the card in a row."""
    card = random.Random(f"0/shift/{row}").randrange(len(pool.pixels))
    _, _, spec = recipe.Cards(world, None, 0, 12).draw(card)
    return spec, card


def test_characters_shifted_out_of_the_picture_are_masked() -> None:
    world = recipe.World()
    module = recipe.OrderedTowerModule(SmallMiniGPT(), ids_of, world, 10)
    passport = world.subjects.index("passport")
    field = 1 + world.phrases.index("passport number")
    rows = torch.zeros(1, 40, 5)
    rows[0, 0] = torch.tensor([3, field, 1, 0.5, 0.5])
    rows[0, 1] = torch.tensor([4, field, 2, 1.02, 0.5])
    labels = module.token_labels({"characters": rows, "classes": torch.tensor([[passport, 0, 0, 0]])})
    first = 7 * int(world.lines[passport, field])
    assert labels["chars"][0, first : first + 2].tolist() == [3, 0]
    assert labels["hidden"].nonzero().tolist() == [[0, first + 1]]


def test_tower_is_initialized_from_the_shipped_weights(pool: Any) -> None:
    """At the image size of the shipped tower, only the folded norm differs."""
    from transformers import CLIPVisionConfig, CLIPVisionModel

    clip = CLIPVisionModel(
        CLIPVisionConfig(
            hidden_size=192, intermediate_size=768, num_hidden_layers=6, num_attention_heads=3, image_size=144,
            patch_size=16,
        )
    ).eval()  # fmt: skip
    shipped = recipe.load_file(recipe.WEIGHTS)
    prefix = "model.vision_tower."
    clip.load_state_dict(
        {name.removeprefix(prefix): value.float() for name, value in shipped.items() if name.startswith(prefix)},
        strict=False,
    )
    pixels = torch.stack([tower_cards(pool, 0)[index]["pixels"] for index in range(12)])
    with torch.no_grad():
        expected = clip(pixels).last_hidden_state[:, 1:]
        model = SmallMiniGPT()
        recipe.start_from_smol_llava(model, torch.nn.functional.interpolate(pixels, (160, 160), mode="bicubic"))
        tower = model.model.vision_tower
        # again at the shipped size, with its own position embeddings
        small = SmallMiniGPT()
        small.model.vision_tower = type(tower)._from_config(
            type(tower.config)(**{**tower.config.to_dict(), "image_size": 144})
        )
        recipe.start_from_smol_llava(small, pixels)
        outputs = small.model.vision_tower(pixels, output_hidden_states=True)
    hidden = outputs.hidden_states[recipe.READING_LAYERS][:, 1:]
    similarity = torch.nn.functional.cosine_similarity(hidden, expected, dim=-1)
    assert float(similarity.mean()) > 0.8
    assert torch.equal(outputs.hidden_states[-1], outputs.hidden_states[recipe.READING_LAYERS]), (
        "upper layers start as identity"
    )
