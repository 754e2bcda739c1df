"""Files around a release agree with pyproject.toml. `.ci/wheel` builds and runs the wheel."""

from __future__ import annotations

import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def lower_bounds() -> dict[str, str]:
    """Lower bounds of everything but tools for development."""
    extras = [members for name, members in PROJECT["optional-dependencies"].items() if name not in ("dev", "docs")]
    bounds: dict[str, str] = {}
    for requirement in [*PROJECT["dependencies"], *(member for members in extras for member in members)]:
        if not requirement.startswith("lightning-neuralgate["):
            name, version = re.fullmatch(r"([\w.-]+)(?:\[\w+\])?>=([\d.]+)", requirement).groups()  # type: ignore[union-attr]
            assert bounds.setdefault(name, version) == version, f"{name} has two lower bounds"
    return bounds


def test_oldest_versions_are_the_lower_bounds() -> None:
    lines = (ROOT / "constraints-oldest.txt").read_text(encoding="utf-8").splitlines()
    pinned = dict(line.split("==") for line in lines if not line.startswith("#"))
    assert pinned == lower_bounds()
    assert list(pinned) == sorted(pinned)


def test_citation_has_the_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert str(citation["version"]) == PROJECT["version"]
    assert citation["license"] == PROJECT["license"]
    assert "2603.12598" in citation["preferred-citation"]["url"]


def test_only_the_publishing_job_gets_an_identity() -> None:
    release = yaml.safe_load((ROOT / ".github" / "workflows" / "release.yml").read_text(encoding="utf-8"))
    assert release["permissions"] == {"contents": "read"}
    assert release["jobs"]["publish"]["permissions"] == {"id-token": "write"}
    assert "permissions" not in release["jobs"]["build"]
    assert release["jobs"]["publish"]["steps"][-1]["uses"].startswith("pypa/gh-action-pypi-publish@")


@pytest.mark.parametrize(
    "form", sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("[!c]*.yml")), ids=lambda form: form.stem
)
def test_issue_forms_are_complete(form: Path) -> None:
    content = yaml.safe_load(form.read_text(encoding="utf-8"))
    assert {"name", "description", "body"} <= content.keys()
    ids = [field["id"] for field in content["body"] if field["type"] != "markdown"]
    assert len(ids) == len(set(ids)) > 0


def test_missing_files_and_large_archives_are_found(tmp_path: Path) -> None:
    tracked = subprocess.run(
        ["git", "ls-files", "lightning_neuralgate"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    assert "lightning_neuralgate/py.typed" in tracked
    assert "lightning_neuralgate/data/scenes/sprites/atlas.png" in tracked
    with zipfile.ZipFile(tmp_path / "lightning_neuralgate-0-py3-none-any.whl", "w") as wheel:
        for name in tracked:
            if not name.endswith("py.typed"):
                wheel.writestr(name, "")
    with tarfile.open(tmp_path / "lightning_neuralgate-0.tar.gz", "w:gz") as sdist:
        for name in tracked:
            sdist.addfile(tarfile.TarInfo(f"lightning_neuralgate-0/{name}"))
    command = [sys.executable, ".ci/check_wheel.py", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert (
        done.stderr == "lightning_neuralgate-0-py3-none-any.whl lacks 1 files, such as lightning_neuralgate/py.typed\n"
    )
