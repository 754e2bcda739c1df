"""Small drawn sets of the benchmarks (`--mini`), written in their own file formats.

Pictures and questions are drawn by this package (`data.scenes` and `data.rendering`), so that everything runs offline.
Figures on these sets compare models with each other, not with a benchmark's published results.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from lightning_neuralgate.data.rendering.dataset import EDIT_SUBJECTS, render_splits
from lightning_neuralgate.runtime.files import atomic_write
from lightning_neuralgate.tasks.item import BrokenItems
from lightning_neuralgate.tasks.ladder import draw_ladder
from lightning_neuralgate.tasks.mini.mllmguard import draw_mllmguard
from lightning_neuralgate.tasks.mini.mme import END, draw_mme
from lightning_neuralgate.tasks.mini.pictures import SERIES
from lightning_neuralgate.tasks.mini.pope import draw_pope
from lightning_neuralgate.tasks.mini.scienceqa import draw_scienceqa
from lightning_neuralgate.tasks.options import ALL, mini_sources, task_names


def render_mini(folder: Path, seed: int = 0, subjects: Sequence[str | Path] = EDIT_SUBJECTS) -> None:
    """Draw the mini sets into a folder: `pope/`, `mme/`, `scienceqa/`, `mllmguard/`, `over_refusal/`, and `privacy_pair/`.

    Args:
        folder: created if needed.
        seed: the same seed draws the same files.
        subjects: the edited subjects, for `over_refusal/`; see `draw_ladder`.

    Raises:
        MissingDependencyError: Faker, matplotlib or pyarrow is not installed.
    """
    with atomic_write(folder.resolve()) as draft:
        draft.mkdir()
        for task, draw in (
            ("pope", draw_pope),
            ("mme", draw_mme),
            ("scienceqa", draw_scienceqa),
            ("mllmguard", draw_mllmguard),
        ):
            draw(draft / task, seed)
    draw_ladder(folder / "over_refusal", seed, subjects)
    render_splits(folder / "privacy_pair", SERIES + seed, edit_records=1, test_records=2, test_pairs=2, edit_pairs=2)


def mini_questions(seed: int = 0) -> Iterator[tuple[str, str]]:
    """Yield (task, question) of all mini sets of a seed, so that a training can check that it contains none of them.

    The questions lack the choices of a multiple choice and the closing request for yes or no. Draws the pictures, too.
    """
    with TemporaryDirectory() as scratch:
        render_mini(Path(scratch) / "mini", seed)
        sources, data = mini_sources(Path(scratch) / "mini")
        for task, source in sources.read(task_names(ALL), data).items():
            for item in source(BrokenItems()):
                yield task, item.prompt.split("\n")[0].removesuffix(END)
