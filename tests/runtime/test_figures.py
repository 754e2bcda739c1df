"""Metrics and figures of the callback in each supported logger, read back from the logger's files."""

from __future__ import annotations

import csv
import io
import math
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import pytest
from lightning.pytorch.loggers import CSVLogger, MLFlowLogger, TensorBoardLogger, WandbLogger
from lightning.pytorch.loggers.logger import Logger
from PIL import Image

from lightning_neuralgate.data.records import RecordSplits
from lightning_neuralgate.edit.editor import PrivacyEditModule
from lightning_neuralgate.gate.callback import NeuralGateCallback
from lightning_neuralgate.runtime.figures import log_figure
from tests.helpers import wandb_files
from tests.helpers.tiny_llava import tiny_llava, tiny_processor
from tests.helpers.training import UserModule, datamodule, random_gate, train

STEPS = 2
GATE = {"gate/layer_1/passed", "gate/layer_1/blocked", "gate/rows_without_subject"}
VALIDATION = {"val/rta_sensitive", "val/answer_rate_benign", "val/eta"}


class Stored(NamedTuple):
    metrics: dict[str, list[float]]
    figures: list[Image.Image]


@pytest.fixture(autouse=True)
def _isolated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Write only below `tmp_path`, send nothing, and leave no process running."""
    monkeypatch.chdir(tmp_path)
    for name in ("WANDB_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR", "WANDB_ARTIFACT_DIR"):
        folder = tmp_path / name.lower()
        folder.mkdir()
        monkeypatch.setenv(name, str(folder))
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    # MLflow deprecates the file store in favour of a database, which mlflow-skinny does not have
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    connect = socket.socket.connect

    def connect_here(self: socket.socket, address: Any) -> None:
        if self.family != socket.AF_UNIX and address[0] not in ("127.0.0.1", "::1", "localhost"):
            raise AssertionError(f"attempt to connect to {address}")
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", connect_here)
    before = {process.pid for process in psutil.Process().children(recursive=True)}
    yield
    left = [process for process in psutil.Process().children(recursive=True) if process.pid not in before]
    _, alive = psutil.wait_procs(left, timeout=10)
    assert not alive


def run_edit(splits: RecordSplits, logger: Logger) -> None:
    """Run a short edit of a tiny model with the gate and one validation."""
    model = tiny_llava()
    module = PrivacyEditModule(model, [1], tiny_processor(), max_new_tokens=2)
    train(
        module, datamodule(splits, pairs_per_batch=2), NeuralGateCallback(random_gate(model)), logger=logger,
        max_steps=STEPS, log_every_n_steps=1, limit_val_batches=1, val_check_interval=STEPS, num_sanity_val_steps=0,
    )  # fmt: skip


def in_tensorboard(splits: RecordSplits, folder: Path) -> Stored:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run_edit(splits, TensorBoardLogger(folder, "", ""))
    events = EventAccumulator(str(folder), {"images": 0, "scalars": 0}).Reload()
    metrics = {tag: [event.value for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    assert events.Tags()["images"] == ["gate/rates"]
    images = events.Images("gate/rates")
    assert [image.step for image in images] == [0]
    return Stored(metrics, [Image.open(io.BytesIO(image.encoded_image_string)) for image in images])


def in_csv(splits: RecordSplits, folder: Path) -> Stored:
    run_edit(splits, CSVLogger(folder, "", ""))
    with (folder / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    return Stored({name: [float(row[name]) for row in rows if row[name]] for name in rows[0]}, [])


def in_wandb(splits: RecordSplits, folder: Path) -> Stored:
    import wandb

    try:
        run_edit(splits, WandbLogger(save_dir=folder, project="gates", offline=True))
    finally:
        wandb.finish()
        wandb.teardown()  # stops the service process
    (run,) = folder.glob("wandb/offline-run-*")
    (file,) = run.glob("*.wandb")
    metrics: dict[str, list[float]] = {}
    figures = []
    for row in wandb_files.history(file):
        for name, value in row.items():
            if isinstance(value, int | float):
                metrics.setdefault(name, []).append(value)
            elif name == "gate/rates.filenames":
                assert row["trainer/global_step"] == 0
                figures += [Image.open(run / "files" / path) for path in value]
    return Stored(metrics, figures)


def in_mlflow(splits: RecordSplits, folder: Path) -> Stored:
    logger = MLFlowLogger("gates", tracking_uri=(folder / "mlruns").as_uri())
    run_edit(splits, logger)
    client, run = logger.experiment, logger.run_id
    names = client.get_run(run).data.metrics
    metrics = {name: [metric.value for metric in client.get_metric_history(run, name)] for name in names}
    paths = [file.path for file in client.list_artifacts(run, "gate")]
    assert paths == ["gate/rates.png"]
    return Stored(metrics, [Image.open(client.download_artifacts(run, path, str(folder))) for path in paths])


@pytest.mark.parametrize(
    ("stored_in", "figures"), [(in_tensorboard, 1), (in_csv, 0), (in_wandb, 1), (in_mlflow, 1)],
    ids=["tensorboard", "csv", "wandb", "mlflow"],
)  # fmt: skip
def test_metrics_and_figure_are_in_the_logger(
    splits: RecordSplits, tmp_path: Path, stored_in: Any, figures: int
) -> None:
    stored = stored_in(splits, tmp_path / "logged")
    assert set(stored.metrics) >= GATE | VALIDATION
    for name in GATE:
        assert len(stored.metrics[name]) == STEPS
        assert all(math.isfinite(value) and 0 <= value <= 1.01 for value in stored.metrics[name])
    for name in VALIDATION:
        assert len(stored.metrics[name]) == 1
        assert all(math.isfinite(value) for value in stored.metrics[name])
    assert len(stored.figures) == figures
    expected, _ = random_gate(tiny_llava()).plot()
    for image in stored.figures:
        assert image.size == tuple(round(inches * expected.dpi) for inches in expected.get_size_inches())
        colours = image.convert("RGB").getcolors(maxcolors=1 << 20)
        assert len(colours) > 100, "the picture is empty"


class FakeTrainer(NamedTuple):
    """The attributes of a Trainer that `log_figure` reads."""

    loggers: list[Logger]
    is_global_zero: bool = True
    global_step: int = 3


def unexpected() -> Any:
    raise AssertionError("drawn, although no logger supports figures")


def test_nothing_is_drawn_without_a_logger_for_figures(tmp_path: Path) -> None:
    board = TensorBoardLogger(tmp_path)
    for trainer in (FakeTrainer([]), FakeTrainer([CSVLogger(tmp_path)]), FakeTrainer([board], is_global_zero=False)):
        log_figure(trainer, "figure", unexpected)  # type: ignore[arg-type]


def test_without_matplotlib_training_continues(
    splits: RecordSplits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    model = tiny_llava()
    logger = TensorBoardLogger(tmp_path)
    trainer = train(UserModule(model), datamodule(splits), NeuralGateCallback(random_gate(model)), logger=logger)
    assert trainer.global_step == 1


def test_warns_if_a_logger_cannot_store_the_figure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from matplotlib.figure import Figure

    broken, working = TensorBoardLogger(tmp_path / "broken"), TensorBoardLogger(tmp_path / "working")
    seen: list[int] = []

    def fails(*args: Any, **kwargs: Any) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(broken.experiment, "add_figure", fails)
    monkeypatch.setattr(working.experiment, "add_figure", lambda *args, global_step, close: seen.append(global_step))
    with pytest.warns(UserWarning, match=r"'figure' is missing from TensorBoardLogger: OSError\('no space left'\)"):
        log_figure(FakeTrainer([broken, working]), "figure", Figure)  # type: ignore[arg-type]
    assert seen == [3]
