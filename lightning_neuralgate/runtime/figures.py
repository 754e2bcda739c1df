"""A matplotlib figure in whatever loggers a Trainer has, as far as they take figures."""

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
    # closing is for pyplot's figures, which this need not be
    logger.experiment.add_figure(name, figure, global_step=step, close=False)


def _to_wandb(logger: Any, name: str, figure: Figure, step: int) -> None:
    logger.log_image(name, [figure], step=step)


def _to_mlflow(logger: Any, name: str, figure: Figure, step: int) -> None:
    # an artifact has no step; a later figure of that name takes its place
    logger.experiment.log_figure(logger.run_id, figure, f"{name}.png")


# Lightning's logger classes import their libraries when one is made, so naming them here costs nothing
_TAKERS: dict[type, Callable[[Any, str, Figure, int], None]] = {
    TensorBoardLogger: _to_tensorboard,
    WandbLogger: _to_wandb,
    MLFlowLogger: _to_mlflow,
}


def log_figure(trainer: Trainer, name: str, draw: Callable[[], Figure]) -> None:
    """Draw a figure and give it to each of the Trainer's loggers that takes figures; without one, nothing is drawn.

    Only the process of global rank zero draws. A picture is no reason to stop a training: without matplotlib there is none,
    and a logger that fails to store it is warned about.

    Args:
        trainer: whose loggers and whose step.
        name: the figure's name in the logger.
        draw: makes the figure.
    """
    takers = [(logger, put) for logger in trainer.loggers for kind, put in _TAKERS.items() if isinstance(logger, kind)]
    if not trainer.is_global_zero or not takers:
        return
    try:
        figure = draw()
    except MissingDependencyError:
        return
    for logger, put in takers:
        try:
            put(logger, name, figure, trainer.global_step)
        except Exception as error:  # whatever a logging library raises when its store is out of reach
            rank_zero_warn(f"the figure '{name}' is missing from {type(logger).__name__}: {error!r}")
