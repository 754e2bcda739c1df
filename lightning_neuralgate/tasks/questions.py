"""The questions of a run over some tasks, and each process's share of them as collated batches."""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import groupby
from typing import Any, NamedTuple, TypeVar

from PIL import Image
from torch.utils.data import DataLoader, IterableDataset, get_worker_info
from typing_extensions import override

from lightning_neuralgate.data.collator import PrivacyPairCollator, QueryRow
from lightning_neuralgate.data.image_files import picture_digest, read_image
from lightning_neuralgate.errors import DataFormatError, ModelLayoutError
from lightning_neuralgate.tasks.item import BrokenItems, OnBroken, Skipped, TaskItem

Element = TypeVar("Element")
Source = Callable[[BrokenItems], Iterator[TaskItem]]
"""Reads a task's items from the beginning."""


class Survey(NamedTuple):
    """Result of a first pass over all questions.

    Attributes:
        counts: task -> number of questions.
        available: task -> number of questions without a limit.
        skipped: the broken items that are skipped, of all tasks.
        digest: checksum of all questions, without pictures.
    """

    counts: dict[str, int]
    available: dict[str, int]
    skipped: tuple[Skipped, ...]
    digest: str

    @property
    def total(self) -> int:
        """Number of questions of all tasks."""
        return sum(self.counts.values())

    @property
    def broken(self) -> dict[str, int]:
        """Task -> number of skipped items."""
        return {task: sum(item.task == task for item in self.skipped) for task in self.counts}


class TaskQuestions:
    """The questions of some tasks, read again on each iteration, so that memory stays flat.

    Args:
        sources: task -> reader of its items.
        limit: maximum number of questions per task; groups (MME's images) stay complete. The choice depends on the items'
            names and not on their order, so that it is a reproducible sample. At least one group is chosen.
        limit_per: name of a field of the items: the limit then applies to the items of each of its values separately, such as
            each `rung` of the ladder. A group belongs to the value of its first item.
        on_broken: whether broken items stop the run or are skipped.

    Raises:
        DataFormatError: there are no tasks.
    """

    def __init__(
        self,
        sources: Mapping[str, Source],
        limit: int | None = None,
        on_broken: OnBroken = "stop",
        limit_per: str | None = None,
    ) -> None:
        if not sources:
            raise DataFormatError("there is no task to evaluate; name one")
        if limit is not None and limit < 1:
            raise ValueError(f"limit must be at least 1, got {limit}")
        self.sources, self.limit, self.on_broken, self.limit_per = dict(sources), limit, on_broken, limit_per
        self._chosen: dict[str, set[bytes]] = {}

    def survey(self) -> Survey:
        """Read all questions once, to count them and to find broken ones; later calls return the same result.

        Raises:
            DataFormatError: a broken item under `stop`; two items with one name; a task without questions.
        """
        return self._survey

    @cached_property
    def _survey(self) -> Survey:
        counts: dict[str, int] = {}
        available: dict[str, int] = {}
        skipped: list[Skipped] = []
        digest = hashlib.sha256()
        for task, source in self.sources.items():
            broken = BrokenItems(self.on_broken, task)
            if self.limit is not None:
                limited: dict[Any, list[tuple[bytes, int]]] = {}
                for group, members in groupby(_unique(source(broken), broken), key=lambda item: item.group):
                    parts = [item.fields.get(self.limit_per or "") for item in members]
                    limited.setdefault(parts[0], []).append((_digest(group), len(parts)))
                self._chosen[task] = set().union(*(_choose_groups(sizes, self.limit) for sizes in limited.values()))
                available[task] = sum(size for sizes in limited.values() for _, size in sizes)
            counts[task] = 0
            for item in self._items(task, broken if self.limit is None else BrokenItems("skip")):
                counts[task] += 1
                digest.update(repr((item.task, item.item_id, item.request, item.truth, dict(item.fields))).encode())
            available.setdefault(task, counts[task])
            skipped += broken.skipped
            if not counts[task]:
                reason = f"; all {broken.count} are broken, such as {broken.messages[0]}" if broken.count else ""
                raise DataFormatError(f"task '{task}' has no questions{reason}")
        return Survey(counts, available, tuple(skipped), digest.hexdigest()[:16])

    def __iter__(self) -> Iterator[TaskItem]:
        """Iterate over the questions that `survey` has counted."""
        for task in self.sources:
            yield from self._items(task, BrokenItems("skip"))

    def _items(self, task: str, broken: BrokenItems) -> Iterator[TaskItem]:
        chosen = self._chosen.get(task)
        for item in _unique(self.sources[task](broken), broken):
            if chosen is None or _digest(item.group) in chosen:
                yield item


def _unique(items: Iterator[TaskItem], broken: BrokenItems) -> Iterator[TaskItem]:
    seen: set[bytes] = set()

    def check(item: TaskItem) -> TaskItem:
        name = _digest(item.item_id)
        if name in seen:
            raise item.place.error(f"there is already an item '{item.item_id}' of '{item.task}'")
        seen.add(name)
        return item

    return broken.parse_all(items, check)


def _digest(name: str) -> bytes:
    return hashlib.sha256(name.encode("utf-8", "surrogatepass")).digest()[:12]


def _choose_groups(sizes: Sequence[tuple[bytes, int]], limit: int) -> set[bytes]:
    """Return the groups with the smallest digests that together have at most `limit` questions."""
    chosen: set[bytes] = set()
    remaining = limit
    for name, size in heapq.nsmallest(limit, sizes):
        if size <= remaining or not chosen:
            chosen.add(name)
            remaining -= size
    return chosen


class QuestionBatches(IterableDataset[dict[str, Any]]):
    """A process's share of the questions, as collated batches.

    Batch k always holds questions `k * batch_size` and following, so that neither the number of processes nor an
    interruption changes the batch in which a question is answered. Batches whose questions are all done are left out. All
    shares have the same number of batches, as collective calls require: a process short of one repeats the last batch with
    `counted` False.

    A batch is the output of `PrivacyPairCollator` with `items` (B of them), `pictures`, a checksum for each (empty without a
    picture), and `broken`: for each a `Skipped` if it cannot be answered, else None. A grey picture replaces that of a
    skipped item.

    Args:
        questions: the questions.
        processor: the model's processor.
        batch_size: questions per batch.
        done: keys of the items that are answered already.
        rank: rank of this process.
        world: number of processes.

    Raises:
        DataFormatError: during iteration: a picture that cannot be read, or a question that the processor rejects, if
            broken items stop the run.
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
        workers, worker_id = (1, 0) if worker is None else (worker.num_workers, worker.id)
        for number, (chunk, counted) in enumerate(self._share()):
            if number % workers == worker_id:
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
        except ModelLayoutError:  # a chat template that fits no question
            raise
        except Exception:  # a processor may raise anything
            for index, (item, row) in enumerate(zip(items, rows, strict=True)):
                try:
                    self.collate([row])
                except Exception as error:
                    reason = error if isinstance(error, DataFormatError) else repr(error)
                    rejected = item.place.error(f"the processor cannot take this question: {reason}")
                    broken[index] = self._skipped(rejected, item)
                    rows[index] = _placeholder(item)
            if not any(broken):
                raise
            batch = self.collate(rows)
        pictures = [digest for _, digest, _ in read]
        return {**batch, "items": items, "pictures": pictures, "broken": broken, "counted": counted}

    def _read(self, item: TaskItem) -> tuple[QueryRow, str, Skipped | None]:
        """Return the row of a question, a checksum of its picture, and the reason to skip it, if any."""
        row = QueryRow(item.prompt, "benign", None, record_id=item.item_id, earlier=item.earlier, opening=item.opening)
        if item.picture is None:
            return row, "", None
        try:
            picture = read_image(item.picture, item.item_id)
            digest = picture_digest(item.picture)
        except (OSError, DataFormatError) as error:
            return _placeholder(item), "", self._skipped(item.place.error(str(error)), item)
        return replace(row, image=picture), digest, None

    def _skipped(self, error: DataFormatError, item: TaskItem) -> Skipped:
        if self.questions.on_broken == "stop":
            raise error
        return Skipped.from_error(error, item.task, item.item_id)

    def loader(self, num_workers: int = 0) -> CountedBatches:
        """Return a DataLoader of these batches."""
        return CountedBatches(
            DataLoader(self, batch_size=None, num_workers=num_workers), -(-self.pending // self.world)
        )


def _placeholder(item: TaskItem) -> QueryRow:
    """Return a row with a grey picture, which keeps the other rows of a batch in place."""
    return QueryRow("-", "benign", Image.new("RGB", (64, 64), (128, 128, 128)), record_id=item.item_id)


class CountedBatches:
    """A DataLoader with a known number of batches; not a DataLoader itself, which Lightning would recreate."""

    def __init__(self, loader: DataLoader[dict[str, Any]], count: int) -> None:
        self.loader, self.count = loader, count

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self.loader)

    def __len__(self) -> int:
        return self.count


def chunks(elements: Iterable[Element], size: int) -> Iterator[list[Element]]:
    """Yield lists of `size` elements; the last may be shorter. (`itertools.batched` needs Python 3.12.)

    >>> list(chunks("abcde", 2))
    [['a', 'b'], ['c', 'd'], ['e']]
    """
    chunk: list[Element] = []
    for element in elements:
        chunk.append(element)
        if len(chunk) == size:
            yield chunk
            chunk = []
    if chunk:
        yield chunk
