"""The trace: when requests came in, and how many tokens each took in and gave out.

The format is that of the Azure LLM inference trace 2023; `data/NOTICE.md` names its source.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from importlib.resources import as_file, files
from pathlib import Path
from typing import NamedTuple

__all__ = ["TraceError", "TraceRow", "read_trace", "shipped_trace"]

_COLUMNS = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")
_SHIPPED = "data/azure_llm_trace_2023.csv"
_SPAN_SECONDS_MAX = 34 * 86_400
_TOKEN_DIGITS_MAX = 15

_CELL_CHARACTERS_MAX = 131_072


class TraceError(Exception):
    """A trace that cannot be replayed; the message names file, line and what is wrong."""


class TraceRow(NamedTuple):
    """One request of the trace."""

    number: int
    """Its place in the file, from 0."""

    at: float
    """When it came in, unix seconds."""

    input_tokens: int
    output_tokens: int


def shipped_trace() -> list[TraceRow]:
    """Return the slice that comes with the package."""
    with as_file(files("meter_agent.cli") / _SHIPPED) as path:
        return read_trace(path)


def read_trace(path: Path) -> list[TraceRow]:
    """Return all rows of *path*, checked.

    Raises:
        TraceError: It cannot be read, or a column or a row is not as it should be.
    """
    try:
        # The signature that some editors put in front is no part of the first column's name.
        with path.open(newline="", encoding="utf-8-sig") as lines:
            csv.field_size_limit(_CELL_CHARACTERS_MAX)  # of the process, and others set it too
            rows = list(_rows(path, csv.DictReader(lines)))
    except OSError as error:
        raise TraceError(f"{path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise TraceError(f"{path}: this is not UTF-8 text") from None
    if not rows:
        raise TraceError(f"{path}: no rows")
    _check_span(path, rows)
    return rows


def _rows(path: Path, reader: csv.DictReader[str]) -> Iterator[TraceRow]:
    try:
        _check_header(reader.fieldnames or ())
        for number, cells in enumerate(reader):
            yield _row(number, cells)
    except (csv.Error, ValueError) as error:
        if isinstance(error, UnicodeDecodeError):
            raise
        # The inner reader's count: the outer one has not heard of a line that broke.
        raise TraceError(f"{path}, line {max(1, reader.reader.line_num)}: {error}") from None


def _check_header(names: Iterable[str]) -> None:
    missing = [name for name in _COLUMNS if name not in names]
    if missing:
        raise ValueError(f"no column {', '.join(missing)}; wanted: {','.join(_COLUMNS)}")


def _row(number: int, cells: dict[str, str | None]) -> TraceRow:
    stamp, context, generated = (_cell(cells, name) for name in _COLUMNS)
    return TraceRow(
        number,
        _seconds(stamp),
        _tokens("ContextTokens", context),
        _tokens("GeneratedTokens", generated),
    )


def _cell(cells: dict[str, str | None], name: str) -> str:
    text = cells[name]
    if text is None:
        raise ValueError(f"{name} is missing")
    return text.strip()


def _seconds(text: str) -> float:
    try:
        # The trace has seven decimals; those after the sixth are cut.
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise ValueError(f"TIMESTAMP {text[:40]!r} is no date and time") from None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def _tokens(name: str, text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= _TOKEN_DIGITS_MAX):
        raise ValueError(f"{name} {text[:40]!r} is no whole number of tokens")
    return int(text)


def _check_span(path: Path, rows: list[TraceRow]) -> None:
    moments = [row.at for row in rows]
    if max(moments) - min(moments) > _SPAN_SECONDS_MAX:
        raise TraceError(f"{path}: spans more than 34 days, and usage may be 35 days old at most")
