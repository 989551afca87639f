"""Which column is what, as the options say it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import tzinfo
from typing import Any

import click

from meter_agent.cli.moments import MomentError, parse_zone

__all__ = ["PAYLOAD", "RowMapping"]

_FIELDS = ("event", "customer", "value", "timestamp", "identifier")
PAYLOAD = "payload."
"""What the names of payload fields begin with."""


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
    decimal: str | None = None
    """What stands before the decimals of values: `.` or `,`; None: a point, if it is certain."""

    @classmethod
    def parse(
        cls,
        pairs: Mapping[str, str],
        constants: Mapping[str, str | None],
        payload: Mapping[str, str],
        *,
        key: tuple[str, ...],
        timezone: str | None,
        decimal: str | None,
    ) -> RowMapping:
        """Return the mapping that the options say.

        Raises:
            click.UsageError: They contradict each other, or a name is unknown.
        """
        given = {name: text for name, text in constants.items() if text is not None}
        for name in pairs:
            if name not in _FIELDS and not (name.startswith(PAYLOAD) and name != PAYLOAD):
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
                name.removeprefix(PAYLOAD): column
                for name, column in pairs.items()
                if name not in _FIELDS
            },
            payload_constants=payload,
            key=key,
            timezone=timezone,
            decimal=decimal,
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
        if self.timezone is None:
            return None
        try:
            return parse_zone(self.timezone)
        except MomentError as error:
            raise click.UsageError(f"--timezone {error}") from None

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
        return [*self.mapped_columns(), *self.key]

    def mapped_columns(self) -> list[str]:
        """Return the columns that are fields."""
        return [*self.columns.values(), *self.payload_columns.values()]

    def expected_columns(self, name: str, usual: tuple[str, ...]) -> tuple[str, ...]:
        """Return those of the *usual* columns in which the field *name* may be.

        A column that is mapped to another field is that field and nothing else.
        """
        if name in self.columns or name in self.constants:
            return ()
        mapped = self.mapped_columns()
        return tuple(column for column in usual if column not in mapped)
