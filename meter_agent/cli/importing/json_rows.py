"""Rows of JSON Lines.

A row is a line, so a bad one leaves the next one whole. But a line that breaks off where JSON goes
on, behind a comma or an opening bracket, is the beginning of an object over several lines, and the
next lines may be objects inside of it: reading stops there.
"""

from __future__ import annotations

import contextlib
import json
import re
import shlex
from collections.abc import Iterator
from decimal import Decimal
from typing import Any, BinaryIO

import click

from meter_agent.cli.importing.input_file import InputFile
from meter_agent.cli.importing.row import REASON_COLUMN, ROW_CHARACTERS_MAX, Row, UnreadableError
from meter_agent.cli.importing.signatures import piped

__all__ = ["JsonRows", "flat"]

_BOM = b"\xef\xbb\xbf"
_LISTS = frozenset(
    [
        "data",
        "items",
        "records",
        "results",
        "rows",
        "events",
        "usage",
        "values",
        "entries",
        "hits",
        "list",
    ]
)
"""Usual names of the list in an object around all rows."""


class JsonRows:
    """JSON Lines: an object on each line."""

    format = "jsonl"
    unit = "line"
    columns = None

    def __init__(self, file: InputFile, reader: BinaryIO) -> None:
        self.total = file.lines
        self._name = file.name
        self._file = reader
        self._first: dict[str, Any] = {}
        first = reader.readline(ROW_CHARACTERS_MAX).removeprefix(_BOM).strip()
        while not first and (line := reader.readline(ROW_CHARACTERS_MAX)):
            first = line.strip()
        if first.startswith(b"["):
            raise self._refused("is one JSON array", ".[]")
        try:
            document = _parsed(first)
            self._first = document if isinstance(document, dict) else {}
        except (ValueError, RecursionError):
            if _ends_in_comma(first):
                command = piped("sed 's/,[[:space:]]*$//' {}", self._name)
                raise click.UsageError(
                    f"{self._name} has a comma behind its objects: {command}"
                ) from None
            if _goes_on(first):
                raise self._refused(
                    "has an object over several lines", self._whole_path()
                ) from None
        reader.seek(0)

    def _whole_path(self) -> str:
        self._file.seek(0)
        with contextlib.suppress(ValueError, RecursionError):
            document = _parsed(self._file.read(ROW_CHARACTERS_MAX).removeprefix(_BOM))
            if isinstance(document, dict):
                return _path_of_rows(document) or "."
        return "."

    def _refused(self, why: str, path: str) -> click.UsageError:
        command = piped(f"jq -c {shlex.quote(path)} {{}}", self._name)
        return click.UsageError(f"{self._name} {why}; an object must be one line: {command}")

    def advice(self, wanted: set[str]) -> str | None:
        """Return why none of *wanted* is in its first row, and the command that helps."""
        # A row that is too deep, or has two fields of one path, is rejected as a row.
        with contextlib.suppress(ValueError, RecursionError):
            path = _path_of_rows(self._first)
            if path is not None and not wanted & flat(self._first).keys():
                return str(self._refused("has its rows in a list", path).message)
        return None

    def __iter__(self) -> Iterator[Row]:
        number = line_number = 0
        while line := self._file.readline(ROW_CHARACTERS_MAX):
            line_number += 1
            whole = self._is_whole(line)
            text = line.removeprefix(_BOM) if line_number == 1 else line
            text = text.strip()
            if not text:
                continue
            number += 1
            row = _json_row(number, line_number, text if whole else None, text)
            if row.problem is not None and whole and _goes_on(text):
                raise UnreadableError(
                    f"{self._name}: line {line_number}: its object goes on in the next line, so "
                    "nothing from this line on was read. The rows before it are done; put the rest "
                    "into a file of its own, an object a line, and import that: "
                    f"tail -n +{line_number} {shlex.quote(self._name)} | jq -c . > rest.jsonl"
                )
            yield row

    def _is_whole(self, line: bytes) -> bool:
        whole = len(line) < ROW_CHARACTERS_MAX or line.endswith(b"\n")
        while not line.endswith(b"\n") and (line := self._file.readline(ROW_CHARACTERS_MAX)):
            pass
        return whole

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _json_row(number: int, line: int, text: bytes | None, shown: bytes) -> Row:
    original = shown.decode("utf-8", "surrogateescape")
    if text is None:
        problem = f"the line is longer than {ROW_CHARACTERS_MAX} bytes"
        return Row(number, line, {}, original[:1000], problem)
    try:
        document = _parsed(text)
        if not isinstance(document, dict):
            return Row(number, line, {}, original, "it is no JSON object")
        if document.keys() == {REASON_COLUMN, "unreadable"}:
            return Row(number, line, document, original, "it is as unreadable as before: mend it")
        return Row(number, line, flat(document), original, None, len(original))
    except (_TwiceError, UnicodeDecodeError) as error:
        return Row(number, line, {}, original, str(error))
    except (ValueError, RecursionError) as error:
        return Row(number, line, {}, original, f"it is no JSON: {error}")


class _TwiceError(ValueError):
    """A name stands twice in one object; which of the two is meant, nobody knows (RFC 8259)."""

    def __init__(self, name: str) -> None:
        super().__init__(f"two fields are called {name[:100]!r}")


def _parsed(text: bytes) -> Any:
    # `json.loads` would guess UTF-16 from zero bytes.
    return json.loads(
        text.decode("utf-8"),
        parse_float=Decimal,
        parse_constant=_refuse_constant,
        object_pairs_hook=_without_doubles,
    )


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    document = dict(pairs)
    if len(document) < len(pairs):
        names = [name for name, _ in pairs]
        raise _TwiceError(next(name for name in names if names.count(name) > 1))
    return document


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not JSON")


def _goes_on(text: bytes) -> bool:
    opened = text.startswith(b"{") and text.endswith((b"{", b"[", b",", b":"))
    return opened and not _ends_in_comma(text)


def _ends_in_comma(text: bytes) -> bool:
    if not text.endswith(b"},"):
        return False
    try:
        return isinstance(_parsed(text[:-1]), dict)
    except (ValueError, RecursionError):
        return False


def flat(document: dict[str, Any]) -> dict[str, Any]:
    """Return *document* with the fields of its inner objects under paths such as `usage.tokens`.

    Raises:
        ValueError: Two fields have the same path.
    """
    if not any(isinstance(value, dict) for value in document.values()):
        return document
    cells: dict[str, Any] = {}
    waiting = [("", document)]
    while waiting:
        path, inner = waiting.pop()
        for name, value in inner.items():
            if isinstance(value, dict):
                waiting.append((f"{path}{name}.", value))
            elif path + name in cells:
                raise _TwiceError(path + name)
            else:
                cells[path + name] = value
    return cells


def _path_of_rows(document: dict[str, Any]) -> str | None:
    """Return the path, for jq, of the list that holds the rows, if *document* is around such."""
    for name, value in document.items():
        shown = f".{name}" if re.fullmatch(r"[A-Za-z_]\w*", name, re.ASCII) else f".{_quoted(name)}"
        if isinstance(value, dict) and (len(document) == 1 or name in _LISTS):
            inner = _path_of_rows(value)
            if inner is not None:
                return shown + inner
        is_list = isinstance(value, list) and any(isinstance(each, dict) for each in value)
        if is_list and (name in _LISTS or len(document) == 1):
            return f"{shown}[]"
    return None


def _quoted(name: str) -> str:
    return json.dumps(name)
