"""The demo from start to end: start, record, drain, compare."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol
from urllib.parse import quote

from meter_agent import Config, DeadLetter, MeterAgent, Stats
from meter_agent.cli.demo.books import Books
from meter_agent.cli.demo.faults import FAULTS, SESSION_SECONDS, count_strikes
from meter_agent.cli.demo.replay import METERS, Account, Replay
from meter_agent.cli.demo.server import SandboxProcess
from meter_agent.cli.demo.trace import TraceRow
from meter_agent.cli.interrupts import Interrupts

__all__ = ["Report", "Viewer", "play"]

_DRAIN_SECONDS = 15.0
_LOOK_SECONDS = 0.1


class Viewer(Protocol):
    """Who is told how the demo goes."""

    def say(self, text: str) -> None:
        """Hear something worth a line."""

    def show(self, stats: Stats, events: int) -> None:
        """See the ledger and how many events there will be, several times a second."""


@dataclass(frozen=True)
class Report:
    """What came out."""

    rows: int
    books: Books
    faults: dict[str, int]
    seconds: float
    differences: tuple[str, ...]

    @property
    def balanced(self) -> bool:
        """Whether nothing was lost and nothing counted twice."""
        return not self.differences

    def to_document(self) -> dict[str, Any]:
        """Return it ready for JSON."""
        books, stats = self.books, self.books.stats
        counts = (
            *("recorded", "delivered", "dead_lettered", "uncertain"),
            *("requests", "retries", "sessions", "splits"),
        )
        return {
            "rows": self.rows,
            "events": books.events,
            "ledger": {
                **{name: getattr(stats, name) for name in counts},
                "dropped": dict(stats.dropped),
            },
            "sandbox": {
                "accepted": books.sandbox["accepted"],
                "duplicates": books.sandbox["duplicates"],
            },
            "faults": self.faults,
            "totals": {
                meter: {side: int(total) for side, total in sides.items()}
                for meter, sides in books.meter_totals().items()
            },
            "customers": _customers(books),
            "differences": list(self.differences),
            "balanced": self.balanced,
            "seconds": round(self.seconds, 3),
        }


def play(rows: Sequence[TraceRow], *, seed: int, seconds: float, viewer: Viewer) -> Report:
    """Replay *rows* into a sandbox with faults and compare the books.

    Args:
        rows: The trace.
        seed: Draws faults and poison.
        seconds: How long the replay takes; draining comes on top.
        viewer: Told how far it is.

    Raises:
        SandboxProcessError: The sandbox did not start, or went away.
    """
    began_at = time.monotonic()
    letters: list[DeadLetter] = []
    with (
        Interrupts() as interrupts,
        SandboxProcess(seed=seed, session_seconds=SESSION_SECONDS) as sandbox,
    ):
        sandbox.post("faults", FAULTS)
        viewer.say(f"a sandbox with faults runs at {sandbox.url}; look below /_sandbox/")
        # Not from the environment: the demo is the same whatever the user's service is set to.
        config = Config(
            sandbox_url=sandbox.url,
            max_in_flight=4,
            retry_base_seconds=0.05,
            retry_max_seconds=1.0,
            shutdown_timeout_seconds=1.0,
        )
        with MeterAgent(config, on_dead_letter=letters.append) as agent:

            def look() -> None:
                interrupts.check()
                viewer.show(agent.stats(), len(METERS) * len(rows))

            passed = _record_all(agent, rows, seed=seed, seconds=seconds, look=look)
            _drain(agent, look)
            stats = agent.close()
        totals = sandbox.get("totals")
        # Refused after an answer that was lost: the sandbox knows whether it has them.
        doubtful = [letter.event["identifier"] for letter in letters if letter.uncertain]
        uncertain = {
            identifier: bool(sandbox.get(f"ledger?identifier={quote(identifier)}")["events"])
            for identifier in doubtful
        }
        strikes = count_strikes(sandbox.get("requests?limit=100000")["requests"])
    books = Books(len(METERS) * len(rows), passed, letters, stats, totals, uncertain)
    differences = tuple(books.differences())
    return Report(len(rows), books, strikes, time.monotonic() - began_at, differences)


def _record_all(
    agent: MeterAgent,
    rows: Sequence[TraceRow],
    *,
    seed: int,
    seconds: float,
    look: Callable[[], None],
) -> dict[Account, int]:
    with Replay(rows, agent.record, seed=seed, seconds=seconds) as replay:
        replay.start()
        while not replay.wait(_LOOK_SECONDS):
            look()
        return replay.passed


def _drain(agent: MeterAgent, look: Callable[[], None]) -> None:
    deadline = time.monotonic() + _DRAIN_SECONDS
    while not agent.flush(_LOOK_SECONDS) and time.monotonic() < deadline:
        look()
    look()


def _customers(books: Books) -> dict[str, dict[str, dict[str, int]]]:
    dead, received = books.dead(), books.received()
    document: dict[str, dict[str, dict[str, int]]] = {meter: {} for meter in METERS}
    for account in sorted({*books.passed, *received}):
        document.setdefault(account.meter, {})[account.customer] = {
            "recorded": books.passed.get(account, 0),
            "dead_lettered": int(dead.get(account, 0)),
            "sandbox": int(received.get(account, 0)),
        }
    return document
