"""The cast of the demo shows what a run printed, without a script."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from lightning_neuralgate.demo.run import STAGES
from lightning_neuralgate.errors import DataFormatError
from recipes.draw_demo_cast import DURATION, MAX_BYTES, cast_lines, main
from tests.demo.report.data import run

SVG = "{http://www.w3.org/2000/svg}"


def results(**changes: Any) -> dict[str, Any]:
    return run(seconds={name: 10.0 * (place + 1) for place, name in enumerate(STAGES)}, **changes)


def test_the_cast_has_the_stages_the_tables_and_the_headline_in_order(tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text(json.dumps(results(settings={"model": "<smol> & co"})))
    main(["--run", str(tmp_path), "--out", str(tmp_path / "images" / "demo.svg")])
    file = tmp_path / "images" / "demo.svg"
    root = ElementTree.fromstring(file.read_bytes())
    texts = [element.text or "" for element in root.iter(f"{SVG}text")]
    assert texts[0] == "neuralgate demo on <smol> & co: 210 s, shown in 12 s"
    assert texts[1] == "$ neuralgate demo"
    assert texts[2].startswith("[1/6] load the model")
    places = [
        next(place for place, text in enumerate(texts) if part in text) for part in ("[6/6]", "Rates", "210 s per seed")
    ]
    assert places == sorted(places)
    assert "worked on" in "".join(texts[places[-1] :])
    assert not list(root.iter(f"{SVG}script"))
    assert file.stat().st_size < MAX_BYTES


def test_a_stage_appears_after_its_share_of_the_time() -> None:
    lines = cast_lines(results())
    seconds = [line.second for line in lines]
    assert seconds == sorted(seconds)
    assert seconds[0] == 0
    assert seconds[-1] == DURATION
    assert lines[2].second - lines[1].second == pytest.approx((lines[3].second - lines[2].second) / 2)


def test_results_without_the_seconds_of_a_stage_are_an_error_that_names_it() -> None:
    with pytest.raises(DataFormatError, match="stage 'model'"):
        cast_lines(run())


def test_a_folder_without_results_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataFormatError, match="neuralgate demo --out"):
        main(["--run", str(tmp_path)])
