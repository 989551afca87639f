"""How far a long work has come: a bar on a terminal, else a line now and then. On stderr."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Protocol

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar
from rich.text import Text

from meter_agent.cli.printing import printable

__all__ = ["Pace", "Progress", "progress"]

_PLAIN_LINE_SECONDS = 2.0


class Progress(Protocol):
    """Who is told how far the work has come."""

    def say(self, text: str) -> None:
        """Print a line that stays. May be called from any thread."""

    def show(self, completed: int, total: int, details: str) -> None:
        """Show how far it is; called several times a second."""


class Pace:
    """How fast a work goes, and how long the rest of it takes at that.

    Args:
        completed: What had been done before.
    """

    def __init__(self, completed: int = 0) -> None:
        self._completed = completed
        self._began_at = time.monotonic()

    def tell(self, completed: int, total: int) -> str:
        """Return rate and time left for people."""
        seconds = time.monotonic() - self._began_at
        done = completed - self._completed
        if seconds <= 0 or done <= 0:
            return "0/s"
        rate = done / seconds
        left = (total - completed) / rate
        minutes, seconds = divmod(round(left), 60)
        hours, minutes = divmod(minutes, 60)
        clock = f"{hours}:{minutes:02d}:{seconds:02.0f}"
        return f"{rate:,.0f}/s  {clock} left"


@contextlib.contextmanager
def progress(title: str, console: Console | None = None) -> Iterator[Progress]:
    """Yield what shows the progress of *title* as long as it lasts."""
    console = console or Console(stderr=True)
    if not console.is_terminal:
        yield _PlainLines(console)
        return
    with Live(console=console) as live:
        yield _LiveBar(title, live)


def _print(console: Console, text: str) -> None:
    console.print(printable(text), highlight=False, markup=False, soft_wrap=True)


class _LiveBar:
    """On a terminal: a progress bar with the details below it."""

    def __init__(self, title: str, live: Live) -> None:
        self._live = live
        self._bar = Bar(
            TextColumn(printable(title), markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
        )
        self._task = self._bar.add_task("", total=None)

    def say(self, text: str) -> None:
        _print(self._live.console, text)

    def show(self, completed: int, total: int, details: str) -> None:
        self._bar.update(self._task, total=total, completed=completed)
        self._live.update(Group(self._bar, Text(printable(details), style="dim")))


class _PlainLines:
    """Without a terminal: a line at most every two seconds, for logs."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._next_at = 0.0

    def say(self, text: str) -> None:
        _print(self._console, text)

    def show(self, completed: int, total: int, details: str) -> None:
        now = time.monotonic()
        if now >= self._next_at or completed == total:
            self._next_at = now + _PLAIN_LINE_SECONDS
            self.say(f"{completed}/{total} settled: {details}")
