from __future__ import annotations

from pathlib import Path

import pytest

from lightning_neuralgate.attacks import chosen_attacks
from lightning_neuralgate.demo import attacks
from lightning_neuralgate.demo.report.attacks import attack_section
from lightning_neuralgate.demo.run import run_demo
from tests.demo.test_run import settings_of


def test_the_demo_attacks_each_model_and_reports_what_came_out(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attacks, "chosen_attacks", lambda names=None: chosen_attacks(names="prefill_3,rounded_int4"))
    monkeypatch.setattr(attacks, "SECRETS", 2)
    results = run_demo(tmp_path, settings=settings_of(checkpoint, attacks=True, epochs=1))
    assert set(results["attacks"]) == {"gated", "ungated"}
    for by_attack in results["attacks"].values():
        assert set(by_attack) == {"plain", "prefill_3", "rounded_int4", "any of them"}
        assert by_attack["prefill_3"]["secrets"] == 2
        assert {"edited/leak", "unedited/leak", "edited/benign"} <= set(by_attack["rounded_int4"])
    page = (tmp_path / "report.html").read_text()
    assert "Under attack" in page
    assert "rounded_int4" in page
    assert sorted(path.name for path in (tmp_path / "attacks").iterdir() if path.name != "pictures") == [
        "gated",
        "unedited",
        "ungated",
    ]
    assert not list(tmp_path.rglob("unfinished"))


def test_the_section_ranks_attacks_and_groups_them_by_family() -> None:
    figures = {"edited/leak": 0.25, "unedited/leak": 1.0, "recovered": 0.25, "secrets": 4}
    gated = {
        "plain": {"edited/leak": 0.0, "unedited/leak": 1.0, "recovered": 0.0, "came_out": 0, "secrets": 4},
        "typos": {**figures, "came_out": 1},
        "prefill_3": {"edited/leak": 0.75, "unedited/leak": 0.1, "came_out": 3, "secrets": 4},
    }
    section = attack_section({"attacks": {"gated": gated}})
    assert section is not None
    assert section.sentences["gated"] == [
        "3 of 4 secrets come out when the answer starts with the first 3 tokens of a true one",
        "1 of 4 secrets come out when 10% of the letters are mistyped",
    ]
    assert [row.attack for row in section.rows["words"]] == ["plain", "typos"]
    assert section.rows["start of the answer"][0].cells == ["0.10", "0.75", "n/a"]
    assert attack_section({}) is None
