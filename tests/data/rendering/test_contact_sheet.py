from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
from PIL import Image

from lightning_neuralgate.data.rendering.contact_sheet import contact_sheet, write_contact_sheets
from lightning_neuralgate.data.rendering.spec import load_subject_spec, shipped_subjects


def test_seed_determines_the_sheet() -> None:
    spec = load_subject_spec("passport")
    sheet = contact_sheet(spec, seed=1, count=5, columns=2)
    assert sheet.tobytes() == contact_sheet(spec, seed=1, count=5, columns=2).tobytes()
    assert sheet.tobytes() != contact_sheet(spec, seed=2, count=5, columns=2).tobytes()
    single = contact_sheet(spec, seed=1, count=1)
    assert sheet.width > 1.9 * single.width
    assert sheet.height > 2.7 * single.height
    with pytest.raises(ValueError, match="at least 1"):
        contact_sheet(spec, count=0)


@pytest.mark.parametrize("name", shipped_subjects())
def test_sheets_of_shipped_subjects_are_small_files(tmp_path: Path, name: str) -> None:
    path = tmp_path / "sheets" / f"{name}.png"
    write_contact_sheets(path.parent, {path.name: partial(contact_sheet, load_subject_spec(name))})
    assert path.stat().st_size <= 250_000
    assert Image.open(path).width < 1000
