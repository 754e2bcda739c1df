"""`neuralgate edit`: stage 2, the gated edit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from jsonargparse import ArgumentParser, Namespace
from jsonargparse.typing import ClosedUnitInterval, NonNegativeInt, PositiveInt
from lightning.pytorch import Trainer, seed_everything

from lightning_neuralgate.cli.gating import add_gate, check_gate, gate_callback, gate_record
from lightning_neuralgate.cli.options import (
    ModelOptions,
    add_config,
    add_trainer,
    add_workers,
    check_inputs,
)
from lightning_neuralgate.cli.output import show
from lightning_neuralgate.data.added_rows import RECOVERY_DEPTHS
from lightning_neuralgate.data.datamodule import PrivacyPairDataModule
from lightning_neuralgate.data.options import DataOptions
from lightning_neuralgate.edit.delta import DELTA_NAME, FULL_DELTA_NAME, EditDelta
from lightning_neuralgate.edit.dial import DIAL_NAME, Dial
from lightning_neuralgate.edit.editor import PrivacyEditModule
from lightning_neuralgate.edit.saving import check_model_output
from lightning_neuralgate.edit.weight_files import WEIGHT_PATTERNS
from lightning_neuralgate.errors import DataFormatError, NeuralGateError
from lightning_neuralgate.evaluation.callback import RefusalMetricsCallback
from lightning_neuralgate.evaluation.dial import DialCallback, check_dial_records
from lightning_neuralgate.hf.identity import model_checksum
from lightning_neuralgate.models.loading import model_folder
from lightning_neuralgate.runtime.files import remove_temporary_files
from lightning_neuralgate.runtime.resume import fit_resumably
from lightning_neuralgate.runtime.run_folder import UNFINISHED, remove_progress, run_folder
from lightning_neuralgate.runtime.versions import library_versions
from lightning_neuralgate.tasks.callback import TaskMetricsCallback
from lightning_neuralgate.tasks.options import TaskSources, task_names
from lightning_neuralgate.tasks.questions import TaskQuestions

PRESETS = {
    "paper": {
        "scope": "subject_last",
        "tau": 0.3,
        "rows": "located",
        "editor.schedule": "paper",
        "editor.lr": 1e-5,
        "editor.eps": 1e-3,
        "editor.alpha": 1.25,
        "editor.steps_per_pair": 10,
        "editor.stop_loss": 1e-3,
        "data.retention": None,
        "recovery_share": 0.0,
        "indirect_share": 0.0,
        "trainer.max_epochs": 1,
    }
}
"""Defaults of options by `--preset`."""
_ADDED_ROWS = ("recovery_share", "recovery_depths", "indirect_share")


def add_arguments(parser: ArgumentParser) -> None:
    """Add the options of `neuralgate edit`."""
    add_config(parser)
    parser.add_argument("--out", type=Path, required=True, help="Output folder for the edited model.")
    parser.add_argument(
        "--preset",
        type=Literal["paper"] | None,
        default=None,
        help="paper: the paper's rule with its settings, instead of the defaults of other options; needs --gate.",
    )
    add_gate(parser)
    parser.add_argument(
        "--pairs_per_batch", type=int, default=4, help="Query pairs per mini-batch (minibatch schedule)."
    )
    parser.add_argument(
        "--retention_per_batch",
        type=PositiveInt | None,
        default=None,
        help="Questions from --data.retention per batch. Default: 1.",
    )
    parser.add_argument(
        "--recovery_share",
        type=ClosedUnitInterval,
        default=0.0,
        help="Probability with which a query pair gets two further rows in an epoch whose answers are started: the model "
        "learns to refuse also behind the first words of a true answer.",
    )
    parser.add_argument(
        "--recovery_depths",
        type=tuple[PositiveInt, ...],
        default=RECOVERY_DEPTHS,
        help="Lengths of these starts, in tokens, of which one is drawn for each pair.",
    )
    parser.add_argument(
        "--indirect_share",
        type=ClosedUnitInterval,
        default=0.0,
        help="Probability with which a query pair gets two further rows in an epoch with another form of question: the whole "
        "text, yes or no, a choice, or without the subject's name.",
    )
    parser.add_argument("--seed", type=int, default=0, help="Seed of the mini-batch order, and of the further rows.")
    parser.add_argument(
        "--keep_every",
        type=float,
        default=120.0,
        help="Seconds between checkpoints, from which an interrupted edit resumes.",
    )
    parser.add_argument(
        "--measure_every", type=NonNegativeInt, default=0,
        help="Evaluate on the test split before and after the edit and every N optimizer steps, and log the rates; 0: never.",
    )  # fmt: skip
    parser.add_argument(
        "--dial",
        type=Literal["auto"] | None,
        default=None,
        help="auto: keep the least share c of the edit, W0 + c (W - W0), that leaks at most --max_leak on the split "
        "'validation' of the data.",
    )
    parser.add_argument(
        "--max_leak", type=ClosedUnitInterval, default=0.05, help="Largest leak rate that the dial accepts."
    )
    add_workers(parser)
    parser.add_argument(
        "--measure_tasks",
        type=str | None,
        default=None,
        help="Benchmarks to evaluate with --measure_every, as in `neuralgate eval --tasks`; see --sources for their files.",
    )
    parser.add_argument(
        "--measure_limit", type=PositiveInt, default=50, help="Maximum number of questions per benchmark."
    )
    parser.add_class_arguments(TaskSources, "sources")
    parser.add_class_arguments(ModelOptions, "model")
    parser.add_class_arguments(DataOptions, "data")
    parser.add_class_arguments(PrivacyEditModule, "editor", skip={"model", "processor"}, instantiate=False)
    add_trainer(parser, max_epochs=1, limit_val_batches=2)


def check(options: Namespace) -> None:
    """Refuse options that do not go together."""
    check_gate(options)


def run(options: Namespace) -> None:
    """Edit and save the model. An interrupted run resumes."""
    check_inputs(options, columns=options.columns)
    with run_folder(options.out / UNFINISHED, options.trainer.is_global_zero):
        if options.trainer.is_global_zero:
            check_model_output(options.out)
        _run(options)


def _run(options: Namespace) -> None:
    seed_everything(options.seed, verbose=False)
    retention = options.data.read_retention()
    if options.retention_per_batch and not retention:
        raise DataFormatError("--retention_per_batch needs --data.retention FILE with the retention questions")
    if retention and options.editor.retention_weight <= 0:
        raise DataFormatError(
            "--data.retention has no effect with --editor.retention_weight 0; set the weight above 0 or omit --data.retention"
        )
    splits = options.data.read()  # fail on bad data before loading the model
    if options.dial:
        check_dial_records(splits.validation)
    model, processor = options.model.load()
    base = model_checksum(model)
    arguments: dict[str, Any] = options.editor.as_dict()
    paper = arguments["schedule"] == "paper"
    data = PrivacyPairDataModule(
        splits,
        processor,
        retention,
        pairs_per_batch=1 if paper else options.pairs_per_batch,
        retention_per_batch=options.retention_per_batch,
        shuffle=not paper,
        seed=options.seed,
        num_workers=options.num_workers,
        **{name: options[name] for name in _ADDED_ROWS},
    )
    editor = PrivacyEditModule(model, processor=processor, **arguments)
    trainer = options.trainer
    gating = gate_callback(options, model, splits)
    if gating is not None:
        trainer.callbacks.append(gating)
    if options.measure_every:
        trainer.callbacks.append(RefusalMetricsCallback({"test": splits.test}, processor, options.measure_every))
    if options.measure_every and options.measure_tasks is not None:
        sources = options.sources.read(task_names(options.measure_tasks), options.data)
        questions = TaskQuestions(sources, options.measure_limit)
        trainer.callbacks.append(TaskMetricsCallback(questions, processor, options.measure_every))
    dialling = DialCallback(splits.validation, processor, options.max_leak) if options.dial else None
    if dialling is not None:
        trainer.callbacks.append(dialling)
    gated = gate_record(options, gating)
    unfinished = options.out / UNFINISHED
    fit_resumably(trainer, editor, data, unfinished, {"model": base, **gated}, options.keep_every)
    if trainer.is_global_zero:
        for name in (DELTA_NAME, FULL_DELTA_NAME, DIAL_NAME):  # describe the weights that are about to be replaced
            (options.out / name).unlink(missing_ok=True)
    editor.save_pretrained(options.out)
    added = {name: str(options[name]) for name in _ADDED_ROWS if data.added_rows.enabled}
    rounding = editor.rounding()
    rounded = {} if rounding is None else {"rounding": json.dumps(rounding._asdict())}
    preset = {} if options.preset is None else {"preset": options.preset}
    record = {**preset, **gated, "editor": json.dumps(arguments), "seed": str(options.seed), **added, **rounded}
    provenance = {**record, **library_versions()}
    has_delta = trainer.is_global_zero and _write_delta(options.model.name, options.out, provenance)
    if dialling is not None and dialling.dial is not None:
        _dial(dialling.dial, editor, trainer, options, provenance, has_delta)
    if trainer.is_global_zero:
        show(f"edited model written to {options.out}")
        if rounding is not None:
            show(str(rounding))
        if (options.out / DELTA_NAME).exists():
            show(f"edit file written to {options.out / DELTA_NAME}; undo the edit with `neuralgate revert`")
        remove_progress(unfinished)
        remove_temporary_files(options.out, *(options.out / name for name in (DELTA_NAME, FULL_DELTA_NAME, DIAL_NAME)))


def _dial(
    dial: Dial,
    editor: PrivacyEditModule,
    trainer: Trainer,
    options: Namespace,
    provenance: dict[str, str],
    has_delta: bool,
) -> None:
    """Replace the full edit in the output folder by the share that the dial chose, and keep its edit file."""
    if trainer.is_global_zero:
        for line in dial.described():
            show(line)
        dial.save(options.out / DIAL_NAME)
    if dial.scale == 1:
        return
    if not trainer.strategy.broadcast(has_delta):
        if trainer.is_global_zero:
            show("the full edit is kept, since it could not be recovered without an edit file")
        return
    if trainer.is_global_zero:
        (options.out / DELTA_NAME).rename(options.out / FULL_DELTA_NAME)
    with editor.unedited.scaled(dial.scale):
        editor.save_pretrained(options.out)
    if trainer.is_global_zero:
        _write_delta(options.model.name, options.out, {**provenance, "scale": str(dial.scale)})
        show(
            f"the folder holds {dial.scale:g} of the edit; `neuralgate apply` restores the full one from {FULL_DELTA_NAME}"
        )


def _write_delta(base: str, edited: Path, provenance: dict[str, str]) -> bool:
    """Write the edit file into the folder of the edited model, if both models have the same dtype; return whether it is."""
    try:
        delta = EditDelta.between(model_folder(base, WEIGHT_PATTERNS), edited, provenance)
        delta.save(edited / DELTA_NAME)
    except NeuralGateError as error:
        show(f"no edit file was written: {error}")
        return False
    if not delta.tensors:
        show("THE EDIT CHANGED NO WEIGHT: check that the gate is open somewhere (--tau), and raise --editor.lr")
    return True
