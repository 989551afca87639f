"""From a row to an event, or why a row cannot be billed."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping
from decimal import Decimal
from functools import lru_cache
from itertools import chain
from typing import Any, NamedTuple

import click

from meter_agent._event import (
    TIMESTAMP_FUTURE_SECONDS_MAX,
    TIMESTAMP_PAST_SECONDS_MAX,
    EventEncoder,
    MeterEvent,
    PayloadKeys,
    RecordedEvent,
    format_value,
    label_text,
)
from meter_agent.cli.importing.cell_text import CellError, check_name, plain_number
from meter_agent.cli.importing.csv_dialect import CsvDialect
from meter_agent.cli.importing.row import Row, Rows
from meter_agent.cli.importing.row_mapping import PAYLOAD, RowMapping
from meter_agent.cli.moments import MomentError, NoZoneError, parse_moment
from meter_agent.cli.printing import printable
from meter_agent.cli.shell_words import shell_words
from meter_agent.exceptions import InvalidEventError

__all__ = ["Mapped", "RowError", "RowMapper"]

_PREFIXES = ("payload.", "payload_")


class RowError(Exception):
    """A row that cannot be billed; the message says why."""


class Mapped(NamedTuple):
    """An event, ready to be recorded."""

    row: Row
    event: RecordedEvent
    wire: MeterEvent
    key: tuple[str, ...]
    """What the identifier was made of, if not of the place in the file."""
    content: bytes | None
    """Digest of what it says, where its identifier comes from the file; else None."""


class RowMapper:
    """Makes events of rows.

    Args:
        mapping: Which column is what.
        keys: The payload keys of every event, and those of single event names.
        mark: Names the file and the mapping; identifiers derive from it.
        dialect: How CSV is read.

    Raises:
        click.UsageError: What is the same in every row cannot be billed.
    """

    def __init__(
        self,
        mapping: RowMapping,
        keys: tuple[PayloadKeys, Mapping[str, PayloadKeys]],
        mark: str,
        dialect: CsvDialect,
    ) -> None:
        self._mapping = mapping
        self._delimiter = dialect.delimiter
        self._says_quotes = dialect.quotes is not None
        self._may_escape = False
        self._columns = mapping.columns
        self._constants = mapping.constants
        self._keys, self._keys_by_event = keys
        self._encoder = EventEncoder(*keys)
        self._zone = mapping.zone()
        self._mark = mark
        # In a file of Stripe's schema, further payload columns are payload. In any other file a
        # column that happens to be called so is not ours to send.
        given = mapping.columns.keys() | mapping.constants.keys()
        self._stripe_schema = not given & {"customer", "value"}
        self.implies_identifiers = not (
            self._stripe_schema or mapping.key or "identifier" in mapping.columns
        )
        """Whether a column is taken for identifiers because it happens to be called so."""
        self._taken = frozenset(mapping.mapped_columns())
        self._usual: dict[str, tuple[str, ...]] = {
            name: mapping.expected_columns(name, (column,))
            for name, column in (
                ("event", "event_name"),
                ("timestamp", "timestamp"),
                ("identifier", "identifier"),
            )
        }
        self._usual_column = lru_cache(maxsize=256)(self._find_usual_column)
        self._check_constants()

    def _check_constants(self) -> None:
        constants, payload = self._constants, self._mapping.payload_constants
        event = RecordedEvent(
            time.time(),
            constants.get("event", "event"),
            constants.get("customer", "customer"),
            constants.get("value", 1),
            payload=payload or None,
        )
        try:
            self._encoder.check(event)
        except InvalidEventError as error:
            raise click.UsageError(f"no row can be billed: {shell_words(str(error))}") from None

    def check_columns(self, rows: Rows) -> None:
        """Look whether *rows* have the columns that are needed, each of them once.

        Raises:
            click.UsageError: One is missing, or stands twice; the message has the way out.
        """
        needed = {
            "event": self._usual["event"],
            "customer": self._usual_column("customer", self._keys.customer_key),
            "value": self._usual_column("value", self._keys.value_key),
        }
        named = self._mapping.used_columns()
        wanted = {*named, *chain.from_iterable(needed.values())}
        complaint = self._complaint(rows.columns, named, needed)
        if complaint is not None or rows.columns is None:
            advice = rows.advice(wanted) or complaint
            if advice is not None:
                raise click.UsageError(advice)
        self._may_escape = rows.format == "csv" and not self._says_quotes
        if rows.columns is not None:
            self._check_once(rows.columns, wanted)
            self._check_header(rows.columns, wanted)

    def _complaint(
        self, columns: list[str] | None, named: list[str], needed: Mapping[str, tuple[str, ...]]
    ) -> str | None:
        if columns is None:
            return None
        shown = printable(", ".join(columns[:20]))
        for column in named:
            if column not in columns:
                return f"there is no column {column!r}; there are: {shown}"
        for name, usual in needed.items():
            given = name in self._columns or name in self._constants
            # Event names may have payload keys of their own, which only the rows tell.
            if not given and not self._keys_by_event and not set(usual) & set(columns):
                return (
                    f"where is the {name}? Give --{name} or --map {name}=COLUMN; there are: {shown}"
                )
        return None

    def _check_header(self, columns: list[str], wanted: set[str]) -> None:
        # Where no column is used, nothing else tells a header from a row.
        if not wanted & set(columns) and any(map(_looks_like_data, columns)):
            raise click.UsageError(
                f"its first line, {printable(', '.join(columns[:5]))}, looks like a row, and a "
                "header is not billed: put a line with names of columns on top"
            )

    def _check_once(self, columns: list[str], wanted: set[str]) -> None:
        read = {*wanted, *self._usual["timestamp"]}
        if not self._mapping.key:
            read.update(self._usual["identifier"])
        for column in sorted({each for each in columns if columns.count(each) > 1}):
            if column in read or (self._stripe_schema and column.startswith(_PREFIXES)):
                raise click.UsageError(f"two columns are called {column!r}; which one is meant?")

    def _find_usual_column(self, name: str, key: str) -> tuple[str, ...]:
        return self._mapping.expected_columns(name, _usual(key))

    def map(self, row: Row, now: float) -> Mapped:
        """Return the event of *row*, as it is valid at *now*.

        Raises:
            RowError: It cannot be billed.
        """
        if row.problem is not None:
            raise RowError(row.problem)
        name = self._name(row, "event", self._usual["event"])
        keys = self._keys_by_event.get(name, self._keys) if isinstance(name, str) else self._keys
        customer = self._name(row, "customer", self._usual_column("customer", keys.customer_key))
        value = self._value(row, self._usual_column("value", keys.value_key))
        moment = self._moment(row, now)
        payload = self._payload(row, keys)
        key = self._key(row)
        identifier = f"{self._mark}-{row.number}"
        if key:
            # The event name is part of it: one row may bill two meters.
            digest = "import-" + _digest([name, *key]).hex()
            identifier = digest if self._mapping.key else key[0]
        event = RecordedEvent(
            now, name, customer, value, now if moment is None else moment, identifier, payload
        )
        try:
            wire = self._encoder.encode(event, "")
            content = None
            if key:
                said = [
                    name,
                    customer,
                    format_value(value),
                    moment,
                    sorted((payload or {}).items()),
                ]
                content = _digest(said)
        except InvalidEventError as error:
            raise RowError(shell_words(str(error))) from None
        return Mapped(row, event, wire, key, content)

    def _field(self, row: Row, name: str, usual: tuple[str, ...]) -> Any:
        constant = self._constants.get(name)
        if constant is not None:
            return constant
        found = self._cell(row, name, usual)
        if found is None:
            raise RowError(f"it has no {name}")
        return found

    def _name(self, row: Row, name: str, usual: tuple[str, ...]) -> Any:
        found = self._field(row, name, usual)
        return self._checked(name, found) if name not in self._constants else found

    def _checked(self, name: str, cell: Any) -> Any:
        if not isinstance(cell, str):
            return cell
        if self._may_escape and "\\" in cell:
            raise RowError(
                f"{name} {cell[:100]!r} has a backslash, which may escape what follows it: "
                "--quotes doubled or --quotes backslash says whether"
            )
        try:
            return check_name(cell)
        except CellError as error:
            raise RowError(f"{name} {error}") from None

    def _value(self, row: Row, usual: tuple[str, ...]) -> Any:
        found = self._field(row, "value", usual)
        if not isinstance(found, str) or "value" in self._constants:
            return found
        try:
            return plain_number(found, self._mapping.decimal, self._delimiter)
        except CellError as error:
            raise RowError(f"value {error}") from None

    def _cell(self, row: Row, name: str, usual: tuple[str, ...]) -> Any:
        # What is mapped must be there; what is only expected under its usual name may be missing.
        column = self._columns.get(name)
        if column is not None:
            found = _clean(row.cells.get(column))
            if found is None:
                raise RowError(f"its {column!r} is empty, which is the {name}")
            return found
        found = None
        for column in usual:
            cell = _clean(row.cells.get(column))
            if cell is not None and found is not None:
                raise _both(usual[0], column)
            found = cell if found is None else found
        return found

    def _moment(self, row: Row, now: float) -> float | None:
        given = self._cell(row, "timestamp", self._usual["timestamp"])
        if given is None:
            return None
        try:
            moment = parse_moment(given, self._zone)
        except MomentError as error:
            hint = ", or give --timezone" if isinstance(error, NoZoneError) else ""
            raise RowError(f"timestamp {error}{hint}") from None
        if moment < now - TIMESTAMP_PAST_SECONDS_MAX:
            raise RowError(f"timestamp {given} is more than 35 days old: Stripe bills it no more")
        if moment > now + TIMESTAMP_FUTURE_SECONDS_MAX:
            raise RowError(f"timestamp {given} is more than 5 minutes ahead: is it in seconds?")
        return moment

    def _payload(self, row: Row, keys: PayloadKeys) -> dict[str, str] | None:
        payload = self._usual_payload(row, keys) if self._stripe_schema else {}
        payload.update(self._mapping.payload_constants)
        for key, column in self._mapping.payload_columns.items():
            found = _clean(row.cells.get(column))
            if found is None:
                raise RowError(f"its {column!r} is empty, which is payload {key!r}")
            payload[key] = _label(column, found)
        return payload or None

    def _usual_payload(self, row: Row, keys: PayloadKeys) -> dict[str, str]:
        payload: dict[str, str] = {}
        for column, cell in row.cells.items():
            key = column[len(PAYLOAD) :]
            if column in self._taken or not column.startswith(_PREFIXES):
                continue
            if not key or key in keys:
                continue
            found = _clean(cell)
            if found is None:
                continue
            if key in payload:
                raise _both(*(prefix + key for prefix in _PREFIXES))
            payload[key] = _label(column, found)
        return payload

    def _key(self, row: Row) -> tuple[str, ...]:
        if not self._mapping.key:
            found = self._cell(row, "identifier", self._usual["identifier"])
            return (
                () if found is None else (self._checked("identifier", _text("identifier", found)),)
            )
        return tuple(self._key_cell(row, column) for column in self._mapping.key)

    def _key_cell(self, row: Row, column: str) -> str:
        cell = _clean(row.cells.get(column))
        if cell is None:
            raise RowError(f"its {column!r} is empty, which is its key")
        # A float does not keep the digits of a long number. JSON has floats as `Decimal`; integers
        # of Parquet may be a `Decimal` without decimals.
        if isinstance(cell, float) or (isinstance(cell, Decimal) and cell.as_tuple().exponent):
            raise RowError(f"its {column!r} is a floating-point number, which names no row")
        return str(self._checked("key", cell))


def _both(first: str, second: str) -> RowError:
    return RowError(f"it has both {first!r} and {second!r}; which one is meant?")


def _looks_like_data(name: str) -> bool:
    return name[:1].isdigit() or name.startswith("cus_")


@lru_cache(maxsize=64)
def _usual(key: str) -> tuple[str, ...]:
    return tuple(prefix + key for prefix in _PREFIXES)


def _clean(cell: Any) -> Any:
    if isinstance(cell, str):
        cell = cell.strip(" \t\r\n")
    return None if cell is None or cell == "" else cell


def _text(column: str, cell: Any) -> str:
    if isinstance(cell, str):
        return cell
    if isinstance(cell, bool):
        return "true" if cell else "false"
    if isinstance(cell, int | Decimal):
        return str(cell)
    raise RowError(f"its {column!r} is no text")


def _label(column: str, cell: Any) -> str:
    try:
        return label_text(cell, column)
    except InvalidEventError as error:
        raise RowError(shell_words(str(error))) from None


def _digest(parts: list[Any]) -> bytes:
    text = json.dumps([str(part) for part in parts])
    return hashlib.blake2b(text.encode(), digest_size=16).digest()
