"""Rows of CSV.

Where a row ends depends on its quotes. So after an error nobody knows where the next row begins:
inside a quoted cell may stand lines that look like rows. Reading stops there. The one exception is
a line without any quote that is too long.
"""

from __future__ import annotations

import csv
import io
import re
import shlex
from collections.abc import Iterator
from typing import BinaryIO, NoReturn

import click

from meter_agent.cli.importing.csv_dialect import CsvDialect
from meter_agent.cli.importing.input_file import InputFile
from meter_agent.cli.importing.row import ROW_CHARACTERS_MAX, Row, UnreadableError
from meter_agent.cli.importing.signatures import piped
from meter_agent.cli.printing import printable

__all__ = ["CsvRows"]

_BEGINNING_BYTES = 64 * 1024
_OTHER_DELIMITERS = {";": "';'", "\t": r"'\t'", "|": "'|'", ",": ","}


class CsvRows:
    """Comma-separated values with a header, in UTF-8."""

    format = "csv"
    unit = "line"

    def __init__(self, file: InputFile, reader: BinaryIO, dialect: CsvDialect) -> None:
        self._name = file.name
        self._dialect = dialect
        # Bytes that are no UTF-8 are kept as they are: only the cells that are billed have to be.
        text = io.TextIOWrapper(
            reader, encoding="utf-8-sig", errors="surrogateescape", newline=_line_end(reader)
        )
        self.total = max(0, file.lines - 1)
        self._lines = _Lines(text)
        csv.field_size_limit(ROW_CHARACTERS_MAX)
        self._reader = csv.reader(self._lines, **dialect.reader_parameters())
        try:
            header = next(cells for cells in self._reader if any(map(str.strip, cells)))
        except StopIteration:
            raise click.UsageError(f"{file.name} is empty: it has no header") from None
        except csv.Error as error:
            line = (self._lines.taken or [""])[0].strip()
            advice = self._other_delimiter(line) or f"its header cannot be read: {error}"
            raise click.UsageError(f"{file.name}: {advice}") from None
        self._header = header
        self.columns: list[str] = [name.strip().strip("\ufeff") for name in header]
        self._header_lines = self._lines.count
        self._width = len(self.columns)
        while self._width and not self.columns[self._width - 1]:
            self._width -= 1

    def advice(self, _wanted: set[str]) -> str | None:
        """Return why a column may not be there, and the command that helps; None: unknown."""
        first = self.columns[0]
        if first.lower().startswith("sep="):
            command = piped("tail -n +2 {}", self._name)
            return f"{self._name} begins with {first!r}, which is for a spreadsheet: {command}"
        if self._width == 1:
            advice = self._other_delimiter(first)
            if advice is not None:
                return f"{self._name}: {advice}"
        if not all(map(_is_text, self.columns)):
            command = piped("iconv -f WINDOWS-1252 -t UTF-8 {}", self._name)
            return f"the header of {self._name} is not UTF-8; if it is Windows-1252: {command}"
        return None

    def _other_delimiter(self, header: str) -> str | None:
        for delimiter, shown in _OTHER_DELIMITERS.items():
            if delimiter in header and delimiter != self._dialect.delimiter:
                return (
                    f"its header is one cell, {printable(header[:80])!r}: is there another "
                    f"character between its cells? --delimiter {shown}"
                )
        return None

    def __iter__(self) -> Iterator[Row]:
        names, reader, lines = self.columns, self._reader, self._lines
        number = 0
        while True:
            lines.begin_row()
            try:
                cells = next(reader)
            except StopIteration:
                return
            except _LongLineError as error:
                number += 1
                yield Row(number, lines.count, {}, [error.beginning], str(error))
                continue
            except csv.Error as error:
                raise self._stopped(self._dialect.doubt(lines.taken) or _told(error)) from None
            if not any(map(str.strip, cells)):
                continue
            doubt = self._dialect.doubt(lines.taken)
            if doubt is not None:
                raise self._stopped(doubt)
            number += 1
            yield Row(
                number,
                lines.count,
                dict(zip(names, cells, strict=False)),
                cells,
                self._problem(cells),
                lines.characters,
            )

    def _problem(self, cells: list[str]) -> str | None:
        if cells == self._header:
            return "it is the header once more"
        if len(cells) == len(self.columns) == self._width:
            return None
        # An unquoted 1,234 is two cells, so one cell too many counts even if it is empty.
        if not self._width <= len(cells) <= len(self.columns):
            return f"it has {len(cells)} cells, and the header has {len(self.columns)}"
        for cell in cells[self._width :]:
            if cell.strip():
                return f"its cell {cell[:40]!r} stands in a column without a name"
        return None

    def _stopped(self, why: str) -> UnreadableError:
        line = self._lines.row_begin
        source = "FILE" if self._name == "-" else shlex.quote(self._name)
        return UnreadableError(
            f"{self._name}: line {line}: {why}. Where this row ends is unknown, so nothing from "
            "this line on was read. The rows before it are done; mend the rest in a file of its "
            f"own and import that: (head -n {self._header_lines} {source}; tail -n +{line} "
            f"{source}) > rest.csv"
        )

    def close(self) -> None:
        """Close the file."""
        self._lines.close()


def _line_end(reader: BinaryIO) -> str:
    # What ends the header ends every line. Where that is \n, a lone \r outside of quotes is an
    # error of `csv`, for it may be text as well as an end.
    beginning = reader.read(_BEGINNING_BYTES)
    reader.seek(0)
    return "\r" if re.match(rb"[^\r\n]*\r+[^\r\n]", beginning) else "\n"


def _told(error: csv.Error) -> str:
    # `csv` says "new-line" for a carriage return, which is no line end in this file.
    if "new-line" in str(error):
        return "a carriage return outside of quotes"
    return f"CSV: {error} (where quotes are text: --quotes none)"


def _is_text(name: str) -> bool:
    return not any("\ud800" <= letter <= "\udfff" for letter in name)


class _LongLineError(Exception):
    """A line that is a row of its own, and too long."""

    def __init__(self, beginning: str) -> None:
        super().__init__(f"the line is longer than {ROW_CHARACTERS_MAX} characters")
        self.beginning = beginning[:1000]


class _Lines:
    """Lines of a text, none of them held when it is endless; remembers those of the current row."""

    def __init__(self, text: io.TextIOWrapper) -> None:
        self._text = text
        self.taken: list[str] = []
        self.count = 0
        self.characters = 0
        self.row_begin = 1
        """The line in which the current row begins."""

    def begin_row(self) -> None:
        self.taken.clear()
        self.characters = 0
        self.row_begin = self.count + 1

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = self._text.readline(ROW_CHARACTERS_MAX)
        if not line:
            raise StopIteration
        self.count += 1
        self.characters += len(line)
        if len(line) == ROW_CHARACTERS_MAX and not line.endswith(("\n", "\r")):
            self._refuse_line(line)
        if self.characters > ROW_CHARACTERS_MAX:
            raise csv.Error(f"the row is longer than {ROW_CHARACTERS_MAX} characters")
        self.taken.append(line)
        return line

    def _refuse_line(self, line: str) -> NoReturn:
        quoted, rest = bool(self.taken) or '"' in line, line
        while rest and not rest.endswith(("\n", "\r")):
            rest = self._text.readline(ROW_CHARACTERS_MAX)
            quoted = quoted or '"' in rest
        if quoted:
            raise csv.Error(f"the row is longer than {ROW_CHARACTERS_MAX} characters")
        raise _LongLineError(line)

    def close(self) -> None:
        self._text.close()
