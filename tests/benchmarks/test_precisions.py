from __future__ import annotations

import json
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from benchmarks import precisions


@pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="needs bitsandbytes")
def test_rates_are_printed_and_the_edit_is_reverted(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "results.json"
    options = "--precisions bfloat16 nf4 --seeds 0 --layer 1 --epochs 1 --subjects passport"
    monkeypatch.setattr(sys, "argv", ["precisions", "--model", str(checkpoint), "--json", str(file), *options.split()])
    precisions.main()
    rows = json.loads(file.read_text(encoding="utf-8"))
    assert [row["precision"] for row in rows] == ["bfloat16", "nf4"]
    assert all(row["reverted"] and row["rates"]["test"].keys() == set(precisions.RATES) for row in rows)
    assert "| nf4 | 0 |" in capsys.readouterr().out
