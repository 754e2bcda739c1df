"""The gate of `neuralgate edit`: its options, which of them go together, and the callback."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from jsonargparse import ArgumentParser, Namespace
from jsonargparse.typing import ClosedUnitInterval
from torch import nn

from lightning_neuralgate.cli.options import add_keep_strength
from lightning_neuralgate.data.records import RecordSplits
from lightning_neuralgate.errors import UnsupportedSetupError
from lightning_neuralgate.gate.callback import NeuralGateCallback
from lightning_neuralgate.gate.columns import ColumnGate
from lightning_neuralgate.gate.neural_gate import NeuralGate
from lightning_neuralgate.gate.positions import SUBJECT_SCOPES, Scope
from lightning_neuralgate.gate.row_rules import ConflictRows


def add_gate(parser: ArgumentParser) -> None:
    """Add the options that choose positions, rows, columns and inputs."""
    parser.add_argument(
        "--gate", type=Path | None, default=None, help="Folder of `neuralgate locate`; without it, all rows train."
    )
    parser.add_argument(
        "--scope",
        type=Scope,
        default="subject_last",
        help="Token positions at which the rows are gated; divergence and tail close positions, and need no --gate.",
    )
    parser.add_argument(
        "--tau", type=float, default=0.3, help="Threshold: dimensions with a higher activity rate pass the gate."
    )
    parser.add_argument(
        "--rows",
        type=Literal["located", "conflict"],
        default="located",
        help="Rows that are gated: those of --gate, or conflict: those in which sensitive and other gradients point against "
        "each other, measured during the edit.",
    )
    parser.add_argument(
        "--columns",
        type=Path | None,
        default=None,
        help="Folder of `neuralgate locate --columns true`: train the columns of the most telling hidden units only.",
    )
    parser.add_argument(
        "--columns_share",
        type=ClosedUnitInterval | None,
        default=None,
        help="Share of the columns that train. Default: the share with which they were located.",
    )
    parser.add_argument(
        "--keep",
        type=Path | None,
        default=None,
        help="Folder written by `neuralgate keys`: keep the change out of the inputs of ordinary prompts.",
    )
    add_keep_strength(parser, "keep_")


def check_gate(options: Namespace) -> None:
    """Check that the options go together.

    Raises:
        UnsupportedSetupError: they do not; the message names the way out.
    """
    masks_rows, is_attention = options.scope in SUBJECT_SCOPES, options.editor.projection == "attention"
    conflict, columns, keep = options.rows == "conflict", options.columns is not None, options.keep is not None
    refused = {
        f"--scope {options.scope} says where rows are masked: give --gate or --rows conflict, or choose divergence or tail": (
            masks_rows and options.scope != "subject_last" and options.gate is None and not conflict
        ),
        "--preset paper gates the subject's last token: give --gate, a folder of `neuralgate locate`": (
            options.preset == "paper" and options.gate is None
        ),
        "--rows conflict measures the rows instead of taking those of --gate: leave one of the two out": (
            conflict and options.gate is not None
        ),
        f"--rows conflict masks rows, and --scope {options.scope} masks none: choose {', '.join(SUBJECT_SCOPES)}": (
            conflict and not masks_rows
        ),
        f"--scope {options.scope} masks no rows, so --gate is without effect: leave it out, or choose another scope": (
            not masks_rows and options.gate is not None
        ),
        "--columns_share is the share of the columns in --columns, which is missing: give --columns FOLDER": (
            options.columns_share is not None and not columns
        ),
        "--columns masks columns of the full weight, which a LoRA does not have: leave --editor.lora_rank out": (
            columns and options.editor.lora_rank > 0
        ),
        "--columns and --keep both decide which inputs the change answers to: leave one of the two out": columns
        and keep,
        f"{'--columns' if columns else '--keep'} is about the MLP's projection: leave --editor.projection attention out": (
            is_attention and (columns or keep)
        ),
    }
    for message, is_refused in refused.items():
        if is_refused:
            raise UnsupportedSetupError(message)


def gate_callback(options: Namespace, model: nn.Module, splits: RecordSplits) -> NeuralGateCallback | None:
    """Return the callback that the options describe; None for an edit of all rows, columns and inputs.

    Without `--gate`, a gate with all rows open takes its place where positions, columns or conflicting rows are masked.
    """
    gate = None if options.gate is None else NeuralGate.from_pretrained(options.gate)
    columns = None if options.columns is None else ColumnGate.from_pretrained(options.columns)
    if columns is not None and options.columns_share is not None:
        columns = columns.with_share(options.columns_share)
    rows = ConflictRows() if options.rows == "conflict" else None
    layers = list(options.editor.layers)
    if gate is None and (rows or columns or options.scope not in SUBJECT_SCOPES):
        subjects = sorted({record.subject for record in splits.edit})
        gate = NeuralGate.uniform(model, layers, subjects)
    if gate is None and options.keep is None:
        return None
    return NeuralGateCallback(
        gate, options.scope, options.tau, layers, rows=rows, columns=columns, projection=options.editor.projection,
        keep=options.keep, keep_share=options.keep_share, keep_soft=options.keep_soft,
    )  # fmt: skip


def gate_record(options: Namespace, callback: NeuralGateCallback | None) -> dict[str, str]:
    """Return what gates an edit, for the record of its file and for the check of a resumed run."""
    record: dict[str, str] = {}
    if callback is None:
        return record
    if callback.gate is not None:
        record["scope"] = options.scope
    if options.gate is not None:
        record |= {"gate": callback.gate.fingerprint, "tau": str(options.tau)}  # type: ignore[union-attr]
    if options.rows != "located":
        record["rows"] = str(callback.rows)
    if callback.columns is not None:
        record["columns"] = str(callback.columns)
    if callback.key_space is not None:
        record["keep"] = callback.key_space.settings
    return record
