"""`neuralgate convert`."""

from __future__ import annotations

from pathlib import Path

from jsonargparse import ArgumentParser, Namespace

from lightning_neuralgate.cli.options import add_config
from lightning_neuralgate.models.loading import Precision


def add_arguments(parser: ArgumentParser) -> None:
    """What MiniGPT-4 is put together from."""
    add_config(parser)
    parser.add_argument("architecture", choices=["minigpt4"], help="What to build.")
    parser.add_argument(
        "--llama", type=Path, required=True, help="Folder of LLaMA-2-7B-chat (with --use_qformer: of Vicuna)."
    )
    parser.add_argument(
        "--vision",
        type=Path,
        required=True,
        help="LAVIS's eva_vit_g.pth, its file of a whole BLIP-2, or a BLIP-2 folder of transformers.",
    )
    parser.add_argument(
        "--blip2",
        type=Path | None,
        help="LAVIS's blip2_pretrained_*.pth, or a BLIP-2 folder: Q-Former and final norm for an eva_vit_g.pth.",
    )
    parser.add_argument("--checkpoint", type=Path, required=True, help="MiniGPT-4's own file, with llama_proj.")
    parser.add_argument("--use_qformer", type=bool, default=False, help="The older variant, with BLIP-2's Q-Former.")
    parser.add_argument(
        "--plain_norm",
        type=bool | None,
        default=None,
        help="The tower's final norm: true: a plain one; false: BLIP-2's; null: as trained, BLIP-2's only with a Q-Former.",
    )
    parser.add_argument("--dtype", type=Precision, default="float16", help="Type of the weights.")
    parser.add_argument("--out", type=Path, required=True, help="Folder for the model.")
    parser.add_argument("--overwrite", type=bool, default=False, help="Replace a MiniGPT-4 that lies there.")


def run(options: Namespace) -> None:
    """Build the model."""
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
    print(f"MiniGPT-4 written to {options.out}")
