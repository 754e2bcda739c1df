"""Jobs that several processes share through a folder: one JSON file per finished job, and a lock while it is made."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from lightning_neuralgate.runtime.files import atomic_write
from lightning_neuralgate.runtime.parsing import read_json_object

Make = Callable[[str], Mapping[str, Any]]
"""Function of a job's name that makes it and returns the result, as JSON can hold it."""


class SharedJobs:
    """Results of jobs in a folder, by name; a name may contain "/".

    A process that dies releases its locks, so that its job is made again, by another process or by the next run. Finished
    jobs are not made again.

    Args:
        folder: the folder.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     jobs = SharedJobs(Path(folder))
        ...     jobs.run(lambda: ["a", "b"], lambda name: {"length": len(name)})
        ...     jobs.result("b")
        {'length': 1}
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def file(self, name: str) -> Path:
        """The file of a job's result."""
        return self.folder / f"{name}.json"

    def result(self, name: str) -> dict[str, Any] | None:
        """Return the result of a job; None if it is not finished.

        Raises:
            DataFormatError: the file is damaged.
        """
        file = self.file(name)
        return read_json_object(file, own=True, hint="delete it, so that it is made again") if file.is_file() else None

    def run(self, names: Callable[[], Iterable[str]], make: Make, wait: float = 2.0) -> None:
        """Make jobs until all are finished, and wait for those that other processes make.

        Args:
            names: returns the jobs that can be made, in their order; called again after each job, since some jobs may depend
                on the results of others.
            make: makes a job.
            wait: seconds between looks, while other processes make all jobs that are left.
        """
        while pending := [name for name in names() if not self.file(name).is_file()]:
            if not any(self._made(name, make) for name in pending):
                time.sleep(wait)

    def _made(self, name: str, make: Make) -> bool:
        """Make a job unless another process does; return whether it is finished."""
        file = self.file(name)
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(file.with_suffix(".lock"), timeout=0):
                if not file.is_file():
                    result = make(name)
                    with atomic_write(file) as draft:
                        draft.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        except Timeout:
            return False
        return True
