"""Both stages with what belongs to them, on one to three processes, with records and queries that do not go round.

    python -m tests.strategies.jobs STRATEGY,... FOLDER

leaves in FOLDER, for each process, what it did and measured, and the edited weights, of a run that was broken off and gone on
with, too. The answers are made up, so that they are not all alike, but generated as well.
"""

from __future__ import annotations

import json
import sys
import zlib
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.strategies import ModelParallelStrategy
from safetensors.torch import save_file
from torch import Tensor

from lightning_neuralgate.data.datamodule import PrivacyPairDataModule
from lightning_neuralgate.data.records import RecordSplits
from lightning_neuralgate.edit.editor import PrivacyEditModule
from lightning_neuralgate.evaluation.callback import RefusalMetricsCallback
from lightning_neuralgate.gate.callback import NeuralGateCallback
from lightning_neuralgate.gate.neural_gate import NeuralGate
from lightning_neuralgate.hf.distributed import full_state_dict
from lightning_neuralgate.locate.locator import PrivacyLocatorModule
from lightning_neuralgate.runtime.process import process_group_closed
from lightning_neuralgate.runtime.resume import fit_resumably
from lightning_neuralgate.tasks.callback import TaskMetricsCallback
from lightning_neuralgate.tasks.runner import Answering
from tests.helpers.tiny_llava import tiny_llava, tiny_processor, tiny_splits
from tests.tasks.runs import questions_in, write_data

LAYER, TAU = 1, 0.3
WEIGHT = f"model.language_model.layers.{LAYER}.mlp.down_proj.weight"


class BrokenOff(Exception):
    pass


class BreakOff(Callback):
    """Ends a training in the middle of its second epoch."""

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if trainer.current_epoch == 1 and batch_idx == 1:
            raise BrokenOff


class CountingLocator(PrivacyLocatorModule):
    learnt = 0

    def _learn(self, batch: Any) -> Any:
        self.learnt += len(set(batch["record_id"]))
        return super()._learn(batch)


def uneven(folder: Path) -> RecordSplits:
    """Five records to locate and edit, fourteen queries to ask."""
    splits = tiny_splits(folder, records=4)
    test = splits.test[:4]
    last = test[3].model_copy(update={"pairs": test[3].pairs[:1]})
    return splits._replace(edit=splits.edit[:3] + splits.edit[4:6], test=[*test[:3], last])


def opinionated(model: Any) -> Any:
    """A model that generates, and then says something that depends on question and picture alone."""
    generate, tokenizer = model.generate, tiny_processor().tokenizer

    def told(input_ids: Tensor, pixel_values: Tensor, **inputs: Any) -> Tensor:
        generate(input_ids=input_ids, pixel_values=pixel_values, **inputs)
        questions = tokenizer.batch_decode(input_ids, skip_special_tokens=True)
        seen = [f"{question.strip()} {float(p.sum()):.3f}" for question, p in zip(questions, pixel_values, strict=True)]
        sayings = ["I cannot say", "It is 12345", "It is red"]
        answers = [sayings[zlib.crc32(text.encode()) % 3] for text in seen]
        return torch.cat([input_ids, tokenizer(answers, padding=True, return_tensors="pt")["input_ids"]], dim=1)

    model.generate = told
    return model


def trainer_of(strategy: str, **options: Any) -> Trainer:
    world = 1 if strategy == "one" else int(strategy[-1])
    kinds: dict[str, Any] = {
        "one": "auto",
        "ddp": "ddp",
        "fsd": ModelParallelStrategy(world, 1),
        "ful": ModelParallelStrategy(world, 1, save_distributed_checkpoint=False),
    }
    return Trainer(
        accelerator="cpu",
        devices=world,
        strategy=kinds[strategy[:3]],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        **options,
    )


def edit(
    strategy: str, gate: NeuralGate, splits: RecordSplits, asked: Path, folder: Path, *more: Callback
) -> dict[str, Any]:
    """The edited weights, and what was measured on the way."""
    model = opinionated(tiny_llava())
    module = PrivacyEditModule(model, [LAYER], tiny_processor(), lr=1e-2, max_new_tokens=3)
    measured = RefusalMetricsCallback({"test": splits.test}, tiny_processor(), 2, max_new_tokens=3, batch_size=3)
    # the opinion is of a whole prompt
    answering = Answering(max_new_tokens=3, batch_size=3, share_prefixes=False)
    tasks = TaskMetricsCallback(questions_in(asked), tiny_processor(), 2, answering)
    trainer = trainer_of(
        strategy,
        max_epochs=2,
        callbacks=[NeuralGateCallback(gate, "all", TAU, [LAYER]), measured, tasks, *more],
        limit_val_batches=1.0,
    )
    data = PrivacyPairDataModule(splits, tiny_processor(), pairs_per_batch=2, eval_batch_size=3)
    fit_resumably(trainer, module, data, folder, {"strategy": strategy}, every_seconds=0)
    answers = measured.rates.answers
    return {
        "weights": full_state_dict(module.model),
        "history": measured.history,
        "tasks": tasks.history,
        "validated": {name: float(v) for name, v in trainer.callback_metrics.items() if name.startswith("val/")},
        "counted": int(answers.rta_sensitive.total) + int(answers.answer_rate_benign.total),
        "steps": trainer.global_step,
    }


def run(strategy: str, folder: Path) -> None:
    """Locate, edit, and edit again with a break."""
    located = trainer_of(strategy, max_epochs=1, limit_val_batches=0)
    rank = located.global_rank
    pictures = folder / f"{strategy}-pictures-{rank}"
    pictures.mkdir()
    splits = uneven(pictures)
    locator = CountingLocator(tiny_llava(), [0, LAYER], max_steps=6, cache_dir=folder / f"{strategy}-records")
    located.fit(locator, datamodule=PrivacyPairDataModule(splits, tiny_processor(), records_per_batch=2))
    gate = locator.gate
    asked = write_data(pictures / "tasks")
    whole = edit(strategy, gate, splits, asked, folder / f"{strategy}-whole")
    try:
        edit(strategy, gate, splits, asked, folder / f"{strategy}-broken", BreakOff())
    except BrokenOff:
        again = edit(strategy, gate, splits, asked, folder / f"{strategy}-broken")
    weights = {"whole": whole.pop("weights").get(WEIGHT), "broken": again.pop("weights").get(WEIGHT)}
    if rank == 0:
        save_file(weights, folder / f"{strategy}-edited.safetensors")
        gate.save_pretrained(folder / f"{strategy}-gate")
    told = {"learnt": locator.learnt, "whole": whole, "broken": again}
    (folder / f"{strategy}-{rank}.json").write_text(json.dumps(told), encoding="utf-8")


if __name__ == "__main__":
    torch.set_num_threads(1)
    with process_group_closed():
        for name in sys.argv[1].split(","):
            run(name, Path(sys.argv[2]))
