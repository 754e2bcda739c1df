"""The report: one self-contained page that shows what an edit did to a model."""

from __future__ import annotations

from lightning_neuralgate.demo.report.page import write_report
from lightning_neuralgate.demo.report.plots import LayerShares

__all__ = ["LayerShares", "write_report"]
