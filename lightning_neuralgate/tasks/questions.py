"""The questions of a run, over all its tasks, in batches that are dealt out to processes."""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any, NamedTuple, TypeVar

from PIL import Image
from torch.utils.data import DataLoader, IterableDataset, get_worker_info
from typing_extensions import override

from lightning_neuralgate.data.collator import PrivacyPairCollator, QueryRow
from lightning_neuralgate.data.pictures import picture_digest, read_image
from lightning_neuralgate.errors import DataFormatError
from lightning_neuralgate.tasks.item import BrokenItems, OnBroken, Skipped, TaskItem, skipped_for

Item = TypeVar("Item")


def chunks(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """Lists of `size` items, in their order; the last may be shorter. (`itertools.batched` comes with Python 3.12.)

    >>> list(chunks("abcde", 2))
    [['a', 'b'], ['c', 'd'], ['e']]
    """
    chunk: list[Item] = []
    for item in items:
        chunk.append(item)
        if len(chunk) == size:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


Source = Callable[[BrokenItems], Iterator[TaskItem]]
"""Reads a task's items from the beginning."""


class Survey(NamedTuple):
    """What a first pass over all questions has found.

    Attributes:
        counts: task -> number of its questions.
        available: task -> number of questions that there were without a limit.
        skipped: the broken items that are skipped, of all tasks.
        digest: checksum of all questions, without pictures.
    """

    counts: dict[str, int]
    available: dict[str, int]
    skipped: tuple[Skipped, ...]
    digest: str

    @property
    def total(self) -> int:
        """Number of questions."""
        return sum(self.counts.values())

    @property
    def broken(self) -> dict[str, int]:
        """Task -> number of its items that are skipped."""
        return {task: sum(one.task == task for one in self.skipped) for task in self.counts}


class TaskQuestions:
    """The questions of some tasks, read anew each time they are asked for, so that memory stays flat.

    Args:
        sources: task -> what reads its items.
        limit: at most so many questions a task; groups (MME's images) stay whole. Which ones follows from their names, not
            from their order, so that they are of all kinds and the same ones each time. The first group is taken in any case.
        on_broken: what happens to broken items.

    Raises:
        DataFormatError: there are no tasks.
    """

    def __init__(self, sources: Mapping[str, Source], limit: int | None = None, on_broken: OnBroken = "stop") -> None:
        if not sources:
            raise DataFormatError("there is no task to ask about")
        if limit is not None and limit < 1:
            raise ValueError(f"limit must be at least 1, got {limit}")
        self.sources, self.limit, self.on_broken = dict(sources), limit, on_broken
        self._chosen: dict[str, set[bytes]] = {}
        self._surveyed: Survey | None = None

    def survey(self) -> Survey:
        """Read all questions once, to find what is broken and how many there are; asked again, it says the same.

        Raises:
            DataFormatError: a broken item under `stop`; two items of one name; a task without questions.
        """
        if self._surveyed is None:
            self._surveyed = self._survey()
        return self._surveyed

    def _survey(self) -> Survey:
        counts: dict[str, int] = {}
        available: dict[str, int] = {}
        skipped: list[Skipped] = []
        digest = hashlib.sha256()
        for task, source in self.sources.items():
            broken = BrokenItems(self.on_broken, task)
            if self.limit is not None:
                groups = groupby(_each_once(source(broken), broken), key=lambda item: item.group)
                ranks = [(_digest(group), sum(1 for _ in items)) for group, items in groups]
                self._chosen[task] = _first_of(ranks, self.limit)
                available[task] = sum(count for _, count in ranks)
            counts[task] = 0
            for item in self._items(task, broken if self.limit is None else BrokenItems("skip")):
                counts[task] += 1
                digest.update(repr((item.task, item.item_id, item.prompt, item.truth, dict(item.fields))).encode())
            available.setdefault(task, counts[task])
            skipped += broken.skipped
            if not counts[task]:
                told = f"; all {broken.count} are broken, such as {broken.messages[0]}" if broken.count else ""
                raise DataFormatError(f"task '{task}' has no questions{told}")
        return Survey(counts, available, tuple(skipped), digest.hexdigest()[:16])

    def __iter__(self) -> Iterator[TaskItem]:
        """The questions that `survey` has counted."""
        for task in self.sources:
            yield from self._items(task, BrokenItems("skip"))

    def _items(self, task: str, broken: BrokenItems) -> Iterator[TaskItem]:
        chosen = self._chosen.get(task)
        for item in _each_once(self.sources[task](broken), broken):
            if chosen is None or _digest(item.group) in chosen:
                yield item


def _each_once(items: Iterator[TaskItem], broken: BrokenItems) -> Iterator[TaskItem]:
    seen: set[bytes] = set()

    def first(item: TaskItem) -> TaskItem:
        name = _digest(item.item_id)
        if name in seen:
            raise item.place.broken(f"there is already an item '{item.item_id}' of '{item.task}'")
        seen.add(name)
        return item

    return broken.passing(items, first)


def _digest(name: str) -> bytes:
    return hashlib.sha256(name.encode("utf-8", "surrogatepass")).digest()[:12]


def _first_of(ranks: Sequence[tuple[bytes, int]], limit: int) -> set[bytes]:
    """The groups of smallest digest that have at most `limit` questions together."""
    chosen: set[bytes] = set()
    left = limit
    for name, count in heapq.nsmallest(limit, ranks):
        if count <= left or not chosen:
            chosen.add(name)
            left -= count
    return chosen


class QuestionBatches(IterableDataset[dict[str, Any]]):
    """A process's share of the questions, as collated batches.

    Batch k holds questions `k * batch_size` and following, whoever answers it, so that neither the number of processes nor
    a break changes in which company a question is answered. Batches whose questions are all done are left out. Every
    share has equally many batches, as collective calls need it: where they do not go round, the last comes again, with
    `counted` False.

    A batch is what `PrivacyPairCollator` makes, with `items`, B of them, `pictures`, for each a checksum, and `broken`: for
    each why it cannot be asked, as a `Skipped`, or None. Where broken items are skipped, a grey picture stands in.

    Args:
        questions: what to ask.
        processor: the model's processor.
        batch_size: questions in a batch.
        done: keys of the items that are answered already.
        rank: this process.
        world: number of processes.

    Raises:
        DataFormatError: while it is iterated over: a picture that cannot be read, or a question that the processor cannot
            take, where broken items stop the run.
    """

    def __init__(
        self,
        questions: TaskQuestions,
        processor: Any,
        batch_size: int,
        done: Collection[tuple[str, str]] = (),
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self.questions, self.batch_size, self.done = questions, batch_size, done
        self.rank, self.world = rank, world
        self.collate = PrivacyPairCollator(processor, "left")
        self.pending = sum(1 for _ in self._pending())

    def _pending(self) -> Iterator[list[TaskItem]]:
        for chunk in chunks(self.questions, self.batch_size):
            if any((item.task, item.item_id) not in self.done for item in chunk):
                yield chunk

    @override
    def __iter__(self) -> Iterator[dict[str, Any]]:
        worker = get_worker_info()
        workers, own = (1, 0) if worker is None else (worker.num_workers, worker.id)
        for number, (chunk, counted) in enumerate(self._share()):
            if number % workers == own:
                yield self._batch(chunk, counted)

    def _share(self) -> Iterator[tuple[list[TaskItem], bool]]:
        chunk: list[TaskItem] = []
        for number, chunk in enumerate(self._pending()):
            if number % self.world == self.rank:
                yield chunk, True
        if 0 < self.pending % self.world <= self.rank:
            yield chunk, False

    def _batch(self, items: list[TaskItem], counted: bool) -> dict[str, Any]:
        read = [self._read(item) for item in items]
        rows = [row for row, _, _ in read]
        broken = [problem for _, _, problem in read]
        try:
            batch = self.collate(rows)
        except Exception:  # a processor may raise anything
            for place, (item, row) in enumerate(zip(items, rows, strict=True)):
                try:
                    self.collate([row])
                except Exception as error:
                    told = item.place.broken(f"the processor cannot take this question: {error!r}")
                    broken[place] = self._skipped(told, item)
                    rows[place] = _stand_in(item)
            if not any(broken):
                raise
            batch = self.collate(rows)
        pictures = [digest for _, digest, _ in read]
        return {**batch, "items": items, "pictures": pictures, "broken": broken, "counted": counted}

    def _read(self, item: TaskItem) -> tuple[QueryRow, str, Skipped | None]:
        """What is asked, a checksum of its picture, and what is wrong with that."""
        try:
            picture = read_image(item.picture, item.item_id)
            digest = picture_digest(item.picture)
        except (OSError, DataFormatError) as error:
            return _stand_in(item), "", self._skipped(item.place.broken(str(error)), item)
        return QueryRow(item.prompt, "benign", picture, record_id=item.item_id), digest, None

    def _skipped(self, error: DataFormatError, item: TaskItem) -> Skipped:
        if self.questions.on_broken == "stop":
            raise error
        return skipped_for(error, item.task, item.item_id)

    def loader(self, num_workers: int = 0) -> CountedBatches:
        """These batches, collated by some workers."""
        return CountedBatches(
            DataLoader(self, batch_size=None, num_workers=num_workers), -(-self.pending // self.world)
        )


def _stand_in(item: TaskItem) -> QueryRow:
    """What is asked in the place of a question that cannot be, so that its neighbours keep their company."""
    return QueryRow("-", "benign", Image.new("RGB", (64, 64), (128, 128, 128)), record_id=item.item_id)


class CountedBatches:
    """Batches of a loader that cannot count them itself. No DataLoader, since Lightning would want to make it anew."""

    def __init__(self, loader: DataLoader[dict[str, Any]], count: int) -> None:
        self.loader, self.count = loader, count

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self.loader)

    def __len__(self) -> int:
        return self.count
