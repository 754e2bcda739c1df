"""Stage 1: train the vision tower and the projector on the labels of the renderer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recipes.smol_training.muon import Muon
from recipes.smol_training.pool import CHARACTERS, ORDINALS, SLOTS, World

FACT_WEIGHTS = (1.0, 1.0, 0.7, 0.7, 0.7)
"""Weights of thing, colour, layout, shape and count in the projector's targets."""
PLACE_WEIGHT, POSITION_WEIGHT = 0.7, 0.7


class TowerModule(L.LightningModule):
    """Train `vision_tower` and `multi_modal_projector` of a LLaVA.

    Heads on each patch predict the characters in it, their field and place, and the facts of what lies there; the projector
    learns to map the patch to the word embeddings of that content.

    Args:
        model: the model, whose tower and projector are trained in place.
        tokenizer: its tokenizer.
        world: the classes.
        steps: number of steps, for the learning rate's schedule.
        peak: factor on the learning rates.
    """

    def __init__(self, model: Any, tokenizer: Any, world: World, steps: int, peak: float = 1.0) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.tower, self.projector = model.model.vision_tower, model.model.multi_modal_projector
        width = model.config.vision_config.hidden_size
        self.world, self.steps, self.peak = world, steps, peak
        self.char_head = nn.Linear(width, SLOTS * (len(CHARACTERS) + 1))
        self.field_head = nn.Linear(width, len(world.phrases))
        self.place_head = nn.Linear(width, len(ORDINALS) + 1)
        self.fact_heads = nn.ModuleList(nn.Linear(width, len(names)) for names in world.facts.values())
        words = model.model.language_model.embed_tokens.weight.detach()
        self.scale = float(words.std())

        def table(names: Sequence[str], prefix: str = " ") -> Tensor:
            """Mean token embedding of each name; zeros for ""."""
            ids = [
                tokenizer(f"{prefix}{name}", add_special_tokens=False)["input_ids"] if name else [] for name in names
            ]
            rows = [words[row].mean(0) if row else torch.zeros(words.shape[1]) for row in ids]
            return torch.stack(rows) / self.scale

        self.register_buffer("char_words", table(["", *CHARACTERS], prefix=""), persistent=False)
        self.register_buffer("field_words", table(world.phrases), persistent=False)
        self.register_buffer("place_words", table(["", *ORDINALS]), persistent=False)
        self.register_buffer("side_words", table(["left", "right", "top", "bottom"]), persistent=False)
        for name, names in world.facts.items():
            self.register_buffer(f"{name}_words", table(names), persistent=False)

    def fact_targets(self, facts: Tensor, position: Tensor) -> Tensor:
        """Sum of the embeddings of facts (..., 5) and of the side of the picture (..., 3), see `region_labels`."""
        tables = [getattr(self, f"{name}_words") for name in self.world.facts]
        total = sum(
            weight * table[index] for weight, table, index in zip(FACT_WEIGHTS, tables, facts.unbind(-1), strict=True)
        )
        left, right, top, bottom = self.side_words
        x, y, positioned = (part.unsqueeze(-1) for part in position.unbind(-1))
        sides = (1 - x) * left + x * right + (1 - y) * top + y * bottom
        return total + POSITION_WEIGHT * positioned * sides

    def word_targets(self, batch: dict[str, Tensor]) -> Tensor:
        """Projector targets (B, P, d), in units of the word embeddings' standard deviation.

        For patches with a character: the sum of the embeddings of character, field name and place; otherwise those of the
        facts.
        """
        chars = batch["chars"]
        present = (chars > 0).unsqueeze(-1)
        letters = (self.char_words[chars] * present).sum(2) / present.sum(2).clamp(min=1).sqrt()
        letters = letters + self.field_words[batch["fields"]] + PLACE_WEIGHT * self.place_words[batch["places"]]
        return torch.where(present.any(2), letters, self.fact_targets(batch["facts"], batch["position"]))

    def training_step(self, batch: dict[str, Tensor], index: int) -> None:
        optimizers = self.optimizers()
        for optimizer in optimizers:
            optimizer.zero_grad()
        self.manual_backward(self.loss(batch))
        for optimizer, schedule in zip(optimizers, self.lr_schedulers(), strict=True):
            self.clip_gradients(optimizer, 1.0, "norm")
            optimizer.step()
            schedule.step()

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        hidden = self.tower(batch["pixels"]).last_hidden_state[:, 1:]
        word_loss = F.mse_loss(self.projector(hidden).float() / self.scale, self.word_targets(batch))
        self.log("word_loss", word_loss, prog_bar=True)
        return self.reading_loss(hidden, batch) + 0.5 * word_loss

    def reading_loss(self, hidden: Tensor, batch: dict[str, Tensor]) -> Tensor:
        """Classification loss of patch features (B, P, width)."""
        logits = self.char_head(hidden).unflatten(-1, (SLOTS, -1)).float()
        truth = batch["chars"]
        per_slot = F.cross_entropy(logits.flatten(0, 2), truth.flatten(), reduction="none")
        filled = truth.flatten() > 0
        weights = torch.where(filled, 1.0, 0.1)
        losses = [(per_slot * weights).sum() / weights.sum()]
        occupied = batch["fields"] > 0
        for head, key in ((self.field_head, "fields"), (self.place_head, "places")):
            losses.append(0.5 * F.cross_entropy(head(hidden[occupied]).float(), batch[key][occupied]))
        # patches of objects count as much as all others together
        focus = torch.where(batch["position"][..., 2] > 0, 1.0, 0.25).flatten()
        for name, head, labels in zip(self.world.facts, self.fact_heads, batch["facts"].unbind(-1), strict=True):
            scores = head(hidden).float()
            per_patch = F.cross_entropy(scores.flatten(0, 1), labels.flatten(), reduction="none")
            losses.append(0.4 * (per_patch * focus).sum() / focus.sum())
            known = (labels > 0) & (batch["position"][..., 2] > 0)
            self.log(name, (scores.argmax(-1) == labels)[known].float().mean(), prog_bar=True)
        hits = logits.argmax(-1) == truth
        self.log("chars", hits.flatten()[filled].float().mean(), prog_bar=True)
        return torch.stack(losses).sum()

    def configure_optimizers(self) -> Any:
        """Muon for the matrices of the tower, AdamW for the rest: needs a third of the steps of AdamW alone."""
        matrices = [p for name, p in self.tower.named_parameters() if p.ndim == 2 and "embedding" not in name]
        muon_ids = {id(p) for p in matrices}
        others = [p for p in self.parameters() if id(p) not in muon_ids]
        muon = Muon(matrices, lr=8e-3, weight_decay=0.01)
        adamw = torch.optim.AdamW(others, lr=2e-3, weight_decay=0.01)
        return [muon, adamw], [torch.optim.lr_scheduler.LambdaLR(optimizer, self.rate) for optimizer in (muon, adamw)]

    def rate(self, step: int) -> float:
        """Factor on the learning rate: linear warm-up over 50 steps, then linear decay."""
        return self.peak * min((step + 1) / 50, max(0.01, 1 - step / self.steps))


def resize_positions(state: dict[str, Tensor], grid: int) -> None:
    """Interpolate the position embeddings of a CLIP tower's state to another number of patches, in place."""
    key = next(name for name in state if name.endswith("position_embedding.weight"))
    positions = state[key]
    side = round((len(positions) - 1) ** 0.5)
    square = positions[1:].T.unflatten(1, (side, side))[None]
    patches = F.interpolate(square, (grid, grid), mode="bicubic")[0].flatten(1).T
    state[key] = torch.cat([positions[:1], patches])
