from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import Idefics3ImageProcessor, Idefics3Processor, PreTrainedTokenizerFast

from lightning_neuralgate.data.collator import PrivacyPairCollator, QueryRow
from lightning_neuralgate.errors import DataFormatError, ModelLayoutError, SubjectNotFoundError
from lightning_neuralgate.hf.forward import IGNORED, batch_nll, model_inputs
from tests.helpers.tiny_checkpoints import tiny_checkpoint
from tests.helpers.tiny_llava import tiny_llava, tiny_processor


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    Image.new("RGB", (20, 16), "red").save(tmp_path / "red.png")
    return tmp_path / "red.png"


def rows(picture: Path) -> list[QueryRow]:
    return [
        QueryRow("What is the number of this Passport?", "sensitive", picture, "passports", "I cannot", "Hello.", "a"),
        QueryRow("Tell me the colour of the receipt, please.", "benign", picture, "receipt", "The receipt is", "", "b"),
        QueryRow("Please?", "retention", None, target="Yes"),
    ]


def idefics3() -> Idefics3Processor:
    """A processor of another model family: several kinds of image tokens, nested lists of pictures."""
    base = tiny_processor().tokenizer
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=base.backend_tokenizer, pad_token="<pad>", eos_token="<|im_end|>"
    )
    return Idefics3Processor(
        Idefics3ImageProcessor(size={"longest_edge": 32}, max_image_size={"longest_edge": 32}),
        tokenizer,
        image_seq_len=3,
        chat_template="{% for m in messages %}{% if m['role'] == 'user' %}User:{% else %}Assistant: {% endif %}"
        "{% for c in m['content'] %}{% if c['type'] == 'image' %}<image>{% else %}{{ c['text'] }}{% endif %}{% endfor %}"
        "<end_of_utterance>\n{% endfor %}{% if add_generation_prompt %}Assistant:{% endif %}",
    )


@pytest.mark.parametrize("padding_side", ["left", "right"])
@pytest.mark.parametrize("make_processor", [tiny_processor, idefics3])
def test_labels_and_subject_mask_cover_targets_and_subjects(
    picture: Path, padding_side: Any, make_processor: Any
) -> None:
    processor = make_processor()
    given = rows(picture)[:2] if make_processor is idefics3 else rows(picture)
    batch = PrivacyPairCollator(processor, padding_side)(given)
    shape = batch["input_ids"].shape
    for key in ("attention_mask", "labels", "subject_mask"):
        assert batch[key].shape == shape
    for index, row in enumerate(given):
        ids, real = batch["input_ids"][index], batch["attention_mask"][index].bool()
        edge = real[0] if padding_side == "right" else real[-1]
        assert edge, "padding is on the configured side"
        target = batch["labels"][index] != IGNORED
        assert torch.equal(ids[target], batch["labels"][index][target])
        assert processor.tokenizer.decode(ids[target]).strip() == row.target
        assert target.nonzero()[-1] == real.nonzero()[-1], "a row ends with its target"
        subject = processor.tokenizer.decode(ids[batch["subject_mask"][index]]).strip().lower()
        assert subject == row.subject.removesuffix("s")
    assert batch["subject"] == [row.subject for row in given]
    assert batch["role"] == [row.role for row in given]
    assert len(batch["pixel_values"]) == 2


def test_padding_does_not_change_losses(picture: Path) -> None:
    model = tiny_llava()
    with torch.no_grad():
        losses = [
            batch_nll(model, PrivacyPairCollator(tiny_processor(), side)(rows(picture))) for side in ("left", "right")
        ]
        unpadded = torch.cat([batch_nll(model, PrivacyPairCollator(tiny_processor())([row])) for row in rows(picture)])
    assert torch.allclose(losses[0], unpadded, atol=1e-5)
    assert torch.allclose(losses[1], unpadded, atol=1e-5)


def test_training_input_starts_with_the_prompt(picture: Path) -> None:
    processor = tiny_processor()
    row = rows(picture)[0]
    prompt = QueryRow(row.query, row.role, row.image, row.subject, None, row.context)
    collate = PrivacyPairCollator(processor)
    prompt_ids, training_ids = (collate([query_row])["input_ids"][0].tolist() for query_row in (prompt, row))
    assert training_ids[: len(prompt_ids)] == prompt_ids
    assert processor.tokenizer.decode(prompt_ids).endswith("<|im_start|>assistant\n")
    assert "Hello. What is the number" in processor.tokenizer.decode(prompt_ids)


def test_target_is_tokenized_apart_where_it_would_merge_with_the_prompt(picture: Path) -> None:
    processor = tiny_processor()
    processor.chat_template = (
        "{% for m in messages %}{% for c in m['content'] %}{{ c['text'] }}{% endfor %} {% endfor %}"
    )
    row = QueryRow("Tell me of this receipt", "benign", None, "receipt", "receipt is")
    batch = PrivacyPairCollator(processor)([row])
    prompt_ids = processor.tokenizer("Tell me of this receipt ")["input_ids"]
    full_ids = processor.tokenizer("Tell me of this receipt receipt is")["input_ids"]
    assert full_ids[: len(prompt_ids)] != prompt_ids, "the space before the target would belong to its first token"
    target_ids = processor.tokenizer("receipt is")["input_ids"]
    assert batch["input_ids"][0].tolist() == prompt_ids + target_ids, "generation continues from the same prompt tokens"
    assert processor.tokenizer.decode(batch["labels"][0][batch["labels"][0] != IGNORED]).strip() == "receipt is"


def test_text_of_a_second_encoder_is_padded_on_the_right(picture: Path) -> None:
    _, processor = tiny_checkpoint("instructblip")
    queries = ("What is the number of this passport?", "Tell me of the passport.")
    batch = PrivacyPairCollator(processor, "left")([QueryRow(query, "sensitive", picture) for query in queries])
    for name, side in (("attention_mask", 0), ("qformer_attention_mask", -1)):
        assert batch[name].min(1).values.tolist() == [1, 0], "the second row is shorter"
        assert batch[name][1, side] == 0, name
        assert batch[name][1, -1 - side] == 1, name


def test_target_is_read_causally_behind_a_prompt_that_is_not(picture: Path) -> None:
    _, processor = tiny_checkpoint("paligemma2")
    queries = ("What is it?", "Tell me of the passport.")
    batch = PrivacyPairCollator(processor)([QueryRow(q, "benign", picture, target="It is red") for q in queries])
    target = batch["labels"] != IGNORED
    assert 3 <= int(target[0].sum()) < int(batch["attention_mask"][0].sum()) - 4
    assert torch.equal(batch["token_type_ids"].bool(), target)


def test_model_inputs_drops_the_metadata(picture: Path) -> None:
    batch = PrivacyPairCollator(tiny_processor())(rows(picture))
    assert set(model_inputs(batch)) == {"input_ids", "attention_mask", "pixel_values"}


def test_errors_name_record_and_file(picture: Path) -> None:
    collate = PrivacyPairCollator(tiny_processor())
    with pytest.raises(SubjectNotFoundError, match="record r9: the subject 'drone'"):
        collate([QueryRow("What is it?", "benign", picture, "drone", record_id="r9")])
    picture.write_bytes(b"no picture")
    with pytest.raises(DataFormatError, match=r"record r9: picture .*red\.png cannot be read"):
        collate([QueryRow("What is it?", "benign", picture, record_id="r9")])
    with pytest.raises(DataFormatError, match=r"gone\.png cannot be read"):
        collate([QueryRow("What is it?", "benign", picture.with_name("gone.png"))])
    with pytest.raises(ValueError, match="at least one row"):
        collate([])


TEXT_ONLY = "{% for m in messages %}{{ '<|im_start|>' + m['role'] + ' ' + m['content'] }}{% endfor %}"
DROPS_PICTURES = (
    "{% for m in messages %}{% for c in m['content'] %}{% if c['type'] == 'text' %}"
    "{{ c['text'] }}{% endif %}{% endfor %}{% endfor %}"
)


@pytest.mark.parametrize(
    ("template", "problem"),
    [
        (None, "has no chat template, but"),
        (TEXT_ONLY, "has a chat template, but it cannot be applied to a picture and a text"),
        (DROPS_PICTURES, "has a chat template, but"),
    ],
)
def test_a_missing_or_textual_chat_template_is_named(picture: Path, template: str | None, problem: str) -> None:
    processor = tiny_processor()
    processor.chat_template = template
    with pytest.raises(ModelLayoutError, match=f"{problem}.*chat_template.jinja"):
        PrivacyPairCollator(processor)(rows(picture))


@pytest.mark.parametrize("make_processor", [tiny_processor, idefics3])
def test_a_prompt_may_have_earlier_messages_and_an_opening(picture: Path, make_processor: Any) -> None:
    processor = make_processor()
    collate = PrivacyPairCollator(processor)
    earlier = (("user", "What colour is it?"), ("assistant", "It is red."))
    plain = QueryRow("What is the number?", "sensitive", picture)
    chat = QueryRow("What is the number?", "sensitive", picture, earlier=earlier, opening="The number is")
    trained = QueryRow("What is the number?", "sensitive", picture, opening="The number is", target="I cannot say")

    def text(row: QueryRow) -> str:
        return processor.tokenizer.decode(collate([row])["input_ids"][0], skip_special_tokens=True)

    assert "What colour is it?" in text(chat)
    assert text(chat).index("It is red.") < text(chat).index("What is the number?") < text(chat).index("The number is")
    assert text(chat).endswith("The number is")
    batch = collate([trained])
    labelled = batch["labels"][0] != IGNORED
    assert processor.tokenizer.decode(batch["labels"][0][labelled]).strip() == "I cannot say"
    without_target = text(QueryRow("What is the number?", "sensitive", picture, opening="The number is"))
    assert text(trained) == f"{without_target} I cannot say"
    assert text(plain) in without_target
