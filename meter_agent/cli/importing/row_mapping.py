"""From a row to an event: which column is what, and why a row cannot be billed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, tzinfo
from decimal import Decimal
from functools import lru_cache
from typing import Any, NamedTuple
from zoneinfo import ZoneInfo

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
from meter_agent.cli.importing.row_source import Row
from meter_agent.cli.moments import MomentError, parse_moment
from meter_agent.exceptions import InvalidEventError

__all__ = ["Mapped", "RowError", "RowMapper", "RowMapping"]

_FIELDS = ("event", "customer", "value", "timestamp", "identifier")
_PAYLOAD = "payload."
_PREFIXES = ("payload.", "payload_")


class RowError(Exception):
    """A row that cannot be billed; the message says why."""


class Mapped(NamedTuple):
    """An event, ready to be recorded."""

    row: Row
    event: RecordedEvent
    wire: MeterEvent
    content: bytes | None
    """Digest of what it says, where its identifier comes from the file; else None."""


@dataclass(frozen=True)
class RowMapping:
    """What was said about the columns; together with the content it says what is billed."""

    columns: Mapping[str, str] = field(default_factory=dict)
    """Column of each field that was mapped."""
    constants: Mapping[str, str] = field(default_factory=dict)
    """Text of each field that is the same in every row."""
    payload_columns: Mapping[str, str] = field(default_factory=dict)
    payload_constants: Mapping[str, str] = field(default_factory=dict)
    key: tuple[str, ...] = ()
    """Columns that name a row wherever it stands."""
    timezone: str | None = None

    @classmethod
    def parse(
        cls,
        pairs: Mapping[str, str],
        constants: Mapping[str, str | None],
        payload: Mapping[str, str],
        key: tuple[str, ...],
        timezone: str | None,
    ) -> RowMapping:
        """Return the mapping that the options say.

        Raises:
            click.UsageError: They contradict each other, or a name is unknown.
        """
        given = {name: text for name, text in constants.items() if text is not None}
        for name in pairs:
            if name not in _FIELDS and not (name.startswith(_PAYLOAD) and name != _PAYLOAD):
                known = ", ".join((*_FIELDS, "payload.KEY"))
                raise click.UsageError(f"--map {name}: there is no such field, only {known}")
            if name in given:
                raise click.UsageError(f"--map {name} and --{name}: only one of the two may be")
        if key and "identifier" in pairs:
            raise click.UsageError("--map identifier and --key: only one of the two may be")
        mapping = cls(
            columns={name: column for name, column in pairs.items() if name in _FIELDS},
            constants=given,
            payload_columns={
                name.removeprefix(_PAYLOAD): column
                for name, column in pairs.items()
                if name not in _FIELDS
            },
            payload_constants=payload,
            key=key,
            timezone=timezone,
        )
        doubled = mapping.payload_columns.keys() & payload.keys()
        if doubled:
            raise click.UsageError(f"payload key {min(doubled)!r} is given twice")
        mapping.zone()
        return mapping

    def zone(self) -> tzinfo | None:
        """Return the time zone of moments that name none.

        Raises:
            click.UsageError: There is no such zone.
        """
        if self.timezone is None or self.timezone.upper() == "UTC":
            return None if self.timezone is None else UTC
        try:
            return ZoneInfo(self.timezone)
        except (KeyError, ValueError, OSError):
            raise click.UsageError(f"--timezone {self.timezone}: there is no such zone") from None

    def to_document(self) -> dict[str, Any]:
        """Return it ready for JSON, in one form."""
        return {**asdict(self), "key": list(self.key)}

    @property
    def event_source(self) -> str:
        """Where event names come from: two imports of one file with the same may bill the same."""
        constant = self.constants.get("event")
        column = self.columns.get("event", "event_name")
        return f"event={constant}" if constant is not None else f"column={column}"

    def used_columns(self) -> list[str]:
        """Return the columns that were named."""
        return [*self.columns.values(), *self.payload_columns.values(), *self.key]


class RowMapper:
    """Makes events of rows.

    Args:
        mapping: Which column is what.
        keys: The payload keys of every event, and those of single event names.
        mark: Names the file and the mapping; identifiers derive from it.
    """

    def __init__(
        self,
        mapping: RowMapping,
        keys: tuple[PayloadKeys, Mapping[str, PayloadKeys]],
        mark: str,
    ) -> None:
        self._mapping = mapping
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

    def check_columns(self, columns: list[str]) -> None:
        """Look whether *columns* have what is needed.

        Raises:
            click.UsageError: One is missing.
        """
        shown = ", ".join(columns[:20])
        for column in self._mapping.used_columns():
            if column not in columns:
                raise click.UsageError(f"there is no column {column!r}; there are: {shown}")
        for name, usual in (
            ("event", ("event_name",)),
            ("customer", _usual(self._keys.customer_key)),
            ("value", _usual(self._keys.value_key)),
        ):
            given = name in self._columns or name in self._constants
            # Event names may have payload keys of their own, which only the rows tell.
            if not given and not self._keys_by_event and not set(usual) & set(columns):
                raise click.UsageError(
                    f"where is the {name}? Give --{name} or --map {name}=COLUMN; there are: {shown}"
                )

    def map(self, row: Row, now: float) -> Mapped:
        """Return the event of *row*, as it is valid at *now*.

        Raises:
            RowError: It cannot be billed.
        """
        if row.problem is not None:
            raise RowError(row.problem)
        name = self._field(row, "event", ("event_name",))
        keys = self._keys_by_event.get(name, self._keys) if isinstance(name, str) else self._keys
        customer = self._field(row, "customer", _usual(keys.customer_key))
        value = self._field(row, "value", _usual(keys.value_key))
        moment = self._moment(row, now)
        payload = self._payload(row, keys)
        own = self._own_identifier(row, name)
        identifier = own if own is not None else f"{self._mark}-{row.number}"
        event = RecordedEvent(
            now, name, customer, value, now if moment is None else moment, identifier, payload
        )
        try:
            wire = self._encoder.encode(event, "")
            content = None
            if own is not None:
                said = [
                    name,
                    customer,
                    format_value(value),
                    moment,
                    sorted((payload or {}).items()),
                ]
                content = _digest(said)
        except InvalidEventError as error:
            raise RowError(str(error)) from None
        return Mapped(row, event, wire, content)

    def _field(self, row: Row, name: str, usual: tuple[str, ...]) -> Any:
        constant = self._constants.get(name)
        if constant is not None:
            return constant
        found = self._cell(row, name, usual)
        if found is None:
            raise RowError(f"it has no {name}")
        return found

    def _cell(self, row: Row, name: str, usual: tuple[str, ...]) -> Any:
        # What is mapped must be there; what is only expected under its usual name may be missing.
        column = self._columns.get(name)
        if column is not None:
            found = _clean(row.cells.get(column))
            if found is None:
                raise RowError(f"its {column!r} is empty, which is the {name}")
            return found
        for column in usual:
            found = _clean(row.cells.get(column))
            if found is not None:
                return found
        return None

    def _moment(self, row: Row, now: float) -> float | None:
        given = self._cell(row, "timestamp", ("timestamp",))
        if given is None:
            return None
        try:
            moment = parse_moment(given, self._zone)
        except MomentError as error:
            raise RowError(f"timestamp {error}") from None
        if moment < now - TIMESTAMP_PAST_SECONDS_MAX:
            raise RowError(f"timestamp {given} is more than 35 days old: Stripe bills it no more")
        if moment > now + TIMESTAMP_FUTURE_SECONDS_MAX:
            raise RowError(f"timestamp {given} is more than 5 minutes ahead: is it in seconds?")
        return moment

    def _payload(self, row: Row, keys: PayloadKeys) -> dict[str, str] | None:
        payload = dict(self._mapping.payload_constants)
        if self._stripe_schema:
            for column, cell in row.cells.items():
                key = column[len(_PAYLOAD) :]
                if column.startswith(_PREFIXES) and key and key not in keys:
                    found = _clean(cell)
                    if found is not None:
                        payload[key] = _label(column, found)
        for key, column in self._mapping.payload_columns.items():
            found = _clean(row.cells.get(column))
            if found is None:
                raise RowError(f"its {column!r} is empty, which is payload {key!r}")
            payload[key] = _label(column, found)
        return payload or None

    def _own_identifier(self, row: Row, name: Any) -> str | None:
        if not self._mapping.key:
            found = self._cell(row, "identifier", ("identifier",))
            return None if found is None else _text("identifier", found)
        cells = [_clean(row.cells.get(column)) for column in self._mapping.key]
        for column, cell in zip(self._mapping.key, cells, strict=True):
            if cell is None:
                raise RowError(f"its {column!r} is empty, which is its key")
        # The event name is part of it: one row may bill two meters.
        return "import-" + _digest([name, *cells]).hex()


@lru_cache(maxsize=64)
def _usual(key: str) -> tuple[str, ...]:
    return tuple(prefix + key for prefix in _PREFIXES)


def _clean(cell: Any) -> Any:
    if isinstance(cell, str):
        cell = cell.strip()
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
        raise RowError(str(error)) from None


def _digest(parts: list[Any]) -> bytes:
    text = json.dumps([str(part) for part in parts])
    return hashlib.blake2b(text.encode(), digest_size=16).digest()
