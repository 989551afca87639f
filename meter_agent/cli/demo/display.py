"""What the demo shows: a live ledger on stderr, and the report on stdout."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from rich.columns import Columns
from rich.console import Console
from rich.table import Table

from meter_agent import Stats
from meter_agent.cli.demo.play import Report, Viewer
from meter_agent.cli.printing import counted, print_json, say
from meter_agent.cli.progress import Progress, progress

__all__ = ["print_report", "watch"]


@contextlib.contextmanager
def watch(console: Console | None = None) -> Iterator[Viewer]:
    """Yield what shows the ledger while it runs: live on a terminal, else a line now and then."""
    with progress("replay", console) as shown:
        yield _Ledger(shown)


def print_report(report: Report, *, as_json: bool) -> None:
    """Print *report* on stdout; the last line is the verdict."""
    if as_json:
        print_json(report.to_document())
    else:
        _print_tables(report)
    for line in report.differences:
        say(line, err=as_json)
    verdict = "the books balance" if report.balanced else "the books do not balance"
    say(verdict, err=as_json)


class _Ledger:
    """The agent's ledger as progress."""

    def __init__(self, shown: Progress) -> None:
        self.say = shown.say
        self._shown = shown

    def show(self, stats: Stats, events: int) -> None:
        """Bring it up to date."""
        self._shown.show(_settled(stats), events, _ledger_line(stats))


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
    say(
        f"{counted(report.rows, 'request')} of the trace, "
        f"{counted(accounts, 'customer total')} compared, "
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
