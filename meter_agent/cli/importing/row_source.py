"""Rows of a file, one at a time: CSV, JSON Lines, Parquet.

A row that cannot be read is a row as well, with the reason in place of its cells. So each row has
the same number whenever the same content is read, and nothing is passed over without a word.
"""

from __future__ import annotations

from pathlib import PurePath

import click

from meter_agent.cli.importing.csv_dialect import CsvDialect
from meter_agent.cli.importing.csv_rows import CsvRows
from meter_agent.cli.importing.input_file import InputFile
from meter_agent.cli.importing.json_rows import JsonRows
from meter_agent.cli.importing.parquet_rows import ParquetRows
from meter_agent.cli.importing.row import Rows
from meter_agent.cli.importing.signatures import BEGINNING_BYTES, check_text, is_parquet

__all__ = ["FORMATS", "open_rows"]

FORMATS = ("csv", "jsonl", "parquet")

_SUFFIXES = {
    ".csv": "csv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".jsonlines": "jsonl",
    ".parquet": "parquet",
}


def open_rows(file: InputFile, file_format: str | None, dialect: CsvDialect) -> Rows:
    """Return the rows of *file*.

    Args:
        file: The file.
        file_format: One of `FORMATS`; None: by its name or, without one that tells, its beginning.
        dialect: How to read CSV.

    Raises:
        click.UsageError: It is no such file; the message has the command that helps.
    """
    with file.reopen() as reader:
        beginning = reader.read(BEGINNING_BYTES)
    file_format = file_format or _format_of(file, beginning)
    if file_format != "parquet":
        check_text(file.name, beginning)
    if file_format == "csv" and _text(beginning).startswith((b'{"', b'[{"')):
        raise click.UsageError(f"{file.name} is JSON, not CSV: --format jsonl")
    reader = file.reopen()
    try:
        if file_format == "csv":
            return CsvRows(file, reader, dialect)
        return JsonRows(file, reader) if file_format == "jsonl" else ParquetRows(file, reader)
    except BaseException:
        reader.close()
        raise


def _format_of(file: InputFile, beginning: bytes) -> str:
    known = _SUFFIXES.get(PurePath(file.name).suffix.lower())
    if known is not None:
        return known
    if is_parquet(beginning):
        return "parquet"
    return "jsonl" if _text(beginning).startswith((b"{", b"[")) else "csv"


def _text(beginning: bytes) -> bytes:
    return beginning.removeprefix(b"\xef\xbb\xbf").lstrip()
