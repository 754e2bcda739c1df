"""The HTML report of a demo run."""

from __future__ import annotations

from lightning_neuralgate.demo.report.page import write_report
from lightning_neuralgate.demo.report.plots import LayerShares

__all__ = ["LayerShares", "write_report"]
