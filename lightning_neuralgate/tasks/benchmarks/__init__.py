"""The benchmarks, each in one file; `BENCHMARKS` is the registry."""

from lightning_neuralgate.errors import DataFormatError
from lightning_neuralgate.evaluation.answers import AnsweredItem
from lightning_neuralgate.tasks.benchmarks.base import Benchmark
from lightning_neuralgate.tasks.benchmarks.mllmguard import Mllmguard
from lightning_neuralgate.tasks.benchmarks.mme import Mme
from lightning_neuralgate.tasks.benchmarks.mossbench import MossBench
from lightning_neuralgate.tasks.benchmarks.over_refusal import OverRefusal
from lightning_neuralgate.tasks.benchmarks.pope import Pope
from lightning_neuralgate.tasks.benchmarks.privacy_pair import PrivacyPair
from lightning_neuralgate.tasks.benchmarks.scienceqa import ScienceQa
from lightning_neuralgate.tasks.benchmarks.xstest import XsTest

BENCHMARKS: dict[str, Benchmark] = {
    benchmark.name: benchmark
    for benchmark in (
        PrivacyPair(),
        Pope(),
        Mme(),
        ScienceQa(),
        Mllmguard(),
        OverRefusal(),
        XsTest(),
        MossBench(),
    )
}
"""Task name -> benchmark, in the order of `--tasks all`."""


def benchmark_of(answer: AnsweredItem) -> Benchmark:
    """Return the benchmark that an answer belongs to.

    Raises:
        DataFormatError: there is no such task.
    """
    if answer.task not in BENCHMARKS:
        raise DataFormatError(
            f"item '{answer.item_id}': there is no task '{answer.task}', only {', '.join(BENCHMARKS)}"
        )
    return BENCHMARKS[answer.task]
