"""Stage 1: train the vision tower and the projector on the labels of the renderer."""

from __future__ import annotations

from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recipes.smol_training.muon import Muon
from recipes.smol_training.pool import CHARACTERS, ORDINALS, SLOTS, World
from recipes.smol_training.words import PLACE_WEIGHT, WordTargets

NOTHING_WEIGHT, DOCUMENT_WEIGHT = 0.1, 0.1
"""Weights of patches where nothing is, and of those of a document that fills the picture, in the losses on words."""


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
        self.word_head = nn.Linear(width, len(world.words))
        self.fact_heads = nn.ModuleList(nn.Linear(width, len(names)) for names in world.facts.values())
        self.targets = WordTargets(model.model.language_model.embed_tokens.weight.detach(), tokenizer, world)

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
        written = (batch["chars"] > 0).any(-1)
        shown = batch["words"] > 0
        weights = torch.where(shown, DOCUMENT_WEIGHT, NOTHING_WEIGHT)
        placed = batch["position"][..., 2] > 0
        weights = torch.where(placed, torch.where(shown, 1.0, 0.5), weights)
        weights = torch.where(written, 0.5, weights)
        outputs = self.projector(hidden).float() / self.targets.scale
        squares = (outputs - self.targets(batch)).square().mean(-1)
        embedding_loss = (squares * weights).sum() / weights.sum()
        weights = (weights * ~written).flatten()
        word_loss = embedding_loss * 0
        table = self.targets.words
        # by the tower's features, and by the distance of the projector's outputs from the word embeddings
        added = PLACE_WEIGHT * self.targets.places
        for name, scores in {
            "words": self.word_head(hidden).float(),
            "nearest": nearest(outputs - added[batch["extras"]], table),
        }.items():
            per_patch = F.cross_entropy(scores.flatten(0, 1), batch["words"].flatten(), reduction="none")
            word_loss = word_loss + (per_patch * weights).sum() / weights.sum()
            known = shown & placed & ~written
            self.log(name, (scores.argmax(-1) == batch["words"])[known].float().mean(), prog_bar=True)
        per_patch = F.cross_entropy(
            nearest(outputs - table[batch["words"]], added).flatten(0, 1), batch["extras"].flatten(), reduction="none"
        )
        word_loss = word_loss + (per_patch * weights).sum() / weights.sum()
        letter_loss = self.letter_loss(outputs, batch)
        self.log("embedding_loss", embedding_loss, prog_bar=True)
        return self.reading_loss(hidden, batch) + word_loss + letter_loss + embedding_loss

    def letter_loss(self, outputs: Tensor, batch: dict[str, Tensor]) -> Tensor:
        """Classification loss of the projector's outputs (B, P, d) on characters, by distance, given all else in a patch."""
        present = batch["chars"] > 0
        image, patch, slot = present.nonzero(as_tuple=True)
        if not len(image):
            return outputs.sum() * 0
        scale = present.sum(-1)[image, patch].rsqrt().unsqueeze(-1)
        truth, table = batch["chars"][image, patch, slot], self.targets.chars
        letters = (outputs - self.targets(batch))[image, patch] + table[truth] * scale
        # in units of the scale, so that one table fits patches with one character and with two
        scores = nearest(letters / scale, table) * scale.square()
        self.log("letters", (scores.argmax(-1) == truth).float().mean(), prog_bar=True)
        return F.cross_entropy(scores, truth)

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


def nearest(outputs: Tensor, table: Tensor) -> Tensor:
    """Logits (..., N) by the distance of vectors (..., d) from each of a table's (N, d)."""
    return (outputs @ table.T - table.square().sum(-1) / 2) / table.shape[-1] ** 0.5


def resize_positions(state: dict[str, Tensor], grid: int) -> None:
    """Interpolate the position embeddings of a CLIP tower's state to another number of patches, in place."""
    key = next(name for name in state if name.endswith("position_embedding.weight"))
    positions = state[key]
    side = round((len(positions) - 1) ** 0.5)
    square = positions[1:].T.unflatten(1, (side, side))[None]
    patches = F.interpolate(square, (grid, grid), mode="bicubic")[0].flatten(1).T
    state[key] = torch.cat([positions[:1], patches])
