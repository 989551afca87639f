"""Rows in chunks: what is noted, sent and waited for together."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from meter_agent.cli.importing.cell_text import may_be_rounded
from meter_agent.cli.importing.repetitions import Repetitions
from meter_agent.cli.importing.row import Row, UnreadableError
from meter_agent.cli.importing.row_mapper import Mapped, RowError, RowMapper

__all__ = ["Chunk", "Chunks", "Rejected"]

_CHARACTERS_MAX = 32 * 1024 * 1024
"""Long rows make shorter chunks, so that memory stays bounded."""


@dataclass(frozen=True)
class Rejected:
    """A row that is not billed."""

    row: Row
    reason: str


@dataclass
class Chunk:
    """Consecutive rows of a file."""

    at: float
    """Unix seconds: the time of events without one, and of the first attempt."""
    first_row: int = 0
    last_row: int = 0
    rows: int = 0
    events: list[Mapped] = field(default_factory=list)
    rejected: list[Rejected] = field(default_factory=list)
    size: int = 0
    """About how many characters its rows have."""
    repeated: int = 0
    """Rows that say once more what an earlier one said under the same identifier."""


class Chunks:
    """Cuts rows into chunks; a context manager.

    Args:
        rows: The rows of the file from its beginning.
        mapper: Makes events of them.
    """

    def __init__(self, rows: Iterable[Row], mapper: RowMapper) -> None:
        self._rows: Iterator[Row] = iter(rows)
        self._mapper = mapper
        self._repetitions: Repetitions | None = None
        self._failure: UnreadableError | None = None

    def skip_through(self, last_row: int, now: float) -> None:
        """Pass over the rows that an earlier run ended with *last_row*."""
        if last_row:
            self._take(Chunk(now), None, last_row, keep=False)

    def take(self, at: float, rows_max: int | None, last_row: int | None = None) -> Chunk | None:
        """Return the next chunk, of *rows_max* rows or through *last_row*; None at the end."""
        chunk = Chunk(at)
        self._take(chunk, rows_max, last_row, keep=True)
        return chunk if chunk.rows else None

    def close(self) -> None:
        """Forget the identifiers."""
        if self._repetitions is not None:
            self._repetitions.close()

    def _take(
        self, chunk: Chunk, rows_max: int | None, last_row: int | None, *, keep: bool
    ) -> None:
        if self._failure is not None:
            raise self._failure
        try:
            for row in self._rows:
                chunk.first_row = chunk.first_row or row.number
                chunk.last_row = row.number
                chunk.rows += 1
                chunk.size += row.size
                self._sort_in(chunk, row, keep=keep)
                full = rows_max is not None and chunk.size > _CHARACTERS_MAX
                if chunk.rows == rows_max or full or row.number == last_row:
                    return
        except UnreadableError as error:
            # The rows before it are as good as ever.
            if not chunk.rows:
                raise
            self._failure = error

    def _sort_in(self, chunk: Chunk, row: Row, *, keep: bool) -> None:
        try:
            mapped = self._mapper.map(row, chunk.at)
            if mapped.content is not None and self._is_repetition(mapped, mapped.content):
                chunk.repeated += 1
            elif keep:
                chunk.events.append(mapped)
        except RowError as error:
            if keep:
                chunk.rejected.append(Rejected(row, str(error)))

    def _is_repetition(self, mapped: Mapped, content: bytes) -> bool:
        if self._repetitions is None:
            self._repetitions = Repetitions()
        identifier = str(mapped.event.identifier)
        earlier = self._repetitions.add(identifier, content, mapped.row.number)
        if earlier is not None and not earlier.same:
            raise RowError(
                f"row {earlier.row} has the same identifier {identifier!r} and says something "
                f"else: Stripe would count that one alone{_advice(mapped)}"
            )
        rounded = next(filter(may_be_rounded, mapped.key), None)
        if earlier is not None and rounded is not None:
            raise RowError(
                f"row {earlier.row} has the same {rounded!r}, which a spreadsheet or JavaScript "
                "may have rounded, so that different ones are the same: export that column as text"
            )
        if earlier is not None and self._mapper.implies_identifiers:
            raise RowError(
                f"row {earlier.row} has the same identifier {identifier!r} and says the same: "
                "--map identifier=identifier says that it names a row, which is billed once"
            )
        return earlier is not None


def _advice(mapped: Mapped) -> str:
    # A key makes identifiers of itself and the event name.
    is_column = mapped.key == (mapped.wire.identifier,)
    return ". With --key in place of a column of identifiers each meter has its own" * is_column
