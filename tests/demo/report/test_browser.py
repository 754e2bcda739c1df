"""The pages of a run in headless Chromium: narrow screens, paper, accessibility."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lightning_neuralgate.demo.report import write_report
from tests.attacks.data import write_example_page
from tests.demo.report.data import SHARES, answers, attacks, ladder, run
from tests.helpers.browser import PATIENCE_MS, chromium, serious_findings

pytestmark = pytest.mark.slow
PAGES = ("report.html", "attacks.html")
SCREENS = [(360, "light"), (360, "dark"), (768, "light"), (1280, "light"), (1280, "dark")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a run and that of attacks, with long words."""
    folder = tmp_path_factory.mktemp("pages")
    rows = answers(folder)
    rows[0] = replace(rows[0], answer="x" * 250)
    refused = {"unedited": ladder(), "gated": ladder(rung_2=0.4, rung_9=0.7), "ungated": ladder(rung_6=1.0)}
    example = {"rung_4": {"prompt": "Is it red?", "answers": {"unedited": "Yes.", "gated": "y" * 150}}}
    results = run(ladder=refused, ladder_examples=example, attacks={"gated": attacks(0.9), "ungated": attacks(0.5)})
    shares = [layer._replace(classes=[2, 1, 0, 0]) for layer in SHARES]
    write_report(folder / PAGES[0], results, rows, shares, folder)
    write_example_page(folder / PAGES[1])
    return folder


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as opened:
        yield opened


@pytest.mark.parametrize("name", PAGES)
@pytest.mark.parametrize(("width", "scheme"), SCREENS)
def test_pages_fit_the_screen_and_axe_has_no_serious_findings(
    width: int, scheme: str, name: str, folder: Path, browser: Any
) -> None:
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
    context.set_default_timeout(PATIENCE_MS)
    page = context.new_page()
    problems: list[str] = []
    page.on("console", lambda message: problems.append(message.text))
    page.goto((folder / name).as_uri())
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    headings = page.evaluate("[...document.querySelectorAll('h1, h2, h3, h4')].map(heading => +heading.tagName[1])")
    assert headings[0] == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(headings))
    assert serious_findings(page) == []
    assert not problems
    context.close()


@pytest.mark.parametrize("name", PAGES)
def test_pages_can_be_read_and_printed_without_scripts(name: str, folder: Path, browser: Any) -> None:
    context = browser.new_context(java_script_enabled=False)
    context.set_default_timeout(PATIENCE_MS)
    page = context.new_page()
    page.goto((folder / name).as_uri())
    assert page.locator("h1").is_visible()
    assert page.locator("table").first.is_visible()
    assert page.pdf(format="A4").startswith(b"%PDF")
    context.close()


def test_the_report_has_at_most_three_megabytes(folder: Path) -> None:
    assert (folder / "report.html").stat().st_size <= 3_000_000
