from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_neuralgate.errors import GateMismatchError, MissingDependencyError
from lightning_neuralgate.gate.neural_gate import NeuralGate
from lightning_neuralgate.hf.identity import ModelIdentity


def gate_of(subjects: list[str], layers: range = range(1, 3), records: int = 4, width: int = 60) -> NeuralGate:
    identity = ModelIdentity("Tiny", "0", "model.layers", "mlp.down_proj", 40, width)
    generator = torch.Generator().manual_seed(0)

    def rates() -> Tensor:
        return torch.randint(0, records + 1, (width,), generator=generator) / records

    return NeuralGate({s: {layer: rates() for layer in layers} for s in subjects}, identity, dict.fromkeys(subjects, 4))


def legend(axes: Any) -> list[str]:
    return [text.get_text().strip("\u2007") for text in axes.get_legend().get_texts()]


def curves(axes: Any) -> list[Any]:
    return [line for line in axes.lines if len(line.get_xdata()) > 2]


def test_a_curve_shows_the_share_of_neurons_above_each_rate() -> None:
    gate = gate_of(["passport", "receipt"])
    figure, axes = gate.plot(tau=0.5)
    assert [panel.get_title(loc="left") for panel in axes] == ["layer 1", "layer 2"]
    assert figure.axes == axes
    for layer, panel in zip(gate.layers, axes, strict=True):
        assert len(curves(panel)) == 2
        for subject, curve, entry in zip(gate.subjects, curves(panel), legend(panel), strict=True):
            x, y = torch.as_tensor(curve.get_xdata()), torch.as_tensor(curve.get_ydata())
            assert bool((x.diff() >= 0).all())
            assert bool((y.diff() <= 0).all())
            for level in (0.0, 0.25, 0.5, 0.75):
                reached = float(x[y > level].max())
                assert reached == pytest.approx(100 * float((gate.rates(subject, layer) > level).double().mean()))
            assert entry == f"{gate.shares(subject, layer, 0.5).strong:.0%}  {subject}".replace("%", " %")
        assert panel.get_legend().get_title().get_text() == "unmasked: rate > τ = 0.5"
        assert any(list(line.get_ydata()) == [0.5, 0.5] for line in panel.lines), "the line of tau"


def test_a_soft_gate_has_no_tau() -> None:
    gate = gate_of(["passport"])
    _, axes = gate.plot(tau=None, layers=[2])
    assert len(axes) == 1
    assert axes[0].get_legend().get_title().get_text() == "mean rate"
    assert legend(axes[0]) == [f"{gate.rates('passport', 2).mean():.0%}  passport".replace("%", " %")]
    assert len(axes[0].lines) == 1


def test_many_layers_and_subjects_stay_legible(tmp_path: Path) -> None:
    gate = gate_of(["$_$ a name that goes on and on and on", *(f"subject {n}" for n in range(12))], range(32))
    figure, axes = gate.plot()
    assert len(axes) == 12
    titles = [panel.get_title(loc="left") for panel in axes]
    assert (titles[0], titles[-1]) == ("layer 0", "layer 31")
    assert "12 of 32 layers" in figure.get_suptitle()
    entries = legend(axes[0])
    assert len(curves(axes[0])) == 13
    assert len(entries) == 11
    assert entries[0].endswith("$_$ a name that goes …")
    assert entries[-1].endswith("3 others")
    figure.savefig(tmp_path / "gate.png")
    assert (tmp_path / "gate.png").stat().st_size > 10_000


def test_unknown_layers_and_subjects_are_refused() -> None:
    gate = gate_of(["passport"])
    with pytest.raises(GateMismatchError, match="no layer 7"):
        gate.plot(layers=[7])
    with pytest.raises(GateMismatchError, match="no subject 'drone'"):
        gate.plot(subjects=["drone"])
    with pytest.raises(ValueError, match="tau must lie"):
        gate.plot(tau=2)
    with pytest.raises(ValueError, match="max_layers must be at least 1"):
        gate.plot(max_layers=0)


def test_max_layers_of_one() -> None:
    _, axes = gate_of(["passport"], range(5)).plot(max_layers=1)
    assert [panel.get_title(loc="left") for panel in axes] == ["layer 0"]


def test_pyplot_is_not_imported() -> None:
    code = (
        "import sys, torch\n"
        "from tests.gate.test_plot import gate_of\n"
        "gate = gate_of(['passport'])\n"
        "assert 'matplotlib' not in sys.modules\n"
        "gate.plot()\n"
        "assert 'matplotlib.figure' in sys.modules and 'matplotlib.pyplot' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])


def test_without_matplotlib_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'lightning-neuralgate\[demo\]'"):
        gate_of(["passport"]).plot()
