"""Both stages and their metrics on one to three processes, with records and queries that cannot be split evenly.

    python -m tests.strategies.jobs STRATEGY,... FOLDER

writes to FOLDER the metrics of each process and the edited weights, of an uninterrupted and of a resumed run. The answers are
generated, but then replaced by made-up ones that differ between the queries.
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
from tests.helpers.training import QUIET
from tests.tasks.runs import questions_in, write_data

LAYER, TAU = 1, 0.3
WEIGHT = f"model.language_model.layers.{LAYER}.mlp.down_proj.weight"


class Interrupted(Exception):
    pass


class Interrupt(Callback):
    """Interrupts a training in the middle of its second epoch."""

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if trainer.current_epoch == 1 and batch_idx == 1:
            raise Interrupted


class CountingLocator(PrivacyLocatorModule):
    count = 0

    def _learn(self, batch: Any) -> Any:
        self.count += len(set(batch["record_id"]))
        return super()._learn(batch)


def uneven(folder: Path) -> RecordSplits:
    """Return five records to locate and edit, and test records with fourteen queries."""
    splits = tiny_splits(folder, records=4)
    test = splits.test[:4]
    last = test[3].model_copy(update={"pairs": test[3].pairs[:1]})
    return splits._replace(edit=splits.edit[:3] + splits.edit[4:6], test=[*test[:3], last])


def with_made_up_answers(model: Any) -> Any:
    """Replace the generated answers of a model by ones that depend on question and picture only."""
    generate, tokenizer = model.generate, tiny_processor().tokenizer

    def made_up(input_ids: Tensor, pixel_values: Tensor, **inputs: Any) -> Tensor:
        generate(input_ids=input_ids, pixel_values=pixel_values, **inputs)
        questions = tokenizer.batch_decode(input_ids, skip_special_tokens=True)
        queries = [f"{text.strip()} {float(p.sum()):.3f}" for text, p in zip(questions, pixel_values, strict=True)]
        choices = ["I cannot say", "It is 12345", "It is red"]
        answers = [choices[zlib.crc32(query.encode()) % 3] for query in queries]
        return torch.cat([input_ids, tokenizer(answers, padding=True, return_tensors="pt")["input_ids"]], dim=1)

    model.generate = made_up
    return model


def trainer_of(strategy: str, **options: Any) -> Trainer:
    world = 1 if strategy == "one" else int(strategy[-1])
    kinds: dict[str, Any] = {
        "one": "auto",
        "ddp": "ddp",
        "fsd": ModelParallelStrategy(world, 1),
        "ful": ModelParallelStrategy(world, 1, save_distributed_checkpoint=False),
    }
    return Trainer(**QUIET, devices=world, strategy=kinds[strategy[:3]], num_sanity_val_steps=0, **options)


def edit(
    strategy: str, gate: NeuralGate, splits: RecordSplits, tasks_folder: Path, folder: Path, *more: Callback
) -> dict[str, Any]:
    """Edit a model and return its weights and metrics."""
    model = with_made_up_answers(tiny_llava())
    module = PrivacyEditModule(model, [LAYER], tiny_processor(), lr=1e-2, max_new_tokens=3)
    metrics = RefusalMetricsCallback({"test": splits.test}, tiny_processor(), 2, max_new_tokens=3, batch_size=3)
    # the made-up answers depend on the full prompt
    answering = Answering(max_new_tokens=3, batch_size=3, share_prefixes=False)
    tasks = TaskMetricsCallback(questions_in(tasks_folder), tiny_processor(), 2, answering)
    trainer = trainer_of(
        strategy,
        max_epochs=2,
        callbacks=[NeuralGateCallback(gate, "all", TAU, [LAYER]), metrics, tasks, *more],
        limit_val_batches=1.0,
    )
    data = PrivacyPairDataModule(splits, tiny_processor(), pairs_per_batch=2, eval_batch_size=3)
    fit_resumably(trainer, module, data, folder, {"strategy": strategy}, every_seconds=0)
    answers = metrics.rates.answers
    return {
        "weights": full_state_dict(module.model),
        "history": metrics.history,
        "tasks": tasks.history,
        "validated": {name: float(v) for name, v in trainer.callback_metrics.items() if name.startswith("val/")},
        "counted": int(answers.rta_sensitive.total) + int(answers.answer_rate_benign.total),
        "steps": trainer.global_step,
    }


def run(strategy: str, folder: Path) -> None:
    """Locate, edit, and edit again with an interruption."""
    trainer = trainer_of(strategy, max_epochs=1, limit_val_batches=0)
    rank = trainer.global_rank
    pictures = folder / f"{strategy}-pictures-{rank}"
    pictures.mkdir()
    splits = uneven(pictures)
    locator = CountingLocator(tiny_llava(), [0, LAYER], max_steps=6, cache_dir=folder / f"{strategy}-records")
    trainer.fit(locator, datamodule=PrivacyPairDataModule(splits, tiny_processor(), records_per_batch=2))
    gate = locator.gate
    tasks_folder = write_data(pictures / "tasks")
    full = edit(strategy, gate, splits, tasks_folder, folder / f"{strategy}-full")
    try:
        edit(strategy, gate, splits, tasks_folder, folder / f"{strategy}-resumed", Interrupt())
    except Interrupted:
        resumed = edit(strategy, gate, splits, tasks_folder, folder / f"{strategy}-resumed")
    weights = {"full": full.pop("weights").get(WEIGHT), "resumed": resumed.pop("weights").get(WEIGHT)}
    if rank == 0:
        save_file(weights, folder / f"{strategy}-edited.safetensors")
        gate.save_pretrained(folder / f"{strategy}-gate")
    results = {"located": locator.count, "full": full, "resumed": resumed}
    (folder / f"{strategy}-{rank}.json").write_text(json.dumps(results), encoding="utf-8")


if __name__ == "__main__":
    torch.set_num_threads(1)
    with process_group_closed():
        for name in sys.argv[1].split(","):
            run(name, Path(sys.argv[2]))
