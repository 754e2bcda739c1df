"""Edit LLaVA to refuse sensitive questions: locate, gate, edit and evaluate on PrivacyPair data.

    python recipes/llava_privacy.py --config recipes/llava_privacy.yaml
    python recipes/llava_privacy.py --config recipes/llava_privacy.yaml --config recipes/ddp.yaml
    torchrun --nproc-per-node 2 recipes/llava_privacy.py --config recipes/llava_privacy.yaml --config recipes/fsdp2.yaml
    python recipes/llava_privacy.py --config recipes/llava_privacy.yaml --config recipes/lora.yaml

A later `--config` overrides an earlier one, and an option on the command line overrides both. `strategy: fsdp` is FSDP2
(Lightning's ModelParallelStrategy); each process first loads the full model into memory (28 GB for 7B parameters in
float32). On N devices the paper's schedule takes N pairs at a time and averages their gradients. An interrupted run resumes
when the same command is started again.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from jsonargparse import auto_cli
from lightning.pytorch import Callback, Trainer, seed_everything
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.strategies import ModelParallelStrategy, Strategy
from lightning.pytorch.utilities import rank_zero_only

from lightning_neuralgate import (
    NeuralGateCallback,
    PrivacyEditModule,
    PrivacyLocatorModule,
    PrivacyPairDataModule,
    RefusalMetricsCallback,
)
from lightning_neuralgate.data.added_rows import RECOVERY_DEPTHS
from lightning_neuralgate.data.options import DataOptions
from lightning_neuralgate.data.targets import fill_targets
from lightning_neuralgate.edit.dial import DIAL_NAME
from lightning_neuralgate.edit.editor import RetentionLoss
from lightning_neuralgate.edit.saving import check_model_output
from lightning_neuralgate.evaluation.dial import DialCallback, check_dial_records
from lightning_neuralgate.gate.positions import Scope
from lightning_neuralgate.hf.identity import model_checksum
from lightning_neuralgate.models.loading import Precision, load_model
from lightning_neuralgate.runtime.files import atomic_write, check_output, remove_temporary_files
from lightning_neuralgate.runtime.process import process_group_closed
from lightning_neuralgate.runtime.resume import fit_resumably
from lightning_neuralgate.runtime.run_folder import UNFINISHED, remove_progress, run_folder


def main(
    data: DataOptions,
    out: Path,
    model: str = "llava-hf/llava-1.5-7b-hf",
    precision: Literal["32-true", "bf16-mixed"] = "bf16-mixed",
    layers: Sequence[int] = (11,),
    tau: float = 0.3,
    scope: Scope = "subject_last",
    keep: Path | None = None,
    keep_share: float = 0.9,
    schedule: Literal["paper", "minibatch"] = "paper",
    lr: float | None = None,
    alpha: float = 1.25,
    epochs: int = 1,
    pairs_per_batch: int = 4,
    retention_per_batch: int = 1,
    retention_loss: RetentionLoss = "nll",
    recovery_share: float = 0.0,
    recovery_depths: Sequence[int] = RECOVERY_DEPTHS,
    indirect_share: float = 0.0,
    lora_rank: int = 0,
    dtype: Precision = "float32",
    max_steps: int = 25,
    max_leak: float | None = None,
    strategy: Literal["auto", "ddp", "fsdp"] = "auto",
    accelerator: str = "auto",
    devices: int = 1,
    eval_batches: int | float = 1.0,
    measure_every: int = 0,
    keep_every: float = 300.0,
    seed: int = 0,
) -> None:
    """Locate, edit and evaluate.

    Args:
        data: the records; see `neuralgate locate --help`.
        out: output folder for gate/, edited/, logs/ and metrics.json.
        model: folder or Hugging Face Hub repository of an image-text-to-text model, smol-llava or smol-minigpt.
        precision: precision of the Trainer.
        layers: decoder layers to locate and edit (the authors chose 11 for LLaVA-1.5-7B).
        tau: threshold of the gate: dimensions with an activity rate above it pass their gradient.
        scope: token positions at which the gate applies.
        keep: folder written by `neuralgate keys` with these layers: keep the change out of the inputs of ordinary prompts.
        keep_share: share of the energy of these inputs that the change is kept out of.
        schedule: `paper` for several steps on each pair in turn, or `minibatch` for shuffled mini-batches.
        lr: learning rate of the edit; by default that of the schedule.
        alpha: weight of the benign loss term.
        epochs: passes over the edit pairs.
        pairs_per_batch: query pairs per mini-batch.
        retention_per_batch: questions from data.retention per mini-batch, if data.retention is given.
        retention_loss: `nll` of their targets, or `kl` to the unedited model's distribution.
        recovery_share: probability with which a pair gets rows whose answers are started; see `neuralgate edit --help`.
        recovery_depths: lengths of these starts, in tokens.
        indirect_share: probability with which a pair gets rows with other forms of question.
        lora_rank: edit with a LoRA of this rank, merged when saved; 0 edits the full weight.
        dtype: dtype of the weights. Editing the full weight needs float32, since its small steps vanish in half precision;
            LoRA factors are always float32.
        max_steps: maximum number of optimization steps per record in stage 1.
        max_leak: save the least share of the edit that leaks at most this much on the split `validation` of the data, and the
            measured shares as dial.json; by default the full edit is saved.
        strategy: `auto` for one device, `ddp`, or `fsdp` for FSDP2.
        accelerator: gpu, cpu or auto.
        devices: number of devices, with one process each.
        eval_batches: validation batches after each epoch; 1.0 for all.
        measure_every: also evaluate on the test split before and after the edit and every N optimizer steps; 0: never.
        keep_every: seconds between checkpoints of the edit.
        seed: seed of all random number generators.
    """
    seed_everything(seed)
    check_output("out", out, {"model": model, "keep": keep, **data.inputs()})
    unfinished, is_first = out / UNFINISHED, rank_zero_only.rank == 0
    with run_folder(unfinished, is_first):
        if is_first:
            check_model_output(out / "edited")
        splits, retention = data.read(), data.read_retention()  # fail on bad data before loading the model
        if max_leak is not None:
            check_dial_records(splits.validation)
        network, processor = load_model(model, dtype)
        base = model_checksum(network)
        edit, retention = fill_targets(splits.edit, retention, network, processor)
        splits = splits._replace(edit=edit)
        common: dict[str, Any] = {
            "accelerator": accelerator,
            "precision": precision,
            "devices": devices,
            "enable_checkpointing": False,
            "num_sanity_val_steps": 0,
            "limit_val_batches": eval_batches,
            "log_every_n_steps": 1,
        }

        locator = PrivacyLocatorModule(
            network, list(layers), alpha=alpha, max_steps=max_steps, cache_dir=unfinished / "records"
        )
        trainer = Trainer(
            max_epochs=1,
            strategy=make_strategy(strategy, devices),
            logger=CSVLogger(out / "logs", "locate", ""),
            **common,
        )
        trainer.fit(locator, datamodule=PrivacyPairDataModule(splits, processor))
        gate = locator.gate
        if trainer.is_global_zero:
            gate.save_pretrained(out / "gate")
            print(gate)

        paper = schedule == "paper"
        editor = PrivacyEditModule(
            network, list(layers), processor, schedule=schedule, lr=lr, alpha=alpha, lora_rank=lora_rank,
            retention_loss=retention_loss,
        )  # fmt: skip
        gating = NeuralGateCallback(gate, scope, tau, keep=keep, keep_share=keep_share)
        callbacks: list[Callback] = [gating]
        if measure_every:
            callbacks.append(RefusalMetricsCallback({"test": splits.test}, processor, measure_every))
        dialling = None if max_leak is None else DialCallback(splits.validation, processor, max_leak)
        if dialling is not None:
            callbacks.append(dialling)
        trainer = Trainer(
            max_epochs=epochs, strategy=make_strategy(strategy, devices), logger=CSVLogger(out / "logs", "edit", ""),
            callbacks=callbacks, **common,
        )  # fmt: skip
        pairs = PrivacyPairDataModule(
            splits, processor, retention, pairs_per_batch=1 if paper else pairs_per_batch,
            retention_per_batch=retention_per_batch if retention else 0, shuffle=not paper, seed=seed,
            recovery_share=recovery_share, recovery_depths=recovery_depths, indirect_share=indirect_share,
        )  # fmt: skip
        settings = {"model": base, "gate": gate.fingerprint, "scope": scope, "tau": tau}
        if gating.key_space is not None:
            settings["keep"] = gating.key_space.settings
        fit_resumably(trainer, editor, pairs, unfinished / "edit", settings, keep_every)
        dial = None if dialling is None else dialling.dial
        with editor.unedited.scaled(1.0 if dial is None else dial.scale):
            editor.save_pretrained(out / "edited")
        if trainer.is_global_zero:
            metrics = {
                name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith("val/")
            }
            with atomic_write(out / "metrics.json") as draft:
                draft.write_text(json.dumps({**metrics, "seed": seed}, indent=2) + "\n", encoding="utf-8")
            print(json.dumps(metrics, indent=2))
            if dial is not None:
                dial.save(out / DIAL_NAME)
                print("\n".join(dial.described()))
            remove_progress(unfinished)
            remove_temporary_files(out / "edited", out / "metrics.json", out / DIAL_NAME)


def make_strategy(name: str, devices: int) -> str | Strategy:
    """Return a new Lightning strategy for a Trainer; strategies cannot be shared."""
    if name == "fsdp":
        return ModelParallelStrategy(
            data_parallel_size=devices, tensor_parallel_size=1, save_distributed_checkpoint=False
        )
    return name


if __name__ == "__main__":
    with process_group_closed():
        auto_cli(main, as_positional=False)
