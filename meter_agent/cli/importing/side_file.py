"""Files that grow beside an import, and can be put back to where a note says they were."""

from __future__ import annotations

import csv
import errno
import io
import json
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from meter_agent._dead_letters import DeadLetter
from meter_agent.cli.importing.chunks import Rejected
from meter_agent.cli.importing.csv_dialect import CsvDialect
from meter_agent.cli.importing.options import ImportOptions
from meter_agent.cli.importing.row import REASON_COLUMN, Rows

__all__ = ["RejectsFile", "SideFile", "open_rejects"]

_APPENDING = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK
_REASON_BEFORE = re.compile(rf'\{{\s*"{REASON_COLUMN}"\s*:\s*"(?:[^"\\]|\\.)*"\s*,?\s*')


class SideFile:
    """A text file that is made with its first line, for its owner alone.

    Args:
        path: Where.
        length: How many bytes of it are noted; what is behind them was written by a run that was
            killed before it could note it, and is cut off. None: it must be a new file.

    Raises:
        OSError: It cannot be written, or is there already without being noted.
    """

    def __init__(self, path: Path, length: int | None) -> None:
        self.path = path
        self.length = length or 0
        if length is None and path.exists():
            raise FileExistsError(errno.EEXIST, "it exists; move it away", str(path))
        if path.exists() and not path.is_file():
            raise OSError(errno.EINVAL, "it is not a regular file", str(path))
        is_new = not path.exists()
        os.close(os.open(path, _APPENDING, mode=0o600))
        if is_new:
            path.unlink()
        elif path.stat().st_size > self.length:
            os.truncate(path, self.length)

    def append(self, text: str) -> None:
        """Write *text*, and see to it that it stays."""
        descriptor = os.open(self.path, _APPENDING, mode=0o600)
        try:
            data = memoryview(text.encode("utf-8", "surrogateescape"))
            while data:
                data = data[os.write(descriptor, data) :]
            os.fsync(descriptor)
            self.length = os.fstat(descriptor).st_size
        except OSError as error:
            error.filename = str(self.path)
            raise
        finally:
            os.close(descriptor)

    def append_letters(self, letters: Iterable[DeadLetter]) -> None:
        """Write *letters* as a file of dead letters has them."""
        text = "".join(letter.to_json() + "\n" for letter in letters)
        if text:
            self.append(text)


class RejectsFile(SideFile):
    """Rejected rows as they were, each with the reason: mended, they can be imported themselves.

    CSV stays CSV, with a first column more. Everything else becomes JSON Lines.

    Args:
        path: Where.
        length: See `SideFile`.
        columns: The header of CSV; None: JSON Lines.
        dialect: How to write CSV.
    """

    def __init__(
        self, path: Path, length: int | None, *, columns: Sequence[str] | None, dialect: CsvDialect
    ) -> None:
        super().__init__(path, length)
        # Rows that come from such a file have a reason of before.
        self._skipped = 1 if columns and columns[0] == REASON_COLUMN else 0
        self._columns = None if columns is None else columns[self._skipped :]
        self._dialect = dialect

    def append_rows(self, rejected: Sequence[Rejected]) -> None:
        """Write *rejected*."""
        if not rejected:
            return
        if self._columns is None:
            self.append("".join(_json_line(each) for each in rejected))
            return
        text = io.StringIO()
        writer = csv.writer(text, **self._dialect.writer_parameters())
        if not (self.path.exists() and self.path.stat().st_size):
            writer.writerow([REASON_COLUMN, *self._columns])
        for each in rejected:
            writer.writerow([self._dialect.plain(each.reason), *each.row.original[self._skipped :]])
        self.append(text.getvalue())


def _json_line(rejected: Rejected) -> str:
    original: str = _json_object(rejected.row.original)
    reason = json.dumps(rejected.reason)
    if not rejected.row.cells:
        return f'{{"{REASON_COLUMN}":{reason},"unreadable":{json.dumps(original)}}}\n'
    # The text itself, so that no number loses a digit.
    rest = _REASON_BEFORE.sub("{", original, count=1)[1:].lstrip()
    comma = "" if rest == "}" else ","
    return f'{{"{REASON_COLUMN}":{reason}{comma}{rest}\n'


def _json_object(original: str | dict[str, Any]) -> str:
    if isinstance(original, str):
        return original
    rest = {name: value for name, value in original.items() if name != REASON_COLUMN}
    return json.dumps(rest, default=_json_text)


def _json_text(value: Any) -> str:
    return value.isoformat() if hasattr(value, "isoformat") else str(value)


def open_rejects(path: Path, length: int | None, rows: Rows, options: ImportOptions) -> RejectsFile:
    """Return the file for rejected *rows*.

    Raises:
        OSError: It cannot be written, or is there already without being noted.
    """
    columns = rows.columns if rows.format == "csv" else None
    return RejectsFile(path, length, columns=columns, dialect=options.dialect)
