from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from lightning_neuralgate import __all__ as PUBLIC_NAMES
from lightning_neuralgate.cli import SUBCOMMANDS
from lightning_neuralgate.demo.comparison import SWEEPS
from lightning_neuralgate.demo.comparison_table import split_page
from lightning_neuralgate.methods import METHODS
from tests.helpers.browser import PATIENCE_MS, chromium, serious_findings

ROOT = Path(__file__).parents[1]


def test_the_api_page_has_every_public_name() -> None:
    page = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    assert {line.rsplit(".", 1)[1] for line in page.splitlines() if line.startswith(":::")} == set(PUBLIC_NAMES)


def test_the_page_of_methods_has_every_method_and_every_place_for_tables() -> None:
    page = ROOT / "docs" / "methods.md"
    text = page.read_text(encoding="utf-8").split("## Which one")[0]
    assert [name for name in METHODS if f"`{name}`" not in text] == []
    for name in ("methods", *(f"sweep of {setting}" for setting in SWEEPS)):
        split_page(page, name)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built without a warning."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr + done.stdout
    return folder


@pytest.mark.slow
def test_the_site_builds_without_warnings(site: Path) -> None:
    options = (site / "options" / "index.html").read_text(encoding="utf-8")
    for name in SUBCOMMANDS:
        assert f'id="{name}"' in options
    assert "<code>--editor.lr</code>" in options
    assert "Stage 1: locate" in (site / "first_edit" / "index.html").read_text(encoding="utf-8")
    callback = (site / "api" / "index.html").read_text(encoding="utf-8")
    assert "lightning_neuralgate.NeuralGateCallback" in callback
    assert "GateMismatchError" in callback
    assert "http://" not in (site / "index.html").read_text(encoding="utf-8").replace("http://www.w3.org", "")


@pytest.mark.slow
@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (360, "dark")])
def test_axe_has_no_serious_findings_on_the_start_page(width: int, scheme: str, site: Path) -> None:
    with chromium() as browser:
        page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
        page.goto((site / "index.html").as_uri(), timeout=PATIENCE_MS)
        assert serious_findings(page) == []
