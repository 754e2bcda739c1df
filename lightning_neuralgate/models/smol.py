"""`smol-llava`: a LLaVA small enough for a laptop, built from SmolLM2-135M and a CLIP tower of 2.8 M parameters.

The class is transformers' own `LlavaForConditionalGeneration`. The package ships the tower, the projector and a LoRA
adapter of the language model (`assets/smol_llava.safetensors`), trained by `recipes/train_smol_llava.py` on rendered
pictures; the language model is downloaded once (see `smollm2`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_neuralgate.errors import MissingDependencyError
from lightning_neuralgate.models.smollm2 import GGUF_SHA256, load_smollm2
from lightning_neuralgate.runtime.files import atomic_write, cache_folder

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import LlavaForConditionalGeneration, LlavaProcessor

WEIGHTS = Path(__file__).parent / "assets" / "smol_llava.safetensors"
IMAGE_SIZE = 160
PATCH_SIZE = 16
LORA_TARGETS = ("q_proj", "v_proj", "o_proj", "up_proj", "down_proj")
LORA_RANK = 16

CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}{{ '<image>\n' }}{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def assemble_smol_llava() -> tuple[LlavaForConditionalGeneration, LlavaProcessor]:
    """Return SmolLM2 with an untrained tower and projector, and its processor, as training starts from them."""
    from transformers import CLIPVisionConfig, LlavaConfig, LlavaForConditionalGeneration

    language_model, tokenizer = smollm2_with("<image>")
    vision = CLIPVisionConfig(
        hidden_size=192,
        intermediate_size=768,
        num_hidden_layers=6,
        num_attention_heads=3,
        image_size=IMAGE_SIZE,
        patch_size=PATCH_SIZE,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=language_model.config,
        image_token_index=int(tokenizer.vocab["<image>"]),
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        image_seq_length=(IMAGE_SIZE // PATCH_SIZE) ** 2,
        tie_word_embeddings=True,
    )
    model = LlavaForConditionalGeneration(config)
    put_language_model(model, language_model, tokenizer)
    return model.eval(), llava_processor(tokenizer)


def llava_processor(tokenizer: Any, image_size: int = IMAGE_SIZE, patch_size: int = PATCH_SIZE) -> LlavaProcessor:
    """Return the processor of a LLaVA with these sizes and a tokenizer that has the image token."""
    from transformers import CLIPImageProcessor, LlavaProcessor

    return LlavaProcessor(
        image_processor=CLIPImageProcessor(
            size={"shortest_edge": image_size}, crop_size={"height": image_size, "width": image_size}
        ),
        tokenizer=tokenizer,
        patch_size=patch_size,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE,
        image_token="<image>",
    )


def smollm2_with(image_token: str) -> tuple[Any, Any]:
    """Load SmolLM2 and its tokenizer, and add an image token."""
    language_model, tokenizer = load_smollm2()
    tokenizer.add_special_tokens({"additional_special_tokens": [image_token]})
    language_model.resize_token_embeddings(len(tokenizer))
    tokenizer.pad_token = "<|endoftext|>"
    return language_model, tokenizer


def put_language_model(model: Any, language_model: Any, tokenizer: Any) -> None:
    """Load SmolLM2's weights and special tokens into a vision-language model with its text config, in place."""
    from transformers import GenerationConfig

    bos, eos, pad = (int(tokenizer.vocab[token]) for token in ("<|im_start|>", "<|im_end|>", "<|endoftext|>"))
    decoder = {name.removeprefix("model."): value for name, value in language_model.state_dict().items()}
    decoder.pop("lm_head.weight", None)
    model.model.language_model.load_state_dict(decoder)
    model.tie_weights()
    model.generation_config = GenerationConfig(eos_token_id=eos, pad_token_id=pad, bos_token_id=bos)
    model.config.get_text_config().pad_token_id = pad


def add_lora(model: Any) -> None:
    """Add the shipped adapter's LoRA layers to the language model, in place, initialized to change nothing."""
    from peft import LoraConfig, inject_adapter_in_model

    config = LoraConfig(r=LORA_RANK, lora_alpha=2 * LORA_RANK, target_modules=list(LORA_TARGETS))
    inject_adapter_in_model(config, model.model.language_model)


def trained_state(model: Any) -> dict[str, Tensor]:
    """Return the tensors that the package ships: tower, projector and LoRA of a model after `add_lora`."""
    shipped = ("vision_tower", "multi_modal_projector", "lora_")
    return {name: value for name, value in model.state_dict().items() if any(part in name for part in shipped)}


def merge_lora(model: Any) -> None:
    """Merge the LoRA layers into the weights and remove them, in place."""
    from peft.tuners.lora import LoraLayer

    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, LoraLayer):
                child.merge()
                setattr(parent, name, child.get_base_layer())


@dataclass(frozen=True)
class EmbeddedModel:
    """A small model whose trained tensors ship with the package; its language model is downloaded once.

    Attributes:
        name: name on the command line.
        weights: file of the shipped tensors.
        template: chat template.
        assemble: function that returns the model with untrained tensors instead of the shipped ones, and its processor.
    """

    name: str
    weights: Path
    template: str
    assemble: Callable[[], tuple[Any, Any]]

    def build(self, weights: Path | None = None) -> tuple[Any, Any]:
        """Return the trained model in float32 and its processor, from the shipped float16 weights or another file.

        Raises:
            MissingDependencyError: the file does not exist or belongs to another model.
        """
        from safetensors.torch import load_file

        file = weights or self.weights
        if not file.is_file():
            raise MissingDependencyError(
                f"{file} does not exist; train {self.name} with recipes/train_smol_llava.py --model {self.name}"
            )
        model, processor = self.assemble()
        add_lora(model)
        state = {name: value.float() for name, value in load_file(file).items()}
        differing = set(trained_state(model)) ^ set(state)
        if differing:
            raise MissingDependencyError(
                f"{file} does not fit {self.name}, missing or unexpected tensors: {sorted(differing)[:5]}; train it with "
                f"recipes/train_smol_llava.py --model {self.name}"
            )
        model.load_state_dict(state, strict=False)
        merge_lora(model)
        return model.eval(), processor

    def key(self) -> str:
        """Return the cache key of the built model, a hash of everything it is built from."""
        parts = self.weights.read_bytes() + GGUF_SHA256.encode() + self.template.encode()
        return hashlib.sha256(parts).hexdigest()[:12]

    def folder(self) -> Path:
        """Return a standard Hugging Face folder of the model, built on the first call (about a minute) and cached.

        Example:
            `AutoModelForImageTextToText.from_pretrained(SMOL_LLAVA.folder())`
        """
        folder = cache_folder() / f"{self.name}-{self.key()}"
        if not folder.is_dir():
            with atomic_write(folder) as draft:
                model, processor = self.build()
                model.save_pretrained(draft)
                processor.save_pretrained(draft)
        return folder


SMOL_LLAVA = EmbeddedModel("smol-llava", WEIGHTS, CHAT_TEMPLATE, assemble_smol_llava)
