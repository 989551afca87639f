"""Rows of a file, one at a time: CSV, JSON Lines, Parquet.

A row that cannot be read is a row as well, with the reason in place of its cells. So each row has
the same number whenever the same content is read, and nothing is passed over without a word.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping
from decimal import Decimal
from pathlib import PurePath
from typing import Any, BinaryIO, NamedTuple, Protocol

import click

from meter_agent.cli.importing.input_file import InputFile

__all__ = [
    "FORMATS",
    "LINE_CHARACTERS_MAX",
    "REASON_COLUMN",
    "Row",
    "Rows",
    "UnreadableError",
    "open_rows",
]

FORMATS = ("csv", "jsonl", "parquet")
REASON_COLUMN = "rejected_because"
LINE_CHARACTERS_MAX = 1024 * 1024

_SUFFIXES = {
    ".csv": "csv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".jsonlines": "jsonl",
    ".parquet": "parquet",
}
_PARQUET_ROWS = 4096


class UnreadableError(Exception):
    """The rest of the file cannot be read."""


class Row(NamedTuple):
    """One row."""

    number: int
    """From 1, header and blank lines not counted: what identifiers derive from."""
    line: int
    """Where it ends in the file, for people."""
    cells: Mapping[str, Any]
    """By name of the column; nested objects by a path with dots."""
    original: Any
    """What a file of rejected rows has to hold of it."""
    problem: str | None = None
    """Why it cannot be read."""


class Rows(Protocol):
    """The rows of a file, read once."""

    @property
    def format(self) -> str:
        """One of `FORMATS`."""

    @property
    def columns(self) -> list[str] | None:
        """Their names; None: each row has names of its own."""

    @property
    def unit(self) -> str:
        """What `Row.line` counts."""

    @property
    def total(self) -> int:
        """How many rows there are; about, for text."""

    def __iter__(self) -> Iterator[Row]: ...

    def close(self) -> None:
        """Close the reader."""


def open_rows(file: InputFile, file_format: str | None, delimiter: str) -> Rows:
    """Return the rows of *file*.

    Args:
        file: The file.
        file_format: One of `FORMATS`; None: by its name or, without one that tells, its beginning.
        delimiter: Between the cells of CSV.

    Raises:
        click.UsageError: It is no such file.
    """
    file_format = file_format or _format_of(file)
    reader = file.reopen()
    try:
        if file_format == "csv":
            return CsvRows(file, reader, delimiter)
        return JsonRows(file, reader) if file_format == "jsonl" else ParquetRows(file, reader)
    except BaseException:
        reader.close()
        raise


def _format_of(file: InputFile) -> str:
    known = _SUFFIXES.get(PurePath(file.name).suffix.lower())
    if known is not None:
        return known
    with file.reopen() as reader:
        beginning = reader.read(64).removeprefix(b"\xef\xbb\xbf").lstrip()
    if beginning.startswith(b"PAR1"):
        return "parquet"
    return "jsonl" if beginning.startswith((b"{", b"[")) else "csv"


class CsvRows:
    """Comma-separated values with a header, in UTF-8."""

    format = "csv"
    unit = "line"

    def __init__(self, file: InputFile, reader: BinaryIO, delimiter: str) -> None:
        # Bytes that are no UTF-8 are kept as they are: only the cells that are billed have to be.
        text = io.TextIOWrapper(reader, encoding="utf-8-sig", errors="surrogateescape", newline="")
        self.total = max(0, file.lines - 1)
        self._lines = _Lines(text)
        self._reader = csv.reader(self._lines, delimiter=delimiter, strict=True)
        try:
            self.columns: list[str] = [name.strip() for name in next(self._reader)]
        except StopIteration:
            raise click.UsageError(f"{file.name} is empty: it has no header") from None
        except csv.Error as error:
            raise click.UsageError(f"{file.name}: its header cannot be read: {error}") from None
        doubled = {name for name in self.columns if self.columns.count(name) > 1}
        if doubled:
            raise click.UsageError(f"{file.name}: two columns are called {min(doubled)!r}")

    def __iter__(self) -> Iterator[Row]:
        names, reader, taken = self.columns, self._reader, self._lines.taken
        number, width = 0, len(names)
        while True:
            taken.clear()
            try:
                cells = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                number += 1
                raw = "".join(taken)[:LINE_CHARACTERS_MAX]
                yield Row(number, self._lines.count, {}, [raw.rstrip("\r\n")], f"CSV: {error}")
                continue
            if not cells:
                continue
            number += 1
            problem = None
            if len(cells) != width:
                problem = f"it has {len(cells)} cells, and the header has {width}"
            yield Row(
                number,
                self._lines.count,
                dict(zip(names, cells, strict=False)),
                cells,
                problem,
            )

    def close(self) -> None:
        self._lines.close()


class _Lines:
    """Lines of a text, none of them held when it is endless; remembers those of the current row."""

    def __init__(self, text: io.TextIOWrapper) -> None:
        self._text = text
        self.taken: list[str] = []
        self.count = 0

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = self._text.readline(LINE_CHARACTERS_MAX)
        if not line:
            raise StopIteration
        self.count += 1
        self.taken.append(line)
        if len(line) < LINE_CHARACTERS_MAX or line.endswith(("\n", "\r")):
            return line
        while (rest := self._text.readline(LINE_CHARACTERS_MAX)) and not rest.endswith("\n"):
            pass
        self.taken[:] = [line[:1000]]
        raise csv.Error(f"the line is longer than {LINE_CHARACTERS_MAX} characters")

    def close(self) -> None:
        self._text.close()


class JsonRows:
    """JSON Lines: an object on each line."""

    format = "jsonl"
    unit = "line"
    columns = None

    def __init__(self, file: InputFile, reader: BinaryIO) -> None:
        self.total = file.lines
        self._file = reader
        beginning = self._file.read(64).removeprefix(b"\xef\xbb\xbf").lstrip()
        self._file.seek(0)
        if beginning.startswith(b"["):
            raise click.UsageError(
                f"{file.name} is one JSON array: give an object a line, such as jq -c '.[]' prints"
            )

    def __iter__(self) -> Iterator[Row]:
        number = line_number = 0
        while line := self._file.readline(LINE_CHARACTERS_MAX):
            line_number += 1
            whole = self._is_whole(line)
            text = line.removeprefix(b"\xef\xbb\xbf") if line_number == 1 else line
            text = text.strip()
            if not text:
                continue
            number += 1
            yield _json_row(number, line_number, text if whole else None, text)

    def _is_whole(self, line: bytes) -> bool:
        whole = len(line) < LINE_CHARACTERS_MAX or line.endswith(b"\n")
        while not line.endswith(b"\n") and (line := self._file.readline(LINE_CHARACTERS_MAX)):
            pass
        return whole

    def close(self) -> None:
        self._file.close()


def _json_row(number: int, line: int, text: bytes | None, shown: bytes) -> Row:
    original = shown.decode("utf-8", "surrogateescape")
    if text is None:
        problem = f"the line is longer than {LINE_CHARACTERS_MAX} bytes"
        return Row(number, line, {}, original[:1000], problem)
    try:
        document = json.loads(text, parse_float=Decimal, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        return Row(number, line, {}, original, f"it is no JSON: {error}")
    if not isinstance(document, dict):
        return Row(number, line, {}, original, "it is no JSON object")
    return Row(number, line, flat(document), original)


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not JSON")


def flat(document: dict[str, Any]) -> dict[str, Any]:
    """Return *document* with the fields of its inner objects under paths such as `usage.tokens`."""
    if not any(isinstance(value, dict) for value in document.values()):
        return document
    cells: dict[str, Any] = {}
    waiting = [("", document)]
    while waiting:
        path, inner = waiting.pop()
        for name, value in inner.items():
            if isinstance(value, dict):
                waiting.append((f"{path}{name}.", value))
            else:
                cells[path + name] = value
    return cells


class ParquetRows:
    """Parquet, with the package pyarrow."""

    format = "parquet"
    unit = "row"

    def __init__(self, file: InputFile, reader: BinaryIO) -> None:
        from meter_agent.cli.extras import missing_extra

        complaint = missing_extra("parquet")
        if complaint is not None:
            raise click.UsageError(complaint)
        import pyarrow as pa
        from pyarrow.parquet import ParquetFile

        self._failures = (pa.ArrowException, OSError)
        self._name = file.name
        self._file = reader
        try:
            self._parquet = ParquetFile(self._file)
        except self._failures as error:
            raise click.UsageError(f"{file.name} is no Parquet file: {error}") from None
        self.columns: list[str] = [column.path for column in _leaves(self._parquet)]
        self.total: int = self._parquet.metadata.num_rows

    def __iter__(self) -> Iterator[Row]:
        number = 0
        batches = self._parquet.iter_batches(batch_size=_PARQUET_ROWS)
        while True:
            try:
                documents = next(batches).to_pylist()
            except StopIteration:
                return
            except self._failures as error:
                raise UnreadableError(f"{self._name}: behind row {number}: {error}") from None
            for document in documents:
                number += 1
                yield Row(number, number, flat(document), document)

    def close(self) -> None:
        self._parquet.close()
        self._file.close()


def _leaves(parquet: Any) -> list[Any]:
    schema = parquet.schema
    return [schema.column(index) for index in range(len(schema.names))]
