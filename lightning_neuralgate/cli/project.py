"""`neuralgate project`: project a finished edit away from the inputs that ordinary prompts use."""

from __future__ import annotations

from pathlib import Path

from jsonargparse import ArgumentParser, Namespace

from lightning_neuralgate.cli.options import add_config, add_keep_strength, keep_strength
from lightning_neuralgate.cli.output import show
from lightning_neuralgate.edit.delta import DELTA_NAME
from lightning_neuralgate.edit.projection import project_edit
from lightning_neuralgate.gate.keys import InputCovariance
from lightning_neuralgate.models.loading import load_model, model_folder
from lightning_neuralgate.runtime.files import check_output


def add_arguments(parser: ArgumentParser) -> None:
    """Add the options of `neuralgate project`."""
    add_config(parser)
    parser.add_argument("edited", type=Path, help="Folder of the edited model.")
    parser.add_argument(
        "--base", type=str, required=True, help="Its unedited model: a folder, a Hub repository or smol-llava."
    )
    parser.add_argument(
        "--keep", type=Path, required=True, help="Folder written by `neuralgate keys` with the unedited model."
    )
    add_keep_strength(parser, "")
    parser.add_argument("--out", type=Path, required=True, help="Output folder; must not exist.")


def run(options: Namespace) -> None:
    """Write the projected edit as a Hugging Face folder, and print what was kept of it."""
    check_output("--out", options.out, {"EDITED": options.edited, "--base": options.base, "--keep": options.keep})
    keep = InputCovariance.from_pretrained(options.keep)
    base = model_folder(options.base)
    keep.check_fits(load_model(base)[0])
    projected = project_edit(base, options.edited, options.out, keep, *keep_strength(options, ""))
    for name, kept, projector in projected:
        how = (
            "a bias, left unedited"
            if projector is None
            else f"{projector.removed:.1f} of {projector.size} directions removed"
        )
        show(f"{name}: {kept:.1%} of the change kept (squared norm; {how})".replace("%", " %"))
    if projected:
        show(f"projected model written to {options.out}, and its edit file to {options.out / DELTA_NAME}")
    else:
        show("the models are the same; nothing was written")
