"""The model compared with an implementation in plain torch on the same original tensors."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig

from lightning_neuralgate.models.minigpt4 import MiniGPT4Config, MiniGPT4ForConditionalGeneration
from lightning_neuralgate.models.minigpt4.conversion import convert_state_dict, minigpt4_config
from tests.helpers.training import disable_checkpointing, enable_checkpointing
from tests.models.minigpt4 import original
from tests.models.minigpt4.original import Sizes

SIZES = Sizes()
IMAGE = SIZES.vocabulary
"""Id of the image token, the first after the language model's own tokens."""
CLOSE = {"atol": 1e-5, "rtol": 1e-5}


class Reference:
    """A model, and the same network in plain torch on the original tensors."""

    def __init__(self, use_qformer: bool) -> None:
        self.use_qformer = use_qformer
        self.eva, self.blip = original.eva_vit_g(SIZES), original.blip2(SIZES)
        self.checkpoint, self.language = original.minigpt4(SIZES, use_qformer)["model"], original.llama(SIZES)
        parts = original.configs(SIZES)
        config = minigpt4_config(
            LlamaConfig(**parts["text"]), parts["vision"], parts["qformer"], use_qformer, IMAGE, SIZES.queries
        )
        tower = {f"visual_encoder.{name}": value for name, value in self.eva.items()}
        sources = [("eva", tower), ("blip", self.blip), ("checkpoint", self.checkpoint)]
        self.model = MiniGPT4ForConditionalGeneration(config).eval()
        self.model.load_state_dict(convert_state_dict(config, self.language, sources))

    @property
    def tokens(self) -> int:
        return int(self.model.config.image_seq_length)

    def expected(self, ids: Tensor, mask: Tensor, pixels: Tensor) -> Tensor:
        """Return the logits over the vocabulary without the image token."""
        features = original.vision_features(self.eva, self.blip, SIZES, pixels)
        pictures = original.image_tokens(self.blip, self.checkpoint, SIZES, features, self.use_qformer)
        embeds = self.language["model.embed_tokens.weight"][ids.clamp(max=IMAGE - 1)]
        embeds[ids == IMAGE] = pictures.flatten(0, 1)
        return original.logits(self.language, SIZES, embeds, mask)

    def generate(self, mask: Tensor, **options: Any) -> Any:
        """Generate greedily, unless the options say otherwise, without an end-of-sequence token."""
        defaults = {"do_sample": False, "eos_token_id": None, "pad_token_id": 0}
        return self.model.generate(attention_mask=mask.long(), **{**defaults, **options})


@pytest.fixture(scope="module", params=[False, True], ids=["llama2", "qformer"])
def reference(request: pytest.FixtureRequest) -> Reference:
    return Reference(request.param)


def pixels(count: int) -> Tensor:
    return torch.randn(count, 3, SIZES.image, SIZES.image, generator=torch.Generator().manual_seed(7))


def prompts(tokens: int, lengths: list[tuple[int, int]], side: str) -> tuple[Tensor, Tensor]:
    """Return ids and attention mask of rows with text, a picture, and more text, padded on one side."""
    random = torch.Generator().manual_seed(8)
    rows = []
    for before, after in lengths:
        text = torch.randint(3, IMAGE, (before + after,), generator=random)
        rows.append(torch.cat([text[:before], torch.full((tokens,), IMAGE), text[before:]]))
    width = max(map(len, rows))
    ids, mask = torch.zeros(len(rows), width, dtype=torch.long), torch.zeros(len(rows), width, dtype=torch.bool)
    for index, row in enumerate(rows):
        columns = slice(width - len(row), None) if side == "left" else slice(len(row))
        ids[index, columns], mask[index, columns] = row, True
    return ids, mask


@pytest.mark.parametrize("count", [1, 3])
def test_vision_features_and_image_tokens(reference: Reference, count: int) -> None:
    found = reference.model.get_image_features(pixels(count))
    features = original.vision_features(reference.eva, reference.blip, SIZES, pixels(count))
    torch.testing.assert_close(found.last_hidden_state, features, **CLOSE)
    tokens = original.image_tokens(reference.blip, reference.checkpoint, SIZES, features, reference.use_qformer)
    assert tokens.shape == (count, SIZES.queries if reference.use_qformer else 4, SIZES.text)
    torch.testing.assert_close(found.pooler_output, tokens, **CLOSE)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("lengths", [[(3, 4)], [(2, 5), (6, 3), (1, 1)]], ids=["one", "three"])
def test_logits_under_padding(reference: Reference, side: str, lengths: list[tuple[int, int]]) -> None:
    ids, mask = prompts(reference.tokens, lengths, side)
    shown = pixels(len(lengths))
    # positions without padding, as generate computes them
    position_ids = (mask.long().cumsum(1) - 1).clamp(min=0)
    for implementation in ("sdpa", "eager"):
        reference.model.set_attn_implementation(implementation)
        found = reference.model(
            input_ids=ids, pixel_values=shown, attention_mask=mask.long(), position_ids=position_ids
        ).logits
        torch.testing.assert_close(found[mask][:, :IMAGE], reference.expected(ids, mask, shown)[mask], **CLOSE)
        assert bool((found[mask][:, IMAGE] < found[mask][:, :IMAGE].amax(-1)).all()), "never the image token"


def test_cached_generation_equals_a_loop_without_cache(reference: Reference) -> None:
    ids, mask = prompts(reference.tokens, [(2, 5), (6, 3), (1, 1)], "left")
    shown = pixels(3)
    found = reference.generate(mask, input_ids=ids, pixel_values=shown, max_new_tokens=6)
    expected_ids, expected_mask = ids, mask
    for _ in range(6):
        next_ids = reference.expected(expected_ids, expected_mask, shown)[:, -1].argmax(-1, keepdim=True)
        expected_ids = torch.cat([expected_ids, next_ids], 1)
        expected_mask = torch.cat([expected_mask, torch.ones_like(next_ids, dtype=torch.bool)], 1)
    assert torch.equal(found, expected_ids)
    assert len(set(expected_ids[:, ids.shape[1] :].flatten().tolist())) > 3, "the random weights give different tokens"


def picture_rows(tokens: int, pictures: list[int]) -> tuple[Tensor, Tensor]:
    """Return ids and attention mask of left-padded rows with the given numbers of pictures and different text."""
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
def test_beams_of_a_batch_with_different_numbers_of_pictures_equal_those_of_each_row(
    reference: Reference, options: dict[str, Any]
) -> None:
    counts = [2, 0, 3, 1]
    (ids, mask), shown = picture_rows(reference.tokens, counts), pixels(sum(counts))
    options = {"max_new_tokens": 4, "output_scores": True, "return_dict_in_generate": True, **options}
    embedded = options.pop("embedded", False)

    def generate(mask: Tensor, **inputs: Tensor) -> tuple[Tensor, Tensor]:
        found = reference.generate(mask, **inputs, **options)
        return found.sequences[:, -4:], found.sequences_scores

    embeds = reference.model.get_input_embeddings()(ids)
    found, scores = generate(
        mask, **({"inputs_embeds": embeds} if embedded else {"input_ids": ids}), pixel_values=shown
    )
    filled = embeds.clone()
    filled[ids == IMAGE] = reference.model.get_image_features(shown).pooler_output.flatten(0, 1)
    alone = [
        generate(mask[row : row + 1, mask[row]], inputs_embeds=filled[row : row + 1, mask[row]])
        for row in range(len(counts))
    ]
    assert torch.equal(found, torch.cat([sequences for sequences, _ in alone]))
    torch.testing.assert_close(scores, torch.cat([row_scores for _, row_scores in alone]), **CLOSE)


def test_sampled_sequences_of_a_row_use_its_pictures(reference: Reference) -> None:
    (ids, mask), shown = picture_rows(reference.tokens, [1, 2]), pixels(3)
    expected = {
        row: reference.model(input_ids=ids[row : row + 1, mask[row]], pixel_values=pictures).logits[:, -1]
        for row, pictures in enumerate(shown.split([1, 2]))
    }
    found = reference.generate(
        mask, input_ids=ids, pixel_values=shown, max_new_tokens=1, do_sample=True, num_return_sequences=2,
        return_dict_in_generate=True, output_logits=True,
    )  # fmt: skip
    torch.testing.assert_close(
        found.logits[0], torch.cat([expected[0], expected[0], expected[1], expected[1]]), **CLOSE
    )


def test_generate_encodes_each_picture_once(reference: Reference) -> None:
    (ids, mask), shown = picture_rows(reference.tokens, [1, 2]), pixels(3)
    encoded: list[int] = []
    hook = reference.model.model.vision_tower.register_forward_pre_hook(
        lambda module, inputs: encoded.append(len(inputs[0]))
    )
    reference.generate(mask, input_ids=ids, pixel_values=shown, max_new_tokens=2, num_beams=3)
    hook.remove()
    assert encoded == [3]


def test_precomputed_features_replace_pixels(reference: Reference) -> None:
    ids, _ = prompts(reference.tokens, [(3, 4)], "left")
    features = {"image": reference.model.get_image_features(pixels(1))}
    found = reference.model(input_ids=ids, mm_encoder_outputs=features).logits
    torch.testing.assert_close(found, reference.model(input_ids=ids, pixel_values=pixels(1)).logits)
    with pytest.raises(ValueError, match="either pixel_values or mm_encoder_outputs"):
        reference.model(input_ids=ids, pixel_values=pixels(1), mm_encoder_outputs=features)


def test_gradient_checkpointing_keeps_the_gradients(reference: Reference) -> None:
    ids, mask = prompts(reference.tokens, [(2, 5), (6, 3)], "right")
    labels = ids.masked_fill(~mask | (ids == IMAGE), -100)

    def gradients() -> dict[str, Tensor]:
        reference.model.zero_grad()
        inputs: dict[str, Any] = {"input_ids": ids, "attention_mask": mask.long(), "pixel_values": pixels(2)}
        reference.model(**inputs, labels=labels, use_cache=False).loss.backward()
        return {n: p.grad.clone() for n, p in reference.model.named_parameters() if p.grad is not None}

    expected = gradients()
    reference.model.train()
    enable_checkpointing(reference.model, reentrant=False)
    checkpointed = gradients()
    disable_checkpointing(reference.model)
    reference.model.eval()
    assert expected.keys() == checkpointed.keys()
    assert any("vision_tower" in name for name in expected)
    for name, value in expected.items():
        torch.testing.assert_close(checkpointed[name], value, **CLOSE)


def test_loss_is_the_mean_over_labelled_next_tokens(reference: Reference) -> None:
    ids, mask = prompts(reference.tokens, [(3, 4)], "left")
    labels = ids.masked_fill(ids == IMAGE, -100)
    found = reference.model(input_ids=ids, pixel_values=pixels(1), labels=labels).loss
    scores = reference.model(input_ids=ids, pixel_values=pixels(1)).logits.log_softmax(-1)[0, :-1]
    losses = [-row[label].item() for row, label in zip(scores, labels[0, 1:].tolist(), strict=True) if label != -100]
    assert found.item() == pytest.approx(sum(losses) / len(losses), rel=1e-5)
    assert mask.all()


def test_a_wrong_number_of_image_tokens_raises(reference: Reference) -> None:
    ids, _ = prompts(reference.tokens, [(3, 4)], "left")
    with pytest.raises(
        ValueError, match=rf"has {reference.tokens} positions .* 2 pictures have {2 * reference.tokens}"
    ):
        reference.model(input_ids=ids, pixel_values=pixels(2))
    with pytest.raises(ValueError, match="either input_ids or inputs_embeds"):
        reference.model(pixel_values=pixels(1))


@pytest.mark.parametrize("shape", [(3, 48, 48), (3, 32, 40), (1, 32, 32)])
def test_pictures_of_another_size_than_the_tower_raise(reference: Reference, shape: tuple[int, int, int]) -> None:
    message = r"pictures of 3 x 32 x 32, .* are \(1, {}, {}, {}\); .* size to \{{'height': 32, 'width': 32\}}".format(
        *shape
    )
    with pytest.raises(ValueError, match=message):
        reference.model.get_image_features(torch.zeros(1, *shape), interpolate_pos_encoding=True)
    ids, _ = prompts(reference.tokens, [(3, 4)], "left")
    with pytest.raises(ValueError, match=message):
        reference.model.generate(input_ids=ids, pixel_values=torch.zeros(1, *shape), max_new_tokens=1)


def test_embeddings_instead_of_ids(reference: Reference) -> None:
    ids, _ = prompts(reference.tokens, [(3, 4)], "left")
    embeds = reference.model.get_input_embeddings()(ids)
    found = reference.model(inputs_embeds=embeds, pixel_values=pixels(1)).logits
    torch.testing.assert_close(found, reference.model(input_ids=ids, pixel_values=pixels(1)).logits, **CLOSE)


def test_an_indivisible_number_of_patches_raises() -> None:
    with pytest.raises(ValueError, match="9 patches cannot be divided into groups of 4"):
        MiniGPT4Config(vision_config={**original.configs(SIZES)["vision"], "image_size": 24})
