"""The network against one in plain torch, from the same original tensors."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig

from lightning_neuralgate.models.minigpt4 import MiniGPT4Config, MiniGPT4ForConditionalGeneration
from lightning_neuralgate.models.minigpt4.conversion import converted_state, minigpt4_config
from tests.helpers.training import disable_checkpointing, enable_checkpointing
from tests.models.minigpt4 import original
from tests.models.minigpt4.original import Sizes

SIZES = Sizes()
IMAGE = SIZES.vocabulary
"""The image token: the first id behind the language model's own."""
CLOSE = {"atol": 1e-5, "rtol": 1e-5}


class Both:
    """A model, and the original tensors it is made of."""

    def __init__(self, use_qformer: bool) -> None:
        self.use_qformer = use_qformer
        self.eva, self.blip = original.eva_vit_g(SIZES), original.blip2(SIZES)
        self.own, self.words = original.minigpt4(SIZES, use_qformer)["model"], original.llama(SIZES)
        parts = original.configs(SIZES)
        config = minigpt4_config(
            LlamaConfig(**parts["text"]), parts["vision"], parts["qformer"], use_qformer, IMAGE, SIZES.queries
        )
        tower = {f"visual_encoder.{name}": value for name, value in self.eva.items()}
        sources = [("eva", tower), ("blip", self.blip), ("own", self.own)]
        self.model = MiniGPT4ForConditionalGeneration(config).eval()
        self.model.load_state_dict(converted_state(config, self.words, sources))

    @property
    def tokens(self) -> int:
        return int(self.model.config.image_seq_length)

    def expected(self, ids: Tensor, real: Tensor, pixels: Tensor) -> Tensor:
        """Logits of the model's own words."""
        features = original.vision_features(self.eva, self.blip, SIZES, pixels)
        pictures = original.image_tokens(self.blip, self.own, SIZES, features, self.use_qformer)
        embeds = self.words["model.embed_tokens.weight"][ids.clamp(max=IMAGE - 1)]
        embeds[ids == IMAGE] = pictures.flatten(0, 1)
        return original.logits(self.words, SIZES, embeds, real)


@pytest.fixture(scope="module", params=[False, True], ids=["llama2", "qformer"])
def both(request: pytest.FixtureRequest) -> Both:
    return Both(request.param)


def pixels(count: int) -> Tensor:
    return torch.randn(count, 3, SIZES.image, SIZES.image, generator=torch.Generator().manual_seed(7))


def prompts(tokens: int, lengths: list[tuple[int, int]], side: str) -> tuple[Tensor, Tensor]:
    """Rows with some words, a picture, and more words; padded on one side. Ids and what of them is real."""
    random = torch.Generator().manual_seed(8)
    rows = []
    for before, after in lengths:
        words = torch.randint(3, IMAGE, (before + after,), generator=random)
        rows.append(torch.cat([words[:before], torch.full((tokens,), IMAGE), words[before:]]))
    width = max(map(len, rows))
    ids, real = torch.zeros(len(rows), width, dtype=torch.long), torch.zeros(len(rows), width, dtype=torch.bool)
    for index, row in enumerate(rows):
        place = slice(width - len(row), None) if side == "left" else slice(len(row))
        ids[index, place], real[index, place] = row, True
    return ids, real


@pytest.mark.parametrize("count", [1, 3])
def test_vision_features_and_image_tokens(both: Both, count: int) -> None:
    found = both.model.get_image_features(pixels(count))
    features = original.vision_features(both.eva, both.blip, SIZES, pixels(count))
    torch.testing.assert_close(found.last_hidden_state, features, **CLOSE)
    tokens = original.image_tokens(both.blip, both.own, SIZES, features, both.use_qformer)
    assert tokens.shape == (count, SIZES.queries if both.use_qformer else 4, SIZES.text)
    torch.testing.assert_close(found.pooler_output, tokens, **CLOSE)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("lengths", [[(3, 4)], [(2, 5), (6, 3), (1, 1)]], ids=["one", "three"])
def test_logits_under_padding(both: Both, side: str, lengths: list[tuple[int, int]]) -> None:
    ids, real = prompts(both.tokens, lengths, side)
    shown = pixels(len(lengths))
    # as generate does it: positions count what is real
    places = (real.long().cumsum(1) - 1).clamp(min=0)
    for implementation in ("sdpa", "eager"):
        both.model.set_attn_implementation(implementation)
        found = both.model(input_ids=ids, pixel_values=shown, attention_mask=real.long(), position_ids=places).logits
        torch.testing.assert_close(found[real][:, :IMAGE], both.expected(ids, real, shown)[real], **CLOSE)
        assert bool((found[real][:, IMAGE] < found[real][:, :IMAGE].amax(-1)).all()), "never the image token"


def test_cached_generation_says_what_a_loop_without_a_cache_says(both: Both) -> None:
    ids, real = prompts(both.tokens, [(2, 5), (6, 3), (1, 1)], "left")
    shown = pixels(3)
    found = both.model.generate(
        input_ids=ids, pixel_values=shown, attention_mask=real.long(), max_new_tokens=6, do_sample=False,
        eos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    grown, also = ids, real
    for _ in range(6):
        following = both.expected(grown, also, shown)[:, -1].argmax(-1, keepdim=True)
        grown = torch.cat([grown, following], 1)
        also = torch.cat([also, torch.ones_like(following, dtype=torch.bool)], 1)
    assert torch.equal(found, grown)
    assert len(set(grown[:, ids.shape[1] :].flatten().tolist())) > 3, "random weights that say something"


def shown_rows(tokens: int, pictures: list[int]) -> tuple[Tensor, Tensor]:
    """Left-padded rows with so many pictures each, behind words of their own. Ids and what of them is real."""
    rows = [[4 + row, *([9 + row, *[IMAGE] * tokens] * count), 7] for row, count in enumerate(pictures)]
    width = max(map(len, rows))
    ids = torch.tensor([[0] * (width - len(row)) + row for row in rows])
    return ids, torch.tensor([[False] * (width - len(row)) + [True] * len(row) for row in rows])


@pytest.mark.parametrize(
    "options",
    [
        {"num_beams": 3, "num_return_sequences": 2},
        {"num_beams": 2, "use_cache": False},
        {"num_beams": 2, "embedded": True},
    ],
    ids=["cache", "no cache", "embeddings"],
)
@torch.no_grad()
def test_beams_of_rows_with_unlike_numbers_of_pictures_are_those_of_each_row(
    both: Both, options: dict[str, Any]
) -> None:
    count = [2, 0, 3, 1]
    (ids, real), shown = shown_rows(both.tokens, count), pixels(sum(count))
    options = {
        "max_new_tokens": 4, "do_sample": False, "eos_token_id": None, "pad_token_id": 0, "output_scores": True,
        "return_dict_in_generate": True, **options,
    }  # fmt: skip
    embedded = options.pop("embedded", False)

    def told(real: Tensor, **inputs: Tensor) -> tuple[Tensor, Tensor]:
        found = both.model.generate(**inputs, attention_mask=real.long(), **options)
        return found.sequences[:, -4:], found.sequences_scores

    embeds = both.model.get_input_embeddings()(ids)
    found, scores = told(real, **({"inputs_embeds": embeds} if embedded else {"input_ids": ids}), pixel_values=shown)
    filled = embeds.clone()
    filled[ids == IMAGE] = both.model.get_image_features(shown).pooler_output.flatten(0, 1)
    alone = [
        told(real[row : row + 1, real[row]], inputs_embeds=filled[row : row + 1, real[row]])
        for row in range(len(count))
    ]
    assert torch.equal(found, torch.cat([words for words, _ in alone]))
    torch.testing.assert_close(scores, torch.cat([each for _, each in alone]), **CLOSE)


def test_sampled_copies_of_a_row_see_its_pictures(both: Both) -> None:
    (ids, real), shown = shown_rows(both.tokens, [1, 2]), pixels(3)
    seen = {
        row: both.model(input_ids=ids[row : row + 1, real[row]], pixel_values=pictures).logits[:, -1]
        for row, pictures in enumerate(shown.split([1, 2]))
    }
    found = both.model.generate(
        input_ids=ids, pixel_values=shown, attention_mask=real.long(), max_new_tokens=1, do_sample=True, eos_token_id=None,
        num_return_sequences=2, pad_token_id=0, return_dict_in_generate=True, output_logits=True,
    )  # fmt: skip
    torch.testing.assert_close(found.logits[0], torch.cat([seen[0], seen[0], seen[1], seen[1]]), **CLOSE)


def test_generation_looks_at_each_picture_once(both: Both) -> None:
    (ids, real), shown = shown_rows(both.tokens, [1, 2]), pixels(3)
    looked: list[int] = []
    hook = both.model.model.vision_tower.register_forward_pre_hook(lambda module, given: looked.append(len(given[0])))
    both.model.generate(
        input_ids=ids, pixel_values=shown, attention_mask=real.long(), max_new_tokens=2, num_beams=3, pad_token_id=0
    )
    hook.remove()
    assert looked == [3]


def test_pictures_are_given_once(both: Both) -> None:
    ids, _ = prompts(both.tokens, [(3, 4)], "left")
    looked = {"image": both.model.get_image_features(pixels(1))}
    found = both.model(input_ids=ids, mm_encoder_outputs=looked).logits
    torch.testing.assert_close(found, both.model(input_ids=ids, pixel_values=pixels(1)).logits)
    with pytest.raises(ValueError, match="either pixel_values or mm_encoder_outputs"):
        both.model(input_ids=ids, pixel_values=pixels(1), mm_encoder_outputs=looked)


def test_gradient_checkpointing_changes_no_gradient(both: Both) -> None:
    ids, real = prompts(both.tokens, [(2, 5), (6, 3)], "right")
    labels = ids.masked_fill(~real | (ids == IMAGE), -100)

    def gradients() -> dict[str, Tensor]:
        both.model.zero_grad()
        inputs: dict[str, Any] = {"input_ids": ids, "attention_mask": real.long(), "pixel_values": pixels(2)}
        both.model(**inputs, labels=labels, use_cache=False).loss.backward()
        return {n: p.grad.clone() for n, p in both.model.named_parameters() if p.grad is not None}

    plain = gradients()
    both.model.train()
    enable_checkpointing(both.model, reentrant=False)
    again = gradients()
    disable_checkpointing(both.model)
    both.model.eval()
    assert plain.keys() == again.keys()
    assert any("vision_tower" in name for name in plain)
    for name, value in plain.items():
        torch.testing.assert_close(again[name], value, **CLOSE)


def test_labels_give_the_mean_loss_of_the_next_tokens(both: Both) -> None:
    ids, real = prompts(both.tokens, [(3, 4)], "left")
    labels = ids.masked_fill(ids == IMAGE, -100)
    found = both.model(input_ids=ids, pixel_values=pixels(1), labels=labels).loss
    scores = both.model(input_ids=ids, pixel_values=pixels(1)).logits.log_softmax(-1)[0, :-1]
    told = [-row[label].item() for row, label in zip(scores, labels[0, 1:].tolist(), strict=True) if label != -100]
    assert found.item() == pytest.approx(sum(told) / len(told), rel=1e-5)
    assert real.all()


def test_pictures_without_their_places_are_refused(both: Both) -> None:
    ids, _ = prompts(both.tokens, [(3, 4)], "left")
    with pytest.raises(ValueError, match=rf"leaves {both.tokens} places .* 2 pictures have {2 * both.tokens}"):
        both.model(input_ids=ids, pixel_values=pixels(2))
    with pytest.raises(ValueError, match="either input_ids or inputs_embeds"):
        both.model(pixel_values=pixels(1))


@pytest.mark.parametrize("shape", [(3, 48, 48), (3, 32, 40), (1, 32, 32)])
def test_pictures_of_another_size_than_the_towers_are_refused(both: Both, shape: tuple[int, int, int]) -> None:
    told = r"pictures of 3 x 32 x 32, .* are \(1, {}, {}, {}\); .* size to \{{'height': 32, 'width': 32\}}".format(
        *shape
    )
    with pytest.raises(ValueError, match=told):
        both.model.get_image_features(torch.zeros(1, *shape), interpolate_pos_encoding=True)
    ids, _ = prompts(both.tokens, [(3, 4)], "left")
    with pytest.raises(ValueError, match=told):
        both.model.generate(input_ids=ids, pixel_values=torch.zeros(1, *shape), max_new_tokens=1)


def test_embeddings_in_the_place_of_ids(both: Both) -> None:
    ids, _ = prompts(both.tokens, [(3, 4)], "left")
    embeds = both.model.get_input_embeddings()(ids)
    found = both.model(inputs_embeds=embeds, pixel_values=pixels(1)).logits
    torch.testing.assert_close(found, both.model(input_ids=ids, pixel_values=pixels(1)).logits, **CLOSE)


def test_patches_that_do_not_divide_are_refused() -> None:
    with pytest.raises(ValueError, match="9 patches cannot be divided into runs of 4"):
        MiniGPT4Config(vision_config={**original.configs(SIZES)["vision"], "image_size": 24})
