"""The `neuralgate` command, with one module per subcommand."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from importlib import import_module
from io import TextIOWrapper
from typing import TYPE_CHECKING

from lightning_neuralgate.cli.output import show
from lightning_neuralgate.cli.paths import expand_paths, refuse_empty_options
from lightning_neuralgate.errors import NeuralGateError
from lightning_neuralgate.runtime.outside import outside_cause
from lightning_neuralgate.runtime.process import process_group_closed, silence_expected_warnings

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

SUBCOMMANDS = {
    "demo": "run everything on a small built-in model: render, locate, edit, evaluate, report",
    "plan": "predict time and memory of both stages for a model, without loading it",
    "locate": "stage 1: find the neurons that encode privacy, and write a gate",
    "layers": "search for the layer to edit: locate in many layers, propose candidates, optionally compare edits",
    "keys": "collect the inputs of a layer that ordinary prompts use, for `edit --keep`",
    "edit": "stage 2: edit a model, with or without a gate, and write it as a Hugging Face folder",
    "diff": "show the difference between a base and an edited model, and write it to an edit file",
    "apply": "apply an edit file to its base model",
    "revert": "undo an edit: restore the base weights bit for bit from an edited model and its edit file",
    "project": "project a finished edit away from the inputs that ordinary prompts use",
    "eval": "evaluate a model on PrivacyPair, or on other benchmarks with --tasks, and print the scores",
    "ask": "ask a model about a picture, once or in a chat, and judge its answers",
    "play": "ask the unedited and the edited model side by side, on a local web page",
    "attack": "attack an edited model and count the secrets that come out",
    "methods": "compare methods of editing: refusals, what they cost, and what attacks get",
    "convert": "convert the original MiniGPT-4 files to a Hugging Face folder",
    "score": "score stored answers again, without running the model",
    "compare": "compare two evaluation runs: intervals, p-values and changed answers",
    "push": "share an edited model, an edit or a gate on the Hugging Face hub, with a model card",
    "pull": "download what was pushed from the Hugging Face hub, and verify its checksums",
    "render": "render synthetic records: pictures with known attributes, and questions about them",
}


def build_parser(chosen: str | None, preset: str | None = None) -> ArgumentParser:
    """Build the parser of `neuralgate`.

    Only the chosen subcommand gets its arguments: those of a Trainer need an import that takes seconds.

    Args:
        chosen: the subcommand.
        preset: a key of the subcommand's `PRESETS`, whose values become the defaults of its options.
    """
    from jsonargparse import ArgumentParser

    import lightning_neuralgate

    parser = ArgumentParser(prog="neuralgate", description=lightning_neuralgate.__doc__)
    parser.add_argument("--debug", action="store_true", help="show the traceback of every error")
    parser.add_argument("--version", action="version", version=f"neuralgate {lightning_neuralgate.__version__}")
    subcommands = parser.add_subcommands(required=True, metavar="COMMAND")
    for name, summary in SUBCOMMANDS.items():
        subparser = ArgumentParser(description=f"{summary[0].upper()}{summary[1:]}.")
        if name == chosen:
            module = import_module(f"{__name__}.{name}")
            module.add_arguments(subparser)
            if preset is not None:
                subparser.set_defaults(module.PRESETS[preset])
        subcommands.add_subcommand(name, subparser, help=summary)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run `neuralgate` and return the exit code.

    Errors of this package and causes outside the code, such as a full disk, are printed in one line, and with `--debug` with
    their traceback.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    arguments = [word for word in arguments if word != "--debug"]
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):  # a terminal without, say, dashes gets a stand-in
            stream.reconfigure(errors="backslashreplace")
    chosen = next((word for word in arguments if not word.startswith("-")), None)
    try:
        parser = build_parser(chosen)
        refuse_empty_options(arguments)
        config = parser.parse_args(arguments)
        if preset := config[config.subcommand].get("preset"):
            parser = build_parser(chosen, preset)
            config = parser.parse_args(arguments)
        config = expand_paths(config)
        silence_expected_warnings()
        subcommand = import_module(f"{__name__}.{config.subcommand}")
        with process_group_closed():
            if hasattr(subcommand, "check"):  # before the Trainer is instantiated, which logs
                subcommand.check(config[config.subcommand])
            subcommand.run(parser.instantiate(config)[config.subcommand])
        sys.stdout.flush()
    except BrokenPipeError:  # the reader, such as `head`, has closed the pipe
        with suppress(OSError):  # a stream without a file
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except NeuralGateError as error:
        if debug:
            raise
        show(f"neuralgate {chosen}: {error}", error=True)
        return 1
    except ModuleNotFoundError as error:
        if debug:
            raise
        print(f"neuralgate needs {error.name}: pip install 'lightning-neuralgate[demo]'", file=sys.stderr)
        return 2
    except Exception as error:
        problem = outside_cause(error)
        if debug or problem is None:
            raise
        show(f"neuralgate {chosen}: {problem}", error=True)
        return 1
    return 0
