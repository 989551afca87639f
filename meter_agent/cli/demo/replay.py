"""The producers: threads that record the trace as a service would, and note what they passed."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple, Self
from zlib import crc32

from meter_agent.cli.demo.trace import TraceRow

__all__ = ["METERS", "Account", "Replay", "customer_of"]

METERS = ("input_tokens", "output_tokens")
_CUSTOMERS = 25
_THREADS = 4
_END_SECONDS = 2.0


class Account(NamedTuple):
    """What usage is summed by."""

    meter: str
    customer: str


class Replay:
    """Records *rows* from several threads; use it as a context manager, which ends them.

    Args:
        rows: The trace.
        record: `MeterAgent.record`.
        seed: Part of the identifiers.
        seconds: How long the whole trace takes to play.
    """

    def __init__(
        self, rows: Sequence[TraceRow], record: Callable[..., bool], *, seed: int, seconds: float
    ) -> None:
        self._record = record
        self._seed = seed
        self._cancelled = threading.Event()
        first, last = min(row.at for row in rows), max(row.at for row in rows)
        self._first = first
        self._pace = seconds / (last - first) if last > first else 0.0
        # The trace is of 2023, and Stripe takes usage of the last 35 days: the whole trace is moved
        # so that its last row happens now.
        self._shift = time.time() - last
        self._started_at = time.monotonic()
        self._passed = [Counter[Account]() for _ in range(_THREADS)]
        self._threads = [
            threading.Thread(
                target=self._play,
                args=(rows[index::_THREADS], passed),
                name=f"demo-{index}",
                daemon=True,
            )
            for index, passed in enumerate(self._passed)
        ]

    @property
    def passed(self) -> dict[Account, int]:
        """Tokens passed to `record()`, whatever it answered. Ask when the threads have ended."""
        total = Counter[Account]()
        for passed in self._passed:
            total.update(passed)
        return dict(total)

    def wait(self, timeout: float) -> bool:
        """Wait at most *timeout* seconds; say whether everything has been recorded."""
        deadline = time.monotonic() + timeout
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        return not any(thread.is_alive() for thread in self._threads)

    def start(self) -> None:
        """Begin. Not done on entering: a Ctrl-C between two threads has to find its way out."""
        self._started_at = time.monotonic()
        for thread in self._threads:
            thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self._cancelled.set()
        for thread in self._threads:
            if thread.ident is not None:
                # With a limit: a Ctrl-C that strikes within `start()` can leave a lock of the
                # standard library locked, for which the new thread waits for ever.
                thread.join(_END_SECONDS)

    def _play(self, rows: Sequence[TraceRow], passed: Counter[Account]) -> None:
        for row in rows:
            if self._cancelled.wait(self._seconds_until(row)):
                return
            self._record_row(row, passed)

    def _seconds_until(self, row: TraceRow) -> float:
        due_at = self._started_at + (row.at - self._first) * self._pace
        return max(0.0, due_at - time.monotonic())

    def _record_row(self, row: TraceRow, passed: Counter[Account]) -> None:
        customer = customer_of(row.number)
        at = row.at + self._shift
        # Input events carry identifiers of their own, as whoever replays a file should: sent twice,
        # it is billed once. Output events leave that to the agent, as most services do.
        identifier = f"demo-{self._seed}-{row.number}"
        self._record(METERS[0], customer, row.input_tokens, timestamp=at, identifier=identifier)
        self._record(METERS[1], customer, row.output_tokens, timestamp=at)
        passed[Account(METERS[0], customer)] += row.input_tokens
        passed[Account(METERS[1], customer)] += row.output_tokens


def customer_of(number: int) -> str:
    """Return the customer of a row; the trace names none, so its number decides."""
    return f"cus_demo_{crc32(str(number).encode()) % _CUSTOMERS:02d}"
