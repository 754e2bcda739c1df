from __future__ import annotations

import re
from pathlib import Path

from tests.attacks.data import write_example_page


def test_the_page_shows_figures_and_the_first_secret_and_escapes_everything(tmp_path: Path) -> None:
    page = write_example_page(tmp_path / "attacks.html").read_text(encoding="utf-8")
    assert "1 of 2 secrets comes out under at least one of these attacks." in page
    assert "1 of 2 secrets comes out when the answer starts with the first 3 tokens of a true one." in page
    assert "48&lt;b&gt;2136" in page
    assert "<script>" not in page
    assert "48<b>" not in page
    assert "\u202e" not in page
    assert len(re.findall(r"<th\b", page)) == len(re.findall(r'<th scope="', page))
