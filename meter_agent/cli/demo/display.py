"""What the demo shows: a live ledger on stderr, and the report on stdout."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator

import click
from rich.columns import Columns
from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from meter_agent import Stats
from meter_agent.cli.demo.play import Report, Viewer

__all__ = ["print_report", "watch"]

_PLAIN_LINE_SECONDS = 2.0


@contextlib.contextmanager
def watch(console: Console | None = None) -> Iterator[Viewer]:
    """Yield what shows the ledger while it runs: live on a terminal, else a line now and then."""
    console = console or Console(stderr=True)
    if not console.is_terminal:
        yield _PlainLines(console)
        return
    with Live(console=console) as live:
        yield _LiveLedger(live)


def print_report(report: Report, *, as_json: bool) -> None:
    """Print *report* on stdout; the last line is the verdict."""
    if as_json:
        click.echo(json.dumps(report.to_document(), indent=2))
    else:
        _print_tables(report)
    for line in report.differences:
        click.echo(line, err=as_json)
    verdict = "the books balance" if report.balanced else "the books do not balance"
    click.echo(verdict, err=as_json)


class _LiveLedger:
    """On a terminal: a progress bar with the ledger below it."""

    def __init__(self, live: Live) -> None:
        self._live = live
        self._progress = Progress(
            TextColumn("replay"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
        )
        self._bar = self._progress.add_task("replay", total=None)

    def say(self, text: str) -> None:
        """Print a line above the bar."""
        self._live.console.print(text, highlight=False, soft_wrap=True)

    def show(self, stats: Stats, events: int) -> None:
        """Bring bar and ledger up to date."""
        self._progress.update(self._bar, total=events, completed=_settled(stats))
        self._live.update(Group(self._progress, Text(_ledger_line(stats), style="dim")))


class _PlainLines:
    """Without a terminal: a line at most every two seconds, for logs."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._next_at = 0.0

    def say(self, text: str) -> None:
        """Print a line."""
        self._console.print(text, highlight=False, soft_wrap=True)

    def show(self, stats: Stats, events: int) -> None:
        """Print the ledger if it is time."""
        now = time.monotonic()
        if now >= self._next_at or _settled(stats) == events:
            self._next_at = now + _PLAIN_LINE_SECONDS
            self.say(f"{_settled(stats)}/{events} settled: {_ledger_line(stats)}")


def _settled(stats: Stats) -> int:
    return stats.delivered + stats.dead_lettered + stats.uncertain + stats.dropped_total


def _ledger_line(stats: Stats) -> str:
    return (
        f"recorded {stats.recorded}  delivered {stats.delivered}  in flight {stats.in_flight}  "
        f"buffered {stats.buffered}  dead {stats.dead_lettered}  retries {stats.retries}"
    )


def _print_tables(report: Report) -> None:
    console = Console()
    console.print(Columns([_ledger_table(report), _fault_table(report)]))
    console.print(_totals_table(report))
    accounts = len({*report.books.passed, *report.books.received()})
    click.echo(
        f"{report.rows} requests of the trace, {accounts} customer totals compared, "
        f"{report.seconds:.1f} s"
    )


def _ledger_table(report: Report) -> Table:
    stats, sandbox = report.books.stats, report.books.sandbox
    return _number_table(
        "ledger",
        {
            "recorded": stats.recorded,
            "delivered": stats.delivered,
            "dead-lettered": stats.dead_lettered,
            "uncertain": stats.uncertain,
            "dropped": stats.dropped_total,
            "requests": stats.requests,
            "retries": stats.retries,
            "sessions": stats.sessions,
            "duplicates absorbed by the sandbox": sandbox["duplicates"],
            "accepted by the sandbox": sandbox["accepted"],
        },
    )


def _fault_table(report: Report) -> Table:
    named = {name.replace("_", " "): count for name, count in report.faults.items()}
    return _number_table("faults that struck", named)


def _number_table(title: str, numbers: dict[str, int]) -> Table:
    table = Table(title=title, show_header=False, title_justify="left")
    table.add_column()
    table.add_column(justify="right")
    for name, number in numbers.items():
        table.add_row(name, f"{number:,}")
    return table


def _totals_table(report: Report) -> Table:
    table = Table(title="tokens, all customers", title_justify="left")
    table.add_column("meter")
    for heading in ("recorded", "dead-lettered", "in the sandbox", "difference"):
        table.add_column(heading, justify="right")
    for meter, sides in report.books.meter_totals().items():
        recorded, dead, has = sides["recorded"], sides["dead_lettered"], sides["sandbox"]
        numbers = (recorded, dead, has, dead + has - recorded)
        table.add_row(meter, *(f"{number:,}" for number in numbers))
    return table
