"""Loops around one statement, compiled, so that nothing but the statement is measured.

A lambda around it would cost as much as the append that it is compared to.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

from benchmarks.clients import Client

_SOURCE = """
def run(calls):
    for _ in range(calls):
        {call}

def laps(calls, clock):
    laps = [0] * calls
    for lap in range(calls):
        began = clock()
        {call}
        laps[lap] = clock() - began
    return laps
"""
_CHUNK = 500
_CHUNK_OF_SINGLE = 100
_TURNS = 10


class Calls:
    """The calls of one client.

    `run(n)` makes *n* of them; `laps(n, clock)` returns what the clock said of each.
    """

    def __init__(self, client: Client) -> None:
        names: dict[str, Any] = dict(client.names)
        exec(compile(_SOURCE.format(call=client.call), "<calls>", "exec"), names)
        self.run: Callable[[int], None] = names["run"]
        self._laps: Callable[[int, Callable[[], int]], list[int]] = names["laps"]

    def beside(self, floor: Calls, calls: int) -> dict[str, float]:
        """Return the median of chunks of calls in ns, without the cost of a clock in each.

        And, as `of_floor`, the median ratio of a chunk to one of *floor* just before it: a machine
        that changes its speed every second changes it for both.
        """
        chunks, ratios = [], []
        for _ in range(max(1, calls // _CHUNK)):
            below, own = floor._seconds(_CHUNK), self._seconds(_CHUNK)
            chunks.append(own / _CHUNK * 1e9)
            ratios.append(own / below)
        return {"nanoseconds": median(chunks), "of_floor": median(ratios)}

    def _seconds(self, calls: int) -> float:
        began = time.perf_counter()
        self.run(calls)
        return time.perf_counter() - began

    def percentiles(self, calls: int, seconds: float = float("inf")) -> dict[str, float]:
        """Return p50, p99, p99.9 and the longest of single calls, in µs, the clock included.

        Ends after *seconds*, for calls of which some take milliseconds.
        """
        laps: list[int] = []
        ends = time.perf_counter() + seconds
        while len(laps) < calls and time.perf_counter() < ends:
            laps += self._laps(min(calls, _CHUNK_OF_SINGLE), time.perf_counter_ns)
        return percentiles(laps)

    def per_second_beside(self, floor: Calls, threads: int, calls: int) -> dict[str, float]:
        """Return calls per second when *threads* threads make *calls* calls together.

        And, as `of_floor`, the ratio to *floor*; the two take turns here too.
        """
        rates, ratios = [], []
        for _ in range(_TURNS):
            below = floor._per_second(threads, calls // _TURNS)
            rates.append(self._per_second(threads, calls // _TURNS))
            ratios.append(rates[-1] / below)
        return {"per_second": median(rates), "of_floor": median(ratios)}

    def _per_second(self, threads: int, calls: int) -> float:
        barrier = threading.Barrier(threads + 1)

        def work() -> None:
            barrier.wait()
            self.run(calls // threads)
            barrier.wait()

        for _ in range(threads):
            threading.Thread(target=work, daemon=True).start()
        barrier.wait()
        began = time.perf_counter()
        barrier.wait()
        return calls / (time.perf_counter() - began)

    def paced(self, per_second: int, seconds: float) -> dict[str, float]:
        """Return the percentiles of calls made *per_second*, a few every millisecond."""
        laps: list[int] = []
        burst = max(1, per_second // 1000)
        due = time.perf_counter()
        ends = due + seconds
        while due < ends:
            laps += self._laps(burst, time.perf_counter_ns)
            due += burst / per_second
            time.sleep(max(0.0, due - time.perf_counter()))
        return percentiles(laps)


def percentiles(nanoseconds: Sequence[int]) -> dict[str, float]:
    """Return p50, p99, p99.9 and the longest in µs."""
    laps = sorted(nanoseconds)
    shares = {"p50": 0.5, "p99": 0.99, "p99_9": 0.999}
    found = {name: percentile(laps, share) / 1000 for name, share in shares.items()}
    return found | {"max": laps[-1] / 1000}


def percentile(ordered: Sequence[float], share: float) -> float:
    """Return the value below which *share* of *ordered* lies."""
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]
