"""The `neuralgate` command. The only part of the package that parses arguments; one file a subcommand."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from typing import TYPE_CHECKING

from lightning_neuralgate.errors import NeuralGateError
from lightning_neuralgate.runtime.process import process_group_closed

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

SUBCOMMANDS = {
    "demo": "the whole job on the embedded model: locate, gate, edit, measure, report",
    "locate": "stage 1: learn which neurons encode privacy, and write a gate",
    "layers": "search the layer to edit: locate in each, propose, and compare edits",
    "edit": "stage 2: edit a model, gated or not, and write it as a Hugging Face folder",
    "diff": "say what an edit changed, and write it as one small file",
    "apply": "make an edit that lies in such a file",
    "revert": "take such an edit back, bit for bit",
    "eval": "evaluate a model on PrivacyPair, or on other benchmarks with --tasks, and print the scores",
    "convert": "build a Hugging Face folder of MiniGPT-4 from its original files",
    "score": "score stored answers again, without a model",
    "compare": "two runs side by side, with intervals, p-values and the items that changed",
    "render": "draw pictures with known attributes, with their questions",
}


def _prepare() -> None:
    from lightning_neuralgate.runtime.process import silence_known_noise

    silence_known_noise()


def build_parser(chosen: str | None) -> ArgumentParser:
    """The parser of `neuralgate`. Only the chosen subcommand is filled in, since describing a Trainer's options means
    importing it, which takes seconds.
    """
    from jsonargparse import ArgumentParser

    import lightning_neuralgate

    parser = ArgumentParser(prog="neuralgate", description=lightning_neuralgate.__doc__)
    parser.add_argument("--version", action="version", version=f"neuralgate {lightning_neuralgate.__version__}")
    subcommands = parser.add_subcommands(required=True, metavar="COMMAND")
    for name, summary in SUBCOMMANDS.items():
        subparser = ArgumentParser(description=f"{summary[0].upper()}{summary[1:]}.")
        if name == chosen:
            import_module(f"{__name__}.{name}").add_arguments(subparser)
        subcommands.add_subcommand(name, subparser, help=summary)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run `neuralgate`. Returns the exit code; errors of this package are printed as one message, without a traceback."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    chosen = next((word for word in arguments if not word.startswith("-")), None)
    try:
        parser = build_parser(chosen)
        config = parser.parse_args(arguments)
        _prepare()
        subcommand = import_module(f"{__name__}.{config.subcommand}")
        with process_group_closed():
            if hasattr(subcommand, "check"):  # before a Trainer is made of them, which says so
                subcommand.check(config[config.subcommand])
            subcommand.run(parser.instantiate(config)[config.subcommand])
    except NeuralGateError as error:
        print(f"neuralgate {chosen}: {error}", file=sys.stderr)
        return 1
    except ModuleNotFoundError as error:
        print(f"neuralgate needs {error.name}: pip install 'lightning-neuralgate[demo]'", file=sys.stderr)
        return 2
    return 0
