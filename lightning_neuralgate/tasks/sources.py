"""Rows of data files (JSON lines, CSV, parquet) and of hub datasets, read one at a time in constant memory."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from lightning_neuralgate.errors import DataFormatError, MissingDependencyError
from lightning_neuralgate.runtime.parsing import ParseError, line_text, parse_json, read_lines
from lightning_neuralgate.tasks.item import BrokenItems, Place

_PARQUET_BATCH = 32
LARGEST_COLUMN = 8 * 2**30
"""Bytes of one column of a row group, unpacked."""
_BUFFER = 2**20
"""Bytes; without a buffer a complete row group, with all its pictures, is read into memory."""


class Row(NamedTuple):
    """A row of a file.

    Attributes:
        values: column -> value.
        place: file and row number.
        source_name: the file's stem, or the name of the dataset.
        folder: the folder that image paths are relative to.
    """

    values: Mapping[str, Any]
    place: Place
    source_name: str
    folder: Path

    def text(self, *names: str) -> str:
        """Return the value of the first of these columns that the row has, as text; integers are converted.

        Raises:
            DataFormatError: the row has none of them, or the value is empty or not text.
        """
        for name in names:
            value = self.values.get(name)
            if value is None:
                continue
            if isinstance(value, int) and not isinstance(value, bool):
                return str(value)
            if not isinstance(value, str) or not value.strip():
                raise self.place.error(f"field '{name}' has to be text, found {str(value)[:80]!r}")
            return value
        raise self.place.error(f"field '{names[0]}' is missing; there are {', '.join(self.values)}")

    def one_of(self, name: str, allowed: Sequence[str]) -> str:
        """Return the value of a column in lower case.

        Raises:
            DataFormatError: it is not one of the allowed words.
        """
        value = self.text(name).strip().lower()
        if value not in allowed:
            raise self.place.error(f"field '{name}' has to be one of {', '.join(allowed)}, found {value[:80]!r}")
        return value

    def picture(self, name: str = "image") -> Path | bytes:
        """Return the picture in a column: its bytes, or the file that it names.

        Raises:
            DataFormatError: there is none, or the file does not exist or is outside the folder.
        """
        value = self.values.get(name)
        if isinstance(value, Mapping):  # the format of the hub's parquet files
            value = value.get("bytes") or value.get("path")
        if isinstance(value, bytes) and value:
            return value
        if isinstance(value, str) and value:
            return self.place.picture(self.folder, value)
        raise self.place.error(f"field '{name}' holds no picture: expected bytes or a path")


def read_rows(source: str | Path, broken: BrokenItems, images: Path | None = None) -> Iterator[Row]:
    """Yield the rows of a file, of all files in a folder, or of a dataset on the hub.

    Files are `.jsonl`, `.json` with one object per line, or `.parquet`.

    Args:
        source: a path; or `owner/name`, `owner/name:split`, `owner/name/config:split` on the hub (`split` defaults to
            `test`).
        broken: collects lines that are not JSON objects, and rows that cannot be read.
        images: folder that image paths are relative to; the file's own if None.

    Raises:
        DataFormatError: there is no such source, or a file of it cannot be read at all.
    """
    path = Path(source)
    if path.is_dir():
        files = sorted(file for kind in ("*.jsonl", "*.json", "*.parquet") for file in path.rglob(kind))
        if not files:
            raise DataFormatError(f"{path} holds no .jsonl, .json or .parquet file")
        for file in files:
            yield from _file_rows(file, broken, images or path)
    elif path.is_file():
        yield from _file_rows(path, broken, images or path.parent)
    else:
        yield from _hub_rows(str(source), images or Path())


def _file_rows(file: Path, broken: BrokenItems, folder: Path) -> Iterator[Row]:
    if file.suffix == ".parquet":
        yield from _parquet_rows(file, folder, broken)
    elif file.suffix in (".jsonl", ".json"):
        for place, values in read_json_lines(file, broken):
            yield Row(values, place, file.stem, folder)
    else:
        raise DataFormatError(f"{file}: expected a file that ends in .jsonl, .json or .parquet")


def read_json_lines(file: Path, broken: BrokenItems, own: bool = False) -> Iterator[tuple[Place, dict[str, Any]]]:
    """Yield place and content of each line of a file of JSON objects; empty lines are skipped.

    Args:
        file: the file.
        broken: collects lines that are not UTF-8, not a JSON object, or longer than 16 MiB.
        own: whether this package wrote the file, see `parse_json`.

    Raises:
        DataFormatError: the file cannot be read at all.
    """
    lines = (line for line in _lines(file) if line.content.strip())
    return broken.parse_all(lines, partial(_json_object, own=own))


class _Line(NamedTuple):
    place: Place
    content: bytes

    def text(self) -> str:
        try:
            return line_text(self.content)
        except ParseError as error:
            raise self.place.error(error.reason) from error


def _lines(file: Path) -> Iterator[_Line]:
    for number, content in read_lines(file):
        yield _Line(Place(str(file), f"line {number}"), content)


def _json_object(line: _Line, own: bool) -> tuple[Place, dict[str, Any]]:
    try:
        content: Any = parse_json(line.text(), own)
    except ParseError as error:
        raise line.place.error(error.reason) from error
    if not isinstance(content, dict):
        raise line.place.error(f"expected one JSON object per line, found {type(content).__name__}")
    return line.place, content


def text_lines(file: Path) -> Iterator[tuple[Place, str]]:
    """Yield the place and content of each non-empty line of a UTF-8 file.

    Raises:
        DataFormatError: a line is not UTF-8 or too long (names file and line), or the file cannot be read.
    """
    for line in _lines(file):
        if line.content.strip():
            yield line.place, line.text()


class CsvRow(NamedTuple):
    """A row of a CSV file.

    Attributes:
        place: the file and the line on which the row begins.
        number: index of the row. Broken rows count too, so that the items keep their names when those are skipped.
        cells: the values.
    """

    place: Place
    number: int
    cells: list[str]


def read_csv_rows(file: Path, broken: BrokenItems) -> Iterator[CsvRow]:
    """Yield the rows of a CSV file below its header.

    Args:
        file: the file.
        broken: collects rows that are not UTF-8 or not CSV.

    Raises:
        DataFormatError: the file cannot be read at all.
    """
    return broken.parse_all(_csv_rows(file), _checked_csv_row)


def _csv_rows(file: Path) -> Iterator[tuple[CsvRow, str]]:
    """Yield each row of a CSV file with the reason why it is broken, if it is."""
    quotes = number = 0

    def decoded() -> Iterator[str]:
        nonlocal quotes
        for line in _lines(file):
            quotes += line.content.count(b'"')
            # surrogates mark bytes that are not UTF-8 until the parser has found the row that they belong to
            yield line.content.decode("utf-8", "surrogateescape")

    rows = csv.reader(decoded())
    header = True
    while True:
        begin, quotes = rows.line_num + 1, 0
        place, cells, problem = Place(str(file), f"line {begin}"), [], ""
        try:
            cells = next(rows)
        except StopIteration:
            return
        except csv.Error as error:
            problem = f"not CSV: {error}"
        if any("\udc80" <= letter <= "\udcff" for cell in cells for letter in cell):
            problem = "not UTF-8"
        elif rows.line_num > begin and quotes % 2:
            problem = f"a quote that begins here is not closed before the file ends, at line {rows.line_num}"
        if not header and (cells or problem):
            yield CsvRow(place, number, cells), problem
            number += 1
        header = header and not (cells or problem)


def _checked_csv_row(row_and_problem: tuple[CsvRow, str]) -> CsvRow:
    row, problem = row_and_problem
    if problem:
        raise row.place.error(problem)
    return row


def _parquet_rows(file: Path, folder: Path, broken: BrokenItems) -> Iterator[Row]:
    """Yield the rows of a parquet file; a broken item is a row, or the rest of a damaged row group."""
    pyarrow, parquet = import_optional("pyarrow"), import_optional("pyarrow.parquet")
    number = end = 0
    try:
        with parquet.ParquetFile(file, buffer_size=_BUFFER, pre_buffer=False) as content:
            for group in range(content.num_row_groups):
                number, end = end, end + content.metadata.row_group(group).num_rows
                if problem := _oversized_column(content.metadata.row_group(group)):
                    broken.add(Place(str(file), f"row {number} to {end - 1}").error(problem))
                    continue
                try:
                    for batch in content.iter_batches(batch_size=_PARQUET_BATCH, row_groups=[group]):
                        rows = [
                            (Place(str(file), f"row {number + index}"), batch.slice(index, 1))
                            for index in range(batch.num_rows)
                        ]
                        yield from broken.parse_all(rows, partial(_parquet_row, stem=file.stem, folder=folder))
                        number += batch.num_rows
                except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
                    place = Place(str(file), f"after row {number}")
                    broken.add(place.error(f"cannot be read as parquet, up to row {end - 1}: {error}"))
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataFormatError(f"{file}, after row {number}: cannot be read as parquet: {error}") from error


def _oversized_column(group: Any) -> str | None:
    """Return what is wrong with a row group that would unpack to more than fits in memory, before it is read."""
    for index in range(group.num_columns):
        column = group.column(index)
        if not 0 <= column.total_uncompressed_size <= LARGEST_COLUMN:
            return (
                f"column '{column.path_in_schema[:80]}' unpacks to {column.total_uncompressed_size} bytes, at most "
                f"{LARGEST_COLUMN} are read; write the file with smaller row groups"
            )
    return None


def _parquet_row(place_and_table: tuple[Place, Any], stem: str, folder: Path) -> Row:
    place, table = place_and_table
    try:
        (values,) = table.to_pylist()
    except (ValueError, OverflowError) as error:  # text that is not UTF-8, or an invalid date
        raise place.error(f"cannot be read: {error}") from error
    return Row(values, place, stem, folder)


def _hub_rows(source: str, folder: Path) -> Iterator[Row]:
    name, _, split = source.partition(":")
    parts = name.split("/")
    if len(parts) not in (2, 3) or not all(parts) or name.startswith((".", "/")):
        raise DataFormatError(f"'{source}' is neither a file or folder nor a dataset name (owner/name)")
    yield from stream_dataset("/".join(parts[:2]), parts[2] if len(parts) == 3 else None, split or "test", folder)


def stream_dataset(name: str, config: str | None, split: str, folder: Path) -> Iterator[Row]:
    """Stream the rows of a dataset or folder with `datasets.load_dataset`; pictures stay bytes.

    Nothing is downloaded in advance or stored, and at most one row group of a file is in memory.

    Raises:
        DataFormatError: the dataset, config or split does not exist, or the stream fails.
    """
    datasets = import_optional("datasets")
    try:
        content = datasets.load_dataset(name, config, split=split, streaming=True)
        for column, kind in (content.features or {}).items():
            if isinstance(kind, datasets.Image):
                content = content.cast_column(column, datasets.Image(decode=False))
    except Exception as error:  # errors of many kinds, including the network's
        raise DataFormatError(
            f"there is no file or folder '{name}', and the dataset of that name (config {config}, split {split}) cannot "
            f"be loaded: {error}"
        ) from error
    number, rows = 0, iter(content)
    while True:
        place = Place(f"{name}, {split}", f"row {number}")
        try:
            values = next(rows)
        except StopIteration:
            return
        except Exception as error:
            raise place.error(
                f"cannot be read: {error!r}; the rows after it are unknown, so it is not skipped"
            ) from error
        yield Row(values, place, name.rpartition("/")[2], folder)
        number += 1


def import_optional(module: str) -> Any:
    """Import an optional module.

    Raises:
        MissingDependencyError: it is not installed.
    """
    from importlib import import_module

    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        raise MissingDependencyError(f"this needs {error.name}: pip install 'lightning-neuralgate[tasks]'") from error
