"""Training data and modules of the recipe for the embedded models."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import CLIPImageProcessor, CLIPVisionConfig

from lightning_neuralgate.models.smol import WEIGHTS, add_lora
from recipes.smol_training import dialogues, ordered, packed, tower, words
from recipes.smol_training.align import AlignModule, adapter_off, answer_weights, original_answers
from recipes.smol_training.muon import Muon, orthogonalized
from recipes.smol_training.pool import (
    CHARACTERS,
    MAX_CHARACTERS,
    MAX_REGIONS,
    NUMBERS,
    ORDINALS,
    PLACES,
    Picture,
    Pool,
    TowerPictures,
    World,
    character_labels,
    draw_picture,
    draw_pool,
    picture_arrays,
    region_labels,
    sides_of,
    word_labels,
)
from tests.helpers.tiny_llava import tiny_llava, tiny_processor

IMAGE_SIZE = 160
GRID = IMAGE_SIZE // 16
PICTURES = 24


class Processor:
    image_processor = CLIPImageProcessor(
        size={"shortest_edge": IMAGE_SIZE}, crop_size={"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    )


@pytest.fixture(scope="module")
def world() -> World:
    return World()


@pytest.fixture(scope="module")
def pool(world: World, tmp_path_factory: pytest.TempPathFactory) -> Pool:
    return draw_pool(world, tmp_path_factory.mktemp("pool") / "pool.npz", 0, PICTURES, 1, IMAGE_SIZE)


@pytest.fixture(scope="module")
def pictures(world: World) -> list[Picture]:
    return [draw_picture(world, seed) for seed in range(PICTURES)]


def tower_pictures(pool: Pool, shift: int, first: int = 0) -> TowerPictures:
    data = TowerPictures(World(), pool, Processor(), 0, first, 40, GRID)
    data.shift = shift
    return data


def test_pool_has_the_processors_pixels_and_everything_drawn(pool: Pool, pictures: list[Picture]) -> None:
    mean, std = (
        torch.tensor(getattr(Processor.image_processor, key))[:, None, None] for key in ("image_mean", "image_std")
    )
    for index, picture in enumerate(pictures):
        stored = (torch.from_numpy(pool.pixels[index]).permute(2, 0, 1) / 255 - mean) / std
        seen = Processor.image_processor(picture.image, return_tensors="pt")["pixel_values"][0]
        torch.testing.assert_close(stored, seen, atol=1e-5, rtol=0)
        assert (pool.characters[index, :, 0] > 0).sum() == len(picture.characters)
        assert (pool.regions[index, :, 4] > 0).sum() == len(picture.regions)
    kinds = {"scene" if picture.scene else "document" if picture.spec else "shape" for picture in pictures}
    assert {"scene", "document"} <= kinds


def test_pool_is_rendered_once(world: World, tmp_path: Path) -> None:
    file = tmp_path / "pool.npz"
    first = draw_pool(world, file, 5, 3, 1, IMAGE_SIZE)
    written = file.stat().st_mtime_ns
    second = draw_pool(world, file, 5, 3, 1, IMAGE_SIZE)
    assert file.stat().st_mtime_ns == written
    for expected, loaded in zip(first, second, strict=True):
        assert np.array_equal(expected, loaded)


def test_labels_are_at_the_patches_of_characters_and_objects(world: World, pictures: list[Picture]) -> None:
    labelled = set()
    for picture in pictures:
        characters = np.zeros((MAX_CHARACTERS, 5), np.float32)
        characters[: len(picture.characters)] = np.array(picture.characters).reshape(-1, 5)
        chars = character_labels(characters, GRID)
        for char, field, _, x, y in picture.characters:
            patch = int(y * GRID) * GRID + int(x * GRID)
            assert int(char) in chars["chars"][patch].tolist() or (chars["chars"][patch] > 0).any()
            assert chars["fields"][patch] > 0
            assert field > 0
        if picture.scene is None:
            continue
        regions = region_labels(np.array(picture.regions, np.float32), GRID)
        for item in picture.scene.objects:
            x, y = item.centre
            patch = int(y * GRID) * GRID + int(x * GRID)
            thing, colour, _, _, count = regions["facts"][patch].tolist()
            assert (world.things[thing], world.colours[colour]) == (item.name, item.colour)
            assert count == picture.scene.counts()[item.name]
            assert regions["position"][patch].tolist() == pytest.approx([x, y, 1], abs=1e-5)
            labelled.add(item.name)
    assert len(labelled) >= 15


def test_patches_read_like_a_text(world: World) -> None:
    """At each object its colour and name, below them its sides; documents repeat their facts around the characters."""
    objects = documents = 0
    for seed in range(40, 80):
        picture = draw_picture(world, seed)
        _, regions = picture_arrays(picture)
        labels = word_labels(world, regions, GRID)
        words = np.array([world.words[word] for word in labels["words"]]).reshape(GRID, GRID)
        added = np.array([PLACES[place] for place in labels["extras"]]).reshape(GRID, GRID)
        if picture.scene is None:
            documents += picture.spec is not None
            assert {picture.spec.subject if picture.spec else picture.facts["shape"]} <= set(words.flatten())
            assert "\n" not in words
            continue
        assert (words == picture.scene.spec.place).any()
        for item in picture.scene.objects:
            row, column = (min(max(round(value * GRID), 1), GRID - 1) for value in reversed(item.centre))
            block = words[row - 1 : row + 1, column - 1 : column + 1]
            if block[0, 1] == item.name:
                objects += 1
                assert block[0, 0] == (item.colour or item.name)
                assert block[1].tolist() == list(sides_of(*item.centre))
                x, y = item.centre
                nine = [ORDINALS[min(max(round(value * 10), 1), 9) - 1] for value in (y, x)]
                assert added[row, column - 1 : column + 1].tolist() == nine
                assert added[row - 1, column - 1] == NUMBERS[picture.scene.counts()[item.name] - 1]
    assert documents >= 5
    assert objects >= 30


def test_exact_embeddings_are_those_of_the_words(world: World) -> None:
    embeddings = torch.randn(300, 8) * 3
    targets = words.WordTargets(embeddings, ids_of, world)
    picture = next(picture for seed in range(9) if (picture := draw_picture(world, seed)).characters)
    labels = words.patch_labels(world, *picture_arrays(picture), GRID)
    found = targets(labels) * targets.scale
    assert found.shape == (GRID * GRID, 8)
    plain = (labels["chars"] == 0).all(-1).nonzero()[0].item()
    name = world.words[labels["words"][plain]]
    expected = embeddings[ids_of(f" {name}")["input_ids"]].mean(0)
    if labels["extras"][plain]:
        extra = PLACES[labels["extras"][plain]]
        expected = expected + words.PLACE_WEIGHT * embeddings[ids_of(f" {extra}")["input_ids"]].mean(0)
    torch.testing.assert_close(found[plain], expected)
    written = (labels["chars"] > 0).any(-1).nonzero()[0].item()
    assert not torch.allclose(found[written], expected)


def test_shifting_moves_picture_and_labels_together(pool: Pool) -> None:
    row = next(index for index in range(PICTURES) if pool.characters[index, 0, 0] > 0)
    characters = pool.characters[row].copy()
    before = character_labels(characters, GRID)["chars"].reshape(GRID, GRID, -1)
    characters[:, 3] += 1 / GRID
    after = character_labels(characters, GRID)["chars"].reshape(GRID, GRID, -1)
    assert torch.equal(after[:, 1:], before[:, :-1])
    still, shifted = tower_pictures(pool, 0), tower_pictures(pool, 6)
    for index in range(10):
        a, b = still[index]["pixels"], shifted[index]["pixels"]
        assert torch.equal(a.flatten().sort().values, b.flatten().sort().values)
    assert any(not torch.equal(still[index]["regions"], shifted[index]["regions"]) for index in range(10))


def test_resumed_training_sees_the_same_pictures(pool: Pool) -> None:
    full, rest = tower_pictures(pool, 6), tower_pictures(pool, 6, first=7)
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


def test_image_tokens_are_characters_in_reading_order_and_things_from_left_to_right(
    world: World, pool: Pool, pictures: list[Picture]
) -> None:
    read = shown = 0
    for index, picture in enumerate(pictures):
        labels = ordered.token_labels(world, pool.characters[index], pool.regions[index], 25)
        assert not labels["token_hidden"].any()
        chars = labels["token_chars"].tolist()
        if picture.spec is not None:
            sensitive = [name for name, field in picture.spec.fields.items() if field.sensitive]
            for line, name in enumerate(sensitive):
                word = "".join(CHARACTERS[char - 1] for char in chars[7 * line : 7 * line + 7] if char)
                assert word == picture.values[name].upper(), "one character of the value per token"
                read += 1
        elif picture.scene is not None and not picture.scene.documents:
            start = 7 * bool(picture.scene.signs)
            words = [world.words[word] for word in labels["token_words"][start:].tolist()]
            drawn = sorted((*picture.scene.objects, *picture.scene.signs), key=lambda item: item.box[0] + item.box[2])
            assert words[1 : 3 * len(drawn) : 3][: len(drawn)] == [item.name for item in drawn]
            assert labels["token_placed"].sum() == 3 * len(drawn)
            assert set(words[3 * len(drawn) :]) <= {picture.scene.spec.place}
            shown += len(drawn)
    assert read >= 9
    assert shown >= 9


def test_characters_shifted_out_of_the_picture_are_masked(world: World) -> None:
    passport, field = world.things.index("passport"), world.phrases.index("passport number")
    characters = np.zeros((MAX_CHARACTERS, 5), np.float32)
    characters[0], characters[1] = (3, field, 1, 0.5, 0.5), (4, field, 2, 1.02, 0.5)
    regions = np.zeros((MAX_REGIONS, 10), np.float32)
    regions[0] = world.region((0, 0, 1, 1), positioned=False, thing="passport")
    labels = ordered.token_labels(world, characters, regions, 25)
    first = 7 * world.line(passport, field)
    assert labels["token_chars"][first : first + 2].tolist() == [3, 0]
    assert labels["token_hidden"].nonzero().tolist() == [[first + 1]]


def test_towers_learn(world: World, pool: Pool) -> None:
    """Some steps of both kinds of tower lower the loss on the pictures that they see."""
    data = ordered.OrderedPictures(world, pool, Processor(), 0, 0, 8, GRID, tokens=25)
    module = ordered.OrderedTowerModule(SmallMiniGPT(), ids_of, world, 10)
    module.log = module.log_dict = lambda *_, **__: None  # type: ignore[method-assign]
    batch = torch.utils.data.default_collate([data[index] for index in range(4)])
    (muon, adamw), _ = module.configure_optimizers()
    losses = []
    for _ in range(6):
        loss = module.loss(batch)
        losses.append(float(loss.detach()))
        loss.backward()
        for optimizer in (muon, adamw):
            for group in optimizer.param_groups:
                group["lr"] = 1e-3
            optimizer.step()
            optimizer.zero_grad()
    assert isinstance(muon, Muon)
    assert losses[-1] < 0.9 * losses[0]


def test_muon_orthogonalizes() -> None:
    torch.manual_seed(0)
    for shape in ((6, 9), (9, 6)):
        singular = torch.linalg.svdvals(orthogonalized(torch.randn(shape)))
        assert singular.min() > 0.5
        assert singular.max() < 1.3


def test_position_embeddings_keep_their_values_at_the_same_size() -> None:
    state = {"position_embedding.weight": torch.randn(26, 4)}
    same, other = dict(state), dict(state)
    tower.resize_positions(same, 5)
    tower.resize_positions(other, 6)
    torch.testing.assert_close(same["position_embedding.weight"], state["position_embedding.weight"])
    assert other["position_embedding.weight"].shape == (37, 4)
    assert torch.equal(other["position_embedding.weight"][0], state["position_embedding.weight"][0])


@pytest.fixture(scope="module")
def align() -> AlignModule:
    model, processor = tiny_llava(), tiny_processor()
    model.requires_grad_(False)
    add_lora(model)
    texts = [
        (prompt, [5, 6, 7], processor.tokenizer(f"<|im_start|>{prompt}")["input_ids"])
        for prompt in ("one", "two", "three")
    ]
    return AlignModule(model, processor, texts, 10, texts_per_step=2)


CHATS = [
    [dialogues.Turn("a", "What is the colour?", "Red.")],
    [dialogues.Turn("b", "Tell me the number.", "It is 5."), dialogues.Turn("c", "And the colour?", "Blue.")],
]


def test_packed_questions_equal_each_on_its_own(align: AlignModule) -> None:
    processor = align.processor
    pixels = torch.rand(3, 16, 16)
    packed = dialogues.pack(processor, 4, CHATS, "\n") | {"pixel_values": pixels}
    longer = dialogues.pack(processor, 4, CHATS + CHATS, "\n") | {"pixel_values": pixels}
    with torch.no_grad():
        logits, labels = align.logits(dialogues.collate([packed, longer]))
        alone = []
        for chat in CHATS:
            row = dialogues.pack(processor, 4, [chat], "\n")
            plain = align.model(input_ids=row["ids"][None], pixel_values=pixels[None]).logits[0, :-1]
            alone.append(plain[row["labels"][1:] != dialogues.IGNORED])
    expected = torch.cat(alone)
    torch.testing.assert_close(logits[: len(expected)], expected, atol=1e-5, rtol=1e-4)
    said = processor.tokenizer.decode(labels[: len(expected)])
    assert said.replace("<|im_end|>", "|").replace(" |", "|").count("|") == 3


def test_first_tokens_of_answers_count_fully(align: AlignModule) -> None:
    packed = dialogues.collate([dialogues.pack(align.processor, 4, CHATS, "\n")])
    weights = answer_weights(packed)
    width = align.model.get_input_embeddings().weight.shape[1]
    _, labels = align.logits(packed | {"features": torch.zeros(1, 4, width)})
    assert len(weights) == len(labels)
    assert (weights == 1).sum() == 3
    lengths = [
        int((packed["segments"][0][1:][packed["labels"][0, 1:] != dialogues.IGNORED] == n).sum()) for n in (1, 2)
    ]
    assert sorted(set(weights.tolist()) - {1.0}) == pytest.approx(sorted(length**-0.5 for length in lengths))


def test_packed_rows_are_what_the_processor_makes(align: AlignModule) -> None:
    from PIL import Image

    chat = CHATS[0]
    row = dialogues.pack(align.processor, 4, [chat], "\n")
    prompt = dialogues.prompt_of(align.processor, chat[0].question, picture=True)
    inputs = align.processor(images=Image.new("RGB", (16, 16)), text=prompt, return_tensors="pt")
    length = inputs["input_ids"].shape[1]
    assert row["ids"][:length].tolist() == inputs["input_ids"][0].tolist()
    assert (row["labels"][:length] == dialogues.IGNORED).all()
    assert (row["labels"][length:] != dialogues.IGNORED).all()


def test_texts_keep_the_original_distribution(align: AlignModule) -> None:
    """The divergence is zero without a change and in the same prompt format; a changed adapter raises it."""
    texts = [(prompt, answer, dialogues_ids(align, prompt)) for prompt, answer, _ in align.texts]
    same = AlignModule(align.model, align.processor, texts, 10, texts_per_step=2)
    assert float(same.text_loss(0)) == pytest.approx(0, abs=1e-6)
    changed = [parameter for name, parameter in align.model.named_parameters() if "lora_B" in name]
    for parameter in changed:
        torch.nn.init.normal_(parameter, std=0.5)
    assert float(same.text_loss(0)) > 1e-3
    with adapter_off(align.model):
        assert float(same.text_loss(0)) == pytest.approx(0, abs=1e-6)
    for parameter in changed:
        torch.nn.init.zeros_(parameter)


def dialogues_ids(align: AlignModule, prompt: str) -> list[int]:
    text = dialogues.prompt_of(align.processor, prompt, picture=False)
    return list(align.processor.tokenizer(text, add_special_tokens=False)["input_ids"])


def test_questions_of_the_tests_are_refused(world: World) -> None:
    rows = dialogues.Dialogues(world, None, 0, 40, 4, "\n")
    picture = draw_picture(world, 3)
    turns = rows.turns(picture, 3)
    assert len(turns) >= 5
    rows.held_out = {turns[2].question}
    with pytest.raises(RuntimeError, match="of the tests"):
        rows.turns(picture, 3)


def test_answers_of_the_original_model_are_stored_once(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    tokenizer = tiny_processor().tokenizer
    tokenizer.add_tokens(["<|endoftext|>"])
    pad = tokenizer.convert_tokens_to_ids("<|endoftext|>")
    save_file({"answers": torch.tensor([[3, 4, pad], [5, pad, pad]])}, tmp_path / "texts.safetensors")
    texts = original_answers(None, tokenizer, ["one", "two"], tmp_path / "texts.safetensors")
    assert [(prompt, answer) for prompt, answer, _ in texts] == [("one", [3, 4]), ("two", [5])]


def test_tower_is_initialized_from_the_shipped_weights(pool: Pool) -> None:
    """At the same image size, only the folded norm differs."""
    from transformers import CLIPVisionModel

    shipped = {name: value.float() for name, value in load_file(WEIGHTS).items()}
    tower.resize_positions(shipped, GRID)
    config = CLIPVisionConfig(
        hidden_size=192, intermediate_size=768, num_hidden_layers=6, num_attention_heads=3, image_size=IMAGE_SIZE,
        patch_size=16,
    )  # fmt: skip
    clip = CLIPVisionModel(config).eval()
    prefix = "model.vision_tower."
    clip.load_state_dict(
        {name.removeprefix(prefix): value for name, value in shipped.items() if name.startswith(prefix)}, strict=False
    )
    pixels = torch.stack([tower_pictures(pool, 0)[index]["pixels"] for index in range(12)])
    small = SmallMiniGPT()
    with torch.no_grad():
        expected = clip(pixels).last_hidden_state[:, 1:]
        ordered.start_from_smol_llava(small, pixels, shipped)
        outputs = small.model.vision_tower(pixels, output_hidden_states=True)
    hidden = outputs.hidden_states[ordered.READING_LAYERS][:, 1:]
    similarity = torch.nn.functional.cosine_similarity(hidden, expected, dim=-1)
    assert float(similarity.mean()) > 0.8
    assert torch.equal(outputs.hidden_states[-1], outputs.hidden_states[ordered.READING_LAYERS]), (
        "upper layers start as identity"
    )


def test_packed_attention_is_that_with_the_mask() -> None:
    lengths = [[4, 9, 3, 5], [6, 6], [2]]
    segments = [[0] * 5 + [n for n, size in enumerate(row, start=1) for _ in range(size)] for row in lengths]
    batch = dialogues.collate(
        [{name: torch.tensor(row) for name in ("ids", "labels", "positions", "segments")} for row in segments]
    )
    generator = torch.Generator().manual_seed(0)
    width = batch["mask"].shape[-1]
    states = [torch.randn(3, heads, width, 8, generator=generator) for heads in (6, 2, 2)]
    outputs, gradients = [], []
    for packing in (None, packed.Packing(batch["segments"])):
        inputs = [state.clone().requires_grad_() for state in states]
        module = SimpleNamespace(num_key_value_groups=3, is_causal=True)
        output, _ = packed.packed_attention(module, *inputs, batch["mask"], packing, scaling=0.3)  # type: ignore[arg-type]
        output = output * (batch["segments"] >= 0)[..., None, None]
        output.square().sum().backward()
        outputs.append(output.detach())
        gradients.append([state.grad for state in inputs])
    torch.testing.assert_close(outputs[1], outputs[0])
    torch.testing.assert_close(gradients[1], gradients[0])
    assert len(packed.Packing(batch["segments"]).groups) == 2


def test_characters_are_classified_by_distance(world: World) -> None:
    """The loss on characters is small where the projector's outputs are the targets, and large for other characters."""
    targets = words.WordTargets(torch.randn(300, 64) * 3, ids_of, world)
    picture = next(picture for seed in range(9) if (picture := draw_picture(world, seed)).characters)
    labels = {name: value[None] for name, value in words.patch_labels(world, *picture_arrays(picture), GRID).items()}
    seen: dict[str, float] = {}
    module: Any = SimpleNamespace(targets=targets, log=lambda name, value, **_: seen.update({name: float(value)}))
    exact = targets(labels).requires_grad_()
    loss = tower.TowerModule.letter_loss(module, exact, labels)
    assert seen["letters"] == 1
    others = {**labels, "chars": torch.where(labels["chars"] > 0, labels["chars"] % len(CHARACTERS) + 1, 0)}
    wrong = tower.TowerModule.letter_loss(module, targets(others), labels)
    assert seen["letters"] < 0.2
    assert loss < 0.5 * wrong
    loss.backward()
    written = (labels["chars"] > 0).any(-1)
    assert exact.grad is not None
    assert exact.grad[written].abs().sum() > 0
    assert not exact.grad[~written].any()
