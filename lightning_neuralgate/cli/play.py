"""`neuralgate play`: a local web page that asks the unedited and the edited model side by side."""

from __future__ import annotations

from pathlib import Path

from jsonargparse import ArgumentParser, Namespace
from jsonargparse.typing import ClosedUnitInterval, restricted_number_type

from lightning_neuralgate.cli.ask import add_model, check_models
from lightning_neuralgate.cli.options import add_config
from lightning_neuralgate.cli.output import show
from lightning_neuralgate.gate.neural_gate import DEFAULT_TAU, NeuralGate
from lightning_neuralgate.gate.positions import Scope

Port = restricted_number_type("Port", int, [(">=", 0), ("<=", 65535)], docstring="A TCP port; 0 for a free one.")


def add_arguments(parser: ArgumentParser) -> None:
    """Add the options of `neuralgate play`."""
    add_config(parser)
    add_model(parser)
    parser.add_argument(
        "--gate",
        type=Path | None,
        default=None,
        help="The gate of the edit, to count its open rows; see `neuralgate locate`.",
    )
    parser.add_argument(
        "--scope", type=Scope | None, default=None,
        help="Where the gate acts. Default: as recorded in the edit file, else subject_last.",
    )  # fmt: skip
    parser.add_argument("--tau", type=ClosedUnitInterval, default=DEFAULT_TAU, help="Threshold of the gate.")
    parser.add_argument(
        "--host", type=str, default="127.0.0.1",
        help="Address to listen at. Others than loopback addresses let everyone in the network use the page.",
    )  # fmt: skip
    parser.add_argument("--port", type=Port, default=7860, help="Port to listen at; 0 for a free one.")


def check(options: Namespace) -> None:
    """Refuse the same model twice before anything is loaded."""
    check_models(options)


def run(options: Namespace) -> None:
    """Load the model and serve the page until Ctrl-C."""
    from lightning_neuralgate.play.models import LoadedModel
    from lightning_neuralgate.play.page import Playground
    from lightning_neuralgate.play.server import is_loopback, serve

    gate = None if options.gate is None else NeuralGate.from_pretrained(options.gate)
    loaded = LoadedModel.load(options.model, options.beside, options.dtype, options.trust_remote_code, both=True)
    if not is_loopback(options.host):
        show(
            f"--host {options.host}: everyone who can reach this machine can use the page, without a password",
            error=True,
        )
    serve(
        Playground(loaded, gate, options.scope, options.tau), options.host, options.port,
        lambda address: show(f"Open {address} in a browser; Ctrl-C ends it."),
    )  # fmt: skip
