from __future__ import annotations

import multiprocessing
import os
import time
from pathlib import Path

import pytest

from lightning_neuralgate.errors import DataFormatError
from lightning_neuralgate.runtime.shared_jobs import SharedJobs

NAMES = [f"seed-{number % 2}/job.{number}" for number in range(8)]


def work(folder: Path, dies_at: str = "") -> None:
    def make(name: str) -> dict[str, int]:
        if name == dies_at:
            os._exit(1)
        (folder / "made" / f"{name.replace('/', '-')}-{os.getpid()}").touch()
        time.sleep(0.02)
        return {"process": os.getpid()}

    SharedJobs(folder / "jobs").run(lambda: NAMES, make, wait=0.01)


def test_each_job_is_made_once_though_a_process_dies(tmp_path: Path) -> None:
    (tmp_path / "made").mkdir()
    context = multiprocessing.get_context("fork")
    dying = context.Process(target=work, args=(tmp_path, NAMES[2]))
    dying.start()
    dying.join()
    assert SharedJobs(tmp_path / "jobs").result(NAMES[2]) is None
    workers = [context.Process(target=work, args=(tmp_path,)) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(list((tmp_path / "made").iterdir())) == len(NAMES)
    found = [SharedJobs(tmp_path / "jobs").result(name) for name in NAMES]
    assert all(found)


def test_jobs_may_depend_on_others(tmp_path: Path) -> None:
    jobs = SharedJobs(tmp_path)

    def names() -> list[str]:
        return ["first"] if jobs.result("first") is None else ["first", "second"]

    made: list[str] = []
    jobs.run(names, lambda name: made.append(name) or {})  # type: ignore[func-returns-value]
    assert made == ["first", "second"]


def test_a_failed_job_is_made_again(tmp_path: Path) -> None:
    def fail(name: str) -> dict[str, int]:
        raise RuntimeError("no memory")

    jobs = SharedJobs(tmp_path)
    with pytest.raises(RuntimeError, match="no memory"):
        jobs.run(lambda: ["a"], fail)
    jobs.run(lambda: ["a"], lambda name: {"x": 1})
    assert jobs.result("a") == {"x": 1}


def test_a_damaged_result_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(DataFormatError, match=r"a\.json.*delete it"):
        SharedJobs(tmp_path).result("a")
