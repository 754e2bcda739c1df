"""Options shared by several subcommands."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser, Namespace
from jsonargparse.typing import OpenUnitInterval, PositiveFloat

from lightning_neuralgate.errors import DataFormatError
from lightning_neuralgate.models.loading import EMBEDDED, Precision, Quantization, load_model
from lightning_neuralgate.runtime.files import check_output


@dataclass
class ModelOptions:
    """The model to load.

    Attributes:
        name: a folder, a Hugging Face Hub repository, or an embedded model: smol-llava, smol-minigpt.
        dtype: dtype of the weights.
        trust_remote_code: allow code from the checkpoint's repository to run.
        quantize: load the decoder's linear layers in 8 bits (int8) or 4 bits (nf4), with bitsandbytes; all else in `dtype`.
    """

    name: str = EMBEDDED
    dtype: Precision = "float32"
    trust_remote_code: bool = False
    quantize: Quantization | None = None

    def load(self) -> tuple[Any, Any]:
        """Load the model and its processor."""
        return load_model(self.name, self.dtype, self.trust_remote_code, self.quantize)


def check_folder(option: str, folder: Path) -> None:
    """Check that a path can be used as an output folder.

    Raises:
        DataFormatError: the path or one of its parents is a file.
    """
    existing = next((path for path in (folder, *folder.absolute().parents) if path.exists()), None)
    if existing is not None and not existing.is_dir():
        raise DataFormatError(f"{option} {folder}: {existing} is a file; name a folder")


def check_inputs(options: Namespace, **more: str | Path | None) -> None:
    """Check that `--out` is, holds or lies in no input: model, gate, keep, data, and further options.

    Raises:
        DataFormatError: see `check_output`.
    """
    inputs = {
        "model.name": options.model.name,
        **{name: getattr(options, name, None) for name in ("gate", "keep")},
        **more,
    }
    check_output("--out", options.out, {f"--{name}": value for name, value in inputs.items()} | options.data.inputs())


def add_config(parser: ArgumentParser) -> None:
    """Add `--config FILE`."""
    parser.add_argument(
        "--config",
        action="config",
        help="YAML file with any of these options. Can be repeated; later files take precedence.",
    )


def add_workers(parser: ArgumentParser) -> None:
    """Add `--num_workers`."""
    parser.add_argument(
        "--num_workers", type=int, default=0, help="DataLoader worker processes; does not change the batches."
    )


def add_trainer(parser: ArgumentParser, **defaults: Any) -> None:
    """Add the options of the Trainer as `--trainer.*`, with other defaults."""
    from lightning.pytorch import Trainer

    parser.add_class_arguments(Trainer, "trainer", instantiate=True)
    quiet = {"enable_checkpointing": False, "enable_model_summary": False, "num_sanity_val_steps": 0}
    parser.set_defaults({f"trainer.{name}": value for name, value in {**quiet, **defaults}.items()})


def add_keep_strength(parser: ArgumentParser, prefix: str) -> None:
    """Add `--share` and `--soft`, with a prefix: how much a change is kept out of the inputs of `--keep`."""
    from lightning_neuralgate.gate.keys import DEFAULT_SHARE

    parser.add_argument(
        f"--{prefix}share",
        type=OpenUnitInterval,
        default=DEFAULT_SHARE,
        help="Remove the fewest input directions of a change that hold this share of the energy of the inputs of --keep.",
    )
    parser.add_argument(
        f"--{prefix}soft",
        type=PositiveFloat | None,
        default=None,
        help=f"In place of --{prefix}share: remove a share of each direction that grows with its energy; 1.0 removes half of "
        "the change along a direction of mean energy, smaller values more.",
    )


def keep_strength(options: Namespace, prefix: str) -> tuple[float | None, float | None]:
    """Return share and soft strength of which one is None, as `InputCovariance.projector` takes them."""
    soft: float | None = options[f"{prefix}soft"]
    return (options[f"{prefix}share"] if soft is None else None), soft


def add_delta(parser: ArgumentParser, side: str) -> None:
    """Add the options of `apply` (`side` "base") and `revert` (`side` "edited")."""
    add_config(parser)
    parser.add_argument(
        "--edit", type=Path, required=True, help="Edit file, written by `neuralgate edit` or `neuralgate diff --out`."
    )
    parser.add_argument(
        "--model", type=str, required=True, help=f"The {side} model: a folder, a Hub repository or smol-llava."
    )
    parser.add_argument("--out", type=Path, required=True, help="Output folder; must not exist.")
