"""Stage 2: train the projector and a LoRA adapter through the language model, and keep what it says without a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from lightning_neuralgate.models.smol import trained_state
from lightning_neuralgate.runtime.files import atomic_write
from recipes.smol_training.dialogues import IGNORED, collate, pack_texts
from recipes.smol_training.evaluation import answer_texts
from recipes.smol_training.packed import NAME, Packing

ANSWER_TOKENS = 16
"""Length of the language model's own answers to ordinary prompts."""


class AlignModule(L.LightningModule):
    """Train projector and LoRA on answers about pictures, and on the original distribution over its own answers without.

    Args:
        model: a model with LoRA layers (`add_lora`), trained in place.
        processor: its processor.
        texts: prompts without a picture, with the original language model's answer and the prompt in its own format as ids.
        steps: number of steps, for the learning rate's schedule.
        text_weight: weight of the KL divergence on texts.
        texts_per_step: texts per step.
        rate: learning rate of the adapter; the projector's is half of it.
        packed: leave out pairs of tokens that do not see each other, which gives the same in less time.
    """

    def __init__(
        self,
        model: Any,
        processor: Any,
        texts: Sequence[tuple[str, list[int], list[int]]],
        steps: int,
        text_weight: float = 1.0,
        texts_per_step: int = 4,
        rate: float = 1e-3,
        packed: bool = True,
    ) -> None:
        super().__init__()
        self.model, self.processor, self.texts = model, processor, texts
        self.packed = packed
        if packed:
            model.model.language_model.set_attn_implementation(NAME)
        self.steps, self.text_weight, self.texts_per_step, self.rate = steps, text_weight, texts_per_step, rate

    def on_fit_start(self) -> None:
        if self.trainer.precision == "bf16-mixed":
            halve_frozen(self.model.model.language_model)

    def logits(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Logits (N, V) of the labelled tokens of a batch of `collate`, and their ids (N)."""
        model = self.model.model
        embeddings = model.get_input_embeddings()(batch["ids"])
        features = batch.get("features")
        if "pixel_values" in batch:
            features = model.get_image_features(batch["pixel_values"])
            features = getattr(features, "pooler_output", features)
            if isinstance(features, list | tuple):
                features = torch.cat(list(features))
        if features is not None:
            places = (batch["ids"] == self.model.config.image_token_index).unsqueeze(-1).expand_as(embeddings)
            embeddings = embeddings.masked_scatter(places, features.to(embeddings.dtype))
        hidden = model.language_model(
            inputs_embeds=embeddings,
            attention_mask=batch["mask"],
            position_ids=batch["positions"],
            use_cache=False,
            packing=Packing(batch["segments"]) if self.packed and features is not None else None,
        ).last_hidden_state[:, :-1]
        labels = batch["labels"][:, 1:]
        labelled = labels != IGNORED
        return self.model.lm_head(hidden[labelled]).float(), labels[labelled]

    def text_loss(self, index: int) -> Tensor:
        """KL divergence from the original language model, in its own prompt format, over the tokens of its answers."""
        count = self.texts_per_step
        chosen = [self.texts[(index * count + offset) % len(self.texts)] for offset in range(count)]
        student, _ = self.logits(self.on_device([pack_texts(self.processor, [(p, answer) for p, answer, _ in chosen])]))
        with torch.no_grad(), adapter_off(self.model):
            teacher, _ = self.logits(self.on_device([_original_rows(chosen)]))
        return F.kl_div(student.log_softmax(-1), teacher.log_softmax(-1), reduction="batchmean", log_target=True)

    def on_device(self, rows: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        return {key: value.to(self.device) for key, value in collate(rows).items()}

    def training_step(self, batch: dict[str, Tensor], index: int) -> Tensor:
        logits, labels = self.logits(batch)
        weights = answer_weights(batch)
        loss = (F.cross_entropy(logits, labels, reduction="none") * weights).sum() / weights.sum()
        hits = (logits.argmax(-1) == labels).float().mean()
        text_loss = self.text_loss(self.global_step)
        self.log_dict({"answer_loss": loss, "tokens_right": hits, "text_kl": text_loss}, prog_bar=True)
        return loss + self.text_weight * text_loss

    def configure_optimizers(self) -> Any:
        lora = [p for name, p in self.model.named_parameters() if "lora_" in name]
        groups = [
            {"params": list(self.model.model.multi_modal_projector.parameters()), "lr": self.rate / 2},
            {"params": lora, "lr": self.rate},
        ]
        optimizer = torch.optim.AdamW(groups, weight_decay=0.0, betas=(0.9, 0.98))
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, self.decay)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def decay(self, step: int) -> float:
        """Factor on the learning rates: warm-up over 20 steps, then constant, and a linear decay over the last fifth."""
        return min((step + 1) / 20, 1.0, max(0.02, 5 * (1 - step / self.steps)))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        trained = {f"model.{name}" for name in trained_state(self.model)}
        checkpoint["state_dict"] = {k: v for k, v in checkpoint["state_dict"].items() if k in trained}


def answer_weights(batch: dict[str, Tensor]) -> Tensor:
    """Weights (N) of the labelled tokens: 1 for the first of an answer, which often decides it, n^-0.5 for others of n."""
    labelled = batch["labels"][:, 1:] != IGNORED
    first = (batch["labels"][:, :-1] == IGNORED)[labelled]
    rows, columns = labelled.nonzero(as_tuple=True)
    answers = rows * batch["labels"].shape[1] + batch["segments"][rows, columns + 1]
    _, answer, counts = answers.unique(return_inverse=True, return_counts=True)
    return torch.where(first, 1.0, counts[answer].float().rsqrt())


def halve_frozen(language_model: Any) -> None:
    """Keep frozen weights in bfloat16, in place, so that training does not convert them at every step."""
    from peft.tuners.lora import LoraLayer

    for parameter in language_model.parameters():
        if not parameter.requires_grad:
            parameter.data = parameter.data.bfloat16()
    for module in language_model.modules():
        if isinstance(module, LoraLayer):
            module.cast_input_dtype_enabled = False


class adapter_off:
    """Context manager: the language model without its LoRA layers."""

    def __init__(self, model: Any) -> None:
        from peft.tuners.lora import LoraLayer

        self.layers = [module for module in model.modules() if isinstance(module, LoraLayer)]

    def __enter__(self) -> None:
        for layer in self.layers:
            layer.enable_adapters(False)

    def __exit__(self, *_: object) -> None:
        for layer in self.layers:
            layer.enable_adapters(True)


def _original_rows(chosen: Sequence[tuple[str, list[int], list[int]]]) -> dict[str, Tensor]:
    ids: list[int] = []
    labels: list[int] = []
    positions: list[int] = []
    segments: list[int] = []
    for number, (_, answer, prompt) in enumerate(chosen, start=1):
        ids += [*prompt, *answer]
        labels += [IGNORED] * len(prompt) + list(answer)
        positions += range(len(prompt) + len(answer))
        segments += [number] * (len(prompt) + len(answer))
    keys = ("ids", "labels", "positions", "segments")
    return {key: torch.tensor(value) for key, value in zip(keys, (ids, labels, positions, segments), strict=True)}


def original_answers(
    language_model: Any, tokenizer: Any, prompts: Sequence[str], file: Path
) -> list[tuple[str, list[int], list[int]]]:
    """Let the original language model answer prompts, greedily; stored in `file`, and loaded if it exists.

    Returns:
        For each prompt its text, the answer's token ids, and the ids of the prompt in SmolLM2's format.
    """
    ids = [
        tokenizer(f"<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n", add_special_tokens=False)[
            "input_ids"
        ]
        for prompt in prompts
    ]
    pad = tokenizer.convert_tokens_to_ids("<|endoftext|>")
    if not file.is_file():
        answers = torch.full((len(prompts), ANSWER_TOKENS), pad)
        for row, answer in enumerate(answer_texts(language_model, tokenizer, ids, ANSWER_TOKENS)):
            answers[row, : len(answer)] = torch.tensor(answer)
        with atomic_write(file) as draft:
            save_file({"answers": answers}, draft)
    stored = load_file(file)["answers"].tolist()
    return [
        (prompt, [token for token in answer if token != pad], prompt_ids)
        for prompt, answer, prompt_ids in zip(prompts, stored, ids, strict=True)
    ]
