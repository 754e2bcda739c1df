"""Run each command that writes where files cannot grow beyond a size, and again with enough room.

    python -m tests.kills.full_disk FOLDER

A limit on the size of files stands for a full disk: both end a write with an error in its midst.
Prints JSON: for each command the exit codes at three sizes, the files that were neither complete nor absent, and those that
differ afterwards from the files of a run with enough room.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import torch

from tests.kills.runs import (
    OUTPUTS,
    commands,
    contents,
    differences,
    prepare,
    run_uninterrupted,
    start,
    wait,
    write_inputs,
)
from tests.models.minigpt4.original_files import save_blip2, write_originals

PROGRESS = ("unfinished/", ".neuralgate.json")
"""Files that list or hold what has been done so far."""


def further_commands(folder: Path) -> dict[str, list[str]]:
    """Return command lines of the remaining commands that write, without --out."""
    edit, accelerator = ["--edit", str(folder / "edited" / "edit.safetensors")], ["--accelerator", "cpu"]
    common = ["--model.name", str(folder / "model"), "--data.folder", str(folder / "data")]
    originals, blip2 = write_originals(folder / "originals", False), folder / "blip2"
    save_blip2(blip2, originals.load("known", plain_norm=False).state_dict())
    sources = {"--llama": originals.llama, "--vision": blip2, "--checkpoint": originals.checkpoint}
    convert = [str(word) for pair in sources.items() for word in pair]
    return {
        "layers": ["layers", *common, *accelerator, "--layers", "[0,1]", "--locator.max_steps", "2"],
        "score": ["score", str(folder / "eval")],
        "compare": ["compare", str(folder / "eval"), str(folder / "eval")],
        "apply": ["apply", *edit, "--model", str(folder / "model")],
        "revert": ["revert", *edit, "--model", str(folder / "edited")],
        "convert": ["convert", "minigpt4", *convert, "--dtype", "float32"],
    }


def run_on_full_disks(folder: Path, stages: dict[str, list[str]]) -> dict[str, Any]:
    """Return exit codes, incomplete and different files for each command."""
    results: dict[str, Any] = {}
    for stage, command in stages.items():
        expected, _ = run_uninterrupted(stage, command, folder)
        sizes = [path.stat().st_size for path in (folder / OUTPUTS.get(stage, stage)).rglob("*") if path.is_file()]
        result = results[stage] = {"codes": [], "incomplete": [], "different": []}
        for share in (0.05, 0.5, 0.95):
            out = folder / "full" / f"{stage}-{share}"
            prepare(stage, folder, out)
            before = contents(out) if out.exists() else {}
            result["codes"].append(wait(start(command, out, int(max(sizes) * share))))
            for name, checksum in (contents(out) if out.exists() else {}).items():
                if not name.startswith(PROGRESS) and checksum not in (expected.get(name), before.get(name)):
                    result["incomplete"].append(name)
            if stage in ("apply", "revert") and out.exists():
                result["incomplete"].append("the folder")
            assert wait(start(command, out)) == 0, stage
            leftovers = {path.name for path in out.parent.iterdir() if path != out}
            result["different"] += [*differences(contents(out), expected), *sorted(leftovers)]
            shutil.rmtree(out)
    return results


if __name__ == "__main__":
    torch.set_num_threads(1)
    root = Path(sys.argv[1])
    write_inputs(root)
    results = run_on_full_disks(root, commands(root))
    print(json.dumps(results | run_on_full_disks(root, further_commands(root))))
