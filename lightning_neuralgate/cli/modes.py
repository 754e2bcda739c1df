"""Which options belong to `neuralgate eval` as it is, which to its benchmarks: what would change nothing is refused."""

from __future__ import annotations

from collections.abc import Collection

from jsonargparse import Namespace

from lightning_neuralgate.errors import UnsupportedSetupError
from lightning_neuralgate.tasks.options import task_names


def check_mode(given: Collection[str], of_tasks: Collection[str], options: Namespace) -> None:
    """Refuse options of the mode that was not chosen.

    Args:
        given: dotted names of the options whose value is not the default.
        of_tasks: names of all options that only matter with `--tasks`.
        options: their values.

    Raises:
        DataFormatError: `--tasks` names no task, or one that there is not.
        UnsupportedSetupError: naming the option, the mode that it belongs to, and the way out.
    """
    if options.tasks is None:
        if alien := sorted(set(given) & set(of_tasks)):
            raise UnsupportedSetupError(
                f"{_told(alien)} would change nothing: of benchmarks alone, which --tasks names; name them, or leave it out"
            )
        return
    tasks = task_names(options.tasks)
    if "until_decided" in given:
        raise UnsupportedSetupError(
            "--until_decided is for refusal rates alone, without --tasks; tasks need whole answers"
        )
    for name in sorted(given):
        if reason := _idle(name, tasks, bool(options.mini)):
            raise UnsupportedSetupError(f"--{name} would change nothing: {reason}; leave it out")


def _idle(name: str, tasks: Collection[str], mini: bool) -> str | None:
    """Why an option changes nothing in a run over some tasks; None where it does."""
    group, _, own = name.partition(".")
    if name == "mini_seed" and not mini:
        return "it is the seed of the sets that --mini draws"
    if group not in ("data", "sources"):
        return None
    if mini:
        return "--mini asks drawn sets instead of files"
    task = "privacy_pair" if group == "data" else own.partition("_")[0]
    return None if task in tasks else f"it says where '{task}' is, which is not among --tasks {','.join(tasks)}"


def _told(names: Collection[str]) -> str:
    return ", ".join(f"--{name}" for name in names)
