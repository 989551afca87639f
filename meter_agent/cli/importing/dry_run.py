"""A look at a file without sending: what each meter and customer would get, and what no one."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from decimal import Context, Decimal, Inexact
from typing import NamedTuple

import click

from meter_agent import Config
from meter_agent._event import format_value
from meter_agent.cli.exit_codes import ExitCode
from meter_agent.cli.importing.chunks import Chunks, Rejected
from meter_agent.cli.importing.file_import import CHUNK_ROWS
from meter_agent.cli.importing.input_file import InputFile
from meter_agent.cli.importing.ledger import ImportLedger
from meter_agent.cli.importing.options import ImportOptions
from meter_agent.cli.importing.row import Rows, UnreadableError
from meter_agent.cli.importing.row_mapper import RowMapper
from meter_agent.cli.importing.row_source import open_rows
from meter_agent.cli.importing.side_file import RejectsFile, open_rejects
from meter_agent.cli.printing import Columns, counted, print_json, say

__all__ = ["rehearse_file"]

# Room for any sum of 15-digit values.
_EXACT = Context(prec=60, traps=[Inexact])


class Total(NamedTuple):
    """What a customer has of a meter."""

    event_name: str
    customer: str
    events: int
    value: Decimal


@dataclass
class Rehearsal:
    """Totals of the rows of a file."""

    ledger: ImportLedger = field(default_factory=ImportLedger)
    _totals: dict[tuple[str, str], tuple[int, Decimal]] = field(default_factory=dict)

    def look_through(self, chunks: Chunks, now: float) -> Iterator[Rejected]:
        """Add up all rows, and yield those that would be rejected."""
        while (chunk := chunks.take(now, CHUNK_ROWS)) is not None:
            for mapped in chunk.events:
                account = (str(mapped.event.event_name), str(mapped.event.customer_id))
                events, value = self._totals.get(account, (0, Decimal(0)))
                self._totals[account] = (
                    events + 1,
                    _EXACT.add(value, Decimal(format_value(mapped.event.value))),
                )
            self.ledger += ImportLedger(
                rows=chunk.rows,
                recorded=len(chunk.events),
                not_sent=len(chunk.events),
                rejected=len(chunk.rejected),
                repeated=chunk.repeated,
            )
            yield from chunk.rejected

    def totals(self) -> Iterator[Total]:
        """Yield the sums, exact to the last digit, by meter and customer."""
        for (event_name, customer), (events, value) in sorted(self._totals.items()):
            yield Total(event_name, customer, events, value)


def rehearse_file(file: InputFile, config: Config, options: ImportOptions) -> ExitCode:
    """Print what an import of *file* would do, and send nothing."""
    file.look_through()
    rehearsal = Rehearsal()
    with contextlib.closing(open_rows(file, options.file_format, options.dialect)) as rows:
        mapper = RowMapper(
            options.mapping, config.encoder_keys, "import-" + "0" * 32, options.dialect
        )
        mapper.check_columns(rows)
        rejects = _rejects(rows, options)
        stopped = None
        with contextlib.closing(Chunks(rows, mapper)) as chunks:
            try:
                for each in rehearsal.look_through(chunks, time.time()):
                    if rejects is not None:
                        rejects.append_rows([each])
                    if options.as_json:
                        place = {"row": each.row.number, rows.unit: each.row.line}
                        print_json({"rejected": {**place, "reason": each.reason}})
                    else:
                        say(f"rejected {rows.unit} {each.row.line}: {each.reason}")
            except UnreadableError as error:
                stopped = error
    _print_totals(file, rehearsal, options)
    if stopped is not None:
        say(str(stopped), err=True)
        return ExitCode.BAD
    return ExitCode.BAD if rehearsal.ledger.rejected else ExitCode.OK


def _rejects(rows: Rows, options: ImportOptions) -> RejectsFile | None:
    if options.rejects is None:
        return None
    try:
        return open_rejects(options.rejects, None, rows, options)
    except OSError as error:
        raise click.UsageError(f"--rejects {options.rejects}: {error.strerror}") from None


def _print_totals(file: InputFile, rehearsal: Rehearsal, options: ImportOptions) -> None:
    table = Columns(event=24, customer=24, events=-10, value=-18)
    for total in rehearsal.totals():
        value = format(total.value, "f")
        if options.as_json:
            print_json({"total": {**total._asdict(), "value": value}})
        else:
            table.row(total.event_name, total.customer, total.events, value)
    ledger = rehearsal.ledger
    if options.as_json:
        print_json({"file": file.name, "dry_run": True, **ledger.to_document()})
    else:
        say(
            f"{file.name}: {counted(ledger.rows, 'row')}: {ledger.recorded} would be sent, "
            f"{ledger.rejected} rejected, {ledger.repeated} repeated"
        )
