from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from benchmarks import scores


@pytest.mark.slow
def test_all_metrics_are_timed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "scores.json"
    monkeypatch.setattr(sys, "argv", ["scores", "--answers", "2000", "--json", str(file)])
    scores.main()
    results = json.loads(file.read_text(encoding="utf-8"))
    timed = {name.removesuffix(", seconds") for name in results if name.endswith(", seconds")}
    assert timed >= {"rta_prefix", "leak_rate", "pope", "mme", "scienceqa", "mllmguard", "mme_paired", "MME in batches"}
    assert all(results[f"{name}, seconds"] > 0 and results[f"{name}, MB"] > 0 for name in timed)
    assert results["answers"] == 2000
    assert "| pope, seconds |" in capsys.readouterr().out


def test_odd_number_of_answers_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["scores", "--answers", "2001"])
    with pytest.raises(SystemExit):
        scores.main()


def test_random_answers_are_reproducible_and_varied() -> None:
    answers = scores.random_answers(500, 0)
    assert answers == scores.random_answers(500, 0) != scores.random_answers(500, 1)
    assert len(set(answers)) == 500
    assert max(map(len, answers)) > 200
    assert sum(answer.startswith("I'm sorry") for answer in answers) > 20
