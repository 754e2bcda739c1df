"""Log matplotlib figures to the loggers of a Trainer that support them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from lightning.pytorch import Trainer
from lightning.pytorch.loggers import MLFlowLogger, TensorBoardLogger, WandbLogger
from lightning.pytorch.utilities import rank_zero_warn

from lightning_neuralgate.errors import MissingDependencyError

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def _to_tensorboard(logger: Any, name: str, figure: Figure, step: int) -> None:
    # close=True would need pyplot
    logger.experiment.add_figure(name, figure, global_step=step, close=False)


def _to_wandb(logger: Any, name: str, figure: Figure, step: int) -> None:
    logger.log_image(name, [figure], step=step)


def _to_mlflow(logger: Any, name: str, figure: Figure, step: int) -> None:
    # an artifact has no step; a later figure of the same name replaces it
    logger.experiment.log_figure(logger.run_id, figure, f"{name}.png")


# Lightning's logger classes import their libraries only when they are instantiated
_WRITERS: dict[type, Callable[[Any, str, Figure, int], None]] = {
    TensorBoardLogger: _to_tensorboard,
    WandbLogger: _to_wandb,
    MLFlowLogger: _to_mlflow,
}


def log_figure(trainer: Trainer, name: str, draw: Callable[[], Figure]) -> None:
    """Draw a figure and log it to each of the Trainer's loggers that supports figures.

    Nothing is drawn if there is no such logger, if matplotlib is not installed, or on ranks other than 0. If a logger fails
    to store the figure, there is a warning and training continues.

    Args:
        trainer: the Trainer with the loggers and the current step.
        name: the figure's name in the logger.
        draw: draws the figure.
    """
    writers = [
        (logger, write) for logger in trainer.loggers for kind, write in _WRITERS.items() if isinstance(logger, kind)
    ]
    if not trainer.is_global_zero or not writers:
        return
    try:
        figure = draw()
    except MissingDependencyError:
        return
    for logger, write in writers:
        try:
            write(logger, name, figure, trainer.global_step)
        except Exception as error:  # logging libraries raise errors of many kinds if their store cannot be reached
            rank_zero_warn(f"the figure '{name}' is missing from {type(logger).__name__}: {error!r}")
