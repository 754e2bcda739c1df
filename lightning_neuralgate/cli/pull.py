"""`neuralgate pull`: download an edited model, an edit or a gate from the Hugging Face hub, and verify it."""

from __future__ import annotations

import shlex
from pathlib import Path

from jsonargparse import ArgumentParser, Namespace

from lightning_neuralgate.cli.options import add_config
from lightning_neuralgate.cli.output import show
from lightning_neuralgate.edit.delta import DELTA_NAME
from lightning_neuralgate.hub.transfer import pull


def add_arguments(parser: ArgumentParser) -> None:
    """Add the options of `neuralgate pull`."""
    add_config(parser)
    parser.add_argument("repo", type=str, help="Hub repository, USER/NAME, that `neuralgate push` has written.")
    parser.add_argument("--out", type=Path, required=True, help="Output folder; must not exist.")
    parser.add_argument(
        "--revision", type=str | None, default=None, help="Commit, branch or tag. Default: the newest commit."
    )


def run(options: Namespace) -> None:
    """Download, verify and write the folder, and print what to do with it."""
    record, commit = pull(options.repo, options.out, options.revision)
    show(f"{record['kind']} of '{options.repo}', commit {commit}: {len(record['files'])} files, checksums verified")
    show(f"written to {options.out}")
    out, base = shlex.quote(str(options.out)), shlex.quote(str(record.get("base_model") or "BASE"))
    if record["kind"] == "model":
        show(f"ask it: neuralgate ask --model {out} --image passport")
    elif record["kind"] == "edit":
        show(f"apply it: neuralgate apply --edit {out}/{DELTA_NAME} --model {base} --out edited")
    else:
        show(f"edit with it: neuralgate edit --model.name {base} --gate {out} ...")
