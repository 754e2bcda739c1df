"""`neuralgate convert`: MiniGPT-4 checkpoints for transformers."""

from __future__ import annotations

from pathlib import Path

from jsonargparse import ArgumentParser, Namespace

from lightning_neuralgate.cli.options import add_config
from lightning_neuralgate.cli.output import show
from lightning_neuralgate.models.loading import Precision


def add_arguments(parser: ArgumentParser) -> None:
    """Add the options of `neuralgate convert`."""
    add_config(parser)
    parser.add_argument("architecture", choices=["minigpt4"], help="Architecture of the original files.")
    parser.add_argument(
        "--llama", type=Path, required=True, help="Folder of LLaMA-2-7B-chat; with --use_qformer, of Vicuna."
    )
    parser.add_argument(
        "--vision",
        type=Path,
        required=True,
        help="Vision tower: eva_vit_g.pth or a full BLIP-2 checkpoint of LAVIS, or a transformers BLIP-2 folder.",
    )
    parser.add_argument(
        "--blip2",
        type=Path | None,
        help="Q-Former and final norm to go with eva_vit_g.pth: blip2_pretrained_*.pth of LAVIS, or a BLIP-2 folder.",
    )
    parser.add_argument(
        "--checkpoint", type=Path, required=True, help="MiniGPT-4 checkpoint, with the weights of llama_proj."
    )
    parser.add_argument(
        "--use_qformer", type=bool, default=False, help="Convert the older variant with BLIP-2's Q-Former."
    )
    parser.add_argument(
        "--plain_norm",
        type=bool | None,
        default=None,
        help="Final norm of the vision tower: true for one without learned weights, false for BLIP-2's. Default: false "
        "with --use_qformer, else true, as the checkpoints were trained.",
    )
    parser.add_argument("--dtype", type=Precision, default="float16", help="Dtype of the weights.")
    parser.add_argument("--out", type=Path, required=True, help="Output folder for the model.")
    parser.add_argument("--overwrite", type=bool, default=False, help="Replace a MiniGPT-4 model in the output folder.")


def run(options: Namespace) -> None:
    """Convert the model."""
    import torch

    from lightning_neuralgate.models.minigpt4.conversion import convert_minigpt4

    convert_minigpt4(
        options.llama,
        options.vision,
        options.checkpoint,
        options.out,
        blip2=options.blip2,
        use_qformer=options.use_qformer,
        plain_norm=options.plain_norm,
        dtype=getattr(torch, options.dtype),
        overwrite=options.overwrite,
    )
    show(f"MiniGPT-4 written to {options.out}")
