"""Headless Chromium, and accessibility checks by axe-core."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

PATIENCE_MS = 120_000


@contextmanager
def chromium() -> Iterator[Any]:
    """Start Chromium, the system's or playwright's; skip the test if there is none."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="the browser is driven by playwright")
    installed = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    with sync_api.sync_playwright() as playwright:
        try:
            opened = playwright.chromium.launch(
                executable_path=installed, args=["--no-sandbox", "--disable-gpu"], timeout=PATIENCE_MS
            )
        except sync_api.Error as error:
            pytest.skip(f"Chromium cannot be started: {str(error).splitlines()[0]}")
        yield opened
        opened.close()


def serious_findings(page: Any) -> list[str]:
    """Return the serious and critical findings of axe-core on a page, one line each."""
    axe = pytest.importorskip(
        "axe_playwright_python.sync_playwright", reason="axe-core comes with axe-playwright-python"
    )
    found = axe.Axe().run(page).response
    assert found["passes"], "axe-core has checked nothing"
    return [
        f"{violation['impact']}: {violation['id']}: {node['target']}: {node['failureSummary']}"
        for violation in found["violations"]
        if violation["impact"] in ("serious", "critical")
        for node in violation["nodes"]
    ]
